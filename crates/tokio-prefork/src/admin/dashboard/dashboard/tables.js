// The tables of CPU pools, isolated pools, and the shared state of the application.

import { byId, element, reconcile, setHidden, setText } from './dom.js';
import { formatBytes, formatCount, formatMillis, formatRate, perSecond } from './figures.js';

const micros = (us) => formatMillis(us / 1000);
const ENDS = ['failed', 'panicked', 'died', 'timed_out', 'cancelled', 'cut', 'abandoned', 'rejected', 'refused', 'closed', 'lost'];

const endsOf = (pool) =>
  ENDS.filter((end) => pool[end] > 0).map((end) => `${formatCount(pool[end])} ${end.replace('_', ' ')}`).join(', ') || '–';

const duration = (all) => (all?.count > 0 ? `${micros(all.p50_us)} / ${micros(all.p99_us)}` : '–');

const lastDone = new Map();

/** Returns the jobs per second since the reply before; `key` identifies the pool. */
function jobRate(key, done, time) {
  const old = lastDone.get(key);
  lastDone.set(key, { done, time });
  return old ? perSecond(old.done, done, (time - old.time) / 1000) : null;
}

/** Shows rows of pairs of title and text in the table `id`; hides its section if there is none. */
function fill(id, rows) {
  const table = byId(id);
  const [head, body] = table.tBodies.length > 0 ? [table.tHead, table.tBodies[0]] : [table.createTHead(), table.createTBody()];
  const cellsOf = (row, cells, isHead) => cells.forEach(([title], n) => {
    const cell = element(isHead || n === 0 ? 'th' : 'td', '', isHead ? title : '');
    if (isHead || n === 0) cell.scope = isHead ? 'col' : 'row';
    cell.dataset.title = title;
    row.append(cell);
  });
  if (rows.length > 0 && head.rows.length === 0) cellsOf(head.insertRow(), rows[0], true);
  const create = (cells) => {
    const row = element('tr');
    cellsOf(row, cells, false);
    return row;
  };
  reconcile(body, rows, ([[, name]]) => name, create, (row, cells) => {
    cells.forEach(([, text], n) => setText(row.children[n], text));
  });
  setHidden(table.closest('section'), rows.length === 0);
}

const poolRow = (pool, units, rate) => [
  ['Pool', pool.name],
  ['Busy', units],
  ['Queue', `${formatCount(pool.depth)} of ${formatCount(pool.capacity)}`],
  ['Jobs/s', formatRate(rate)],
  ['Done', formatCount(pool.done)],
  ['Other ends', endsOf(pool)],
  ['Waited p50 / p99', duration(pool.wait)],
  ['Ran p50 / p99', duration(pool.run)],
];

/** Shows the pools and the shared state of a reply that arrived at `time`. */
export function updateTables({ pools = [], isolated = [], shared = [] }, time) {
  fill('pools', pools.map((pool) =>
    poolRow(pool, `${pool.running} of ${pool.threads} (${pool.utilisation} %)`, jobRate(`cpu ${pool.name}`, pool.done, time))));
  // A pool without processes that never had a job is not used by the application.
  fill('isolated', isolated.filter((pool) => pool.processes > 0 || pool.submitted > 0).map((pool) =>
    poolRow(pool, `${pool.running} of ${pool.processes}`, jobRate(`isolated ${pool.name}`, pool.done, time))));
  fill('shared', sharedRows(shared));
}

const MAX_SHARED = 200;

const sharedRows = (metrics) => metrics.slice(0, MAX_SHARED).map((metric, n) => [
  ['Name', nameOf(metric, n)], ['Kind', metric.kind], ['Value', sharedValue(metric)],
]);

function nameOf({ name, labels }) {
  const pairs = Object.entries(labels ?? {}).map(([key, value]) => `${key}="${value}"`);
  return pairs.length > 0 ? `${name}{${pairs.join(', ')}}` : name;
}

function sharedValue(metric) {
  switch (metric.kind) {
    case 'counter': case 'gauge': case 'number': return formatCount(metric.value);
    case 'flag': return metric.set ? 'set' : 'not set';
    case 'role': return Number.isFinite(metric.leader) ? `pid ${metric.leader} leads` : 'no leader';
    case 'histogram': return `${formatCount(metric.counts.reduce((all, n) => all + n, 0))} values, sum ${formatCount(metric.sum)}`;
    case 'bytes': return `${formatBytes(metric.len)}, ${metric.locked} locked, ${metric.poisoned} poisoned`;
    default: return '–';
  }
}
