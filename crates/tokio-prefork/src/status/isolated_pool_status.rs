//! The status of a pool of isolated processes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::JobDurations;

/// A pool of isolated processes at one moment. All workers of the cluster share it, and its counts include processes that have
/// ended, over reloads and upgrades.
///
/// Each submitted job waits (`depth`, `waiting_for_room`), runs, or is counted under exactly one end: `done`, `failed`, `panicked`, `died`, `timed_out`, `cut`,
/// `refused`, `closed`, `abandoned` or `lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IsolatedPoolStatus {
    /// The name of the pool, which is also the kind of its processes.
    pub name: String,
    /// Processes that are ready to run jobs, or run one.
    pub processes: u64,
    /// Jobs that run, each in a process of its own. A job that is counted already, and whose process is being killed, is not
    /// included.
    pub running: u64,
    /// How long the oldest running job has run, in milliseconds; `None` if none runs.
    pub oldest_run_ms: Option<u64>,
    /// How many jobs wait.
    pub depth: u64,
    /// How many callers wait for room in the queue. They still have their inputs.
    pub waiting_for_room: u64,
    /// How many jobs may wait.
    pub capacity: u64,
    /// Bytes of the inputs that wait.
    pub queued_bytes: u64,
    /// Jobs that callers have submitted.
    pub submitted: u64,
    /// Jobs whose result was delivered.
    pub done: u64,
    /// Jobs that returned an error of the application, or whose result could not be sent.
    pub failed: u64,
    /// Jobs that panicked.
    pub panicked: u64,
    /// Jobs whose process died, or exceeded a limit of the pool.
    pub died: u64,
    /// Jobs whose deadline passed, waiting or running.
    pub timed_out: u64,
    /// Jobs that a drain ended while they ran.
    pub cut: u64,
    /// Jobs that did not run because the queue was full, or their input could not be sent.
    pub refused: u64,
    /// Jobs that did not begin because the cluster stops.
    pub closed: u64,
    /// Jobs whose caller stopped waiting, waiting or running.
    pub abandoned: u64,
    /// Jobs that were running when the primary was replaced by a version that cannot continue them.
    pub lost: u64,
    /// How long jobs waited for a process.
    pub wait: JobDurations,
    /// How long jobs ran.
    pub run: JobDurations,
}

impl IsolatedPoolStatus {
    /// Returns how many jobs have ended, in whatever way.
    pub fn ended(&self) -> u64 {
        let ends = [
            self.done,
            self.failed,
            self.panicked,
            self.died,
            self.timed_out,
            self.cut,
            self.refused,
            self.closed,
            self.abandoned,
            self.lost,
        ];
        ends.into_iter().fold(0, u64::saturating_add)
    }

    /// Returns the time within which the share `q` of all jobs was given to a process, counted from the submission: 0.99 for the
    /// 99th percentile. `None` before the first job. See [`JobDurations::quantile`].
    pub fn wait_quantile(&self, q: f64) -> Option<Duration> {
        self.wait.quantile(q)
    }

    /// Returns the time that the share `q` of all jobs took at most, without their wait. `None` before the first job has
    /// ended. See [`JobDurations::quantile`].
    pub fn run_quantile(&self, q: f64) -> Option<Duration> {
        self.run.quantile(q)
    }
}
