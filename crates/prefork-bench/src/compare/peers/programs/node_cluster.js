// node_server.js on Node's cluster module: `node node_cluster.js WORKERS rr|none`, on PORT or else a free one. It replaces dead
// workers, prints its address to standard error once all listen, and ends when its standard input is closed.
'use strict';
const cluster = require('node:cluster');
const path = require('node:path');

const [workers, policy] = [Number(process.argv[2]), process.argv[3]];
if (!(workers >= 1 && workers <= 64) || !['rr', 'none'].includes(policy)) {
  console.error('usage: node_cluster.js 1..64 rr|none');
  process.exit(64);
}
cluster.schedulingPolicy = policy === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
// In a cluster, port 0 is the same port for all workers.
cluster.setupPrimary({ exec: path.join(__dirname, 'node_server.js') });
let listening = 0;
cluster.on('listening', (_, address) => {
  listening += 1;
  if (listening === workers) console.error(`listening on ${process.env.TLS_CERT ? 'https' : 'http'}://127.0.0.1:${address.port}`);
});
cluster.on('exit', () => cluster.fork());
for (let i = 0; i < workers; i += 1) cluster.fork();
const end = () => {
  for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
  process.exit(0);
};
process.stdin.on('end', end).on('error', end).resume();
process.on('SIGTERM', end);
