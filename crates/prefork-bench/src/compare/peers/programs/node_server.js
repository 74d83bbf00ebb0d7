// A plain server on Node's http module. It answers the paths of `prefork serve` that workloads use, on PORT; with TLS_CERT
// and TLS_KEY over TLS.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');

const body = `Handled by PID ${process.pid}\n`;
const head = { 'content-type': 'text/plain; charset=utf-8', 'content-length': body.length };
// Node has no thread pool for plain functions: both kinds of /fib compute on the event loop.
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
const answer = (request, response) => {
  if (request.url === '/') {
    response.writeHead(200, head);
    response.end(body);
    return;
  }
  const [, name, number] = /^\/(bytes|fib|sleep)\/(\d{1,8})(?:\?on=(?:loop|pool))?$/.exec(request.url) ?? [];
  const n = Number(number);
  if (name === 'bytes') response.end(Buffer.alloc(n));
  else if (name === 'fib' && n <= 50) response.end(`fib(${n}) = ${fib(n)}\n`);
  else if (name === 'sleep') setTimeout(() => response.end(`slept for ${n} ms\n`), n);
  else response.writeHead(404).end();
};
const { TLS_CERT, TLS_KEY } = process.env;
const server = TLS_CERT
  ? https.createServer({ cert: fs.readFileSync(TLS_CERT), key: fs.readFileSync(TLS_KEY) }, answer)
  : http.createServer(answer);
server.keepAliveTimeout = 300_000;
server.listen({ port: Number(process.env.PORT ?? 0), host: '127.0.0.1', backlog: 4096 });
