//! The record of one CPU pool in shared memory: its name, gauges, counters and durations.
//!
//! Unlike most words of a worker's page, several threads write these, so they are added to with locked instructions.
//! The next image of an upgrade reads the records of workers of this one, so words never move.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::pool_utilisation::read_utilisation;
use crate::status::{JOB_DURATION_BUCKETS, JobDurations, MAX_JSON_INTEGER, PoolStatus};
use prefork_os::shared_memory::WORDS_PER_PAGE;

/// How many words a record has.
pub(super) const POOL_RECORD_WORDS: usize = 128;
pub(super) const POOL_RECORDS_PER_PAGE: usize = WORDS_PER_PAGE / POOL_RECORD_WORDS;

/// The words of one pool.
pub(super) type PoolRecord = [AtomicU64; POOL_RECORD_WORDS];

/// How many bytes of a pool's name are kept.
pub(crate) const MAX_POOL_NAME_BYTES: usize = 32;

const NAME_LENGTH: usize = 0;
const NAME: usize = 1;
pub(super) const THREADS: usize = 5;
pub(super) const CAPACITY: usize = 6;
pub(super) const DEPTH: usize = 7;
pub(super) const RUNNING: usize = 8;
/// Thread-microseconds of work so far, minus the start times of the running jobs: see `PoolCounters::job_started`.
pub(super) const BUSY_US: usize = 9;
/// The samples for the utilisation, in six words: see `pool_utilisation`.
pub(super) const UTILISATION_SAMPLES: usize = 10;
/// When the pool was created, in microseconds on the monotonic clock. Other times of a record count from then.
pub(super) const CREATED_AT_US: usize = 16;
/// One word for each `JobOutcome`.
pub(super) const JOB_OUTCOMES: usize = 17;
pub(super) const WAIT: DurationWords = DurationWords { sum: 25, max: 26, counts: 32 };
pub(super) const RUN: DurationWords = DurationWords { sum: 27, max: 28, counts: 80 };

const _: () = assert!(
    NAME + MAX_POOL_NAME_BYTES / 8 == THREADS
        && JOB_OUTCOMES + JobOutcome::COUNT <= WAIT.sum
        && WAIT.counts + JOB_DURATION_BUCKETS == RUN.counts
        && RUN.counts + JOB_DURATION_BUCKETS == POOL_RECORD_WORDS
);

/// Where a record holds a histogram of durations.
#[derive(Clone, Copy)]
pub(super) struct DurationWords {
    pub(super) sum: usize,
    pub(super) max: usize,
    pub(super) counts: usize,
}

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

/// Writes the name of a pool, cut to the room there is.
pub(super) fn write_name(record: &PoolRecord, name: &str) {
    let mut bytes = [0u8; MAX_POOL_NAME_BYTES];
    let length = name.len().min(MAX_POOL_NAME_BYTES);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    for (word, chunk) in record[NAME..].iter().zip(bytes.chunks_exact(8)) {
        let mut eight = [0u8; 8];
        eight.copy_from_slice(chunk);
        word.store(u64::from_le_bytes(eight), Relaxed);
    }
    record[NAME_LENGTH].store(length as u64, Relaxed);
}

/// Reads the name of a pool. Bytes outside printable ASCII are replaced, as a worker can write anything.
pub(super) fn read_name(record: &PoolRecord) -> String {
    let mut bytes = [0u8; MAX_POOL_NAME_BYTES];
    for (word, chunk) in record[NAME..].iter().zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.load(Relaxed).to_le_bytes());
    }
    let length = usize::try_from(record[NAME_LENGTH].load(Relaxed)).unwrap_or(usize::MAX);
    let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let bytes = bytes[..length.min(MAX_POOL_NAME_BYTES)].iter();
    bytes.map(|byte| if is_printable(*byte) { char::from(*byte) } else { '?' }).collect()
}

/// Reads all figures, each cut to a number that is safe in JSON. `now_us` is the monotonic clock.
pub(super) fn read_record(record: &PoolRecord, now_us: u64) -> PoolStatus {
    let word = |index: usize| record[index].load(Relaxed).min(MAX_JSON_INTEGER);
    let jobs = |outcome: JobOutcome| word(JOB_OUTCOMES + outcome as usize);
    PoolStatus {
        name: read_name(record),
        threads: word(THREADS),
        capacity: word(CAPACITY),
        depth: word(DEPTH),
        running: word(RUNNING),
        utilisation: read_utilisation(record, now_us),
        done: jobs(JobOutcome::Done),
        rejected: jobs(JobOutcome::Rejected),
        timed_out: jobs(JobOutcome::TimedOut),
        cancelled: jobs(JobOutcome::Cancelled),
        panicked: jobs(JobOutcome::Panicked),
        closed: jobs(JobOutcome::Closed),
        wait: read_durations(record, WAIT),
        run: read_durations(record, RUN),
    }
}

/// Reads a histogram, with each figure cut to a number that is safe in JSON.
pub(super) fn read_durations(record: &PoolRecord, at: DurationWords) -> JobDurations {
    let word = |index: usize| record[index].load(Relaxed).min(MAX_JSON_INTEGER);
    let counts = std::array::from_fn(|bucket| word(at.counts + bucket));
    JobDurations::from_parts(counts, word(at.sum), word(at.max))
}

/// Writes a histogram.
pub(super) fn store_durations(record: &PoolRecord, at: DurationWords, durations: &JobDurations) {
    let (counts, sum_us, max_us) = durations.to_parts();
    for (word, count) in record[at.counts..].iter().zip(counts) {
        word.store(count, Relaxed);
    }
    record[at.sum].store(sum_us, Relaxed);
    record[at.max].store(max_us, Relaxed);
}

/// Adds the counters and durations of a pool to a record, which has no other writer. Its gauges are left out.
pub(super) fn add_to_record(record: &PoolRecord, pool: &PoolStatus) {
    let add = |index: usize, by: u64| {
        let sum = record[index].load(Relaxed).saturating_add(by).min(MAX_JSON_INTEGER);
        record[index].store(sum, Relaxed);
    };
    for (outcome, jobs) in [
        (JobOutcome::Done, pool.done),
        (JobOutcome::Rejected, pool.rejected),
        (JobOutcome::TimedOut, pool.timed_out),
        (JobOutcome::Cancelled, pool.cancelled),
        (JobOutcome::Panicked, pool.panicked),
        (JobOutcome::Closed, pool.closed),
    ] {
        add(JOB_OUTCOMES + outcome as usize, jobs);
    }
    for (at, durations) in [(WAIT, &pool.wait), (RUN, &pool.run)] {
        let (counts, sum_us, max_us) = durations.to_parts();
        for (bucket, count) in counts.into_iter().enumerate() {
            add(at.counts + bucket, count);
        }
        add(at.sum, sum_us);
        record[at.max].fetch_max(max_us.min(MAX_JSON_INTEGER), Relaxed);
    }
}

#[cfg(test)]
pub(super) fn empty_record() -> PoolRecord {
    [const { AtomicU64::new(0) }; POOL_RECORD_WORDS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_name_is_cut_and_printable() {
        let record = empty_record();
        for (name, read) in [
            ("images", "images".to_string()),
            ("", String::new()),
            ("\u{1b}[2J", "?[2J".to_string()),
            (&"x".repeat(100), "x".repeat(MAX_POOL_NAME_BYTES)),
        ] {
            write_name(&record, name);
            assert_eq!(read_name(&record), read);
        }
        record[NAME_LENGTH].store(u64::MAX, Relaxed);
        assert_eq!(read_name(&record).len(), MAX_POOL_NAME_BYTES);
    }

    #[test]
    fn a_record_keeps_the_sums_of_pools() {
        let record = empty_record();
        let mut pool = PoolStatus { done: 3, closed: 1, threads: 2, ..PoolStatus::default() };
        pool.wait.record(Duration::from_millis(5));
        pool.run.record(Duration::from_secs(1));
        add_to_record(&record, &pool);
        add_to_record(&record, &pool);
        let sums = read_record(&record, 0);
        assert_eq!(sums, PoolStatus { threads: 0, ..pool.clone().sum_with(&pool) });
        assert_eq!((sums.done, sums.run.count()), (6, 2));
    }
}
