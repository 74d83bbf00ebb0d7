//! Thread pools for CPU-bound work, which would otherwise block the event loop.
//!
//! [`Pool::run`] submits a job to a few long-lived threads behind a bounded queue and returns its result as a future. Each worker
//! has a pool of its own ([`Worker::pool`](crate::Worker::pool)), and may have more
//! ([`Worker::create_pool`](crate::Worker::create_pool)). A [`TaskPool`] runs one function with a state for each thread. Threads start
//! on demand and have a lower priority than the event loop, so that a saturated pool does not starve serving on the same cores.
//!
//! Every job begins at most once and has exactly one verdict: done, refused ([`PoolError::Full`], [`PoolError::Closed`]), too late
//! ([`PoolError::TimedOut`]), panicked ([`PoolError::Panicked`]), cut with its worker ([`PoolError::Cut`]), or cancelled because its
//! future was dropped. [`PoolError::has_begun`] tells whether the job had begun. A job that is cancelled before it starts leaves the
//! queue at once; a running one can check its [`CancelFlag`], or [`is_cancelled`]. Threads cannot be stopped from outside: a job that
//! never checks and never ends keeps its thread until the process ends, which for a draining worker is at its deadline at the latest.
//!
//! A draining worker waits, within `graceful-timeout`, for the jobs of all its pools, and until each [`JobFuture`] has returned its
//! result and the task that awaited it has gone on. Work that such a task then waits for belongs into
//! [`Worker::spawn`](crate::Worker::spawn).

mod config;
mod current_thread;
mod deadline_timer;
mod error;
mod job_future;
mod job_map;
mod job_queue;
mod job_request;
mod job_state;
mod pool_job;
mod pool_state;
mod pool_threads;
pub(crate) mod process_pools;
mod self_wait;
mod task_pool;
#[cfg(test)]
mod tests;
mod thread_parker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::scoreboard::PoolCounters;
use crate::status::{DEFAULT_POOL_NAME, PoolStatus};
use job_queue::WhenQueueFull;
use job_state::JobState;
pub(crate) use pool_state::PoolNames;
use pool_state::{PoolState, QueueOptions};
use process_pools::DrainedPool;

pub use crate::isolated::Priority;
pub use config::PoolConfig;
pub use current_thread::is_cancelled;
pub use error::{PoolError, RefusedJob, TaskError};
pub use job_future::JobFuture;
pub use job_map::JobMap;
pub use job_request::JobRequest;
pub use pool_job::{CancelFlag, JobDeadline, PoolJob, cancellable_job};
pub use task_pool::{TaskFuture, TaskPool};

/// A pool of threads. Cheap to clone.
///
/// When the last clone is dropped, the pool rejects new jobs, runs the queued ones and ends its threads.
#[derive(Clone)]
pub struct Pool(Arc<CloseOnDrop>);

struct CloseOnDrop(Arc<PoolState>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Pool {
    /// Creates a pool for any program. Starts no thread before the first job.
    ///
    /// In a worker, prefer [`Worker::pool`](crate::Worker::pool) and [`Worker::create_pool`](crate::Worker::create_pool), whose figures
    /// `prefork status` shows. A draining worker closes this pool and waits for its jobs like for those, even if it was created before
    /// the fork.
    pub fn new(config: PoolConfig) -> Pool {
        let names = PoolNames { owner: None, threads: "pool".to_string() };
        let pool = Pool::with_counters(config, names, PoolCounters::standalone(DEFAULT_POOL_NAME));
        process_pools::register(pool.state());
        pool
    }

    /// Creates a pool of a worker, whose jobs `counters` counts.
    pub(crate) fn with_counters(
        config: PoolConfig,
        names: PoolNames,
        counters: PoolCounters,
    ) -> Pool {
        Pool::from_state(PoolState::new(config, names, counters, None))
    }

    fn from_state(state: PoolState) -> Pool {
        Pool(Arc::new(CloseOnDrop(Arc::new(state))))
    }

    fn state(&self) -> &Arc<PoolState> {
        &self.0.0
    }

    /// Submits a job at once and returns its result as a future.
    ///
    /// Dropping the future removes the job from the queue, or sets its [`CancelFlag`] if it runs. The job is moved to the thread and
    /// its result is moved back; neither is copied.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use tokio_prefork::pool::{Pool, PoolConfig, PoolError};
    ///
    /// let pool = Pool::new(PoolConfig::default());
    /// let numbers: Vec<u64> = (1..=1000).collect();
    /// assert_eq!(pool.run(move || numbers.iter().sum::<u64>()).await, Ok(500_500));
    /// # });
    /// ```
    ///
    /// # Errors
    /// The future returns a [`PoolError`] if the job has no result.
    pub fn run<T: PoolJob>(&self, job: T) -> JobFuture<T> {
        let deadline = job.deadline();
        self.submit(job, T::name(), deadline, QueueOptions::default())
    }

    /// Submits a job with a deadline, which replaces the job's own.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_within<T: PoolJob>(&self, deadline: JobDeadline, job: T) -> JobFuture<T> {
        self.submit(job, T::name(), Some(deadline), QueueOptions::default())
    }

    /// Submits a job, or gives it back.
    ///
    /// ```
    /// use tokio_prefork::pool::{Pool, PoolConfig};
    ///
    /// let pool = Pool::new(PoolConfig::default());
    /// let text = String::from("large data");
    /// match pool.try_run(move || text.len()) {
    ///     Ok(job) => assert_eq!(job.wait(), Ok(10)),
    ///     Err(refused) => {
    ///         // Compute here, or try again later with the same job.
    ///         let _len = (refused.job)();
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// The pool has refused the job: the queue is full, or the pool is closed.
    pub fn try_run<T: PoolJob>(&self, job: T) -> Result<JobFuture<T>, RefusedJob<T>> {
        let deadline = job.deadline();
        self.try_submit(job, T::name(), deadline, QueueOptions::default())
    }

    /// Submits a job, which waits for room if the queue is full. Such jobs keep their order, and others do not overtake them.
    ///
    /// Memory is bounded by the callers: each of them waits with its own job.
    ///
    /// # Errors
    /// As [`Pool::run`], but never [`PoolError::Full`].
    pub fn run_when_room<T: PoolJob>(&self, job: T) -> JobFuture<T> {
        self.job(job).when_room().start()
    }

    /// Returns a job with options: deadline, priority, and waiting for room.
    pub fn job<T: PoolJob>(&self, job: T) -> JobRequest<T> {
        JobRequest::new(self.clone(), job, T::name())
    }

    /// Calls `function` for each item on the threads of the pool, and returns the results in the order of the items.
    ///
    /// Up to `bound` jobs are under way at a time, finished ones whose result waits for an earlier one included; they wait for room in
    /// the queue. The result is a [`Stream`](futures_core::Stream).
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use tokio_prefork::pool::{Pool, PoolConfig};
    ///
    /// let pool = Pool::new(PoolConfig::default());
    /// let mut squares = pool.map(1..=3, 2, |n: u64| n * n);
    /// while let Some(square) = squares.next_result().await {
    ///     println!("{}", square?);
    /// }
    ///
    /// // In code that is not async:
    /// let mut squares = pool.map(1..=3, 2, |n: u64| n * n);
    /// let sum: u64 = std::iter::from_fn(|| squares.wait_next()).map(Result::unwrap_or_default).sum();
    /// assert_eq!(sum, 14);
    /// # Ok::<_, tokio_prefork::pool::PoolError>(())
    /// # }).unwrap();
    /// ```
    pub fn map<I, F, T>(&self, items: I, bound: usize, function: F) -> JobMap<I::IntoIter, F, T>
    where
        I: IntoIterator,
        I::Item: Send + 'static,
        F: Fn(I::Item) -> T + Send + Sync + 'static,
        T: Send + 'static,
    {
        JobMap::new(self.clone(), items.into_iter(), bound, function)
    }

    /// Returns the figures of the pool.
    pub fn status(&self) -> PoolStatus {
        self.state().counters.status()
    }

    /// Rejects new jobs and waits for up to `grace` until all queued and running ones have ended.
    ///
    /// Running jobs may still use the pool. After that, queued jobs end with [`PoolError::Closed`] and running ones see their
    /// [`CancelFlag`]. Returns how many jobs still run: 0 if all have ended in time. Needs a tokio runtime with timers.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.state().close();
        let ended = self.state().wait_until(PoolState::has_ended);
        match tokio::time::timeout(grace, ended).await {
            Ok(()) => 0,
            Err(_) => self.state().abort(),
        }
    }

    /// Returns the pool as a draining worker sees it.
    pub(crate) fn drained_pool(&self) -> DrainedPool {
        DrainedPool(Arc::clone(self.state()))
    }

    fn submit<T: PoolJob>(
        &self,
        job: T,
        name: &'static str,
        deadline: Option<JobDeadline>,
        options: QueueOptions,
    ) -> JobFuture<T> {
        let job = Arc::new(JobState::new(job, name, deadline));
        // First, so that no drain can miss it.
        let mut future = JobFuture::new(Arc::clone(&job), Arc::clone(self.state()));
        match self.state().submit(Arc::clone(&job) as _, options) {
            Ok(queued_job) => future.set_queued(queued_job),
            Err(rejected) => {
                job.reject(rejected.error, rejected.ending, &self.state().counters);
            }
        }
        future
    }

    fn try_submit<T: PoolJob>(
        &self,
        job: T,
        name: &'static str,
        deadline: Option<JobDeadline>,
        options: QueueOptions,
    ) -> Result<JobFuture<T>, RefusedJob<T>> {
        let state = Arc::new(JobState::new(job, name, deadline));
        let mut future = JobFuture::new(Arc::clone(&state), Arc::clone(self.state()));
        match self.state().submit(Arc::clone(&state) as _, options) {
            Ok(queued_job) => future.set_queued(queued_job),
            Err(rejected) => {
                // Otherwise it has a verdict already, which the future returns.
                let job = state.take_rejected(rejected.ending, &self.state().counters);
                if let Some(job) = job {
                    return Err(RefusedJob { job, error: rejected.error });
                }
            }
        }
        Ok(future)
    }
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions { lane: Priority::Normal as usize, when_full: WhenQueueFull::Refuse }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Pool({}, {})", state.owner(), state.names.threads)
    }
}
