//! Why a job has no result.

use std::fmt;

use super::JobDeadline;

/// Why a job has no result.
///
/// [`has_begun`](PoolError::has_begun) tells whether the job had begun, so whether to submit it again is safe. A job begins at
/// most once and has one verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// All threads are busy and the queue is full. The job has not begun.
    #[error(
        "cannot run a job: the queue of the pool is full with {waiting} jobs; try again later (in HTTP: 503 with \
         Retry-After), wait with run_when_room, or raise pool-queue"
    )]
    Full {
        /// Number of jobs in the queue.
        waiting: usize,
    },
    /// The deadline has passed. A job that had not begun never does; a running one sees its [`CancelFlag`](super::CancelFlag).
    #[error(
        "{job} did not end within {deadline}{}; raise its deadline, or give it less to do",
        if *has_begun { "" } else { " and had not begun" }
    )]
    TimedOut {
        /// The name of the job.
        job: &'static str,
        /// The deadline that has passed.
        deadline: JobDeadline,
        /// Whether the job had begun.
        has_begun: bool,
    },
    /// The job panicked. Its thread is replaced.
    #[error(
        "{job} panicked{}: {message}; fix the job, a retry will not help",
        describe_location(location.as_deref())
    )]
    Panicked {
        /// The name of the job.
        job: &'static str,
        /// The panic message.
        message: String,
        /// File, line and column of the panic: `src/main.rs:12:5`. `None` if the application has replaced the panic hook.
        location: Option<String>,
    },
    /// The pool is closed because its worker ends. The job has not begun.
    #[error(
        "cannot run a job: the pool is closed because its worker ends; retry in another worker"
    )]
    Closed,
    /// The worker exits at its graceful timeout while the job runs. The job had begun, and ends with the process.
    #[error("{job} was cut: its worker exits at the graceful timeout")]
    Cut {
        /// The name of the job.
        job: &'static str,
    },
    /// Not even one thread could be started, or the state of the threads could not be made. The job has not begun.
    #[error(
        "cannot start a thread of the pool: {why}; check the limit on threads (ulimit -u, pids.max) and the init function"
    )]
    NoThread {
        /// The error.
        why: String,
    },
    /// A job waits for another job of its own pool while all threads of the pool do so. The other job has not begun.
    #[error(
        "cannot wait for {job}: all threads of the pool wait for jobs of the same pool, so none would ever begin; await it \
         outside of the pool, or run it in another pool"
    )]
    WouldDeadlock {
        /// The name of the job that is waited for.
        job: &'static str,
    },
}

impl PoolError {
    /// Returns whether the job had begun. If `false`, it has not begun and never will: it may be submitted again.
    pub fn has_begun(&self) -> bool {
        match self {
            PoolError::TimedOut { has_begun, .. } => *has_begun,
            PoolError::Panicked { .. } | PoolError::Cut { .. } => true,
            PoolError::Full { .. }
            | PoolError::Closed
            | PoolError::NoThread { .. }
            | PoolError::WouldDeadlock { .. } => false,
        }
    }
}

/// Why a task of a [`TaskPool`](super::TaskPool) has no result. `E` is the error type of the application's function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError<E> {
    /// The function returned this error.
    #[error("the task failed: {0}")]
    Failed(E),
    /// The function did not return.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl<E> TaskError<E> {
    /// Returns whether the function was called. If `false`, it was not and never will be: the task may be submitted again.
    pub fn has_begun(&self) -> bool {
        match self {
            TaskError::Failed(_) => true,
            TaskError::Pool(error) => error.has_begun(),
        }
    }
}

/// A job that the pool has refused, given back to its caller.
pub struct RefusedJob<T> {
    /// The job, or the input of the task. It has not begun.
    pub job: T,
    /// Why the pool has refused it.
    pub error: PoolError,
}

impl<T> fmt::Debug for RefusedJob<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedJob").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for RefusedJob<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for RefusedJob<T> {}

fn describe_location(location: Option<&str>) -> String {
    location.map_or(String::new(), |location| format!(" at {location}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_tell_whether_the_job_had_begun() {
        let deadline = JobDeadline::FromStart(Duration::from_secs(1));
        let late = |has_begun| PoolError::TimedOut { job: "job", deadline, has_begun };
        assert!(late(true).has_begun() && PoolError::Cut { job: "job" }.has_begun());
        assert!(!late(false).has_begun() && !PoolError::Closed.has_begun());
        assert!(late(false).to_string().contains("had not begun"));
        assert!(TaskError::Failed("text").has_begun());
        assert!(!TaskError::<String>::from(PoolError::Full { waiting: 1 }).has_begun());
    }
}
