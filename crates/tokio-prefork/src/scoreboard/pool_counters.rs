//! The figures of a worker's CPU pool: one block of words at the end of its page.
//!
//! Unlike the rest of a page these words are written by several threads, so they are added to atomically.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::page_layout::{POOL, POOL_WORDS};
use prefork_os::shared_memory::SharedPage;

/// Buckets of the two histograms.
const BUCKETS: usize = 24;
/// The upper bound of the first bucket, in microseconds, as a power of two: 16 µs.
const FIRST: u32 = 4;

const THREADS: usize = 0;
const CAPACITY: usize = 1;
const DEPTH: usize = 2;
const RUNNING: usize = 3;
/// Thread-microseconds of work so far, less what the running jobs have behind them: see `PoolMeter::busy`.
const BUSY: usize = 4;
const UTILISATION: usize = 5;
/// The last reading for `UTILISATION`: when, and how much work there had been.
const LOOKED: usize = 6;
const LOOKED_BUSY: usize = 7;
/// One word for each `Ending`.
const ENDINGS: usize = 8;
const WAIT: usize = 16;
const RUN: usize = WAIT + BUCKETS;

const _: () = assert!(RUN + BUCKETS == POOL_WORDS && ENDINGS + Ending::COUNT <= WAIT);

/// How often `UTILISATION` is worked out, in microseconds.
const LOOK_US: u64 = 1_000_000;

/// How a job ended; each has exactly one ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Rejected,
    TimedOut,
    Cancelled,
    Panicked,
    Closed,
}

impl Ending {
    const COUNT: usize = 6;
}

/// The writing side: what the threads of a pool and its callers count.
#[derive(Clone)]
pub(crate) struct PoolMeter(Words);

#[derive(Clone)]
enum Words {
    /// In the page of this worker.
    Page(&'static [AtomicU64; POOL_WORDS]),
    /// Of a pool outside of any worker.
    Own(Arc<[AtomicU64; POOL_WORDS]>),
}

impl PoolMeter {
    pub(super) fn of(page: &'static SharedPage) -> PoolMeter {
        page[POOL..]
            .first_chunk()
            .map_or_else(PoolMeter::standalone, |words| PoolMeter(Words::Page(words)))
    }

    /// For a pool that belongs to no worker.
    pub(crate) fn standalone() -> PoolMeter {
        PoolMeter(Words::Own(Arc::new([const { AtomicU64::new(0) }; POOL_WORDS])))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        match &self.0 {
            Words::Page(words) => &words[index],
            Words::Own(words) => &words[index],
        }
    }

    /// The threads have been started.
    pub(crate) fn started(&self, threads: usize, capacity: usize) {
        self.word(THREADS).store(threads as u64, Relaxed);
        self.word(CAPACITY).store(capacity as u64, Relaxed);
    }

    /// So many jobs wait. The caller holds the lock of the queue.
    pub(crate) fn depth(&self, jobs: usize) {
        self.word(DEPTH).store(jobs as u64, Relaxed);
    }

    /// A job begins at `now_us` after it waited for so long.
    pub(crate) fn begin(&self, now_us: u64, waited: Duration) {
        self.word(RUNNING).fetch_add(1, Relaxed);
        self.word(BUSY).fetch_sub(now_us, Relaxed);
        self.word(WAIT + bucket(waited)).fetch_add(1, Relaxed);
    }

    /// A job that ran for so long has left its thread.
    pub(crate) fn end(&self, now_us: u64, ran: Duration) {
        self.word(BUSY).fetch_add(now_us, Relaxed);
        self.word(RUNNING).fetch_sub(1, Relaxed);
        self.word(RUN + bucket(ran)).fetch_add(1, Relaxed);
    }

    pub(crate) fn count(&self, ending: Ending) {
        self.word(ENDINGS + ending as usize).fetch_add(1, Relaxed);
    }

    /// Works out the utilisation over the last second. One caller, from time to time.
    pub(crate) fn look(&self, now_us: u64) {
        let threads = self.word(THREADS).load(Relaxed);
        let span = now_us.saturating_sub(self.word(LOOKED).load(Relaxed));
        if threads == 0 || span < LOOK_US {
            return;
        }
        let running = self.word(RUNNING).load(Relaxed);
        let busy = self.word(BUSY).load(Relaxed).wrapping_add(running.wrapping_mul(now_us));
        // A job that began or ended between the two readings can make this a little wrong, even negative.
        let done = busy.wrapping_sub(self.word(LOOKED_BUSY).load(Relaxed)) as i64;
        let percent = 100 * u64::try_from(done).unwrap_or(0) / (span * threads);
        self.word(UTILISATION).store(percent.min(100), Relaxed);
        self.word(LOOKED).store(now_us, Relaxed);
        self.word(LOOKED_BUSY).store(busy, Relaxed);
    }

    /// What has been counted.
    pub(crate) fn snapshot(&self) -> PoolSnapshot {
        PoolSnapshot::from_words(|index| self.word(index).load(Relaxed))
    }
}

/// The bucket of a duration: what is between two powers of two belongs to the larger.
fn bucket(duration: Duration) -> usize {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).clamp(1, 1 << 62);
    let power = us.next_power_of_two().trailing_zeros();
    (power.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

/// A worker's CPU pool at one moment. All zero before its first job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PoolSnapshot {
    /// Its threads; 0 before the first job, which starts them.
    pub threads: u64,
    /// How many jobs may wait.
    pub capacity: u64,
    /// Jobs that wait.
    pub depth: u64,
    /// Jobs that are running, abandoned ones included.
    pub running: u64,
    /// How much of all its threads' time jobs took during the last second, in percent.
    pub utilisation: u64,
    /// Jobs that ended and whose result was delivered.
    pub done: u64,
    /// Jobs that were refused because the queue was full.
    pub rejected: u64,
    /// Jobs whose deadline passed, waiting or running.
    pub timed_out: u64,
    /// Jobs whose caller went away, waiting or running.
    pub cancelled: u64,
    /// Jobs that panicked.
    pub panicked: u64,
    /// Jobs that came after the pool was closed, or still waited when it ended.
    pub closed: u64,
    /// How long jobs waited before they ran, counted by powers of two: up to 16 µs, up to 32 µs, up to
    /// 64 µs, ... The 24th entry has all that waited for more than 67 s.
    pub wait: [u64; BUCKETS],
    /// How long they ran, counted likewise.
    pub run: [u64; BUCKETS],
}

impl PoolSnapshot {
    pub(super) fn read(page: &SharedPage) -> PoolSnapshot {
        PoolSnapshot::from_words(|index| page[POOL + index].load(Relaxed))
    }

    fn from_words(word: impl Fn(usize) -> u64) -> PoolSnapshot {
        let ended = |ending: Ending| word(ENDINGS + ending as usize);
        PoolSnapshot {
            threads: word(THREADS),
            capacity: word(CAPACITY),
            depth: word(DEPTH),
            running: word(RUNNING),
            utilisation: word(UTILISATION),
            done: ended(Ending::Done),
            rejected: ended(Ending::Rejected),
            timed_out: ended(Ending::TimedOut),
            cancelled: ended(Ending::Cancelled),
            panicked: ended(Ending::Panicked),
            closed: ended(Ending::Closed),
            wait: std::array::from_fn(|i| word(WAIT + i)),
            run: std::array::from_fn(|i| word(RUN + i)),
        }
    }

    /// This pool and another one of the same worker as if they were one.
    pub(super) fn plus(&self, other: &PoolSnapshot) -> PoolSnapshot {
        let sum = |a: u64, b: u64| a.saturating_add(b);
        let busy = |pool: &PoolSnapshot| pool.threads.saturating_mul(pool.utilisation.min(100));
        let threads = sum(self.threads, other.threads);
        PoolSnapshot {
            threads,
            capacity: sum(self.capacity, other.capacity),
            depth: sum(self.depth, other.depth),
            running: sum(self.running, other.running),
            utilisation: sum(busy(self), busy(other)).checked_div(threads).unwrap_or(0),
            done: sum(self.done, other.done),
            rejected: sum(self.rejected, other.rejected),
            timed_out: sum(self.timed_out, other.timed_out),
            cancelled: sum(self.cancelled, other.cancelled),
            panicked: sum(self.panicked, other.panicked),
            closed: sum(self.closed, other.closed),
            wait: std::array::from_fn(|i| sum(self.wait[i], other.wait[i])),
            run: std::array::from_fn(|i| sum(self.run[i], other.run[i])),
        }
    }

    /// Each figure, or `most` where it is more.
    pub(crate) fn at_most(self, most: u64) -> PoolSnapshot {
        PoolSnapshot {
            threads: self.threads.min(most),
            capacity: self.capacity.min(most),
            depth: self.depth.min(most),
            running: self.running.min(most),
            utilisation: self.utilisation.min(100),
            done: self.done.min(most),
            rejected: self.rejected.min(most),
            timed_out: self.timed_out.min(most),
            cancelled: self.cancelled.min(most),
            panicked: self.panicked.min(most),
            closed: self.closed.min(most),
            wait: self.wait.map(|n| n.min(most)),
            run: self.run.map(|n| n.min(most)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_buckets_by_powers_of_two() {
        let us = |n| bucket(Duration::from_micros(n));
        assert_eq!([us(0), us(1), us(16), us(17), us(32), us(33)], [0, 0, 0, 1, 1, 2]);
        assert_eq!(us(67_108_864), BUCKETS - 2);
        assert_eq!(us(67_108_865), BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_counted_in_a_page_is_read_from_it() {
        let page = prefork_os::shared_memory::create_shared_pages(1)
            .expect("page")
            .0
            .keep_only_page(0)
            .expect("own");
        let meter = PoolMeter::of(page);
        meter.started(2, 7);
        meter.depth(3);
        meter.begin(0, Duration::from_micros(20));
        meter.count(Ending::Closed);
        let seen = PoolSnapshot::read(page);
        assert_eq!(seen, meter.snapshot());
        assert_eq!((seen.threads, seen.capacity, seen.depth, seen.running), (2, 7, 3, 1));
        assert_eq!((seen.closed, seen.wait[1], seen.run), (1, 1, [0; BUCKETS]));
    }

    #[test]
    fn the_utilisation_of_two_pools_is_that_of_all_their_threads() {
        let pool =
            |threads, utilisation| PoolSnapshot { threads, utilisation, ..Default::default() };
        let both = pool(1, 100).plus(&pool(3, 20));
        assert_eq!((both.threads, both.utilisation), (4, 40));
        assert_eq!(pool(0, 0).plus(&pool(0, 0)), PoolSnapshot::default());
    }

    #[test]
    fn utilisation_counts_what_still_runs() {
        let meter = PoolMeter::standalone();
        meter.started(2, 7);
        // One of two threads for the whole second, the other for half of it.
        meter.begin(0, Duration::ZERO);
        meter.begin(0, Duration::ZERO);
        meter.end(500_000, Duration::from_millis(500));
        meter.look(999_999);
        assert_eq!(meter.snapshot().utilisation, 0, "not yet a second");
        meter.look(1_000_000);
        assert_eq!(meter.snapshot().utilisation, 75);
        meter.end(2_000_000, Duration::from_secs(2));
        meter.look(3_000_000);
        assert_eq!(meter.snapshot().utilisation, 25);
        meter.look(4_000_000);
        assert_eq!(meter.snapshot().utilisation, 0);
    }
}
