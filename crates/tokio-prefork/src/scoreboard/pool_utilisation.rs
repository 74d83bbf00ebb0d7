//! How much of the last one to three seconds the threads of a pool spent on jobs, worked out when the pool is read.
//!
//! Jobs that start or end take a sample of the work done so far, at most one a second, and the last two samples are kept.
//! The reader compares the work done by now with the sample that is at least a second old. If nothing has started or ended for
//! longer, the number of running jobs was constant, and no sample is needed.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::pool_record::{
    BUSY_US, CREATED_AT_US, PoolRecord, RUNNING, THREADS, UTILISATION_SAMPLES,
};

/// The shortest time over which the utilisation is computed, in microseconds.
const MIN_WINDOW_US: u64 = 1_000_000;

/// When a job last started or ended.
const LAST_CHANGE_US: usize = UTILISATION_SAMPLES;
/// Odd while a thread writes the samples.
const SEQUENCE: usize = UTILISATION_SAMPLES + 1;
/// Two samples of two words: the time, and the work done by then.
const OLDER: usize = UTILISATION_SAMPLES + 2;
const NEWER: usize = UTILISATION_SAMPLES + 4;

const _: () = assert!(NEWER + 2 == CREATED_AT_US);

/// Takes a sample if the last one is old. A thread calls it before it records that a job starts or ends at `now_us`, counted
/// from the creation of the pool.
pub(super) fn before_change(record: &PoolRecord, now_us: u64) {
    if now_us.saturating_sub(record[NEWER].load(Relaxed)) >= MIN_WINDOW_US {
        take_sample(record, now_us);
    }
    record[LAST_CHANGE_US].store(now_us, Relaxed);
}

#[cold]
fn take_sample(record: &PoolRecord, now_us: u64) {
    let sequence = record[SEQUENCE].load(Relaxed);
    let is_locked = sequence % 2 == 1
        || record[SEQUENCE].compare_exchange(sequence, sequence + 1, Acquire, Relaxed).is_err();
    // Another thread takes the sample.
    if is_locked {
        return;
    }
    fence(Release);
    let running = record[RUNNING].load(Relaxed);
    let busy_us = work_done(record, running, now_us);
    let is_constant = now_us.saturating_sub(record[LAST_CHANGE_US].load(Relaxed)) >= MIN_WINDOW_US;
    let older = match is_constant {
        // The work done a second ago is known. The last sample may be hours old.
        true => {
            let busy_then = busy_us.wrapping_sub(running.wrapping_mul(MIN_WINDOW_US));
            (now_us - MIN_WINDOW_US, busy_then)
        }
        false => (record[NEWER].load(Relaxed), record[NEWER + 1].load(Relaxed)),
    };
    for (at, (time_us, busy_us)) in [(OLDER, older), (NEWER, (now_us, busy_us))] {
        record[at].store(time_us, Relaxed);
        record[at + 1].store(busy_us, Relaxed);
    }
    record[SEQUENCE].store(sequence.wrapping_add(2), Release);
}

/// Returns the thread-microseconds of work done by `now_us`, since the creation of the pool.
fn work_done(record: &[AtomicU64], running: u64, now_us: u64) -> u64 {
    record[BUSY_US].load(Relaxed).wrapping_add(running.wrapping_mul(now_us))
}

/// Returns the utilisation in percent. `monotonic_us` is the clock of all processes.
pub(super) fn read_utilisation(record: &PoolRecord, monotonic_us: u64) -> u64 {
    let threads = record[THREADS].load(Relaxed);
    if threads == 0 {
        return 0;
    }
    let now_us = monotonic_us.saturating_sub(record[CREATED_AT_US].load(Relaxed));
    let (older, newer) = read_samples(record);
    let running = record[RUNNING].load(Relaxed);
    if now_us.saturating_sub(record[LAST_CHANGE_US].load(Relaxed)) >= MIN_WINDOW_US {
        return (100 * u128::from(running) / u128::from(threads)).min(100) as u64;
    }
    let is_newer_old = now_us.saturating_sub(newer.0) >= MIN_WINDOW_US;
    let (from_us, busy_then) = if is_newer_old { newer } else { older };
    let busy_us = work_done(record, running, now_us);
    // A job that starts or ends between two loads can make this slightly wrong, even negative. All words may be garbage.
    let done = u64::try_from(busy_us.wrapping_sub(busy_then).cast_signed()).unwrap_or(0);
    let window = u128::from(now_us.saturating_sub(from_us).max(1)) * u128::from(threads);
    (100 * u128::from(done) / window).min(100) as u64
}

/// Reads the older and the newer sample.
fn read_samples(record: &PoolRecord) -> ((u64, u64), (u64, u64)) {
    let load = |at: usize| (record[at].load(Relaxed), record[at + 1].load(Relaxed));
    let mut samples = (load(OLDER), load(NEWER));
    // A worker that was killed while it wrote leaves the sequence odd. Then the figure may be wrong.
    for _ in 0..4 {
        let before = record[SEQUENCE].load(Acquire);
        samples = (load(OLDER), load(NEWER));
        fence(Acquire);
        if before.is_multiple_of(2) && record[SEQUENCE].load(Relaxed) == before {
            break;
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::super::pool_record::empty_record;
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// A pool with a clock that the test sets.
    struct SimulatedPool(PoolRecord);

    impl SimulatedPool {
        fn new(threads: u64) -> SimulatedPool {
            let record = empty_record();
            record[THREADS].store(threads, Relaxed);
            SimulatedPool(record)
        }

        fn start_job(&self, now_us: u64) {
            before_change(&self.0, now_us);
            self.0[RUNNING].fetch_add(1, Relaxed);
            self.0[BUSY_US].fetch_sub(now_us, Relaxed);
        }

        fn end_job(&self, now_us: u64) {
            before_change(&self.0, now_us);
            self.0[BUSY_US].fetch_add(now_us, Relaxed);
            self.0[RUNNING].fetch_sub(1, Relaxed);
        }

        fn utilisation(&self, now_us: u64) -> u64 {
            read_utilisation(&self.0, now_us)
        }
    }

    #[test]
    fn jobs_back_to_back_use_a_thread_completely() {
        let pool = SimulatedPool::new(1);
        for n in 0..15 {
            pool.start_job(n * SECOND / 5);
            pool.end_job((n + 1) * SECOND / 5);
            assert_eq!(pool.utilisation((n + 1) * SECOND / 5), 100, "job {n}");
        }
        assert_eq!(pool.utilisation(4 * SECOND), 0, "idle for a second");
    }

    #[test]
    fn short_jobs_use_their_share_of_the_time() {
        let pool = SimulatedPool::new(2);
        for n in 0..1_000 {
            let now = n * 10_000;
            pool.start_job(now);
            pool.end_job(now + 5_000);
            if now > SECOND {
                assert_eq!(pool.utilisation(now + 10_000), 25, "after {now} us");
            }
        }
    }

    #[test]
    fn jobs_that_still_run_count() {
        let pool = SimulatedPool::new(2);
        pool.start_job(0);
        pool.start_job(0);
        assert_eq!(pool.utilisation(SECOND / 2), 100);
        pool.end_job(SECOND / 2);
        assert_eq!(pool.utilisation(SECOND), 75);
        assert_eq!(
            pool.utilisation(60 * SECOND),
            50,
            "the other one has been running for a minute"
        );
    }

    #[test]
    fn a_pool_that_was_idle_for_long_is_busy_within_a_second() {
        let pool = SimulatedPool::new(1);
        pool.start_job(3600 * SECOND);
        assert_eq!(pool.utilisation(3600 * SECOND), 0);
        assert_eq!(pool.utilisation(3600 * SECOND + SECOND / 2), 33, "a half of one and a half");
        assert_eq!(pool.utilisation(3601 * SECOND), 100);
        pool.end_job(3602 * SECOND);
        assert_eq!(pool.utilisation(3602 * SECOND), 100);
    }

    #[test]
    fn garbage_stays_a_percentage() {
        let record = empty_record();
        for seed in 1..200u64 {
            for (n, word) in record.iter().enumerate() {
                word.store((seed << (n % 64)).wrapping_mul(0x9e37_79b9_7f4a_7c15), Relaxed);
            }
            assert!(read_utilisation(&record, seed.wrapping_mul(SECOND)) <= 100);
        }
    }
}
