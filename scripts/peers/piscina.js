// Runs empty jobs in Piscina, a thread pool for Node: `node piscina.js THREADS CLIENTS SECONDS`, with piscina in
// NODE_PATH. Prints the jobs per second.
'use strict';
const { Piscina } = require('piscina');
const path = require('node:path');

const [threads, clients, seconds] = process.argv.slice(2).map(Number);

async function main() {
  const pool = new Piscina({
    filename: path.resolve(__dirname, 'empty.js'),
    minThreads: threads,
    maxThreads: threads,
    idleTimeout: 60_000,
  });
  let done = 0;
  let end = Date.now() + 500;
  const client = async () => {
    while (Date.now() < end) {
      await pool.run(0);
      done += 1;
    }
  };
  const all = () => Promise.all(Array.from({ length: clients }, client));
  // A warm-up for the threads and the compiler.
  await all();
  done = 0;
  const begun = process.hrtime.bigint();
  end = Date.now() + seconds * 1000;
  await all();
  console.log((done * 1e9) / Number(process.hrtime.bigint() - begun));
  await pool.destroy();
}

main();
