// Asks for the status once a second and follows the events. Retries with back-off.

const POLL_MS = 1_000;
/** The longest pause between two attempts: short, to notice a recovery. */
const MAX_PAUSE_MS = 5_000;
const ANSWER_TIMEOUT_MS = 5_000;

/** Returns the pause after so many failures in a row: 1, 2, 4, 5, 5 s, less up to 20 % jitter. */
export const pauseAfter = (failures, random = Math.random()) =>
  Math.min(MAX_PAUSE_MS, POLL_MS * 2 ** Math.max(0, failures - 1)) * (1 - random / 5);

/** Polls `/status`: one request at a time, none while the tab is hidden. */
export class StatusPoller {
  #timer = null;
  #isAsking = false;
  #failures = 0;

  constructor(onStatus, onLost) {
    this.onStatus = onStatus;
    this.onLost = onLost;
  }

  /** Asks now, unless a request is under way. */
  async ask() {
    clearTimeout(this.#timer);
    if (this.#isAsking || document.hidden) return;
    this.#isAsking = true;
    const began = performance.now();
    let [reply, pause] = [null, 0];
    try {
      reply = await fetchStatus();
      this.#failures = 0;
      pause = Math.max(0, POLL_MS - (performance.now() - began));
    } catch (error) {
      this.#failures += 1;
      pause = pauseAfter(this.#failures);
      this.onLost(reasonOf(error));
    }
    this.#isAsking = false;
    if (!document.hidden) this.#timer = setTimeout(() => this.ask(), pause);
    // Last: one that cannot be shown must not end the polling.
    if (reply) this.onStatus(...reply);
  }

  pause() {
    clearTimeout(this.#timer);
  }
}

/** Leaves out a user and password in the page's address, which `fetch` refuses. */
const address = (name) => location.origin + location.pathname + name;

async function fetchStatus() {
  const response = await fetch(address('status'), { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  const status = await response.json();
  if (!status?.primary || !Array.isArray(status.workers)) throw new Error('the answer is not a status');
  return [status, response];
}

const reasonOf = (error) => ({
  TypeError: 'nothing answers', TimeoutError: `no answer within ${ANSWER_TIMEOUT_MS / 1000} s`,
}[error.name] ?? error.message);

/** Follows `/events`; resumes after the last one. */
export class EventStream {
  #source = null;
  #timer = null;
  #failures = 0;
  #last = null;

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  open() {
    this.close();
    if (document.hidden) return;
    const source = new EventSource(address(this.#last === null ? 'events' : `events?since=${encodeURIComponent(this.#last)}`));
    this.#source = source;
    source.onopen = () => { this.#failures = 0; };
    source.onmessage = (message) => this.#receive(message);
    // A browser does not retry after an answer other than 200.
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED || source !== this.#source) return;
      this.#failures += 1;
      this.#timer = setTimeout(() => this.open(), pauseAfter(this.#failures));
    };
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #receive(message) {
    if (message.lastEventId) this.#last = message.lastEventId;
    let event;
    try {
      event = JSON.parse(message.data);
    } catch {
      return;
    }
    if (typeof event?.text === 'string' && Number.isFinite(event.time_ms)) this.onEvent(event);
  }
}
