//! Isolated jobs: dangerous work, each job in a process that it may crash, without harm to others.
//!
//! [`IsolatedPool`] declares a pool and gives it jobs; [`Cluster::isolated_pool`](crate::Cluster::isolated_pool) starts its
//! processes.

// Isolated processes are a kind of worker that runs one job at a time. A job that crashes, leaks or never ends costs that process
// only, which threads cannot offer. A worker sends a job to the primary. The primary has a scheduler per pool (see `job_scheduler`),
// which gives the job to an idle process or queues it. The primary passes on what the job reports, and replies itself when the
// process dies or the time is up; then it kills the process.
//
// ```text
// caller   -> primary   isolated/NAME        CallerMessage and the input, or the end of a caller's interest
// primary  -> isolated  isolated-job         JobStart and the input
// isolated -> primary   isolated-done/NAME   ProcessReport and the value
// primary  -> caller    isolated-reply       CallerReply and the value
// ```
//
// A large value travels beside the messages; see `transfer`. All that one process sends to another has one message kind, as messages of one kind keep their order.

mod config;
mod error;
mod job_context;
mod job_handle;
mod job_protocol;
mod job_request;
mod job_runner;
mod job_scheduler;
mod pending_jobs;
mod pool;
mod pool_counts;
mod pool_limits;
mod pool_processes;
mod room_waiters;
mod saved_jobs;
mod waiting_jobs;

pub use crate::cluster::{IsolatedPools, RunningIsolatedPools};
pub(crate) use crate::transfer::{EncodeError, JobPayload, ValueSource};
pub use crate::transfer::{MappedBuffer, MappedBytes};
pub use config::{IsolatedPoolConfig, OnAbandon, Priority, ProcessCount};
pub use error::{IsolatedJobError, JobValue, ResourceLimit};
pub use job_context::JobContext;
pub(crate) use job_context::JobHost;
pub use job_handle::JobHandle;
pub(crate) use job_protocol::{
    CallerMessage, CallerReply, IsolatedJobId, JOB_REPLY_KIND, JobEvent, JobOutcome, JobStart,
    JobSubmission, ProcessReport, START_JOB_KIND, caller_message_kind, decode_job_message,
    job_envelope, process_report_kind,
};
pub use job_request::{JobRequest, RefusedJob};
pub(crate) use job_runner::{JobRunner, MakeJobRunner, limit_cpu_time};
pub(crate) use job_scheduler::{
    IsolatedJobScheduler, IsolatedWorkerExit, KillReason, SchedulerAction,
};
pub(crate) use pending_jobs::PendingIsolatedJobs;
pub use pool::IsolatedPool;
pub(crate) use pool::PoolDeclaration;
pub(crate) use pool_limits::{JobThreadLimits, PoolLimits};
pub(crate) use saved_jobs::{ISOLATED_JOBS_FORMAT, SavedIsolatedJobs, SavedPayload, SavedPool};
pub(crate) use waiting_jobs::JobKey;
