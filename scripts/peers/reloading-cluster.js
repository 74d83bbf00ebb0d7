// An application on Node's cluster module with the usual reload: `node reloading-cluster.js WORKERS APP.js`. On SIGHUP, each
// worker gets a successor; once that listens, the old worker is disconnected, and killed after KILL_TIMEOUT_MS (1600, PM2's
// default). Prints "ready" and, after each reload, "reloaded" to standard output.
'use strict';
const cluster = require('node:cluster');
const path = require('node:path');

const [workers, app] = [Number(process.argv[2]), process.argv[3]];
const killTimeoutMs = Number(process.env.KILL_TIMEOUT_MS ?? 1600);
cluster.setupPrimary({ exec: path.resolve(app) });

const start = () => new Promise((resolve) => cluster.fork().once('listening', (_) => resolve()));

const replace = async (old) => {
  await start();
  const timer = setTimeout(() => old.process.kill('SIGKILL'), killTimeoutMs);
  old.once('exit', () => clearTimeout(timer));
  old.disconnect();
};

let last = Promise.resolve();
process.on('SIGHUP', () => {
  last = last.then(async () => {
    for (const old of Object.values(cluster.workers).filter((worker) => worker.isConnected())) await replace(old);
    console.log('reloaded');
  });
});
process.on('SIGTERM', () => {
  for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
  process.exit(0);
});
Promise.all(Array.from({ length: workers }, start)).then(() => console.log('ready'));
