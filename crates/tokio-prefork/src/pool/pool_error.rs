//! Why a job has no result.

use super::JobDeadline;

/// Why a job has no result. Each text says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// All threads are busy and the queue has no room; the job did not run.
    #[error(
        "the pool is full, {waiting} jobs wait: try again later (503 with Retry-After in HTTP), or set a \
         longer pool-queue"
    )]
    Full {
        /// How many jobs waited.
        waiting: usize,
    },
    /// The deadline passed. A job that had not begun never runs; one that runs sees its cancel flag.
    #[error("{job} did not end within {deadline}: give it longer, or less to do")]
    TimedOut {
        /// The name of the task.
        job: &'static str,
        /// The deadline that passed.
        deadline: JobDeadline,
    },
    /// The job panicked; its thread is replaced.
    #[error("{job} panicked: {message}; this is a fault in the job, so trying again will not help")]
    Panicked {
        /// The name of the task.
        job: &'static str,
        /// What it panicked with.
        message: String,
    },
    /// The pool takes no more jobs, because its worker is about to end; the job did not run.
    #[error("the pool is closed because its worker ends: send the work to another worker")]
    Closed,
    /// The system refused to start even one thread; the job did not run.
    #[error(
        "cannot start a thread of the pool: {why}: raise the limit on threads (ulimit -u, pids.max)"
    )]
    NoThread {
        /// What the system said.
        why: String,
    },
}
