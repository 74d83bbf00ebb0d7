// An unmodified Express application.
'use strict';
const express = require('express');
const app = express();
app.get('/', (_, response) => response.send(`Handled by PID ${process.pid}\n`));
app.listen(process.env.PORT || 3000);
