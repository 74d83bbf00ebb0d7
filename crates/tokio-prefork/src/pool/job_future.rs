//! The future of a submitted job.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::job_queue::QueuedJobId;
use super::job_state::{AbandonedJob, JobResult, JobStage, JobState, contain_panic};
use super::pool_threads::PoolState;
use super::{PoolError, PoolJob};
use crate::scoreboard::JobOutcome;

/// The result of a submitted job, as a future. Dropping it cancels the job.
#[must_use = "dropping the future cancels the job; await it"]
pub struct JobFuture<T: PoolJob> {
    job: Arc<JobState<T>>,
    shared: Arc<PoolState>,
    /// `None` for a job that was rejected.
    queued_job: Option<QueuedJobId>,
    /// Created when there is a deadline to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T: PoolJob> JobFuture<T> {
    pub(super) fn new(
        job: Arc<JobState<T>>,
        shared: Arc<PoolState>,
        queued_job: Option<QueuedJobId>,
    ) -> JobFuture<T> {
        JobFuture { job, shared, queued_job, timer: None }
    }

    /// Ends the job if it has not ended yet, and removes it from the queue.
    fn abandon(&self, ending: JobOutcome) -> AbandonedJob<T> {
        let abandoned = self.job.abandon(ending, &self.shared.counters);
        if let (AbandonedJob::NeverStarted, Some(queued_job)) = (&abandoned, self.queued_job) {
            self.shared.remove_queued(queued_job);
        }
        abandoned
    }
}

impl<T: PoolJob> Future for JobFuture<T> {
    type Output = JobResult<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        let this = self.get_mut();
        let (deadline, old_waker) = {
            let mut progress = this.job.lock_progress();
            let started = match &mut progress.stage {
                // A future that is polled after its end returns `Closed`.
                JobStage::Ended(outcome) => {
                    return Poll::Ready(outcome.take().unwrap_or(Err(PoolError::Closed)));
                }
                JobStage::Queued(_) => None,
                JobStage::Running(started) => Some(*started),
            };
            let is_same_waker =
                progress.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            let old_waker =
                if is_same_waker { None } else { progress.waker.replace(cx.waker().clone()) };
            (this.job.deadline_at(started), old_waker)
        };
        contain_panic(|| drop(old_waker));
        let Some(deadline) = deadline else { return Poll::Pending };
        let timer =
            this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        ready!(timer.as_mut().poll(cx));
        match this.abandon(JobOutcome::TimedOut) {
            // The job ended just before its deadline.
            AbandonedJob::AlreadyEnded(Some(outcome)) => Poll::Ready(outcome),
            _ => Poll::Ready(Err(this.job.timeout_error())),
        }
    }
}

impl<T: PoolJob> Drop for JobFuture<T> {
    fn drop(&mut self) {
        let abandoned = self.abandon(JobOutcome::Cancelled);
        contain_panic(|| drop(abandoned));
    }
}

impl<T: PoolJob> fmt::Debug for JobFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobFuture({})", T::name())
    }
}
