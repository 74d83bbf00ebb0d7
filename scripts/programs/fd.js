// A Node program that takes the inherited socket itself.
'use strict';
require('node:http')
  .createServer((_, response) => response.end(`Handled by PID ${process.pid}\n`))
  .listen({ fd: 3 });
