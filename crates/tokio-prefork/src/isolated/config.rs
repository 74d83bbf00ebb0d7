//! The configuration of a pool of isolated processes.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::PoolLimits;

/// The configuration of an [`IsolatedPool`](crate::IsolatedPool).
#[derive(Debug, Clone)]
pub struct IsolatedPoolConfig {
    pub(crate) name: &'static str,
    pub(crate) processes: ProcessCount,
    pub(crate) deadline: Duration,
    pub(crate) queue: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) max_payload_bytes: usize,
    pub(crate) on_abandon: OnAbandon,
    pub(crate) limits: PoolLimits,
}

/// How many processes a pool has: a number from 1, or a range such as `1..=4` or `0..=4`. A pool without processes, or with an
/// empty range, is an error when the cluster starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessCount {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl From<u32> for ProcessCount {
    fn from(count: u32) -> ProcessCount {
        ProcessCount { min: count, max: count }
    }
}

impl From<RangeInclusive<u32>> for ProcessCount {
    fn from(range: RangeInclusive<u32>) -> ProcessCount {
        ProcessCount { min: *range.start(), max: *range.end() }
    }
}

/// What happens to a running job that nobody waits for any more.
///
/// A job is abandoned when its future is dropped, for example because its client has disconnected, or when the process of its
/// caller ends. A queued job that is abandoned is removed and never begins. Detached jobs are never abandoned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnAbandon {
    /// Kill the process of the job at once, so that a new process can take the next job. The default.
    #[default]
    Kill,
    /// Let the job run until it ends or reaches its deadline, and drop its result.
    Finish,
}

/// The order of queued jobs: all of a higher priority begin before those of a lower one.
///
/// Within a priority the workers that submit jobs take turns.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Priority {
    /// Begins before all others.
    High,
    /// The default.
    #[default]
    Normal,
    /// Begins when no other job is queued.
    Low,
}

impl IsolatedPoolConfig {
    /// Creates a pool `name` of a fixed number of processes, such as `2`, or of a range, such as `1..=4`.
    ///
    /// The name is valid like that of a worker kind: up to 40 small letters, digits, `-` and `_`.
    pub fn new(name: &'static str, processes: impl Into<ProcessCount>) -> IsolatedPoolConfig {
        IsolatedPoolConfig {
            name,
            processes: processes.into(),
            deadline: Duration::from_secs(30),
            queue: 64,
            queue_bytes: 1 << 30,
            max_payload_bytes: 1 << 30,
            on_abandon: OnAbandon::Kill,
            limits: PoolLimits::default(),
        }
    }

    /// Sets how long a job may run, whatever timeout its caller sets; then its process is killed. A job without a timeout of its own
    /// has this long in all, the time in the queue included. Default: 30 s.
    pub fn deadline(mut self, limit: Duration) -> IsolatedPoolConfig {
        self.deadline = limit;
        self
    }

    /// Sets how many jobs may wait while all processes are busy; more are refused as
    /// [`Full`](crate::IsolatedJobError::Full). Default: 64.
    pub fn queue(mut self, jobs: usize) -> IsolatedPoolConfig {
        self.queue = jobs;
        self
    }

    /// Sets how many bytes the inputs of waiting jobs may have together; jobs above that are refused as
    /// [`Full`](crate::IsolatedJobError::Full). An empty queue takes a job of any size. Default: 1 GiB.
    ///
    /// Inputs above 64 KiB are in memory that the callers have allocated, not in that of the primary.
    pub fn queue_bytes(mut self, bytes: usize) -> IsolatedPoolConfig {
        self.queue_bytes = bytes;
        self
    }

    /// Sets how many bytes an encoded input, output, error or progress report may have; larger ones are
    /// [`TooLarge`](crate::IsolatedJobError::TooLarge). Default: 1 GiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> IsolatedPoolConfig {
        self.max_payload_bytes = bytes;
        self
    }

    /// Sets what happens to a running job that nobody waits for any more. Default: [`OnAbandon::Kill`].
    pub fn on_abandon(mut self, action: OnAbandon) -> IsolatedPoolConfig {
        self.on_abandon = action;
        self
    }
}
