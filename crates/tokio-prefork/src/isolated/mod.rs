//! Dangerous work, each job in a process that may die of it: `isolated` workers are a kind of worker that takes jobs, one
//! at a time, and costs nobody else anything if a job crashes, leaks or never ends. Threads cannot give that.
//!
//! The way of a job: a worker asks the primary (a request over the mail). The primary has a *desk* for each pool of
//! isolated workers (see `desk`, which is pure), gives the job to one that is idle, or lets it wait in a bounded queue. It
//! passes the answer on, and answers itself when the process dies, or when the time is up: then it kills the process.
//!
//! ```text
//! caller   -> primary   isolated/NAME        IsolatedJobRequest, and the input     a request, answered with IsolatedJobOutcome, and the output
//! caller   -> primary   isolated-gone/NAME   its token              nobody waits for that job any more
//! primary  -> isolated  isolated-job         number, and the input
//! isolated -> primary   isolated-done/NAME   number, IsolatedJobOutcome, and the output
//! ```

mod job_protocol;
mod job_scheduler;

use std::time::Duration;

use crate::text::Printable;

pub(crate) use job_protocol::{
    IsolatedJobId, IsolatedJobOutcome, IsolatedJobRequest, RUN_JOB_KIND, decode_job_result,
    decode_with_payload, encode_with_payload, job_cancel_kind, job_request_kind, job_result_kind,
};
pub(crate) use job_scheduler::{IsolatedJobScheduler, IsolatedWorkerExit, SchedulerAction};

/// A pool of isolated workers: its name, how many there are, and what they may take. See
/// [`Cluster::isolated_pool`](crate::Cluster::isolated_pool).
#[derive(Debug, Clone)]
pub struct IsolatedPoolConfig {
    pub(crate) name: &'static str,
    pub(crate) workers: u32,
    pub(crate) deadline: Duration,
    pub(crate) queue: usize,
    pub(crate) max_rss: Option<u64>,
}

impl IsolatedPoolConfig {
    /// `workers` processes for the jobs of the pool `name`; it is a name as that of a [`Kind`](crate::Kind), of up to 40
    /// letters.
    pub fn new(name: &'static str, workers: u32) -> IsolatedPoolConfig {
        IsolatedPoolConfig {
            name,
            workers,
            deadline: Duration::from_secs(30),
            queue: 64,
            max_rss: None,
        }
    }

    /// The longest that a job may run, from its start, whatever its caller says; then its process is killed. Default:
    /// 30 s.
    pub fn deadline(mut self, limit: Duration) -> IsolatedPoolConfig {
        self.deadline = limit;
        self
    }

    /// How many jobs may wait while all processes work; more are refused. Their inputs wait in the memory of the primary.
    /// Default: 64.
    pub fn queue(mut self, jobs: usize) -> IsolatedPoolConfig {
        self.queue = jobs;
        self
    }

    /// A process that uses more than so many bytes of memory is killed, with its job. Looked at twice a second.
    /// Default: never.
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
        "the queue of the isolated workers is full; try again later, or raise IsolatedPoolConfig::queue"
    )]
    Full,
    /// It was not done in time. If it had begun, its process was killed.
    #[error("the isolated job was not done in time")]
    TimedOut,
    /// Its process died.
    #[error("the process of the isolated job died{}", by(*signal))]
    Died {
        /// Of which signal, if of one; 9 also if it was killed for its memory.
        signal: Option<i32>,
    },
    /// The function returned this error, or panicked with this text; or the input or output cannot be sent.
    #[error("the isolated job failed: {}", Printable(.0))]
    Failed(String),
    /// The cluster stops, the primary is gone or has become another image, or the isolated process had to leave.
    #[error("isolated jobs are not taken any more")]
    Closed,
    /// The program named no such pool.
    #[error("there are no isolated workers of the name {0:?} (Cluster::isolated_pool)")]
    Unknown(String),
}

fn by(signal: Option<i32>) -> String {
    signal.map_or(String::new(), |signal| format!(" of signal {signal}"))
}
