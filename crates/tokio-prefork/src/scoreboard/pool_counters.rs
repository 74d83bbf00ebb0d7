//! Counts the jobs of a CPU pool, in a record of shared memory or in the memory of its process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use super::page_layout::POOL_RECORDS_IN_USE;
use super::pool_record::{
    BUSY_US, CAPACITY, CREATED_AT_US, DEPTH, DurationWords, JOB_OUTCOMES, JobOutcome,
    POOL_RECORD_WORDS, PoolRecord, RUN, RUNNING, THREADS, WAIT, read_record, write_name,
};
use super::pool_utilisation::before_change;
use crate::status::{PoolStatus, duration_bucket, duration_us};
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::monotonic_ns;

/// Counts the jobs of one pool. Its threads and its callers write to it.
#[derive(Clone)]
pub(crate) struct PoolCounters(Arc<CounterWords>);

enum CounterWords {
    /// In the pool pages of this worker.
    Shared(SharedRecord),
    /// In a pool outside of any worker.
    Own(Box<PoolRecord>),
}

/// The record of a pool in the pages of its worker. It is prepared with its first use: most workers never use their pool, and
/// untouched pages cost no memory.
pub(super) struct SharedRecord {
    pub(super) record: &'static PoolRecord,
    /// The number of the record among those of the worker.
    pub(super) number: usize,
    /// The page that tells which records are in use.
    pub(super) worker_page: &'static SharedPage,
    pub(super) name: String,
    pub(super) created_at_us: u64,
    pub(super) prepared: Once,
    /// Lives as long as the pool.
    pub(super) _claim: Arc<()>,
}

impl PoolCounters {
    pub(super) fn on_record(record: SharedRecord) -> PoolCounters {
        PoolCounters(Arc::new(CounterWords::Shared(record)))
    }

    /// Returns counters for a pool that belongs to no worker.
    pub(crate) fn standalone(name: &str) -> PoolCounters {
        let record = Box::new([const { AtomicU64::new(0) }; POOL_RECORD_WORDS]);
        write_name(&record, name);
        record[CREATED_AT_US].store(monotonic_us(), Relaxed);
        PoolCounters(Arc::new(CounterWords::Own(record)))
    }

    fn record(&self) -> &PoolRecord {
        match &*self.0 {
            CounterWords::Shared(shared) => {
                shared.prepared.call_once(|| shared.prepare());
                shared.record
            }
            CounterWords::Own(record) => record,
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.record()[index]
    }

    /// Lists the pool in the status even before its first job.
    pub(super) fn publish(&self) {
        let _ = self.record();
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

    /// Records a job that starts at `now_us`, counted from the creation of the pool, and how long it waited.
    pub(crate) fn job_started(&self, now_us: u64, waited: Duration) {
        let record = self.record();
        before_change(record, now_us);
        record[RUNNING].fetch_add(1, Relaxed);
        record[BUSY_US].fetch_sub(now_us, Relaxed);
        record_duration(record, WAIT, waited);
    }

    /// Records a job that has left its thread, and how long it ran.
    pub(crate) fn job_left_thread(&self, now_us: u64, ran: Duration) {
        let record = self.record();
        before_change(record, now_us);
        record[BUSY_US].fetch_add(now_us, Relaxed);
        record[RUNNING].fetch_sub(1, Relaxed);
        record_duration(record, RUN, ran);
    }

    /// Counts a job that has ended.
    pub(crate) fn job_ended(&self, ending: JobOutcome) {
        self.word(JOB_OUTCOMES + ending as usize).fetch_add(1, Relaxed);
    }

    /// Returns all figures.
    pub(crate) fn status(&self) -> PoolStatus {
        match &*self.0 {
            CounterWords::Shared(shared) if !shared.prepared.is_completed() => {
                PoolStatus { name: shared.name.clone(), ..PoolStatus::default() }
            }
            _ => read_record(self.record(), monotonic_us()),
        }
    }
}

impl SharedRecord {
    /// Clears the record, which an earlier worker may have used, and lists it in the status. The counts of an earlier pool of
    /// this worker stay.
    fn prepare(&self) {
        let is_continued = POOL_RECORDS_IN_USE.has_bit(self.worker_page, self.number);
        let keeps = |index: usize| is_continued && index >= JOB_OUTCOMES;
        for (index, word) in self.record.iter().enumerate().filter(|(index, _)| !keeps(*index)) {
            let value = if index == CREATED_AT_US { self.created_at_us } else { 0 };
            word.store(value, Relaxed);
        }
        write_name(self.record, &self.name);
        POOL_RECORDS_IN_USE.set_bit(self.worker_page, self.number);
    }
}

fn record_duration(record: &PoolRecord, at: DurationWords, duration: Duration) {
    let us = duration_us(duration);
    record[at.counts + duration_bucket(us)].fetch_add(1, Relaxed);
    record[at.sum].fetch_add(us, Relaxed);
    if us > record[at.max].load(Relaxed) {
        record[at.max].fetch_max(us, Relaxed);
    }
}

/// Returns the monotonic clock in microseconds.
pub(super) fn monotonic_us() -> u64 {
    monotonic_ns() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_back() {
        let counters = PoolCounters::standalone("images");
        counters.threads_started(2, 7);
        counters.set_depth(3);
        counters.job_started(0, Duration::from_micros(20));
        counters.job_started(0, Duration::from_micros(30));
        counters.job_left_thread(100, Duration::from_micros(100));
        counters.job_ended(JobOutcome::Closed);
        let status = counters.status();
        assert_eq!((status.name.as_str(), status.closed), ("images", 1));
        assert_eq!((status.threads, status.capacity, status.depth, status.running), (2, 7, 3, 1));
        assert_eq!((status.wait.count(), status.run.count()), (2, 1));
        assert_eq!(status.wait.mean(), Some(Duration::from_micros(25)));
        assert_eq!(status.run_quantile(0.99), Some(Duration::from_micros(100)));
    }

    #[test]
    fn the_utilisation_of_a_pool_is_worked_out_when_it_is_read() {
        let counters = PoolCounters::standalone("images");
        counters.threads_started(1, 7);
        let created = std::time::Instant::now();
        counters.job_started(0, Duration::ZERO);
        // The first microsecond has no utilisation yet.
        while created.elapsed() < Duration::from_micros(10) {}
        assert_eq!(counters.status().utilisation, 100);
    }
}
