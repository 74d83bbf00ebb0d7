//! A pool of threads for work that computes, so that the event loop never does.
//!
//! One loop serves thousands of waiting connections, and one request that computes freezes them all. So such
//! work goes to a few long-lived threads behind a bounded queue: [`Pool::run`] submits a job and gives back a
//! future. Each worker has a pool of its own ([`Worker::pool`](crate::Worker::pool)); its threads start with its first job,
//! and have a lower priority than the loop, so that a saturated pool does not starve serving on the same cores.
//!
//! Every job ends in exactly one way: done, refused ([`PoolError::Full`], [`PoolError::Closed`]), too late
//! ([`PoolError::TimedOut`]), panicked ([`PoolError::Panicked`]), or abandoned because its future was
//! dropped. What is abandoned before it begins leaves the queue at once; what runs can see it
//! ([`CancelFlag`]). A thread cannot be stopped from outside: a job that never looks and never ends keeps its
//! thread until the process ends, which a draining worker does at its deadline in any case.

mod job_future;
mod job_queue;
mod job_state;
mod pool_job;
mod pool_threads;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::scoreboard::{PoolMeter, PoolSnapshot};
use job_state::Job;
use pool_threads::Shared;

pub use job_future::JobFuture;
pub use pool_job::{CancelFlag, JobDeadline, PoolJob, cancellable_job};

/// How large a pool is, and how it behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Threads, at least one. Default: one for each core this process may use.
    pub threads: usize,
    /// Jobs that may wait beyond those that idle threads take at once. Default: 256.
    pub queue: usize,
    /// How much the threads give way to the event loop, as a nice value from 0 to 19. Default: 19.
    pub nice: u32,
    /// While the queue is more than half full, the newest job goes first. Default: off, the oldest does.
    pub newest_first: bool,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        PoolConfig { threads, queue: 256, nice: 19, newest_first: false }
    }
}

/// A pool of threads. Cheap to clone; when the last clone is dropped it takes no more jobs, runs what waits,
/// and its threads end.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Pool {
    /// A pool outside of any worker, for programs and benches; in a worker use
    /// [`Worker::pool`](crate::Worker::pool), whose figures can be seen. Nothing is started before the first job.
    pub fn new(config: PoolConfig) -> Pool {
        let owner = format!("pid={}", std::process::id());
        Pool::with_meter(config, owner, PoolMeter::standalone())
    }

    /// A worker's pool: `owner` is how its log lines begin, `meter` where its figures go.
    pub(crate) fn with_meter(config: PoolConfig, owner: String, meter: PoolMeter) -> Pool {
        Pool(Arc::new(Handle(Arc::new(Shared::new(config, owner, meter)))))
    }

    /// Submits a job, at once, and gives back its result as a future. An idle thread takes it immediately.
    /// Dropping the future takes the job out of the queue, or sets its [`CancelFlag`] flag if it runs.
    ///
    /// The task moves to the thread and its result moves back: neither is copied.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// use tokio_prefork::pool::{Pool, PoolError, PoolConfig};
    ///
    /// let pool = Pool::new(PoolConfig::default());
    /// let numbers: Vec<u64> = (1..=1000).collect();
    /// assert_eq!(pool.run(move || numbers.iter().sum::<u64>()).await, Ok(500_500));
    /// # });
    /// ```
    ///
    /// # Errors
    /// The future gives a [`PoolError`] if the job has no result.
    pub fn run<T: PoolJob>(&self, task: T) -> JobFuture<T> {
        let deadline = task.deadline();
        self.submit(task, deadline)
    }

    /// As [`Pool::run`], with a deadline, which takes the place of the task's own. The future must then be
    /// awaited in a tokio runtime with timers.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_within<T: PoolJob>(&self, deadline: JobDeadline, task: T) -> JobFuture<T> {
        self.submit(task, Some(deadline))
    }

    /// What the pool has counted so far.
    pub fn snapshot(&self) -> PoolSnapshot {
        self.0.0.meter.snapshot()
    }

    /// Takes no more jobs and waits until all have run and the threads have ended, for up to `grace`. Then
    /// what still waits gets [`PoolError::Closed`], and what runs sees its [`CancelFlag`] flag. Returns how many
    /// jobs were still running, which is 0 when all went well.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.close();
        // Only a deadline that lies beyond all time never comes.
        match tokio::time::timeout(grace, self.ended()).await {
            Ok(()) => 0,
            Err(_) => self.end(),
        }
    }

    /// Takes no more jobs.
    pub(crate) fn close(&self) {
        self.0.0.close();
    }

    /// Resolves when it was closed and all jobs have run.
    pub(crate) async fn ended(&self) {
        self.0.0.ended().await;
    }

    /// Gives up on all jobs; returns how many still run.
    pub(crate) fn end(&self) -> usize {
        self.0.0.end()
    }

    /// Keeps the figure of the last second up to date; called now and then.
    pub(crate) fn look(&self) {
        let shared = &self.0.0;
        shared.meter.look(shared.us_at(Instant::now()));
    }

    fn submit<T: PoolJob>(&self, task: T, deadline: Option<JobDeadline>) -> JobFuture<T> {
        let shared = Arc::clone(&self.0.0);
        let job = Arc::new(Job::new(task, deadline));
        let place = match shared.submit(Arc::clone(&job) as Arc<dyn job_state::Entry>) {
            Ok(place) => Some(place),
            Err(refusal) => {
                job.refuse(refusal.why, refusal.ending, &shared.meter);
                None
            }
        };
        JobFuture::new(job, shared, place)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.0.0.owner)
    }
}

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
