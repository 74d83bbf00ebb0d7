// The list of events: the last lines of the primary's log, with a filter.

import { byId, element, reconcile, setHidden, setText, shownOf } from './dom.js';
import { formatTime } from './figures.js';
import { HISTORY_MS, markOf } from './history.js';

const MAX_EVENTS = 100;
const LEVELS = ['error', 'warn', 'info', 'debug', 'trace'];

export const passes = (event, level, words) =>
  LEVELS.indexOf(event.level) <= LEVELS.indexOf(level) && event.text.toLowerCase().includes(words);

export class EventList {
  #events = [];
  #known = new Set();
  #marks = [];
  #level = 'info';
  #words = '';
  #isPlanned = false;

  constructor() {
    byId('level').addEventListener('change', (event) => { this.#level = event.target.value; this.#plan(); });
    byId('event-words').addEventListener('input', (event) => {
      this.#words = event.target.value.trim().toLowerCase();
      this.#plan();
    });
  }

  /** Adds an event; returns its mark if it is new and leaves one. */
  add(event) {
    // A new primary counts its sequence from the start.
    const key = `${event.sequence}-${event.time_ms}`;
    if (this.#known.has(key)) return null;
    this.#known.add(key);
    this.#events.push({ ...event, key, level: LEVELS.includes(event.level) ? event.level : 'info' });
    this.#events.sort((a, b) => a.time_ms - b.time_ms || a.sequence - b.sequence);
    while (this.#events.length > MAX_EVENTS) this.#known.delete(this.#events.shift().key);
    const found = markOf(event);
    const mark = found && { ...found, time: event.time_ms, text: event.text };
    if (mark) this.#marks.push(mark);
    this.#plan();
    return mark;
  }

  /** Returns the marks of the last five minutes before `now`, oldest first. */
  marks(now) {
    this.#marks = this.#marks.filter((mark) => mark.time > now - HISTORY_MS).slice(-MAX_EVENTS);
    return this.#marks;
  }

  /** Once for a burst. */
  #plan() {
    if (this.#isPlanned) return;
    this.#isPlanned = true;
    setTimeout(() => {
      this.#isPlanned = false;
      this.#show();
    });
  }

  #show() {
    const shown = this.#events.filter((event) => passes(event, this.#level, this.#words)).reverse();
    reconcile(byId('events'), shown, (event) => event.key, createItem, () => {});
    setText(byId('shown-events'), shownOf(shown, this.#events));
    setHidden(byId('no-events'), shown.length > 0);
  }
}

function createItem(event) {
  const item = element('li', event.level);
  const time = element('time', '', formatTime(event.time_ms));
  time.dateTime = new Date(event.time_ms).toISOString();
  time.title = new Date(event.time_ms).toLocaleString();
  item.append(time, element('span', 'level', event.level), element('span', 'text', event.text));
  return item;
}
