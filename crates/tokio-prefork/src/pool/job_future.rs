//! JobFuture: a job as its caller sees it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::job_queue::Place;
use super::job_state::{Job, Left, Outcome, Stage, contained};
use super::pool_threads::Shared;
use super::{PoolError, PoolJob};
use crate::scoreboard::Ending;

/// A submitted job: the future of its result. Dropped, it cancels the job.
#[must_use = "a job is cancelled when this is dropped: await it"]
pub struct JobFuture<T: PoolJob> {
    job: Arc<Job<T>>,
    shared: Arc<Shared>,
    /// `None` for a job that was refused.
    place: Option<Place>,
    /// Made when there is a deadline to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T: PoolJob> JobFuture<T> {
    pub(super) fn new(job: Arc<Job<T>>, shared: Arc<Shared>, place: Option<Place>) -> JobFuture<T> {
        JobFuture { job, shared, place, timer: None }
    }

    /// Ends the job, if it has not ended yet.
    fn give_up(&self, ending: Ending) -> Left<T> {
        let left = self.job.give_up(ending, &self.shared.meter);
        if let (Left::Unrun, Some(place)) = (&left, self.place) {
            self.shared.withdraw(place);
        }
        left
    }
}

impl<T: PoolJob> Future for JobFuture<T> {
    type Output = Outcome<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let this = self.get_mut();
        let (due, old) = {
            let mut slot = this.job.lock();
            let begun = match &mut slot.stage {
                // Polled after its end, it has nothing to say any more.
                Stage::Settled(outcome) => {
                    return Poll::Ready(outcome.take().unwrap_or(Err(PoolError::Closed)));
                }
                Stage::Waiting(_) => None,
                Stage::Running(begun) => Some(*begun),
            };
            let known = slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            let old = if known { None } else { slot.waker.replace(cx.waker().clone()) };
            (this.job.due(begun), old)
        };
        contained(|| drop(old));
        let Some(due) = due else { return Poll::Pending };
        let timer =
            this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
        ready!(timer.as_mut().poll(cx));
        match this.give_up(Ending::TimedOut) {
            // It ended at the last moment.
            Left::Ended(Some(outcome)) => Poll::Ready(outcome),
            _ => Poll::Ready(Err(this.job.timed_out())),
        }
    }
}

impl<T: PoolJob> Drop for JobFuture<T> {
    fn drop(&mut self) {
        let left = self.give_up(Ending::Cancelled);
        contained(|| drop(left));
    }
}

impl<T: PoolJob> fmt::Debug for JobFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobFuture({})", T::name())
    }
}
