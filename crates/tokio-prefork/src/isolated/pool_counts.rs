//! What the jobs of a pool came to, for the status.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{JobOutcome, JobValue};
use crate::status::{IsolatedPoolStatus, JobDurations};

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
    /// How long jobs waited.
    pub(crate) wait: JobDurations,
    /// How long jobs ran.
    pub(crate) run: JobDurations,
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
            JobOutcome::Died { .. } | JobOutcome::LimitExceeded { .. } => &mut self.died,
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
        self.wait.record(now.saturating_duration_since(submitted));
    }

    /// Records that a job has ended in its process, or with it.
    pub(super) fn record_run(&mut self, started: Instant, now: Instant) {
        self.run.record(now.saturating_duration_since(started));
    }

    /// Returns the figures of a pool with these counts, and without gauges.
    pub(super) fn status(&self, name: &str) -> IsolatedPoolStatus {
        IsolatedPoolStatus {
            name: name.to_string(),
            submitted: self.submitted,
            done: self.done,
            failed: self.failed,
            panicked: self.panicked,
            died: self.died,
            timed_out: self.timed_out,
            cut: self.cut,
            refused: self.refused,
            closed: self.closed,
            abandoned: self.abandoned,
            lost: self.lost,
            wait: self.wait.clone(),
            run: self.run.clone(),
            ..IsolatedPoolStatus::default()
        }
    }
}
