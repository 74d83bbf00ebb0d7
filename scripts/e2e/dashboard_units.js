// Checks the parts of the dashboard that compute, in the page itself. The value of this expression lists what is wrong.
(async () => {
  const wrong = [];
  const equal = (what, seen, wanted) => {
    if (JSON.stringify(seen) !== JSON.stringify(wanted)) wrong.push(`${what}: ${JSON.stringify(seen)}, not ${JSON.stringify(wanted)}`);
  };
  const module = (name) => import(new URL(`dashboard/${name}.js`, location.href).href);
  const [figures, history, charts, connection, events, workers] = await Promise.all(
    ['figures', 'history', 'charts', 'connection', 'events', 'workers'].map(module));

  const { increase, perSecond, quantile, quantileBound, histogramIncrease, increaseByMember, durationHistogram } = figures;
  equal('a counter that grew', increase(5, 9), 4);
  equal('a counter that was reset', increase(9, 5), null);
  equal('a counter that is missing', [increase(undefined, 5), increase(5, NaN), increase(null, 5)], [null, null, null]);
  equal('a rate', perSecond(10, 30, 4), 5);
  equal('a rate over no time', perSecond(10, 30, 0), null);

  const measured = (buckets) => durationHistogram({ buckets });
  equal('no durations', quantile(durationHistogram(undefined), 0.5), null);
  equal('the middle of one bucket', quantile(measured([[1000, 100]]), 0.5), 750);
  equal('the bound below a lone bucket', quantile(measured([[250000, 1]]), 0), 100000);
  equal('longer than all bounds', quantile(measured([[100, 1], [null, 99]]), 0.99), 1e7);
  equal('bounds', [...measured([]).keys()].slice(0, 4).concat([...measured([]).keys()].slice(-3, -1)), [100, 250, 500, 1000, 5e6, 1e7]);
  const grown = histogramIncrease(measured([[1000, 100]]), measured([[1000, 100], [50000, 10]]));
  equal('only what is new counts', quantile(grown, 1), 50000);
  equal('a histogram that was reset', histogramIncrease(measured([[1000, 5]]), measured([[1000, 4]])), null);
  const lag = (...counts) => figures.powerOfTwoHistogram(counts);
  equal('the bound of a power of two', quantileBound(lag(98, 0, 2, 0), 0.99), 4);
  equal('above the last bound', quantileBound(lag(0, 0, 0, 1), 0.5), 8);
  const both = increaseByMember(new Map([[1, lag(9, 9)], [2, lag(5, 5)]]), new Map([[1, lag(10, 9)], [3, lag(0, 2)]]));
  equal('members that came and went', [...both.values()], [1, 2]);
  const reset = increaseByMember(new Map([[1, lag(9, 9)]]), new Map([[1, lag(2, 0)]]));
  equal('a member that was reset', [...reset.values()], [2, 0]);

  equal('durations', [0.25, 9.99, 850, 1234, 250e3, 3.6e6 * 27, null].map(figures.formatMillis),
    ['250 µs', '10 ms', '850 ms', '1.2 s', '4m 10s', '1d 3h', '–']);
  equal('rates', [0, 3.14159, 12.6, 12345, 2.5e6, null].map(figures.formatRate), ['0', '3.1', '13', '12,345', '2.5M', '–']);
  equal('bytes', [0, 1023, 1536, 3.5 * 2 ** 30, undefined].map(figures.formatBytes), ['0 B', '1,023 B', '1.5 KiB', '3.5 GiB', '–']);
  equal('escapes', figures.printable('a\u001b[31mb\u202ec\nd'), 'a\ufffd[31mb\ufffdc\nd');

  const totals = (requests, fifth = 0) => ({ requests, responses: [0, requests, 0, 0, fifth], shed: 0, bytes_in: 0, bytes_out: 0, accepted: 0 });
  const worker = (id, requests, more) => ({
    id, slot: id, kind: 'web', generation: 1, pid: 100 + id, state: 'serving', uptime_ms: 1000, beat_age_ms: 10, loop_lag: [1, 0],
    queue_wait: [0, 0], connections: 1, active: 0, counters: totals(requests), serving: [], ...more,
  });
  const status = (requests, all, restarts = 0) => ({ primary: { restarts }, totals: totals(requests), workers: all, queues: [] });
  const kept = new history.History();
  equal('the first sample has no rate', kept.add(status(100, [worker(1, 100)]), 0).requests, null);
  equal('the second has one', kept.add(status(150, [worker(1, 150)]), 1000).requests, 50);
  equal('a worker has one', kept.ofWorker({ id: 1 }).requests, 50);
  equal('counters that went back have none', kept.add(status(10, [worker(1, 10)]), 2000).requests, null);
  const next = kept.add(status(20, [worker(1, 20), worker(2, 0)], 1), 3000);
  equal('and then one again', [next.requests, next.respawns], [10, 1]);
  equal('a new worker has none', kept.ofWorker({ id: 2 }), {});
  kept.add(status(20, [worker(1, 20)], 1), 3000 + history.HISTORY_MS);
  equal('samples are kept for five minutes', kept.samples.length, 1);

  const { stalledMillis, markOf } = history;
  equal('a stale heartbeat', stalledMillis(worker(1, 0, { beat_age_ms: 5000 })), 5000);
  equal('a fresh heartbeat', stalledMillis(worker(1, 0)), 0);
  equal('a stale thread', stalledMillis(worker(1, 0, { threads: [{ state: 'serving', beat_age_ms: 3000 }, { state: 'left', beat_age_ms: 9000 }] })), 3000);
  const threads = (...ages) => worker(1, 0, { threads: ages.map((beat_age_ms) => ({ state: 'serving', beat_age_ms })) });
  equal('a worker serves while one of its threads does', [threads(9000, 10), threads(9000, 9000), worker(1, 0), worker(1, 0, { beat_age_ms: 9000 })]
    .map((one) => history.servingWorkers({ workers: [one] })), [1, 0, 1, 0]);
  equal('an isolated job is no stall', stalledMillis(worker(1, 0, { beat_age_ms: 5000, job: { id: 1, age_ms: 1 } })), 0);
  const kindOf = (text) => markOf({ text })?.kind ?? null;
  equal('marks', [
    'reloading (HUP)', 'reloaded: 4 workers of generation 2 serve', 'reload failed, the old workers keep serving: x',
    'upgraded: 4 workers of generation 2 serve', 'worker=1 slot=0 gen=1 pid=9 died: killed by SIGKILL (up 1 s, 0 requests)',
    'worker=1 slot=0 gen=1 pid=9 was killed: stalled (killed by SIGABRT; up 1 s)', 'worker=1 slot=0 gen=1 pid=9 was killed: superseded (x)',
    'worker=1 slot=0 gen=1 pid=9 has made no progress for 1 s in GET /', 'worker=1 slot=0 gen=1 pid=9 drained and exited (up 1 s)',
  ].map(kindOf), ['reload', null, 'crash', 'upgrade', 'crash', 'crash', null, 'stall', null]);

  const samples = [0, 1, 2, 60, 61].map((s, n) => ({ time: s * 1000, a: n === 2 ? null : 1 }));
  const path = charts.linePath(samples, 'a', new charts.Axis(samples), 1);
  equal('a line is interrupted by gaps', [path.match(/M/g).length, path.match(/L/g).length], [2, 2]);
  equal('bars are where something happened', charts.barPath([{ time: 0, a: 0 }, { time: 9, a: 2 }], 'a', new charts.Axis(samples), 2).match(/M/g).length, 1);

  equal('pauses grow up to five seconds', [1, 2, 3, 4, 50].map((n) => connection.pauseAfter(n, 0)), [1000, 2000, 4000, 5000, 5000]);
  equal('and are spread', connection.pauseAfter(50, 1), 4000);
  const line = { level: 'warn', text: 'Worker stalls' };
  equal('levels and words', [events.passes(line, 'info', 'stall'), events.passes(line, 'error', ''), events.passes(line, 'info', 'x')], [true, false, false]);

  const shown = (one) => ({ ...one, shown: workers.shownState(one), recent: {} });
  const all = [worker(1, 0), worker(2, 0, { state: 'draining' }), worker(3, 0, { beat_age_ms: 9000, serving: [{ request: 'GET /slow', age_ms: 1 }] })].map(shown);
  const ids = (order) => workers.arrange(all, { column: 'slot', isDescending: false, group: 'all', words: '', ...order }).map((one) => one.id);
  equal('sorted by slot', [ids({}), ids({ isDescending: true })], [[1, 2, 3], [3, 2, 1]]);
  equal('sorted by state, worst first', ids({ column: 'state' }), [3, 2, 1]);
  equal('filtered', [ids({ group: 'draining' }), ids({ words: '/slow' }), ids({ words: 'pid=101' })], [[2], [3], [1]]);
  return wrong;
})()
