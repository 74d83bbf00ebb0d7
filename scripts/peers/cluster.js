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
  let port = 0;
  // The first worker draws the port, the others join it.
  const spawn = () => cluster.fork({ PEER_PORT: port });
  cluster.on('listening', (_, address) => {
    port = address.port;
    listening += 1;
    if (listening < workers) spawn();
    if (listening === workers) console.error(`listening on http://127.0.0.1:${port}`);
  });
  cluster.on('exit', () => { if (listening >= workers) spawn(); });
  spawn();
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
  server.listen({ port: Number(process.env.PEER_PORT), host: '127.0.0.1', backlog: 4096 });
}
