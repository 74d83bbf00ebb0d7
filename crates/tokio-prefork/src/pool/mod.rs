//! Thread pools for CPU-bound work, which would otherwise block the event loop.
//!
//! [`Pool::run`] submits a job to a few long-lived threads behind a bounded queue and returns its result as a future. Each worker
//! has a pool of its own ([`Worker::pool`](crate::Worker::pool)). Its threads start with the first job and have a lower priority
//! than the event loop, so that a saturated pool does not starve serving on the same cores.
//!
//! Every job ends in exactly one way: done, rejected ([`PoolError::Full`], [`PoolError::Closed`]), too late
//! ([`PoolError::TimedOut`]), panicked ([`PoolError::Panicked`]), or cancelled because its future was dropped. A job that is
//! cancelled before it starts leaves the queue at once; a running one can check its [`CancelFlag`]. Threads cannot be stopped from
//! outside: a job that never checks the flag and never ends keeps its thread until the process ends, which for a draining worker
//! is at its deadline at the latest.

mod job_future;
mod job_queue;
mod job_state;
mod pool_job;
mod pool_threads;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::scoreboard::PoolCounters;
use crate::status::{DEFAULT_POOL_NAME, PoolStatus};
use job_state::JobState;
use pool_threads::PoolState;

pub use job_future::JobFuture;
pub use pool_job::{CancelFlag, JobDeadline, PoolJob, cancellable_job};

/// The size of a pool, and its scheduling.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Number of threads, at least one. Default: one per core that this process may use.
    pub threads: usize,
    /// Jobs that may wait, in addition to those that idle threads take at once. Default: 256.
    pub queue: usize,
    /// Nice value of the threads, 0 to 19: the higher, the more they yield to the event loop. Default: 19.
    pub nice: u32,
    /// Whether the newest job runs first while the queue is more than half full. Default: false, the oldest runs first.
    pub newest_first: bool,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        PoolConfig { threads, queue: 256, nice: 19, newest_first: false }
    }
}

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
    /// Creates a pool outside of any worker, for programs and benchmarks. Starts no thread before the first job.
    ///
    /// In a worker use [`Worker::pool`](crate::Worker::pool), whose figures `prefork status` shows.
    pub fn new(config: PoolConfig) -> Pool {
        let owner = format!("pid={}", std::process::id());
        Pool::with_counters(config, owner, PoolCounters::standalone(DEFAULT_POOL_NAME))
    }

    /// Creates the pool of a worker: `owner` starts its log lines, `counters` counts its jobs.
    pub(crate) fn with_counters(config: PoolConfig, owner: String, counters: PoolCounters) -> Pool {
        Pool(Arc::new(CloseOnDrop(Arc::new(PoolState::new(config, owner, counters)))))
    }

    /// Submits a job at once and returns its result as a future.
    ///
    /// Dropping the future removes the job from the queue, or sets its [`CancelFlag`] if it runs. The job is moved to the thread and
    /// its result is moved back; neither is copied.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
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
        self.submit(job, deadline)
    }

    /// Submits a job with a deadline, which replaces the job's own. Await the future in a tokio runtime with timers.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_within<T: PoolJob>(&self, deadline: JobDeadline, job: T) -> JobFuture<T> {
        self.submit(job, Some(deadline))
    }

    /// Returns the figures of the pool.
    pub fn status(&self) -> PoolStatus {
        self.0.0.counters.status()
    }

    /// Rejects new jobs and waits for up to `grace` until all queued and running ones have ended.
    ///
    /// After that, queued jobs end with [`PoolError::Closed`] and running ones see their [`CancelFlag`]. Returns how many jobs still
    /// run: 0 if all have ended in time.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.close();
        match tokio::time::timeout(grace, self.wait_until_ended()).await {
            Ok(()) => 0,
            Err(_) => self.abort(),
        }
    }

    /// Rejects new jobs.
    pub(crate) fn close(&self) {
        self.0.0.close();
    }

    /// Waits until the pool is closed and all jobs have ended.
    pub(crate) async fn wait_until_ended(&self) {
        self.0.0.wait_until_ended().await;
    }

    /// Cancels all jobs. Returns how many still run.
    pub(crate) fn abort(&self) -> usize {
        self.0.0.abort()
    }

    fn submit<T: PoolJob>(&self, job: T, deadline: Option<JobDeadline>) -> JobFuture<T> {
        let shared = Arc::clone(&self.0.0);
        let job = Arc::new(JobState::new(job, deadline));
        let queued_job = match shared.submit(Arc::clone(&job) as Arc<dyn job_state::RunnableJob>) {
            Ok(queued_job) => Some(queued_job),
            Err(rejected) => {
                job.reject(rejected.error, rejected.ending, &shared.counters);
                None
            }
        };
        JobFuture::new(job, shared, queued_job)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.0.0.owner)
    }
}

/// Why a job has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// All threads are busy and the queue has no room; the job did not run.
    #[error(
        "cannot run a job: the queue of the pool is full with {waiting} jobs; try again later (in HTTP: 503 with \
         Retry-After), or raise pool-queue"
    )]
    /// All threads are busy and the queue is full. The job did not run.
    Full {
        /// Number of jobs in the queue.
        waiting: usize,
    },
    /// The deadline has passed. A job that had not started never runs; a running one sees its [`CancelFlag`].
    #[error("{job} did not end within {deadline}; raise its deadline, or give it less to do")]
    TimedOut {
        /// The name of the job.
        job: &'static str,
        /// The deadline that has passed.
        deadline: JobDeadline,
    },
    /// The job panicked. Its thread is replaced.
    #[error("{job} panicked: {message}; fix the job, a retry will not help")]
    Panicked {
        /// The name of the job.
        job: &'static str,
        /// The panic message.
        message: String,
    },
    /// The pool rejects jobs because its worker is about to end. The job did not run.
    #[error(
        "cannot run a job: the pool is closed because its worker ends; retry in another worker"
    )]
    Closed,
    /// The system refused to start even one thread; the job did not run.
    #[error(
        "cannot start a thread of the pool: {why}; raise the limit on threads (ulimit -u, pids.max)"
    )]
    /// Not even one thread could be started. The job did not run.
    NoThread {
        /// The error of the system.
        why: String,
    },
}
