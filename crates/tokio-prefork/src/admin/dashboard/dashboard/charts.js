// Draws the tiles: figures, sparklines, and the marks of reloads, upgrades, crashes and stalls.

import { byId, element, setAttribute, setClass, setHidden, setText } from './dom.js';
import { formatBytes, formatCount, formatMillis, formatRate, formatTime, sum } from './figures.js';
import { HISTORY_MS, servingWorkers } from './history.js';

const [WIDTH, HEIGHT] = [300, 48];
/** Samples further apart than this are not joined by a line. */
const GAP_MS = 5_000;

const bytesPerSecond = (n) => (Number.isFinite(n) ? `${formatBytes(n)}/s` : formatBytes(n));
const notes = (...all) => all.filter(Boolean).join(' · ');
const some = (n, what) => n > 0 && `${formatCount(n)} ${what}`;

/** `lines` are fields of a sample, `value` and `note` are shown for one, `isBad` colours it. */
const TILES = [
  {
    id: 'requests', title: 'Requests/s', lines: ['requests'], format: formatRate,
    note: (sample, status) => `${formatCount(status.totals.requests)} in total`,
  },
  {
    id: 'errors', title: 'Errors/s', lines: ['errors'], format: formatRate, isBad: (sample) => sample.errors > 0,
    hint: 'Responses 5xx, and connections refused by max-queue-wait',
    note: (sample, status) => notes(
      `4xx ${formatRate(sample.clientErrors)}/s`,
      some(status.totals.panics, 'panics'),
      some(status.totals.timed_out, 'timed out'),
    ),
  },
  {
    id: 'latency', title: 'Duration', lines: ['p50', 'p99'], format: formatMillis,
    hint: 'From the head of a request to the end of its response; requests of the last 5 s',
    note: (sample, status) => (status.durations ? 'of the last 5 s' : 'not measured: request-durations'),
  },
  {
    id: 'connections', title: 'Open connections', lines: ['connections'], format: formatCount,
    note: (sample) => `requests in progress: ${formatCount(sample.active)}`,
  },
  {
    id: 'queue', title: 'Accept queue', lines: ['queued'], format: formatCount,
    note: (sample, status) => notes(
      `of ${formatCount(sum((status.queues ?? []).map((queue) => queue.limit)))}`,
      `waited p99 ${sample.wait === null ? '–' : `≤ ${formatMillis(sample.wait)}`}`,
      some(status.totals.shed, 'shed'),
    ),
  },
  {
    id: 'lag', title: 'Event loop lag p99', lines: ['lag'], format: formatMillis,
    isBad: (sample) => sample.stalled > 0,
    hint: 'How late heartbeats were in the last 5 s, up to the next power of two, or for how long a loop has stalled',
    note: (sample) => (sample.stalled > 0 ? 'a loop stalls' : 'no loop stalls'),
  },
  {
    id: 'traffic', title: 'Traffic out', lines: ['bytesOut'], format: bytesPerSecond,
    note: (sample) => `in ${bytesPerSecond(sample.bytesIn)} · ${formatRate(sample.accepted)} new connections/s`,
  },
  {
    id: 'respawns', title: 'Respawns in 5 min', lines: ['respawns'], bars: true, format: formatCount,
    value: (sample, samples) => formatCount(sum(samples.map((one) => one.respawns))),
    isBad: (sample, samples) => samples.some((one) => one.respawns > 0),
    note: (sample, status) => notes(
      `${formatCount(status.primary.restarts)} in total`,
      `${servingWorkers(status)} of ${status.primary.workers_wanted} workers serve`,
    ),
  },
];

function svg(name, attributes = {}) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** The time axis: a minute if there are few samples, up to five. */
export class Axis {
  constructor(samples) {
    this.end = samples.at(-1).time;
    this.span = Math.min(HISTORY_MS, Math.max(60_000, this.end - samples[0].time));
  }

  x(time) {
    return (WIDTH * (1 - (this.end - time) / this.span)).toFixed(1);
  }

  timeAt(share) {
    return this.end - this.span * (1 - share);
  }
}

/** Returns the path of a line, interrupted where samples are missing. */
export function linePath(samples, field, axis, top) {
  let [path, before] = ['', null];
  for (const sample of samples) {
    const value = sample[field];
    if (!Number.isFinite(value)) {
      before = null;
      continue;
    }
    const isJoined = before !== null && sample.time - before <= GAP_MS;
    const y = HEIGHT - 2 - (HEIGHT - 6) * Math.min(1, value / top);
    path += `${isJoined ? 'L' : 'M'}${axis.x(sample.time)} ${y.toFixed(1)}`;
    before = sample.time;
  }
  return path;
}

export function barPath(samples, field, axis, top) {
  return samples.filter((sample) => sample[field] > 0).map((sample) => {
    const height = (HEIGHT - 6) * Math.min(1, sample[field] / top);
    return `M${axis.x(sample.time)} ${HEIGHT}v${(-height).toFixed(1)}`;
  }).join('');
}

function createTile(tile) {
  const box = element('article', 'tile');
  box.id = `tile-${tile.id}`;
  const title = element('h3', '', tile.title);
  if (tile.hint) title.title = tile.hint;
  if (tile.lines.length > 1) title.append(...tile.lines.map((field, n) => element('span', `key-${n}`, field)));
  const chart = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' });
  chart.append(
    svg('path', { class: 'marks reload' }), svg('path', { class: 'marks upgrade' }),
    svg('path', { class: 'marks stall' }), svg('path', { class: 'marks crash' }),
    ...tile.lines.map((field, n) => svg('path', { class: tile.bars ? 'bars' : `line line-${n}` })),
    svg('path', { class: 'cursor' }),
  );
  box.append(title, element('p', 'value'), chart, element('p', 'top'), element('p', 'note'));
  return box;
}

export class Charts {
  #boxes = new Map();
  /** The time under the pointer; null without one. */
  #pointed = null;
  #last = null;

  constructor() {
    for (const tile of TILES) {
      const box = createTile(tile);
      this.#boxes.set(tile, box);
      byId('tiles').append(box);
    }
    byId('tiles').addEventListener('pointermove', (event) => this.#point(event));
    byId('tiles').addEventListener('pointerleave', () => this.#point(null));
  }

  draw(samples, marks, status) {
    this.#last = { samples, marks, status, axis: new Axis(samples) };
    const shown = this.#shownSample(samples);
    for (const [tile, box] of this.#boxes) this.#drawTile(tile, box, shown);
    const isNow = this.#pointed === null;
    setText(byId('pointed'), isNow ? `last ${formatMillis(this.#last.axis.span)}` : `at ${formatTime(shown.time)}`);
  }

  #shownSample(samples) {
    const nearest = (best, sample) =>
      Math.abs(sample.time - this.#pointed) < Math.abs(best.time - this.#pointed) ? sample : best;
    return this.#pointed === null ? samples.at(-1) : samples.reduce(nearest);
  }

  #drawTile(tile, box, shown) {
    const { samples, marks, status, axis } = this.#last;
    const top = Math.max(...tile.lines.flatMap((field) => samples.map((sample) => sample[field] ?? 0)));
    const value = tile.value ? tile.value(shown, samples) : tile.lines.map((field) => tile.format(shown[field])).join(' / ');
    setText(box.querySelector('.value'), value);
    setText(box.querySelector('.note'), tile.note(shown, status));
    setText(box.querySelector('.top'), top > 0 ? `max ${tile.format(top)}` : '');
    setClass(box, tile.isBad?.(shown, samples) ? 'tile bad' : 'tile');
    const chart = box.querySelector('svg');
    setAttribute(chart, 'aria-label', `${tile.title} over the last minutes: now ${value}, at most ${tile.format(top)}`);
    for (const kind of ['reload', 'upgrade', 'stall', 'crash']) {
      const path = marks.filter((mark) => mark.kind === kind).map((mark) => `M${axis.x(mark.time)} 0v${HEIGHT}`);
      setAttribute(chart.querySelector(`.${kind}`), 'd', path.join(''));
    }
    const draw = tile.bars ? barPath : linePath;
    chart.querySelectorAll('.line, .bars').forEach((path, n) => {
      setAttribute(path, 'd', draw(samples, tile.lines[n], axis, top || 1));
    });
    const cursor = this.#pointed === null ? '' : `M${axis.x(shown.time)} 0v${HEIGHT}`;
    setAttribute(chart.querySelector('.cursor'), 'd', cursor);
  }

  #point(event) {
    const chart = event?.target.closest('.tile')?.querySelector('svg');
    this.#pointed = null;
    if (chart && this.#last) {
      const { left, width } = chart.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
      this.#pointed = this.#last.axis.timeAt(share);
    }
    if (this.#last) this.draw(this.#last.samples, this.#last.marks, this.#last.status);
  }
}

/** Lists the last marks in words, newest first; equal ones within two seconds as one. */
export function drawMarks(marks) {
  const groups = [];
  for (const mark of marks.toReversed()) {
    const last = groups.at(-1);
    if (last?.label === mark.label && last.time - mark.time < 2_000) last.count += 1;
    else groups.push({ ...mark, count: 1 });
  }
  byId('marks').replaceChildren(...groups.slice(0, 6).map(({ kind, time, label, text, count }) => {
    const item = element('li', kind, `${formatTime(time)} ${label}${count > 1 ? ` × ${count}` : ''}`);
    item.title = text;
    return item;
  }));
  setHidden(byId('marks'), marks.length === 0);
}
