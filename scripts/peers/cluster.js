// A server on Node's cluster module: `node cluster.js WORKERS rr|none`. It answers `GET /` like `prefork serve`,
// replaces dead workers, prints its address to standard error, and ends when its standard input is closed. With
// TLS_CERT and TLS_KEY it speaks TLS.
'use strict';
const cluster = require('node:cluster');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');

const isTls = process.env.TLS_CERT !== undefined;
const [workers, policy] = [Number(process.argv[2]), process.argv[3]];

if (cluster.isPrimary) {
  if (!(workers >= 1 && workers <= 64) || !['rr', 'none'].includes(policy)) {
    console.error('usage: cluster.js 1..64 rr|none');
    process.exit(64);
  }
  cluster.schedulingPolicy = policy === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  let listening = 0;
  cluster.on('listening', (_, address) => {
    listening += 1;
    if (listening === workers) console.error(`listening on ${isTls ? 'https' : 'http'}://127.0.0.1:${address.port}`);
  });
  cluster.on('exit', () => cluster.fork());
  for (let i = 0; i < workers; i += 1) cluster.fork();
  const end = () => {
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
    process.exit(0);
  };
  process.stdin.on('end', end).on('error', end).resume();
  process.on('SIGTERM', end);
} else {
  const body = `Handled by PID ${process.pid}\n`;
  const head = { 'content-type': 'text/plain; charset=utf-8', 'content-length': body.length };
  // /bytes/N and /fib/N as in `prefork serve`. Node has no thread pool for plain functions, so fib runs on the event
  // loop.
  const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
  const answer = (request, response) => {
    if (request.url === '/') {
      response.writeHead(200, head);
      response.end(body);
      return;
    }
    const [, name, number] = /^\/(bytes|fib)\/(\d{1,8})(?:\?on=loop)?$/.exec(request.url) ?? [];
    const n = Number(number);
    if (name === 'bytes') response.end(Buffer.alloc(n, 'x'));
    else if (name === 'fib' && n <= 50) response.end(`fib(${n}) = ${fib(n)}\n`);
    else response.writeHead(404).end();
  };
  const server = isTls
    ? https.createServer({ cert: fs.readFileSync(process.env.TLS_CERT), key: fs.readFileSync(process.env.TLS_KEY) }, answer)
    : http.createServer(answer);
  server.keepAliveTimeout = 300_000;
  // In a cluster, port 0 is the same port for all workers.
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
}
