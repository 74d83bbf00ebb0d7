// Measures jobs in Piscina, a thread pool for Node: `node piscina.js PLAN`, with piscina in NODE_PATH. `PLAN` and the
// lines printed are described in job_costs/program_plan.rs.
'use strict';
const path = require('node:path');
const { Piscina } = require('piscina');

const plan = JSON.parse(process.argv[2]);

function microsecondsSince(begun) {
  return Number(process.hrtime.bigint() - begun) / 1000;
}

// Repeats `job` until the plan's number of samples or its time is reached.
async function sample(job) {
  const times = [];
  const end = Date.now() + plan.budget_ms;
  while (times.length < plan.samples && (times.length < 3 || Date.now() < end)) {
    const begun = process.hrtime.bigint();
    await job();
    times.push(microsecondsSince(begun));
  }
  return times;
}

async function measureCosts(pool) {
  const one = () => pool.run(0, { name: 'empty' });
  const batch = () => Promise.all(Array.from({ length: plan.batch }, one));
  // Starts the threads, and lets the compiler optimize.
  for (let i = 0; i < 8; i += 1) await batch();
  const oneByOne = await sample(one);
  const bulk = (await sample(batch)).map((time) => time / plan.batch);

  const copied = Buffer.alloc(plan.bytes, 'x');
  const copy = async () => {
    const back = await pool.run(copied, { name: 'echo' });
    if (back.length !== plan.bytes) throw new Error('the data did not come back');
  };
  let moved = new ArrayBuffer(plan.bytes);
  const move = async () => {
    moved = await pool.run(moved, { name: 'echoMoved', transferList: [moved] });
    if (moved.byteLength !== plan.bytes) throw new Error('the data did not come back');
  };
  await copy();
  await move();
  return {
    one_by_one_us: oneByOne,
    bulk_us: bulk,
    transfers: [
      { how: 'Piscina, Buffer copied', samples_us: await sample(copy) },
      { how: 'Piscina, ArrayBuffer moved', samples_us: await sample(move) },
    ],
  };
}

// One job runs and others wait when a job kills its process. Nothing survives, so the caller measures.
async function crash(pool) {
  await Promise.all(Array.from({ length: plan.threads * 4 }, () => pool.run(0, { name: 'empty' })));
  const running = pool.run(200, { name: 'pause' });
  console.log('crash');
  const others = Array.from({ length: plan.other_jobs - 1 }, (_, i) => i);
  const aborted = pool.run(0, { name: 'abort' });
  await Promise.allSettled([running, aborted, ...others.map(() => pool.run(0, { name: 'empty' }))]);
  throw new Error('the process is still there after an abort');
}

async function main() {
  const pool = new Piscina({
    filename: path.resolve(__dirname, 'piscina_jobs.js'),
    minThreads: plan.threads,
    maxThreads: plan.threads,
    idleTimeout: 60_000,
  });
  if (plan.measure === 'costs') {
    console.log(JSON.stringify(await measureCosts(pool)));
  } else if (plan.measure === 'crash') {
    await crash(pool);
  } else {
    await pool.run(0, { name: 'empty' });
    console.log('done');
  }
  await pool.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
