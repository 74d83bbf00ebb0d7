// Computes rates and quantiles, and formats figures. No function touches the page.

/** Returns by how much a counter grew; null if a value is missing or the counter was reset. */
export function increase(before, now) {
  return Number.isFinite(before) && Number.isFinite(now) && now >= before ? now - before : null;
}

/** Returns how fast a counter grew, per second; null if that is unknown. */
export function perSecond(before, now, seconds) {
  const grown = increase(before, now);
  return grown === null || !(seconds > 0) ? null : grown / seconds;
}

export const sum = (numbers) => numbers.reduce((all, n) => all + (Number.isFinite(n) ? n : 0), 0);

/** The upper bounds of the buckets of `durations`, in microseconds. */
const DURATION_BOUNDS_US = [1, 2.5, 5].flatMap((n) => [1, 10, 100, 1e3, 1e4, 1e5].map((power) => 100 * n * power))
  .filter((bound) => bound <= 1e7).sort((a, b) => a - b);

/** Returns `durations` of a reply as a map from upper bound to count. Its JSON has no empty buckets. */
export function durationHistogram(durations) {
  const all = new Map([...DURATION_BOUNDS_US, Infinity].map((bound) => [bound, 0]));
  for (const [bound, count] of durations?.buckets ?? []) all.set(bound ?? Infinity, count);
  return all;
}

/** Returns `loop_lag` or `queue_wait` as a map from upper bound to count. */
export const powerOfTwoHistogram = (counts) =>
  new Map((counts ?? []).map((count, n) => [n + 1 < counts.length ? 2 ** n : Infinity, count]));

function addHistograms(histograms) {
  const all = new Map();
  for (const one of histograms) {
    for (const [bound, count] of one) all.set(bound, (all.get(bound) ?? 0) + count);
  }
  return all;
}

/** Returns what a histogram counted since `before`; null if it was reset. */
export function histogramIncrease(before, now) {
  const grown = new Map();
  for (const [bound, count] of now) grown.set(bound, count - (before.get(bound) ?? 0));
  return [...grown.values()].every((count) => count >= 0) ? grown : null;
}

/** Adds up the increase of each histogram in a map; a new one, or one that was reset, counts from zero. */
export function increaseByMember(before, now) {
  const grown = [];
  for (const [id, histogram] of now) {
    grown.push(histogramIncrease(before.get(id) ?? new Map(), histogram) ?? histogram);
  }
  return addHistograms(grown);
}

/**
 * Returns the value that the share `q` of a histogram does not exceed, interpolated within its bucket; null if it is empty,
 * the last finite bound above it.
 */
export function quantile(histogram, q) {
  const rank = q * sum([...histogram.values()]);
  let [seen, lower] = [0, 0];
  for (const [bound, count] of histogram) {
    if (count > 0 && seen + count >= rank) {
      return bound === Infinity ? lower : lower + ((bound - lower) * (rank - seen)) / count;
    }
    seen += count;
    lower = bound;
  }
  return null;
}

/** Returns the upper bound of the bucket with the share `q`: for wide buckets. */
export function quantileBound(histogram, q) {
  const rank = q * sum([...histogram.values()]);
  let seen = 0;
  for (const [bound, count] of histogram) {
    seen += count;
    if (count > 0 && seen >= rank) return Math.min(bound, 2 ** (histogram.size - 1));
  }
  return null;
}

const NONE = '–';
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export const formatCount = (n) =>
  Number.isFinite(n) ? (Math.abs(n) < 1e6 ? whole : short).format(n) : NONE;

export const formatRate = (n) =>
  Number.isFinite(n) ? (n < 10 ? fine.format(n) : formatCount(n)) : NONE;

/** 850 µs, 12 ms, 1.2 s, 4m 10s, 3h 5m, 2d 4h. */
export function formatMillis(ms) {
  if (!Number.isFinite(ms)) return NONE;
  if (ms < 0.9995) return `${Math.round(ms * 1000)} µs`;
  if (ms < 9.95) return `${fine.format(ms)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 59.95) return `${fine.format(seconds)} s`;
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (minutes < 60) return `${minutes}m ${Math.floor(seconds % 60)}s`.replace(/ 0s$/, '');
  return hours < 24 ? `${hours}h ${minutes % 60}m` : `${days}d ${hours % 24}h`;
}

export function formatBytes(bytes) {
  if (!Number.isFinite(bytes)) return NONE;
  const power = Math.min(5, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  const unit = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][power];
  const n = bytes / 1024 ** power;
  return `${(n < 100 && power > 0 ? fine : whole).format(n)} ${unit}`;
}

export const formatPercent = (share) => (Number.isFinite(share) ? `${Math.round(share * 100)} %` : NONE);

const time = { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' };
const clock = new Intl.DateTimeFormat([], time);
const dayAndClock = new Intl.DateTimeFormat([], { month: 'short', day: 'numeric', ...time });

/** Formats a time in the browser's zone, with the day if it is more than 12 hours away. */
export function formatTime(ms, now = Date.now()) {
  return (Math.abs(now - ms) < 43_200_000 ? clock : dayAndClock).format(ms);
}

/** Replaces control characters, and those that change the direction of text. */
export const printable = (text) =>
  String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '\ufffd');
