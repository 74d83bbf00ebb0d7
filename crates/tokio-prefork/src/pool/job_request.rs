//! A job with options, before its submission.

use std::future::IntoFuture;
use std::time::Duration;

use super::job_queue::WhenQueueFull;
use super::job_state::JobResult;
use super::pool_state::QueueOptions;
use super::{JobDeadline, JobFuture, Pool, PoolError, PoolJob, Priority, RefusedJob};

/// A job with a deadline, a priority, and what to do if the queue is full. Created by [`Pool::job`].
///
/// Nothing is submitted before it is awaited, or one of its last methods is called:
/// [`start`](JobRequest::start), [`try_start`](JobRequest::try_start), [`detach`](JobRequest::detach), [`wait`](JobRequest::wait).
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::time::Duration;
/// use tokio_prefork::pool::{Pool, PoolConfig, Priority};
///
/// let pool = Pool::new(PoolConfig::default());
/// let job = pool.job(|| 6 * 7).timeout(Duration::from_secs(1)).priority(Priority::High).when_room();
/// assert_eq!(job.await, Ok(42));
/// # });
/// ```
#[must_use = "the job is not submitted yet; await it, or start it"]
#[derive(Debug)]
pub struct JobRequest<T: PoolJob> {
    pool: Pool,
    job: T,
    name: &'static str,
    deadline: Option<JobDeadline>,
    priority: Priority,
    when_full: WhenQueueFull,
}

impl<T: PoolJob> JobRequest<T> {
    pub(super) fn new(pool: Pool, job: T, name: &'static str) -> JobRequest<T> {
        let deadline = job.deadline();
        let (priority, when_full) = (Priority::Normal, WhenQueueFull::Refuse);
        JobRequest { pool, job, name, deadline, priority, when_full }
    }

    /// Sets the deadline, which replaces the job's own.
    pub fn deadline(mut self, deadline: JobDeadline) -> JobRequest<T> {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the deadline to `timeout` after the submission.
    pub fn timeout(self, timeout: Duration) -> JobRequest<T> {
        self.deadline(JobDeadline::FromSubmission(timeout))
    }

    /// Sets the priority. A job of a higher one begins before all queued jobs of a lower one. Default: [`Priority::Normal`].
    pub fn priority(mut self, priority: Priority) -> JobRequest<T> {
        self.priority = priority;
        self
    }

    /// Waits for room instead of being refused if the queue is full. Jobs that wait for room keep their order.
    pub fn when_room(mut self) -> JobRequest<T> {
        self.when_full = WhenQueueFull::WaitForRoom;
        self
    }

    /// Submits the job, and returns its result as a future.
    pub fn start(self) -> JobFuture<T> {
        let options = self.options();
        self.pool.submit(self.job, self.name, self.deadline, options)
    }

    /// Submits the job, and returns its result as a future.
    ///
    /// # Errors
    /// The pool has refused the job, which the error gives back.
    pub fn try_start(self) -> Result<JobFuture<T>, RefusedJob<T>> {
        let options = self.options();
        self.pool.try_submit(self.job, self.name, self.deadline, options)
    }

    /// Submits the job and lets it run without a caller. See [`JobFuture::detach`].
    ///
    /// # Errors
    /// The pool has refused the job.
    pub fn detach(self) -> Result<(), PoolError> {
        self.start().detach()
    }

    /// Submits the job and waits for its result on the calling thread. See [`JobFuture::wait`].
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn wait(self) -> JobResult<T> {
        self.start().wait()
    }

    fn options(&self) -> QueueOptions {
        QueueOptions { lane: self.priority as usize, when_full: self.when_full }
    }
}

impl<T: PoolJob> IntoFuture for JobRequest<T> {
    type Output = JobResult<T>;
    type IntoFuture = JobFuture<T>;

    fn into_future(self) -> JobFuture<T> {
        self.start()
    }
}
