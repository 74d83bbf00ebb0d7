//! What the jobs of a pool came to, for the status.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{JobOutcome, JobValue};
use crate::scoreboard::{DURATION_BUCKETS, duration_bucket};

/// The jobs of a pool so far, by their end, and how long they waited and ran.
///
/// Each job that was submitted is waiting, running, or counted under exactly one end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IsolatedJobCounts {
    /// Jobs that callers have submitted.
    pub(crate) submitted: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) panicked: u64,
    /// Jobs whose process died.
    pub(crate) died: u64,
    pub(crate) timed_out: u64,
    /// Jobs that a drain ended while they ran.
    pub(crate) cut: u64,
    /// Jobs that the full queue refused.
    pub(crate) refused: u64,
    /// Jobs that did not begin because the cluster stops.
    pub(crate) closed: u64,
    /// Jobs that nobody waited for any more.
    pub(crate) abandoned: u64,
    /// Jobs that were lost because the primary was replaced.
    pub(crate) lost: u64,
    /// How long jobs waited, by powers of two of a millisecond.
    pub(crate) wait: [u64; DURATION_BUCKETS],
    /// How long jobs ran, by powers of two of a millisecond.
    pub(crate) run: [u64; DURATION_BUCKETS],
}

/// A pool at one moment.
#[allow(dead_code, reason = "the status does not show it yet")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IsolatedPoolSnapshot {
    /// Processes that can run jobs.
    pub(crate) processes: usize,
    /// Processes that run a job.
    pub(crate) busy: usize,
    /// Jobs that wait for a process.
    pub(crate) queued: usize,
    /// Jobs that wait for room in the queue. Their inputs are still with their callers.
    pub(crate) waiting_for_room: usize,
    /// How many jobs may wait.
    pub(crate) queue_limit: usize,
    /// Bytes of the inputs that wait.
    pub(crate) queued_bytes: usize,
    /// How long the oldest running job has run.
    pub(crate) oldest_run: Option<Duration>,
    pub(crate) counts: IsolatedJobCounts,
}

impl IsolatedJobCounts {
    /// Counts the end of a job.
    pub(super) fn count_outcome(&mut self, outcome: &JobOutcome) {
        *match outcome {
            JobOutcome::Done => &mut self.done,
            JobOutcome::Failed
            | JobOutcome::TooLarge { value: JobValue::Output, .. }
            | JobOutcome::Transfer { value: JobValue::Output, .. } => &mut self.failed,
            JobOutcome::Panicked { .. } => &mut self.panicked,
            JobOutcome::Died { .. } => &mut self.died,
            JobOutcome::TimedOut { .. } => &mut self.timed_out,
            JobOutcome::Cut => &mut self.cut,
            JobOutcome::Full | JobOutcome::TooLarge { .. } | JobOutcome::Transfer { .. } => {
                &mut self.refused
            }
            JobOutcome::Closed => &mut self.closed,
            JobOutcome::PrimaryGone => &mut self.lost,
        } += 1;
    }

    /// Records that a job was given to a process.
    pub(super) fn record_wait(&mut self, submitted: Instant, now: Instant) {
        self.wait[bucket(submitted, now)] += 1;
    }

    /// Records that a job has ended in its process, or with it.
    pub(super) fn record_run(&mut self, started: Instant, now: Instant) {
        self.run[bucket(started, now)] += 1;
    }

    /// Returns how many jobs have ended.
    #[allow(dead_code, reason = "the status does not show it yet")]
    pub(crate) fn ended(&self) -> u64 {
        self.done
            + self.failed
            + self.panicked
            + self.died
            + self.timed_out
            + self.cut
            + self.refused
            + self.closed
            + self.abandoned
            + self.lost
    }
}

fn bucket(from: Instant, now: Instant) -> usize {
    let millis = now.saturating_duration_since(from).as_micros().div_ceil(1000);
    duration_bucket(u64::try_from(millis).unwrap_or(u64::MAX))
}
