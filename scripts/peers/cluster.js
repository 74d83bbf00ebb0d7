// Node's cluster module as a peer of prefork: `node cluster.js WORKERS rr|none`. It answers as `GET /` of
// `prefork serve` does, replaces workers that die, prints its address to standard error, and ends with its
// standard input.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

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
    if (listening === workers) console.error(`listening on http://127.0.0.1:${address.port}`);
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
  const server = http.createServer((_, response) => {
    response.writeHead(200, head);
    response.end(body);
  });
  server.keepAliveTimeout = 300_000;
  // In a cluster, all workers that ask for port 0 get the same one.
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
}
