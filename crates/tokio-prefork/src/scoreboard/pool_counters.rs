//! The counters of a worker's CPU pool, in a block of words at the end of the worker page.
//!
//! Unlike the rest of a page, several threads write these words, so they are added to with locked instructions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::page_layout::{POOL_START, POOL_WORDS};
use crate::status::{MAX_JSON_INTEGER, POOL_DURATION_BUCKETS, PoolStatus};
use prefork_os::shared_memory::SharedPage;

/// The upper bound of the first bucket, in microseconds, as a power of two: 16 µs.
const FIRST_BUCKET_POWER: u32 = 4;

const THREADS: usize = 0;
const CAPACITY: usize = 1;
const DEPTH: usize = 2;
const RUNNING: usize = 3;
/// Thread-microseconds of work so far, minus the start times of the running jobs: see `PoolCounters::job_started`.
const BUSY_US: usize = 4;
const UTILISATION: usize = 5;
/// When `UTILISATION` was last computed, and the work done by then.
const SAMPLED_AT_US: usize = 6;
const SAMPLED_BUSY_US: usize = 7;
/// One word for each `JobOutcome`.
const JOB_OUTCOMES: usize = 8;
/// Two histograms: how long jobs waited, and how long they ran.
const WAIT: usize = 16;
const RUN: usize = WAIT + POOL_DURATION_BUCKETS;

const _: () =
    assert!(RUN + POOL_DURATION_BUCKETS == POOL_WORDS && JOB_OUTCOMES + JobOutcome::COUNT <= WAIT);

/// The shortest time over which the utilisation is computed, in microseconds.
const UTILISATION_INTERVAL_US: u64 = 1_000_000;

/// How a job ended. Every job has exactly one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobOutcome {
    Done,
    Rejected,
    TimedOut,
    Cancelled,
    Panicked,
    Closed,
}

impl JobOutcome {
    const COUNT: usize = 6;
}

/// Counts the jobs of a CPU pool. Its threads and its callers write to it.
#[derive(Clone)]
pub(crate) struct PoolCounters(PoolWords);

#[derive(Clone)]
enum PoolWords {
    /// On the page of this worker.
    Page(&'static [AtomicU64; POOL_WORDS]),
    /// In a pool outside of any worker.
    Own(Arc<[AtomicU64; POOL_WORDS]>),
}

impl PoolCounters {
    /// Returns the counters on a worker's page.
    pub(super) fn on_page(page: &'static SharedPage) -> PoolCounters {
        page[POOL_START..]
            .first_chunk()
            .map_or_else(PoolCounters::standalone, |words| PoolCounters(PoolWords::Page(words)))
    }

    /// Returns counters for a pool that belongs to no worker.
    pub(crate) fn standalone() -> PoolCounters {
        PoolCounters(PoolWords::Own(Arc::new([const { AtomicU64::new(0) }; POOL_WORDS])))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        match &self.0 {
            PoolWords::Page(words) => &words[index],
            PoolWords::Own(words) => &words[index],
        }
    }

    /// Records the number of threads and of jobs that may wait.
    pub(crate) fn threads_started(&self, threads: usize, capacity: usize) {
        self.word(THREADS).store(threads as u64, Relaxed);
        self.word(CAPACITY).store(capacity as u64, Relaxed);
    }

    /// Records how many jobs wait. The caller holds the lock of the queue.
    pub(crate) fn set_depth(&self, jobs: usize) {
        self.word(DEPTH).store(jobs as u64, Relaxed);
    }

    /// Records a job that starts at `now_us`, and how long it waited.
    pub(crate) fn job_started(&self, now_us: u64, waited: Duration) {
        self.word(RUNNING).fetch_add(1, Relaxed);
        self.word(BUSY_US).fetch_sub(now_us, Relaxed);
        self.word(WAIT + pool_duration_bucket(waited)).fetch_add(1, Relaxed);
    }

    /// Records a job that has left its thread, and how long it ran.
    pub(crate) fn job_left_thread(&self, now_us: u64, ran: Duration) {
        self.word(BUSY_US).fetch_add(now_us, Relaxed);
        self.word(RUNNING).fetch_sub(1, Relaxed);
        self.word(RUN + pool_duration_bucket(ran)).fetch_add(1, Relaxed);
    }

    /// Counts a job that has ended.
    pub(crate) fn job_ended(&self, ending: JobOutcome) {
        self.word(JOB_OUTCOMES + ending as usize).fetch_add(1, Relaxed);
    }

    /// Updates the utilisation once the interval has passed. Only one thread calls it.
    pub(crate) fn update_utilisation(&self, now_us: u64) {
        let threads = self.word(THREADS).load(Relaxed);
        let span = now_us.saturating_sub(self.word(SAMPLED_AT_US).load(Relaxed));
        if threads == 0 || span < UTILISATION_INTERVAL_US {
            return;
        }
        let running = self.word(RUNNING).load(Relaxed);
        let busy = self.word(BUSY_US).load(Relaxed).wrapping_add(running.wrapping_mul(now_us));
        // A job that starts or ends between the two loads can make this slightly wrong, even negative.
        let done = busy.wrapping_sub(self.word(SAMPLED_BUSY_US).load(Relaxed)) as i64;
        let percent = 100 * u64::try_from(done).unwrap_or(0) / (span * threads);
        self.word(UTILISATION).store(percent.min(100), Relaxed);
        self.word(SAMPLED_AT_US).store(now_us, Relaxed);
        self.word(SAMPLED_BUSY_US).store(busy, Relaxed);
    }

    /// Returns all figures.
    pub(crate) fn status(&self) -> PoolStatus {
        pool_status(|index| self.word(index).load(Relaxed))
    }
}

/// Returns the bucket of a duration. A duration between two powers of two belongs to the larger.
fn pool_duration_bucket(duration: Duration) -> usize {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).clamp(1, 1 << 62);
    let power = us.next_power_of_two().trailing_zeros();
    (power.saturating_sub(FIRST_BUCKET_POWER) as usize).min(POOL_DURATION_BUCKETS - 1)
}

/// Reads the figures of the CPU pool from a page.
pub(super) fn read_pool_status(page: &SharedPage) -> PoolStatus {
    pool_status(|index| page[POOL_START + index].load(Relaxed))
}

fn pool_status(word: impl Fn(usize) -> u64) -> PoolStatus {
    let word = |index| word(index).min(MAX_JSON_INTEGER);
    let jobs = |outcome: JobOutcome| word(JOB_OUTCOMES + outcome as usize);
    PoolStatus {
        threads: word(THREADS),
        capacity: word(CAPACITY),
        depth: word(DEPTH),
        running: word(RUNNING),
        utilisation: word(UTILISATION).min(100),
        done: jobs(JobOutcome::Done),
        rejected: jobs(JobOutcome::Rejected),
        timed_out: jobs(JobOutcome::TimedOut),
        cancelled: jobs(JobOutcome::Cancelled),
        panicked: jobs(JobOutcome::Panicked),
        closed: jobs(JobOutcome::Closed),
        wait: std::array::from_fn(|i| word(WAIT + i)),
        run: std::array::from_fn(|i| word(RUN + i)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_buckets_by_powers_of_two() {
        let us = |n| pool_duration_bucket(Duration::from_micros(n));
        assert_eq!([us(0), us(1), us(16), us(17), us(32), us(33)], [0, 0, 0, 1, 1, 2]);
        assert_eq!(us(67_108_864), POOL_DURATION_BUCKETS - 2);
        assert_eq!(us(67_108_865), POOL_DURATION_BUCKETS - 1);
        assert_eq!(pool_duration_bucket(Duration::MAX), POOL_DURATION_BUCKETS - 1);
    }

    #[test]
    fn counters_on_a_page_are_read_back() {
        let page = prefork_os::shared_memory::create_shared_pages(1)
            .expect("page")
            .0
            .keep_only_page(0)
            .expect("own");
        let counters = PoolCounters::on_page(page);
        counters.threads_started(2, 7);
        counters.set_depth(3);
        counters.job_started(0, Duration::from_micros(20));
        counters.job_ended(JobOutcome::Closed);
        let status = read_pool_status(page);
        assert_eq!(status, counters.status());
        assert_eq!((status.threads, status.capacity, status.depth, status.running), (2, 7, 3, 1));
        assert_eq!((status.closed, status.wait[1], status.run), (1, 1, [0; POOL_DURATION_BUCKETS]));
    }

    #[test]
    fn utilisation_includes_jobs_that_still_run() {
        let counters = PoolCounters::standalone();
        counters.threads_started(2, 7);
        // One of two threads for the whole second, the other for half of it.
        counters.job_started(0, Duration::ZERO);
        counters.job_started(0, Duration::ZERO);
        counters.job_left_thread(500_000, Duration::from_millis(500));
        counters.update_utilisation(999_999);
        assert_eq!(counters.status().utilisation, 0, "not yet a second");
        counters.update_utilisation(1_000_000);
        assert_eq!(counters.status().utilisation, 75);
        counters.job_left_thread(2_000_000, Duration::from_secs(2));
        counters.update_utilisation(3_000_000);
        assert_eq!(counters.status().utilisation, 25);
        counters.update_utilisation(4_000_000);
        assert_eq!(counters.status().utilisation, 0);
    }
}
