//! The future of a submitted job.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::current_thread;
use super::deadline_timer::DeadlineEntry;
use super::job_queue::QueuedJobId;
use super::job_state::{AbandonedJob, JobResult, JobStage, JobState, RunnableJob, contain_panic};
use super::pool_state::PoolState;
use super::thread_parker::ThreadParker;
use super::{PoolError, PoolJob};
use crate::scoreboard::JobOutcome;

/// The result of a submitted job, as a future for any async runtime. Dropping it cancels the job.
///
/// [`detach`](JobFuture::detach) lets the job run without it; [`wait`](JobFuture::wait) is for code that is not async. A draining
/// worker waits, within `graceful-timeout`, until each future has returned its result or was dropped.
#[must_use = "dropping the future cancels the job; await it, or detach it"]
pub struct JobFuture<T: PoolJob> {
    job: Arc<JobState<T>>,
    shared: Arc<PoolState>,
    /// `None` for a job that was rejected.
    queued_job: Option<QueuedJobId>,
    /// Wakes the caller at the deadline.
    deadline_entry: Option<DeadlineEntry>,
    /// The thread of the same pool that waits for this job.
    waiting_slot: Option<usize>,
    /// Whether a drain waits for this future.
    is_unread: bool,
    is_detached: bool,
}

impl<T: PoolJob> JobFuture<T> {
    pub(super) fn new(job: Arc<JobState<T>>, shared: Arc<PoolState>) -> JobFuture<T> {
        shared.add_unread_result();
        JobFuture {
            job,
            shared,
            queued_job: None,
            deadline_entry: None,
            waiting_slot: None,
            is_unread: true,
            is_detached: false,
        }
    }

    /// Records that the pool has accepted the job.
    pub(super) fn set_queued(&mut self, queued_job: QueuedJobId) {
        self.queued_job = Some(queued_job);
    }

    /// Lets the job run to its end without a caller: its result is dropped, a panic in it is logged.
    ///
    /// A draining worker waits for it. Its deadline still keeps it from starting late, and sets its
    /// [`CancelFlag`](super::CancelFlag).
    ///
    /// # Errors
    /// The pool has refused the job, as [`Pool::run`](super::Pool::run) would tell its caller.
    pub fn detach(mut self) -> Result<(), PoolError> {
        self.is_detached = true;
        match self.queued_job {
            Some(_) => Ok(()),
            None => self.job.take_error().map_or(Ok(()), Err),
        }
    }

    /// Waits for the result on the calling thread, without an async runtime. The deadline of the job holds.
    ///
    /// Blocks the thread: on the event loop of a worker it stalls all requests, so await the future there.
    ///
    /// ```
    /// use tokio_prefork::pool::{Pool, PoolConfig};
    ///
    /// let pool = Pool::new(PoolConfig::default());
    /// assert_eq!(pool.run(|| 6 * 7).wait(), Ok(42));
    /// ```
    ///
    /// # Errors
    /// As [`Pool::run`](super::Pool::run). In a job that waits for another job of its own pool:
    /// [`PoolError::WouldDeadlock`] if all threads of the pool do so.
    pub fn wait(mut self) -> JobResult<T> {
        let parker = ThreadParker::new();
        let waker = parker.waker();
        loop {
            match self.advance(&waker) {
                Ok(result) => return result,
                Err(deadline) => parker.park(deadline),
            }
        }
    }

    /// Returns the result, or the deadline of a job that has not ended. Then `waker` is called when the job makes progress, but not
    /// at the deadline.
    fn advance(&mut self, waker: &Waker) -> Result<JobResult<T>, Option<Instant>> {
        loop {
            let old_waker = {
                let mut progress = self.job.lock_progress();
                // A future that is polled after its end returns `Closed`.
                if let JobStage::Ended(result) = &mut progress.stage {
                    let result = result.take().unwrap_or(Err(PoolError::Closed));
                    drop(progress);
                    self.stop_waiting();
                    return Ok(result);
                }
                let is_known = progress.waker.as_ref().is_some_and(|known| known.will_wake(waker));
                if is_known { None } else { progress.waker.replace(waker.clone()) }
            };
            contain_panic(|| drop(old_waker));
            let deadline = self.job.deadline_at();
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(self.time_out());
            }
            if !self.begin_waiting() {
                return Err(deadline);
            }
        }
    }

    /// Records that a thread of the pool waits for a job of the same pool. Returns whether that has ended a job.
    fn begin_waiting(&mut self) -> bool {
        let slot = current_thread::slot_in(&self.shared);
        if slot == self.waiting_slot {
            return false;
        }
        self.end_waiting();
        let Some(slot) = slot else { return false };
        self.waiting_slot = Some(slot);
        let entry = Arc::clone(&self.job) as Arc<dyn RunnableJob>;
        self.shared.begin_wait(slot, entry)
    }

    fn end_waiting(&mut self) {
        if let Some(slot) = self.waiting_slot.take() {
            let entry = Arc::clone(&self.job) as Arc<dyn RunnableJob>;
            self.shared.end_wait(slot, &entry);
        }
    }

    /// Ends everything that waits for the job.
    fn stop_waiting(&mut self) {
        self.deadline_entry = None;
        self.end_waiting();
        if std::mem::take(&mut self.is_unread) {
            self.shared.remove_unread_result();
        }
    }

    fn time_out(&mut self) -> JobResult<T> {
        let abandoned = self.abandon(JobOutcome::TimedOut);
        self.stop_waiting();
        match abandoned {
            // The job ended just before its deadline.
            AbandonedJob::AlreadyEnded(Some(result)) => result,
            AbandonedJob::AlreadyEnded(None) => Err(PoolError::Closed),
            AbandonedJob::NeverStarted => Err(self.job.timeout_error(false)),
            AbandonedJob::StillRunning => Err(self.job.timeout_error(true)),
        }
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
        match this.advance(cx.waker()) {
            Ok(result) => return Poll::Ready(result),
            Err(None) => {}
            Err(Some(deadline)) => match &this.deadline_entry {
                Some(entry) => entry.set_waker(cx.waker()),
                None => {
                    this.deadline_entry = Some(DeadlineEntry::new(deadline, cx.waker().clone()));
                }
            },
        }
        Poll::Pending
    }
}

impl<T: PoolJob> Drop for JobFuture<T> {
    fn drop(&mut self) {
        if !self.is_detached {
            let abandoned = self.abandon(JobOutcome::Cancelled);
            contain_panic(|| drop(abandoned));
        }
        self.stop_waiting();
    }
}

impl<T: PoolJob> fmt::Debug for JobFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobFuture({})", self.job.name())
    }
}
