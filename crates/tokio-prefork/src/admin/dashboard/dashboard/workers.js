// The table of workers: columns, order, filter, and what each worker serves.

import { byId, element, reconcile, setAttribute, setClass, setHidden, setText, shownOf } from './dom.js';
import { formatBytes, formatCount, formatMillis, formatPercent, formatRate } from './figures.js';
import { stalledMillis } from './history.js';

/** How many requests a row lists before "more". All rows list at most `MAX_LISTED`. */
const listedInRow = (workers) => (workers > 12 ? 1 : 3);
const MAX_LISTED = 400;

/** Slots of other kinds than `web` begin at a multiple of this. */
const SLOTS_PER_KIND = 1024;

const figure = (id, title, read, format, isOptional = false) => ({
  id, title, sort: (w) => read(w) ?? -1, text: (w) => format(read(w)),
  has: isOptional ? (workers) => workers.some((w) => Number.isFinite(read(w))) : () => true,
});
const words = (id, title, sort, text, has = () => true) => ({ id, title, sort, text, has, isText: true });

/** `sort` gives what is compared, `text` what is shown; `has` tells whether to show the column. */
const COLUMNS = [
  figure('slot', 'Slot', (w) => w.slot, (slot) => slot % SLOTS_PER_KIND),
  figure('worker', 'Worker', (w) => w.id, String),
  words('kind', 'Kind', (w) => w.kind, (w) => w.kind, (workers) => workers.some((w) => w.kind !== 'web')),
  figure('gen', 'Gen', (w) => w.generation, String),
  figure('pid', 'PID', (w) => w.pid, (pid) => pid ?? '–'),
  words('state', 'State', (w) => w.shown.order, (w) => w.shown.text),
  figure('uptime', 'Uptime', (w) => w.uptime_ms, formatMillis),
  figure('rate', 'Req/s', (w) => w.recent.requests, formatRate),
  figure('active', 'Active', (w) => w.active, formatCount),
  { ...figure('conn', 'Conn', (w) => w.connections, formatCount), text: (w) => formatCount(w.connections) + (w.full ? ' full' : '') },
  figure('p99', 'p99', (w) => w.recent.p99, formatMillis, true),
  figure('lag', 'Lag p99', (w) => w.recent.lag, formatMillis),
  figure('rss', 'RSS', (w) => w.rss_bytes, formatBytes, true),
  figure('cpu', 'CPU', (w) => w.recent.cpu, formatPercent, true),
  words('serving', 'Serving now', (w) => w.serving[0]?.age_ms ?? w.job?.age_ms ?? -1),
];
const ASCENDING = ['slot', 'worker', 'kind', 'state'];

/** Returns group, text and order of a worker's state. The group is also its class. */
export function shownState(worker) {
  const stalled = stalledMillis(worker);
  if (stalled > 0) return { group: 'frozen', text: `frozen ${formatMillis(stalled)}`, order: 0, stalled };
  const [group, order] = {
    serving: ['serving', 5], draining: ['draining', 3], leaving: ['draining', 3], booting: ['booting', 4], forking: ['booting', 4],
  }[worker.state] ?? ['failed', 1];
  return { group, text: worker.state, order, stalled };
}

/** Sorts and filters workers, which have `shown` and `recent`. */
export function arrange(workers, { column, isDescending, group, words }) {
  const { sort } = COLUMNS.find((one) => one.id === column);
  const isWanted = (worker) =>
    (group === 'all' || worker.shown.group === group) && (words === '' || searchText(worker).includes(words));
  const compare = (a, b) => (a < b ? -1 : Number(a > b));
  return workers.filter(isWanted).sort((a, b) =>
    (isDescending ? -1 : 1) * compare(sort(a), sort(b)) || a.slot - b.slot || a.id - b.id);
}

function searchText(worker) {
  const requests = worker.serving.map((r) => `${r.request} ${r.client ?? ''} ${r.request_id ?? ''}`);
  return `slot=${worker.slot} worker=${worker.id} pid=${worker.pid} ${worker.kind} ${worker.shown.text} ${requests.join(' ')}`
    .toLowerCase();
}

/** Returns the request whose handler is on the event loop; undefined if there is none. */
export const blockingRequest = (worker) => worker.serving.find((request) => request.on_loop);

const classOf = ({ id, isText }) => (isText ? `${id} text` : id);

export class WorkerTable {
  #order = { column: 'slot', isDescending: false, group: 'all', words: '' };
  #expanded = new Set();
  #workers = [];
  #generation = 0;
  #room = 0;

  constructor() {
    for (const column of COLUMNS) {
      const head = element('th', classOf(column));
      head.scope = 'col';
      const button = element('button', '', column.title);
      button.type = 'button';
      button.addEventListener('click', () => this.#sortBy(column.id));
      head.append(button);
      byId('heads').append(head);
      const choice = element('option', '', column.title);
      choice.value = column.id;
      byId('sort').append(choice);
    }
    byId('sort').addEventListener('change', (event) => this.#sortBy(event.target.value));
    byId('group').addEventListener('change', (event) => this.#change({ group: event.target.value }));
    byId('words').addEventListener('input', (event) => this.#change({ words: event.target.value.trim().toLowerCase() }));
  }

  #sortBy(column) {
    const isSame = this.#order.column === column;
    this.#change({ column, isDescending: isSame ? !this.#order.isDescending : !ASCENDING.includes(column) });
  }

  #change(part) {
    Object.assign(this.#order, part);
    this.#show();
  }

  /** Shows the workers of a reply. `recentOf(worker)` gives what was computed from several replies. */
  update(status, recentOf) {
    this.#generation = status.primary.generation;
    this.#workers = status.workers.map((worker) => ({ ...worker, shown: shownState(worker), recent: recentOf(worker) }));
    const ids = new Set(this.#workers.map((worker) => worker.id));
    for (const id of this.#expanded) if (!ids.has(id)) this.#expanded.delete(id);
    this.#show();
    return this.#workers;
  }

  #show() {
    const { column, isDescending } = this.#order;
    const columns = COLUMNS.filter((one) => one.has(this.#workers));
    [...byId('heads').children].forEach((head, n) => {
      setHidden(head, !columns.includes(COLUMNS[n]));
      const isSorted = COLUMNS[n].id === column;
      setAttribute(head, 'aria-sort', isSorted ? (isDescending ? 'descending' : 'ascending') : 'none');
    });
    byId('sort').value = column;
    const shown = arrange(this.#workers, this.#order);
    this.#room = MAX_LISTED;
    reconcile(byId('rows'), shown, (worker) => worker.id, (worker) => this.#createRow(worker),
      (row, worker) => this.#updateRow(row, worker, columns));
    setText(byId('shown-workers'), shownOf(shown, this.#workers));
    setHidden(byId('no-workers'), shown.length > 0);
  }

  #createRow(worker) {
    const row = element('tr');
    row.id = `worker-${worker.id}`;
    row.tabIndex = -1;
    for (const column of COLUMNS) {
      const cell = element('td', classOf(column));
      cell.dataset.title = column.title;
      row.append(cell);
    }
    const more = element('button', 'more');
    more.type = 'button';
    more.addEventListener('click', () => this.#toggle(worker.id));
    row.lastElementChild.append(element('p', 'stall'), element('pre'), element('ul'), more);
    return row;
  }

  #toggle(id) {
    if (!this.#expanded.delete(id)) this.#expanded.add(id);
    this.#show();
  }

  #updateRow(row, worker, columns) {
    const age = { '-1': ' old', 1: ' new' }[Math.sign(worker.generation - this.#generation)] ?? '';
    setClass(row, worker.shown.group + age);
    COLUMNS.forEach((column, n) => {
      const cell = row.children[n];
      setHidden(cell, !columns.includes(column));
      if (column.text && !cell.hidden) setText(cell, column.text(worker));
    });
    this.#updateServing(row.lastElementChild, worker);
  }

  #updateServing(cell, worker) {
    const [stall, stack, list, more] = cell.children;
    const isStalled = worker.shown.stalled > 0;
    const blocking = blockingRequest(worker);
    setHidden(stall, !isStalled);
    setText(stall, isStalled ? `stalls ${blocking ? `in ${blocking.request}` : 'outside of a request'}` : '');
    // Innermost function first, one a line.
    setHidden(stack, !worker.stalled_in);
    setText(stack, (worker.stalled_in ?? '').replaceAll(' < ', '\n'));
    const entries = worker.job ? [{ request: `job ${worker.job.id}`, age_ms: worker.job.age_ms }] : worker.serving;
    const isExpanded = this.#expanded.has(worker.id);
    const few = listedInRow(this.#workers.length);
    const listed = entries.slice(0, Math.min(isExpanded ? entries.length : few, this.#room));
    this.#room = Math.max(0, this.#room - listed.length);
    reconcile(list, listed.map((entry, n) => ({ entry, n })), ({ n }) => n, createRequest, updateRequest);
    const hiddenCount = Math.max(worker.job ? 0 : worker.active, entries.length) - listed.length;
    setHidden(more, entries.length <= few && hiddenCount <= 0);
    setText(more, isExpanded ? 'fewer' : `+ ${formatCount(hiddenCount)} more`);
    setAttribute(more, 'aria-expanded', isExpanded);
  }
}

function createRequest() {
  const item = element('li');
  item.append(element('span', 'age'), element('code'), element('span', 'who'));
  return item;
}

function updateRequest(item, { entry }) {
  const [age, request, who] = item.children;
  setClass(item, entry.on_loop ? 'on-loop' : '');
  setText(age, formatMillis(entry.age_ms));
  setText(request, entry.request);
  const known = [entry.on_loop && 'on the event loop', entry.client, entry.request_id && `id ${entry.request_id}`];
  setText(who, known.filter(Boolean).join(' · '));
}
