//! What a pool can be given, and what a running job can learn.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Work for a pool. A closure without arguments is one; a type of one's own carries its data by name.
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
    /// What it gives back.
    type Output: Send + 'static;

    /// How it is called in errors and logs. Default: the name of the type, which for a closure says where it stands.
    fn name() -> &'static str {
        std::any::type_name::<Self>()
    }

    /// How long it may take. Default: no deadline.
    fn deadline(&self) -> Option<JobDeadline> {
        None
    }

    /// Does the work, on a thread of the pool. What takes long looks at `cancel` now and then.
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

/// A closure that looks at its cancel flag, as a task: `pool.run(cancellable_job(|cancel| ...))`.
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

/// Whether a running job is still wanted.
#[derive(Debug)]
pub struct CancelFlag<'a> {
    pub(super) job: &'a AtomicBool,
    pub(super) pool: &'a AtomicBool,
}

impl CancelFlag<'_> {
    /// Whether nobody waits for the result any more: the caller has gone, the deadline has passed, or the
    /// process is about to end. It costs two loads, and stays true once it is.
    pub fn is_set(&self) -> bool {
        self.job.load(Ordering::Relaxed) || self.pool.load(Ordering::Relaxed)
    }
}

/// How long a job may take, and from when that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobDeadline {
    /// From its submission: the time in the queue counts.
    FromSubmission(Duration),
    /// From the moment in which a thread takes it: however long it waited, it may then take so long.
    FromStart(Duration),
}

impl JobDeadline {
    /// When it passes; `None` as long as that is not known, or beyond all time.
    pub(super) fn due(self, submitted: Instant, begun: Option<Instant>) -> Option<Instant> {
        match self {
            JobDeadline::FromSubmission(span) => submitted.checked_add(span),
            JobDeadline::FromStart(span) => begun?.checked_add(span),
        }
    }
}

impl fmt::Display for JobDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobDeadline::FromSubmission(span) => write!(f, "{span:?} of its submission"),
            JobDeadline::FromStart(span) => write!(f, "{span:?} of its start"),
        }
    }
}
