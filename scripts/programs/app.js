// An application as users of PM2 have it: `node app.js`. It answers "ok" after WORK_MS, and knows nothing of prefork.
//
//   PORT         where it listens (3000)
//   START_MS     how long it takes until it listens
//   WARM_UP_MS   how long it answers 503 after that, until it calls process.send('ready')
//   READY_COUNT  how often it calls process.send('ready') (1)
//   HANDLER      set: closes its server on SIGINT and SIGTERM, as PM2's manual says
'use strict';
const http = require('node:http');

const number = (name, fallback) => Number(process.env[name] ?? fallback);
const workMs = number('WORK_MS', 5);
let isWarm = false;

const server = http.createServer((_, response) => {
  setTimeout(() => {
    response.writeHead(isWarm ? 200 : 503, { 'content-type': 'text/plain' });
    response.end(`Handled by PID ${process.pid}\n`);
  }, workMs);
});

setTimeout(() => {
  server.listen(number('PORT', 3000), () => {
    setTimeout(() => {
      isWarm = true;
      for (let count = number('READY_COUNT', 1); process.send && count > 0; count -= 1) process.send('ready');
    }, number('WARM_UP_MS', 0));
  });
}, number('START_MS', 0));

if (process.env.HANDLER) {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.on(signal, () => server.close(() => process.exit(0)));
  }
}
