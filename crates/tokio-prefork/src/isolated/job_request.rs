//! A job before it is submitted.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::job_handle::{JobClient, block_on};
use super::{
    CallerMessage, EncodeError, IsolatedJobError, IsolatedPool, JobHandle, JobPayload,
    JobSubmission, JobValue, Priority, caller_message_kind, job_envelope,
};
use crate::messages::{Envelope, MessageError};

/// Identifies the next job that this process submits.
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// A job of an [`IsolatedPool`] that is not submitted yet. Await it, or call [`start`](JobRequest::start),
/// [`wait`](JobRequest::wait) or [`detach`](JobRequest::detach).
#[must_use = "a job runs only if it is awaited or started"]
pub struct JobRequest<I, O, E = String, P = ()> {
    pool: IsolatedPool<I, O, E, P>,
    input: I,
    timeout: Option<Duration>,
    priority: Priority,
    waits_for_room: bool,
}

/// An encoded job that is registered for its replies.
struct PreparedJob<O, E, P> {
    handle: JobHandle<O, E, P>,
    client: JobClient,
    envelope: Envelope,
}

impl<O, E, P> PreparedJob<O, E, P>
where
    O: DeserializeOwned + Send + 'static,
    E: DeserializeOwned + Send + 'static,
{
    /// Sends the job, when there is room for the message, and waits for its result.
    async fn run(self) -> Result<O, IsolatedJobError<E>> {
        let PreparedJob { mut handle, client, envelope } = self;
        client.messages.send(envelope).await.map_err(|rejected| submit_error(&rejected.0))?;
        handle.set_sent();
        handle.await
    }
}

impl<I, O, E, P> JobRequest<I, O, E, P> {
    pub(super) fn new(pool: IsolatedPool<I, O, E, P>, input: I) -> JobRequest<I, O, E, P> {
        JobRequest { pool, input, timeout: None, priority: Priority::Normal, waits_for_room: false }
    }

    /// Sets how long to wait for the result, from the submission on. At the limit a queued job is removed, and the process of a
    /// running job is killed. Default: the pool's [`deadline`](super::IsolatedPoolConfig::deadline).
    pub fn timeout(mut self, limit: Duration) -> JobRequest<I, O, E, P> {
        self.timeout = Some(limit);
        self
    }

    /// Sets the priority among the queued jobs. Default: [`Priority::Normal`].
    pub fn priority(mut self, priority: Priority) -> JobRequest<I, O, E, P> {
        self.priority = priority;
        self
    }

    /// Waits until the queue has room for the job, instead of failing with [`Full`](IsolatedJobError::Full).
    ///
    /// The input stays in this process meanwhile, and jobs get their places in the order of their submission. The pool's deadline
    /// counts from then on. Without a [`timeout`](JobRequest::timeout) of its own the job waits for room without limit.
    pub fn when_room(mut self) -> JobRequest<I, O, E, P> {
        self.waits_for_room = true;
        self
    }
}

impl<I, O, E, P> JobRequest<I, O, E, P>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    E: Serialize + DeserializeOwned + Send + 'static,
    P: Serialize + DeserializeOwned + 'static,
{
    /// Submits the job at once. The handle is the future of the result, and receives the job's progress reports.
    ///
    /// Encodes and copies the input at once; awaiting the request copies a large one on another thread.
    ///
    /// What prevents the submission is returned by the handle. A queue of messages to the primary that is full counts as
    /// [`Full`](IsolatedJobError::Full); awaiting the request instead waits for it.
    pub fn start(self) -> JobHandle<O, E, P> {
        let PreparedJob { mut handle, client, envelope } = match self.prepare(false) {
            Ok(prepared) => prepared,
            Err(error) => return JobHandle::failed(error),
        };
        match client.messages.try_send(envelope) {
            Ok(()) => handle.set_sent(),
            Err(rejected) => handle.fail(submit_error(&rejected.0)),
        }
        handle
    }

    /// Submits the job at once and lets it run although nobody waits for it. Its end is counted, and nothing else is known of it.
    ///
    /// It outlives its caller's process. The pool's deadline holds for it, or its own timeout.
    ///
    /// # Errors
    /// It cannot be submitted. That it is refused later, because the queue is full or the cluster stops, is not reported.
    pub fn detach(self) -> Result<(), IsolatedJobError<E>> {
        let PreparedJob { client, envelope, .. } = self.prepare(true)?;
        client.send_in_background(envelope).map_err(|e| submit_error(&e))
    }

    /// Runs the job, and blocks the thread until its result is there. For threads outside of async code: pool jobs,
    /// `spawn_blocking`, plain threads.
    ///
    /// # Errors
    /// As [`IsolatedPool::run`], and [`IsolatedJobError::WouldDeadlock`] on the worker's event loop.
    pub fn wait(self) -> Result<O, IsolatedJobError<E>> {
        match crate::worker::is_on_event_loop() {
            true => Err(IsolatedJobError::WouldDeadlock),
            false => {
                let mut prepared = self.prepare(false)?;
                prepared.handle.decode_in_place();
                // The encoded input is enough.
                drop(self);
                block_on(prepared.run())
            }
        }
    }

    /// Encodes the job, and registers it for its replies.
    fn prepare(&self, is_detached: bool) -> Result<PreparedJob<O, E, P>, IsolatedJobError<E>> {
        let client = self.client()?;
        let most = self.pool.declaration().config.max_payload_bytes;
        let input = JobPayload::encode(&self.input, most).map_err(encode_error)?;
        self.register(client, &input, is_detached)
    }

    /// Encodes the job, a large input on another thread, and registers it for its replies. Returns the request too.
    async fn prepare_off_loop(self) -> (Self, Result<PreparedJob<O, E, P>, IsolatedJobError<E>>) {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return (self, Err(error)),
        };
        let JobRequest { pool, input, timeout, priority, waits_for_room } = self;
        let most = pool.declaration().config.max_payload_bytes;
        let (input, encoded) = JobPayload::encode_off_loop(&client.runtime, input, most).await;
        let request = JobRequest { pool, input, timeout, priority, waits_for_room };
        let prepared = encoded.map_err(encode_error);
        let prepared = prepared.and_then(|input| request.register(client, &input, false));
        (request, prepared)
    }

    /// Returns the connection of this process to the primary.
    fn client(&self) -> Result<JobClient, IsolatedJobError<E>> {
        let declaration = self.pool.declaration();
        let client = JobClient::current().filter(|_| declaration.is_registered());
        client.ok_or(IsolatedJobError::NotRegistered { pool: declaration.config.name })
    }

    /// Registers the job with its encoded input for its replies.
    fn register(
        &self,
        client: JobClient,
        input: &JobPayload,
        is_detached: bool,
    ) -> Result<PreparedJob<O, E, P>, IsolatedJobError<E>> {
        let config = &self.pool.declaration().config;
        let token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
        let kind = caller_message_kind(config.name);
        let envelope = job_envelope(&kind, &self.submission(token, is_detached), input);
        let envelope = envelope.map_err(|e| submit_error(&e))?;
        let deadline = (!self.waits_for_room).then_some(config.deadline);
        let handle =
            JobHandle::register(client.clone(), kind.clone(), token, self.timeout.or(deadline));
        let mut handle = handle.ok_or(IsolatedJobError::Closed)?;
        if self.waits_for_room {
            let again = job_envelope(&kind, &CallerMessage::ProvideInput { token }, input);
            handle.keep_input(again.map_err(|e| submit_error(&e))?, is_detached);
        }
        Ok(PreparedJob { handle, client, envelope })
    }

    fn submission(&self, token: u64, is_detached: bool) -> CallerMessage {
        CallerMessage::Submit(JobSubmission {
            token,
            limit_ms: self
                .timeout
                .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            priority: self.priority,
            is_detached,
            waits_for_room: self.waits_for_room,
        })
    }

    /// Runs the job like awaiting the request, but returns the input with an error of a job that has not begun.
    ///
    /// # Errors
    /// As [`IsolatedPool::run`], with the input, unless the job may have begun.
    pub async fn try_run(self) -> Result<O, RefusedJob<I, E>> {
        let (request, prepared) = self.prepare_off_loop().await;
        let result = match prepared {
            Ok(prepared) => prepared.run().await,
            Err(error) => Err(error),
        };
        result.map_err(|error| {
            let input = (!error.has_begun()).then_some(request.input);
            RefusedJob { input, error }
        })
    }
}

/// A job of [`JobRequest::try_run`] that has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct RefusedJob<I, E = String> {
    /// The input; `None` if the job may have begun.
    pub input: Option<I>,
    /// Why there is no result.
    pub error: IsolatedJobError<E>,
}

fn encode_error<E>(error: EncodeError) -> IsolatedJobError<E> {
    let value = JobValue::Input;
    match error {
        EncodeError::TooLarge { size, most } => IsolatedJobError::TooLarge { value, size, most },
        EncodeError::Failed(reason) => IsolatedJobError::Transfer { value, reason },
    }
}

/// Converts the error of sending a job to the primary.
fn submit_error<E>(error: &MessageError) -> IsolatedJobError<E> {
    match error {
        MessageError::Full => IsolatedJobError::Full,
        MessageError::Closed => IsolatedJobError::Closed,
        MessageError::TooLarge { size, most } => {
            IsolatedJobError::TooLarge { value: JobValue::Input, size: *size, most: *most }
        }
        other => IsolatedJobError::Transfer { value: JobValue::Input, reason: other.to_string() },
    }
}

impl<I, O, E, P> IntoFuture for JobRequest<I, O, E, P>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    E: Serialize + DeserializeOwned + Send + 'static,
    P: Serialize + DeserializeOwned + 'static,
{
    type Output = Result<O, IsolatedJobError<E>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (request, prepared) = self.prepare_off_loop().await;
            // The encoded input is enough.
            drop(request);
            prepared?.run().await
        })
    }
}

impl<I, O, E, P> fmt::Debug for JobRequest<I, O, E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobRequest")
            .field("pool", &self.pool.name())
            .field("timeout", &self.timeout)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}
