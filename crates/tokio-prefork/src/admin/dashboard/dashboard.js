// Joins the connection to the admin process with the parts of the page.

import { Charts, drawMarks } from './dashboard/charts.js';
import { EventStream, StatusPoller } from './dashboard/connection.js';
import { byId, element, reconcile, setClass, setHidden, setText } from './dashboard/dom.js';
import { EventList } from './dashboard/events.js';
import { formatCount, formatMillis, formatTime } from './dashboard/figures.js';
import { History, servingWorkers } from './dashboard/history.js';
import { updateTables } from './dashboard/tables.js';
import { WorkerTable, blockingRequest } from './dashboard/workers.js';

const MAX_PROBLEMS = 8;

const history = new History();
const charts = new Charts();
const workers = new WorkerTable();
const events = new EventList();
let lastStatus = null;
let loadedVersion = null;
let lostSince = null;
/** By how many milliseconds the server's clock is ahead of the browser's. */
let clockOffset = 0;
const announced = { phase: null, frozen: new Set() };

/** Tells screen readers about a change. */
const announce = (text) => setText(byId('announcer'), text);

/** Returns what the cluster does, and the class that colours it. */
function phaseOf(status) {
  const { phase } = status.primary;
  if (phase === 'reloading') return ['reload running', 'booting'];
  if (['stopping', 'ending', 'done'].includes(phase)) return ['stopping', 'draining'];
  if (phase !== 'running') return [phase, 'booting'];
  return servingWorkers(status) > 0 ? ['serving', 'serving'] : ['no worker serves', 'failed'];
}

function showHeader(status) {
  const { primary } = status;
  const [phase, className] = phaseOf(status);
  setClass(byId('phase'), `phase ${className}`);
  const texts = {
    phase, name: primary.name || 'prefork', version: primary.version, generation: primary.generation,
    uptime: formatMillis(primary.uptime_ms), model: primary.model,
    dispatch: [primary.dispatch, primary.dispatch_rung].filter(Boolean).join(' / '), pid: primary.pid,
    listening: status.listeners.join(' ') || '–', lost: lossesOf(status), library: `tokio-prefork ${primary.library_version}`,
    updated: `updated ${formatTime(Date.now())}`,
  };
  for (const [id, text] of Object.entries(texts)) setText(byId(id), text);
  setHidden(byId('lost').parentNode, texts.lost === '');
  if (announced.phase !== null && announced.phase !== phase) announce(`The cluster is now: ${phase}`);
  announced.phase = phase;
}

/** Returns what needs a person: `text`, and `id` if it is about a worker. */
function findProblems(status, shown) {
  const problems = [];
  for (const worker of shown) {
    const { group, stalled } = worker.shown;
    const name = `Worker ${worker.id} (slot ${worker.slot % 1024}, pid ${worker.pid ?? '–'})`;
    const request = blockingRequest(worker);
    const where = request ? ` in ${request.request}` : '';
    if (group === 'frozen') problems.push({ id: worker.id, isFrozen: true, text: `${name} has been frozen for ${formatMillis(stalled)}${where}` });
    if (group === 'failed') problems.push({ id: worker.id, text: `${name} is ${worker.state}` });
  }
  const { vacant = [] } = status.primary;
  if (vacant.length > 0) problems.push({ text: `Empty until the next reload or scale: slot ${vacant.join(', ')}` });
  return problems;
}

function lossesOf({ primary, access_log: accessLog }) {
  const losses = { 'log lines': primary.log_lines_dropped, 'access log lines': accessLog?.dropped, messages: primary.messages_lost };
  const lost = Object.entries(losses).filter(([, count]) => count > 0);
  return lost.map(([what, count]) => `${formatCount(count)} ${what}`).join(', ');
}

function showProblems(problems) {
  const listed = problems.slice(0, MAX_PROBLEMS);
  if (problems.length > MAX_PROBLEMS) listed.push({ id: 'more', text: `and ${problems.length - MAX_PROBLEMS} more` });
  const create = ({ id }) => {
    const item = element('li');
    item.append(element('a'));
    if (Number.isFinite(id)) item.firstChild.href = `#worker-${id}`;
    return item;
  };
  reconcile(byId('problem-list'), listed, ({ id }) => id ?? '', create, (item, { text }) => setText(item.firstElementChild, text));
  setHidden(byId('problems'), problems.length === 0);
}

function announceFrozen(frozen) {
  const fresh = frozen.filter(({ id }) => !announced.frozen.has(id));
  if (fresh.length > 0) announce(fresh.slice(0, 3).map(({ text }) => text).join('. '));
  announced.frozen = new Set(frozen.map(({ id }) => id));
}

function setTitle(what) {
  const title = `${byId('name').textContent}: ${what}`;
  if (document.title !== title) document.title = title;
}

function drawCharts() {
  if (!lastStatus) return;
  const marks = events.marks(history.samples.at(-1).time);
  charts.draw(history.samples, marks, lastStatus);
  drawMarks(marks);
}

/** Returns the time of the server's clock. Its header `date` has whole seconds, so small differences are ignored. */
function serverTime(response) {
  const ahead = Date.parse(response.headers.get('date') ?? '') - Date.now();
  if (Math.abs(ahead - clockOffset) > 2_000) clockOffset = ahead;
  return Date.now() + clockOffset;
}

/** Names the saved samples of a cluster: they continue over an upgrade, not over a restart. */
const storageName = ({ primary }) => `${primary.name} ${primary.pid}`;

function onStatus(status, response) {
  const time = serverTime(response);
  if (!lastStatus) history.restore(storageName(status));
  lastStatus = status;
  history.add(status, time);
  showHeader(status);
  const problems = findProblems(status, workers.update(status, (worker) => history.ofWorker(worker)));
  const frozen = problems.filter((problem) => problem.isFrozen);
  showProblems(problems);
  announceFrozen(frozen);
  setTitle(frozen.length > 0 ? `${frozen.length} frozen` : phaseOf(status)[0]);
  updateTables(status, time);
  drawCharts();
  setHidden(byId('main'), false);
  onConnected(status.primary.library_version);
}

function onConnected(version) {
  if (lostSince !== null) announce('The connection is back');
  lostSince = null;
  setClass(document.body, '');
  loadedVersion ??= version;
  setHidden(byId('loading'), true);
  setHidden(byId('banner'), loadedVersion === version);
  if (loadedVersion !== version) setText(byId('banner'), `The server now runs version ${version}: reload this page.`);
}

function onLost(reason) {
  lostSince ??= Date.now();
  setClass(document.body, 'lost');
  // The same text each time, so that readers tell it once.
  setText(byId('banner'), `Connection lost since ${formatTime(lostSince)}: ${reason}. Trying again.`);
  setHidden(byId('banner'), false);
  setTitle('connection lost');
}

function onEvent(event) {
  const mark = events.add(event);
  if (!mark) return;
  if (Math.abs(Date.now() + clockOffset - event.time_ms) < 5_000) announce(event.text);
  drawCharts();
}

const poller = new StatusPoller(onStatus, onLost);
const stream = new EventStream(onEvent);

function onVisibilityChange() {
  if (document.hidden) {
    poller.pause();
    stream.close();
  } else {
    poller.ask();
    stream.open();
  }
}

document.addEventListener('visibilitychange', onVisibilityChange);
addEventListener('pagehide', () => lastStatus && history.save(storageName(lastStatus)));
// A link to a row moves the focus there, too.
addEventListener('hashchange', () => document.querySelector(':target')?.focus({ preventScroll: true }));
setText(byId('zone'), Intl.DateTimeFormat().resolvedOptions().timeZone ?? '');
onVisibilityChange();
