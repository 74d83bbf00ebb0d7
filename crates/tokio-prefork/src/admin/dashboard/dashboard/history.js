// Turns replies of /status into samples of the last five minutes.

import {
  durationHistogram, histogramIncrease, increase, increaseByMember, perSecond, powerOfTwoHistogram, quantile, quantileBound, sum,
} from './figures.js';

/** How long samples are kept. */
export const HISTORY_MS = 300_000;
/** The span over which quantiles are computed: shorter ones jump about at few requests per second. */
const QUANTILE_SPAN_MS = 5_500;
/** A heartbeat older than this counts as a stall: the default of `stall-warn`. */
const STALL_MS = 1_000;
const STORAGE_KEY = 'prefork-samples';

/** Returns for how long an event loop of a worker has been frozen, in milliseconds; 0 if none is. */
export function stalledMillis(worker) {
  // An isolated process blocks its loop on purpose while it runs a job.
  if (worker.job || worker.state === 'booting' || worker.state === 'forking') return 0;
  const age = Math.max(...heartbeatAges(worker));
  return age >= STALL_MS ? age : 0;
}

/** Returns the age of the last heartbeat of each event loop. */
function heartbeatAges(worker) {
  const threads = (worker.threads ?? []).filter((thread) => thread.state !== 'left');
  return (threads.length > 0 ? threads : [worker]).map((loop) => loop.beat_age_ms ?? 0);
}

export const servingWorkers = (status) =>
  status.workers.filter((one) => one.kind === 'web' && one.state === 'serving' && Math.min(...heartbeatAges(one)) < STALL_MS).length;

const errorsOf = (totals) => sum([totals.responses?.[4], totals.shed]);

function histogramsOf(status) {
  const byWorker = (read) => new Map(status.workers.map((worker) => [worker.id, read(worker)]));
  return {
    lag: byWorker((worker) => powerOfTwoHistogram(worker.loop_lag)),
    wait: byWorker((worker) => powerOfTwoHistogram(worker.queue_wait)),
    workerDurations: byWorker((worker) => durationHistogram(worker.durations)),
    durations: durationHistogram(status.durations),
  };
}

export class History {
  samples = [];
  #before = null;
  #recent = [];
  #workers = new Map();

  /** Adds a reply that arrived at `time`, in milliseconds since 1970. */
  add(status, time) {
    const histograms = histogramsOf(status);
    const base = this.#recent[0]?.histograms;
    const seconds = this.#before ? (time - this.#before.time) / 1000 : 0;
    const sample = { time, ...clusterRates(this.#before?.status, status, seconds), ...quantiles(base, histograms), ...gauges(status) };
    if (sample.stalled > 0) sample.lag = sample.stalled;
    this.#workers = workerFigures(this.#before?.status, status, seconds, base, histograms);
    this.#before = { status, time };
    this.#recent = [...this.#recent, { time, histograms }].filter((old) => time - old.time <= QUANTILE_SPAN_MS);
    this.samples = [...this.samples, sample].filter((old) => old.time > time - HISTORY_MS && old.time <= time);
    return sample;
  }

  /** Returns the rates and quantiles of a worker; empty for one that the reply before did not have. */
  ofWorker(worker) {
    return this.#workers.get(worker.id) ?? {};
  }

  /** Saves the samples of a cluster for the next page of this tab. */
  save(name) {
    try {
      sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ name, samples: this.samples }));
    } catch {
      // Without storage the next page begins without samples.
    }
  }

  restore(name) {
    try {
      const saved = JSON.parse(sessionStorage.getItem(STORAGE_KEY));
      if (saved.name === name) this.samples = saved.samples.filter((sample) => Number.isFinite(sample.time));
    } catch {
      // There is nothing to restore.
    }
  }
}

function clusterRates(old, now, seconds) {
  const rate = (read) => (old ? perSecond(read(old), read(now), seconds) : null);
  return {
    requests: rate((s) => s.totals.requests),
    errors: rate((s) => errorsOf(s.totals)),
    clientErrors: rate((s) => s.totals.responses?.[3]),
    bytesIn: rate((s) => s.totals.bytes_in),
    bytesOut: rate((s) => s.totals.bytes_out),
    accepted: rate((s) => s.totals.accepted),
    respawns: old ? increase(old.primary.restarts, now.primary.restarts) : null,
  };
}

const millis = (us) => (us === null ? null : us / 1000);

function quantiles(base, now) {
  if (!base) return { p50: null, p99: null, lag: null, wait: null };
  const durations = histogramIncrease(base.durations, now.durations) ?? new Map();
  return {
    p50: millis(quantile(durations, 0.5)),
    p99: millis(quantile(durations, 0.99)),
    lag: quantileBound(increaseByMember(base.lag, now.lag), 0.99),
    wait: quantileBound(increaseByMember(base.wait, now.wait), 0.99),
  };
}

const gauges = ({ workers, queues = [] }) => ({
  connections: sum(workers.map((worker) => worker.connections)),
  active: sum(workers.map((worker) => worker.active)),
  queued: sum(queues.map((queue) => queue.depth)),
  stalled: Math.max(0, ...workers.map(stalledMillis)),
});

function workerFigures(old, now, seconds, base, histograms) {
  const known = new Map((old?.workers ?? []).map((worker) => [worker.id, worker]));
  const grown = (kind, id) => increaseByMember(base[kind], new Map([[id, histograms[kind].get(id)]]));
  return new Map(now.workers.filter(({ id }) => known.has(id)).map((worker) => {
    const before = known.get(worker.id);
    return [worker.id, {
      requests: perSecond(before.counters.requests, worker.counters.requests, seconds),
      cpu: millis(perSecond(before.cpu_ms, worker.cpu_ms, seconds)),
      p99: millis(quantile(grown('workerDurations', worker.id), 0.99)),
      lag: quantileBound(grown('lag', worker.id), 0.99),
    }];
  }));
}

const MARKS = [
  ['reload', 'reload', /^reloading \(/],
  ['crash', 'reload failed', /^reload failed/],
  ['upgrade', 'upgrade', /^upgraded: /],
  ['crash', 'upgrade failed', /^upgrade failed/],
  ['crash', 'crash', /^worker=\d+ .*? (died(: | while | before )|was killed: (?!superseded))/],
  ['crash', 'crash loop', /^crash loop: /],
  ['stall', 'stall', /^worker=\d+ .*? has made no progress for /],
];

/** Returns kind and label of the mark that an event leaves; null for most events. */
export function markOf({ text }) {
  const found = MARKS.find(([, , pattern]) => pattern.test(text));
  return found ? { kind: found[0], label: found[1] } : null;
}
