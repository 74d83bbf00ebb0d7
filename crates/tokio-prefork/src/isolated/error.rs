//! Why an isolated job has no result.

use std::fmt;

use crate::text::Printable;

/// The value of a job that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum JobValue {
    /// What the caller gives to the job.
    Input,
    /// What the job returns, or its error.
    Output,
}

impl fmt::Display for JobValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JobValue::Input => "input",
            JobValue::Output => "output",
        })
    }
}

/// A resource of which a job has used more than its pool allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ResourceLimit {
    /// Memory: `max_rss`, `max_data_bytes` or `max_address_space_bytes`.
    Memory,
    /// CPU time: `cpu_time`.
    CpuTime,
}

impl fmt::Display for ResourceLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResourceLimit::Memory => "memory",
            ResourceLimit::CpuTime => "CPU time",
        })
    }
}

/// Why an isolated job has no result. `E` is the error type of the application's function.
///
/// [`has_begun`](IsolatedJobError::has_begun) tells whether the function may have been called, so whether to repeat the job is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsolatedJobError<E = String> {
    /// All processes are busy and the queue is full. The job has not begun.
    #[error(
        "cannot run an isolated job: the queue is full; try again later, wait with when_room, or raise IsolatedPoolConfig::queue"
    )]
    Full,
    /// The cluster stops, or this worker has lost its primary. The job has not begun.
    #[error("cannot run an isolated job: the cluster stops")]
    Closed,
    /// The pool was not declared with [`Cluster::isolated_pool`](crate::Cluster::isolated_pool), or the calling process is no worker of
    /// the cluster. The job has not begun.
    #[error(
        "cannot run a job in the isolated pool {pool:?}: {}",
        if crate::is_worker() { "declare it with Cluster::isolated_pool" } else { "this process is no worker of a cluster" }
    )]
    NotRegistered {
        /// The name of the pool.
        pool: &'static str,
    },
    /// [`wait`](crate::isolated::JobRequest::wait) was called on the worker's event loop, which would block it until the job ends. The
    /// job has not begun.
    #[error(
        "cannot wait for an isolated job on the worker's event loop: await it, or wait on another thread"
    )]
    WouldDeadlock,
    /// The job was not done in time. If it had begun, its process was killed.
    #[error(
        "the isolated job was not done in time{}",
        if *has_begun { "" } else { "; it had not begun" }
    )]
    TimedOut {
        /// Whether the job had begun. `true` also if the primary did not answer in time, so that nobody knows.
        has_begun: bool,
    },
    /// The function returned this error.
    #[error("the isolated job failed: {0}")]
    Failed(E),
    /// The function panicked. Its process lives on, with a new state.
    #[error(
        "the isolated job panicked{}: {}",
        describe_location(location.as_deref()), Printable(message)
    )]
    Panicked {
        /// The message of the panic.
        message: String,
        /// Where the panic was: file, line and column.
        location: Option<String>,
    },
    /// The process of the job had to exit, in a stop, a reload, an upgrade or because it was scaled down, and the job did not end
    /// within `graceful-timeout`. It had begun.
    #[error("the isolated job was cut: its process had to exit, and graceful-timeout has passed")]
    Cut,
    /// The job has used more of a resource than the limits of its pool allow, and its process was ended. Other processes
    /// are not affected.
    #[error("the isolated job has used more {limit} than its pool allows")]
    LimitExceeded {
        /// The resource.
        limit: ResourceLimit,
    },
    /// The process of the job died while the job ran.
    #[error("the process of the isolated job died{}", describe_exit(*code, *signal))]
    Died {
        /// The exit status, if the process ended by itself.
        code: Option<i32>,
        /// The signal that killed it, if any.
        signal: Option<i32>,
    },
    /// The primary is gone, or was replaced by a program that does not continue its jobs. The job may have begun.
    #[error("the isolated job may have begun, but its result is lost: the primary is gone")]
    PrimaryGone,
    /// A value is larger than [`IsolatedPoolConfig::max_payload_bytes`](super::IsolatedPoolConfig::max_payload_bytes), or one up to 64 KiB
    /// than messages may be. A job has not begun if it is the input.
    #[error(
        "the {value} of the isolated job is too large: {size} bytes, at most {most} (IsolatedPoolConfig::max_payload_bytes, MessageLimits::max_message_bytes)"
    )]
    TooLarge {
        /// Which value.
        value: JobValue,
        /// Its encoded size in bytes.
        size: usize,
        /// The limit in bytes.
        most: usize,
    },
    /// A value cannot be encoded, decoded or sent. A job has not begun if it is the input.
    #[error("cannot transfer the {value} of the isolated job: {}", Printable(reason))]
    Transfer {
        /// Which value.
        value: JobValue,
        /// The error of its encoder or decoder.
        reason: String,
    },
}

impl<E> IsolatedJobError<E> {
    /// Returns whether the function may have been called. If `false`, it was not and will not be: the job may be repeated.
    ///
    /// A process records that a job begins just before it calls the function. So a job whose process is killed in that moment counts as
    /// begun.
    pub fn has_begun(&self) -> bool {
        match self {
            IsolatedJobError::Full
            | IsolatedJobError::Closed
            | IsolatedJobError::NotRegistered { .. }
            | IsolatedJobError::WouldDeadlock => false,
            IsolatedJobError::TimedOut { has_begun } => *has_begun,
            IsolatedJobError::TooLarge { value, .. } | IsolatedJobError::Transfer { value, .. } => {
                *value == JobValue::Output
            }
            IsolatedJobError::Failed(_)
            | IsolatedJobError::Panicked { .. }
            | IsolatedJobError::Cut
            | IsolatedJobError::LimitExceeded { .. }
            | IsolatedJobError::Died { .. }
            | IsolatedJobError::PrimaryGone => true,
        }
    }
}

fn describe_location(location: Option<&str>) -> String {
    location.map_or(String::new(), |location| format!(" at {location}"))
}

fn describe_exit(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (_, Some(signal)) => format!(" of signal {signal}"),
        (Some(code), None) => format!(" with exit status {code}"),
        (None, None) => String::new(),
    }
}
