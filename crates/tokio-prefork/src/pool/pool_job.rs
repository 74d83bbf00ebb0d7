//! Jobs for a pool, their deadlines, and the flag that cancels them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Work for a thread of a [`Pool`](super::Pool).
///
/// A closure without arguments is a job. Implement this trait for a type to give the job a name and a deadline.
///
/// ```
/// use tokio_prefork::pool::{CancelFlag, PoolJob};
///
/// struct Sum(Vec<u64>);
///
/// impl PoolJob for Sum {
///     type Output = u64;
///
///     fn run(self, _: &CancelFlag<'_>) -> u64 {
///         self.0.iter().sum()
///     }
/// }
/// ```
pub trait PoolJob: Sized + Send + 'static {
    /// The result of the job.
    type Output: Send + 'static;

    /// The name of the job in errors and logs. Default: the type name, which for a closure tells where it is defined.
    fn name() -> &'static str {
        std::any::type_name::<Self>()
    }

    /// How long the job may take. Default: no deadline.
    fn deadline(&self) -> Option<JobDeadline> {
        None
    }

    /// Does the work, on a thread of the pool. A long job should check `cancel` regularly.
    fn run(self, cancel: &CancelFlag<'_>) -> Self::Output;
}

impl<F, T> PoolJob for F
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    fn run(self, _: &CancelFlag<'_>) -> T {
        self()
    }
}

/// Turns a closure that checks a [`CancelFlag`] into a job: `pool.run(cancellable_job(|cancel| ...))`.
pub fn cancellable_job<F, T>(job: F) -> impl PoolJob<Output = T>
where
    F: FnOnce(&CancelFlag<'_>) -> T + Send + 'static,
    T: Send + 'static,
{
    CancellableJob(job)
}

struct CancellableJob<F>(F);

impl<F, T> PoolJob for CancellableJob<F>
where
    F: FnOnce(&CancelFlag<'_>) -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(self, cancel: &CancelFlag<'_>) -> T {
        (self.0)(cancel)
    }
}

/// Tells a running job whether its result is still wanted.
#[derive(Debug)]
pub struct CancelFlag<'a> {
    pub(super) job_is_cancelled: &'a AtomicBool,
    pub(super) pool_is_aborting: &'a AtomicBool,
    pub(super) deadline: Option<Instant>,
}

impl CancelFlag<'_> {
    /// Returns whether the job should stop: the caller is gone, the deadline has passed, or the process is about to end.
    ///
    /// Once `true`, stays `true`. Costs two atomic loads, and reads the clock if the job has a deadline.
    pub fn is_set(&self) -> bool {
        self.job_is_cancelled.load(Ordering::Relaxed)
            || self.pool_is_aborting.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Returns how long the job may still take: zero once its deadline has passed. `None` without a deadline.
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// How long a job may take, and from when that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobDeadline {
    /// Counts from the submission, so time in the queue is included.
    FromSubmission(Duration),
    /// Counts from the moment a thread starts the job, so time in the queue is not included.
    FromStart(Duration),
}

impl JobDeadline {
    /// Returns when the deadline passes; `None` while the start is unknown, or if the clock cannot represent it.
    pub(super) fn passes_at(self, submitted: Instant, started: Option<Instant>) -> Option<Instant> {
        match self {
            JobDeadline::FromSubmission(duration) => submitted.checked_add(duration),
            JobDeadline::FromStart(duration) => started?.checked_add(duration),
        }
    }
}

impl fmt::Display for JobDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobDeadline::FromSubmission(duration) => write!(f, "{duration:?} of its submission"),
            JobDeadline::FromStart(duration) => write!(f, "{duration:?} of its start"),
        }
    }
}
