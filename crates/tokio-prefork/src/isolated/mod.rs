//! Isolated jobs: dangerous work, each job in a worker process that it may crash, without harm to others.
//!
//! [`Cluster::isolated_pool`](crate::Cluster::isolated_pool) adds a pool; [`IsolatedPool`] gives it jobs.

// Isolated workers are a kind of worker that runs one job at a time. A job that crashes, leaks or never ends costs that process only,
// which threads cannot offer. A worker sends a job to the primary as a request. The primary has a scheduler per pool (see
// `job_scheduler`), which gives the job to an idle isolated worker or queues it. The primary passes on the reply, and replies itself
// when the process dies or the time is up; then it kills the process.
//
// ```text
// caller   -> primary   isolated/NAME        IsolatedJobRequest and the input     a request; the reply is IsolatedJobOutcome and the output
// caller   -> primary   isolated-gone/NAME   its token              cancels the job if it is still queued
// primary  -> isolated  isolated-job         job id and the input
// isolated -> primary   isolated-done/NAME   job id, IsolatedJobOutcome and the output
// ```

mod job_protocol;
mod job_scheduler;

use std::time::Duration;

use crate::text::Printable;

pub use crate::worker::IsolatedPool;
pub(crate) use job_protocol::{
    IsolatedJobId, IsolatedJobOutcome, IsolatedJobRequest, RUN_JOB_KIND, decode_job_result,
    decode_with_rest, encode_with_payload, encode_with_rest, job_cancel_kind, job_request_kind,
    job_result_kind,
};
pub(crate) use job_scheduler::{IsolatedJobScheduler, IsolatedWorkerExit, SchedulerAction};

/// The configuration of a pool of isolated workers. See [`Cluster::isolated_pool`](crate::Cluster::isolated_pool).
#[derive(Debug, Clone)]
pub struct IsolatedPoolConfig {
    pub(crate) name: &'static str,
    pub(crate) workers: u32,
    pub(crate) deadline: Duration,
    pub(crate) queue: usize,
    pub(crate) max_rss: Option<u64>,
}

impl IsolatedPoolConfig {
    /// Creates a pool `name` of `workers` processes. The name is valid like that of a worker kind, with up to 40 letters.
    pub fn new(name: &'static str, workers: u32) -> IsolatedPoolConfig {
        IsolatedPoolConfig {
            name,
            workers,
            deadline: Duration::from_secs(30),
            queue: 64,
            max_rss: None,
        }
    }

    /// Sets how long a job may run, whatever timeout its caller has; then its process is killed. Default: 30 s.
    pub fn deadline(mut self, limit: Duration) -> IsolatedPoolConfig {
        self.deadline = limit;
        self
    }

    /// Sets how many jobs may wait while all processes are busy; more are rejected. Their inputs are held by the primary. Default: 64.
    pub fn queue(mut self, jobs: usize) -> IsolatedPoolConfig {
        self.queue = jobs;
        self
    }

    /// Sets the memory in bytes above which a process is killed with its job. Checked twice a second. Default: no limit.
    pub fn max_rss(mut self, bytes: u64) -> IsolatedPoolConfig {
        self.max_rss = Some(bytes);
        self
    }
}

/// Why an isolated job has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsolatedJobError {
    /// All processes work, and as many jobs wait as may: try again later.
    #[error(
        "cannot run an isolated job: the queue is full; try again later, or raise IsolatedPoolConfig::queue"
    )]
    /// All processes are busy and the queue is full. Try again later.
    Full,
    /// The job was not done in time. If it had started, its process was killed.
    #[error("the isolated job was not done in time")]
    TimedOut,
    /// The process of the job died.
    #[error("the process of the isolated job died{}", describe_signal(*signal))]
    Died {
        /// The signal that killed it, if any; 9 also if it exceeded its memory limit.
        signal: Option<i32>,
    },
    /// The function returned this error or panicked with it, or the input or output cannot be sent.
    #[error("the isolated job failed: {}", Printable(.0))]
    Failed(String),
    /// The cluster stops, the primary is gone or was replaced by an upgrade, or the isolated worker had to exit.
    #[error("cannot run an isolated job: the cluster stops or its primary is gone")]
    Closed,
    /// The program has no pool of this name.
    #[error("there are no isolated workers of the name {0:?} (Cluster::isolated_pool)")]
    Unknown(String),
}

fn describe_signal(signal: Option<i32>) -> String {
    signal.map_or(String::new(), |signal| format!(" of signal {signal}"))
}
