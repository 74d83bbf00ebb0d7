//! A submitted job, in the process that waits for it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread::Thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use super::pending_jobs::{PendingJob, UnsentInput};
use super::{
    CallerMessage, IsolatedJobError, JobOutcome, JobPayload, JobValue, ValueSource, job_envelope,
};
use crate::cluster::program_caller;
use crate::messages::{Envelope, MessageError, WorkerMessageEnd};
use crate::worker::Worker;

/// How long after a job's deadline the caller still waits for the primary's reply, in case the primary is stuck.
const REPLY_GRACE: Duration = Duration::from_secs(1);

/// The connection of this process to the primary.
#[derive(Debug, Clone)]
pub(super) struct JobClient {
    pub(super) messages: Arc<WorkerMessageEnd>,
    pub(super) runtime: tokio::runtime::Handle,
}

impl JobClient {
    /// Returns the connection of this process; `None` if it is no worker and has not [started](super::IsolatedPools) pools.
    pub(super) fn current() -> Option<JobClient> {
        if let Some(program) = program_caller() {
            let (messages, runtime) = (Arc::clone(&program.messages), program.runtime.clone());
            return Some(JobClient { messages, runtime });
        }
        let worker = Worker::current()?;
        let (messages, runtime) = (Arc::clone(&worker.0.messages), worker.0.runtime.clone());
        Some(JobClient { messages, runtime })
    }

    /// Sends a message, at once or when there is room for it.
    pub(super) fn send_in_background(&self, envelope: Envelope) -> Result<(), MessageError> {
        match self.messages.try_send(envelope).map_err(|rejected| *rejected) {
            Err((MessageError::Full, envelope)) => {
                let messages = Arc::clone(&self.messages);
                // Fails if the primary is gone.
                self.runtime.spawn(async move { drop(messages.send(envelope).await) });
                Ok(())
            }
            sent => sent.map_err(|(error, _)| error),
        }
    }
}

/// A submitted job of an [`IsolatedPool`](super::IsolatedPool). It is the future of the result.
///
/// Dropping it abandons the job: see [`OnAbandon`](super::OnAbandon).
#[must_use = "dropping the handle abandons the job; call detach to let it run"]
pub struct JobHandle<O, E = String, P = ()> {
    state: HandleState<O, E>,
    _types: PhantomData<fn() -> P>,
}

/// The future of a large result.
type DecodingResult<O, E> = Pin<Box<dyn Future<Output = Result<O, IsolatedJobError<E>>> + Send>>;

enum HandleState<O, E> {
    /// The job could not be submitted.
    Failed(IsolatedJobError<E>),
    Submitted(SubmittedJob),
    /// Its result is being copied on another thread.
    Decoding(DecodingResult<O, E>),
    /// The result was returned.
    Finished,
}

struct SubmittedJob {
    pending: Arc<PendingJob>,
    client: JobClient,
    /// The message kind of what callers send about the pool.
    kind: String,
    token: u64,
    /// How long to wait; `None` without a limit.
    limit: Option<Duration>,
    /// Started with the first poll.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the primary has to be told if nobody waits for the job any more.
    abandons_on_drop: bool,
    /// Whether the job is detached and its input has still to be sent.
    keeps_input: bool,
    /// Whether a large result is copied on the thread that polls, which may block.
    decodes_in_place: bool,
}

impl Drop for SubmittedJob {
    fn drop(&mut self) {
        if self.keeps_input {
            return;
        }
        self.client.messages.isolated_jobs().remove(self.token);
        if self.abandons_on_drop {
            self.tell_primary(&CallerMessage::Abandon { token: self.token });
        }
    }
}

impl SubmittedJob {
    fn tell_primary(&self, message: &CallerMessage) {
        if let Ok(envelope) = job_envelope(&self.kind, message, &JobPayload::default()) {
            // Fails if the primary is gone.
            let _ = self.client.send_in_background(envelope);
        }
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(JobOutcome, JobPayload)> {
        if let Poll::Ready(outcome) = self.pending.poll_outcome(cx) {
            self.abandons_on_drop = false;
            return Poll::Ready(outcome);
        }
        ready!(self.poll_timer(cx));
        // The primary is stuck, and nobody knows whether the job has begun.
        Poll::Ready((JobOutcome::TimedOut { has_begun: true }, JobPayload::default()))
    }

    /// Waits until the primary should have answered.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let runtime = &self.client.runtime;
        let timer = self.timer.get_or_insert_with(|| {
            // The thread that polls may have no runtime.
            let _guard = runtime.enter();
            Box::pin(tokio::time::sleep(limit.saturating_add(REPLY_GRACE)))
        });
        timer.as_mut().poll(cx)
    }
}

impl<O, E, P> JobHandle<O, E, P> {
    /// Registers a job for its replies. Returns `None` if the primary is gone.
    pub(super) fn register(
        client: JobClient,
        kind: String,
        token: u64,
        limit: Option<Duration>,
    ) -> Option<JobHandle<O, E, P>> {
        let pending = client.messages.isolated_jobs().add(token)?;
        let (timer, abandons_on_drop, keeps_input) = (None, false, false);
        let job = SubmittedJob {
            pending,
            client,
            kind,
            token,
            limit,
            timer,
            abandons_on_drop,
            keeps_input,
            decodes_in_place: false,
        };
        Some(JobHandle { state: HandleState::Submitted(job), _types: PhantomData })
    }

    /// Creates the handle of a job that could not be submitted.
    pub(super) fn failed(error: IsolatedJobError<E>) -> JobHandle<O, E, P> {
        JobHandle { state: HandleState::Failed(error), _types: PhantomData }
    }

    /// Ends a job that could not be submitted.
    pub(super) fn fail(&mut self, error: IsolatedJobError<E>) {
        self.state = HandleState::Failed(error);
    }

    /// Lets the job run although nobody waits for it. It outlives its caller's process.
    pub fn detach(mut self) {
        if let HandleState::Submitted(job) = &mut self.state
            && std::mem::take(&mut job.abandons_on_drop)
        {
            job.tell_primary(&CallerMessage::Detach { token: job.token });
            job.keeps_input = job.pending.detach();
        }
    }

    /// Keeps the input of the job until the primary has room for it.
    pub(super) fn keep_input(&mut self, envelope: Envelope, is_detached: bool) {
        if let HandleState::Submitted(job) = &mut self.state {
            let client = job.client.clone();
            job.pending.keep_input(UnsentInput { client, envelope, is_detached });
            job.keeps_input = is_detached;
        }
    }

    /// Records that the primary gets the job.
    pub(super) fn set_sent(&mut self) {
        if let HandleState::Submitted(job) = &mut self.state {
            job.abandons_on_drop = true;
        }
    }
}

impl<O, E, P> JobHandle<O, E, P>
where
    O: DeserializeOwned + Send + 'static,
    E: DeserializeOwned + Send + 'static,
{
    /// Blocks the thread until the result is there: see [`JobRequest::wait`](super::JobRequest::wait).
    ///
    /// # Errors
    /// As [`IsolatedPool::run`](super::IsolatedPool::run), and [`IsolatedJobError::WouldDeadlock`] on the worker's event loop; then the
    /// job is abandoned.
    pub fn wait(mut self) -> Result<O, IsolatedJobError<E>> {
        if crate::worker::is_on_event_loop() {
            return Err(IsolatedJobError::WouldDeadlock);
        }
        self.decode_in_place();
        block_on(self)
    }

    /// Copies a large result on the thread that polls. All threads for blocking calls may wait like this one.
    pub(super) fn decode_in_place(&mut self) {
        if let HandleState::Submitted(job) = &mut self.state {
            job.decodes_in_place = true;
        }
    }
}

impl<O, E, P: DeserializeOwned + Send + 'static> JobHandle<O, E, P> {
    /// Waits for the next progress report of the job. Returns `None` once the job has ended and all its reports are read, or when it is
    /// past its timeout.
    ///
    /// Then await the handle for the result. If more than 256 reports wait, the oldest are dropped. A report that cannot be decoded
    /// is skipped.
    pub async fn next_progress(&mut self) -> Option<P> {
        let HandleState::Submitted(job) = &mut self.state else { return None };
        loop {
            let next = poll_fn(|cx| match job.pending.poll_report(cx) {
                Poll::Pending => job.poll_timer(cx).map(|()| None),
                next => next,
            });
            let report = next.await?;
            let source = ValueSource::Untrusted;
            if let Ok(report) = report.decode_off_loop(Some(&job.client.runtime), source).await {
                return Some(report);
            }
        }
    }
}

impl<O, E, P> Future for JobHandle<O, E, P>
where
    O: DeserializeOwned + Send + 'static,
    E: DeserializeOwned + Send + 'static,
{
    type Output = Result<O, IsolatedJobError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let HandleState::Submitted(job) = &mut this.state {
            let (outcome, value) = ready!(job.poll_outcome(cx));
            let runtime = (!job.decodes_in_place).then(|| job.client.runtime.clone());
            let decoding = decode_outcome(runtime, outcome, value);
            this.state = HandleState::Decoding(Box::pin(decoding));
        }
        if let HandleState::Decoding(decoding) = &mut this.state {
            let result = ready!(decoding.as_mut().poll(cx));
            this.state = HandleState::Finished;
            return Poll::Ready(result);
        }
        match std::mem::replace(&mut this.state, HandleState::Finished) {
            HandleState::Failed(error) => Poll::Ready(Err(error)),
            // Polled after its end, which is a mistake of the caller.
            _ => Poll::Ready(Err(IsolatedJobError::Closed)),
        }
    }
}

// The fields are never pinned.
impl<O, E, P> Unpin for JobHandle<O, E, P> {}

impl<O, E, P> fmt::Debug for JobHandle<O, E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = match &self.state {
            HandleState::Submitted(job) => Some(job.token),
            HandleState::Failed(_) | HandleState::Decoding(_) | HandleState::Finished => None,
        };
        f.debug_struct("JobHandle").field("token", &token).finish_non_exhaustive()
    }
}

/// Decodes the output or the error of a job. With a runtime, a large one is decoded on its threads for blocking calls.
async fn decode_outcome<O, E>(
    runtime: Option<tokio::runtime::Handle>,
    outcome: JobOutcome,
    value: JobPayload,
) -> Result<O, IsolatedJobError<E>>
where
    O: DeserializeOwned + Send + 'static,
    E: DeserializeOwned + Send + 'static,
{
    let source = ValueSource::Untrusted;
    let transfer = |reason| IsolatedJobError::Transfer { value: JobValue::Output, reason };
    Err(match outcome {
        JobOutcome::Done => {
            return value.decode_off_loop(runtime.as_ref(), source).await.map_err(transfer);
        }
        JobOutcome::Failed => match value.decode_off_loop(runtime.as_ref(), source).await {
            Ok(error) => IsolatedJobError::Failed(error),
            Err(reason) => transfer(reason),
        },
        JobOutcome::Panicked { message, location } => {
            IsolatedJobError::Panicked { message, location }
        }
        JobOutcome::Full => IsolatedJobError::Full,
        JobOutcome::Closed => IsolatedJobError::Closed,
        JobOutcome::TimedOut { has_begun } => IsolatedJobError::TimedOut { has_begun },
        JobOutcome::Cut => IsolatedJobError::Cut,
        JobOutcome::LimitExceeded { limit } => IsolatedJobError::LimitExceeded { limit },
        JobOutcome::Died { code, signal } => IsolatedJobError::Died { code, signal },
        JobOutcome::PrimaryGone => IsolatedJobError::PrimaryGone,
        JobOutcome::TooLarge { value, size, most } => {
            IsolatedJobError::TooLarge { value, size, most }
        }
        JobOutcome::Transfer { value, reason } => IsolatedJobError::Transfer { value, reason },
    })
}

/// Unparks a thread.
struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<ThreadWaker>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, without a runtime. Timers in it need one of their own.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(ThreadWaker(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
