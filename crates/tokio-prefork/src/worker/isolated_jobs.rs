//! Isolated jobs: how a worker submits them, and how an isolated worker runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::custom_kind::custom_kind_app;
use super::{Worker, WorkerApp};
use crate::error::{BoxError, Result};
use crate::isolated::{
    self, IsolatedJobError, IsolatedJobId, IsolatedJobOutcome, IsolatedJobRequest,
    decode_with_rest, encode_with_payload, encode_with_rest,
};
use crate::messages::{
    AttachedConnection, Envelope, IntoPayload, MessageAddress, MessageError, Payload,
};
use crate::text::panic_text;

/// How long after a job's deadline the caller still waits for the primary's reply, in case the primary is stuck.
const REPLY_GRACE: Duration = Duration::from_secs(1);

/// The function that an isolated worker runs: encoded input to encoded output.
pub(crate) type IsolatedJobFn =
    Arc<dyn Fn(&Bytes) -> std::result::Result<Payload, String> + Send + Sync>;

/// Identifies the next job that this process submits.
static NEXT_JOB_TOKEN: AtomicU64 = AtomicU64::new(1);

/// A pool of isolated worker processes that run jobs; see [`Worker::isolated_pool`]. `Send` and `Sync`.
#[derive(Debug, Clone)]
pub struct IsolatedPool {
    worker: Worker,
    name: Arc<str>,
}

impl Worker {
    /// Returns the pool of isolated workers with this name.
    ///
    /// # Errors
    /// [`IsolatedJobError::Unknown`] if the program has no such pool.
    pub fn isolated_pool(&self, name: &str) -> std::result::Result<IsolatedPool, IsolatedJobError> {
        match self.0.kinds.iter().any(|(known, _)| *known == name) {
            true => Ok(IsolatedPool { worker: self.clone(), name: name.into() }),
            false => Err(IsolatedJobError::Unknown(name.to_string())),
        }
    }
}

impl IsolatedPool {
    /// Runs a job in a process of its own, and waits for its result for up to `limit` from now.
    ///
    /// At the limit, the process of a running job is killed, and a queued job is removed. If this future is dropped, a
    /// queued job is removed, and a running one goes on until it ends or reaches its limit.
    ///
    /// # Errors
    /// Why there is no result: see [`IsolatedJobError`]. The death of a job's process is reported at once.
    pub async fn run<O: DeserializeOwned>(
        &self,
        input: impl IntoPayload,
        limit: Duration,
    ) -> std::result::Result<O, IsolatedJobError> {
        let token = NEXT_JOB_TOKEN.fetch_add(1, Ordering::Relaxed);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let input = input.into_payload().map_err(to_job_error)?;
        let payload = encode_with_payload(&IsolatedJobRequest { token, limit_ms }, &input);
        let ask = isolated::job_request_kind(&self.name);
        let envelope = Envelope::new(
            MessageAddress::Primary,
            &ask,
            payload.into(),
            AttachedConnection::Absent,
        )
        .map_err(to_job_error)?;
        let mut guard = JobCancelGuard { pool: self, token, is_finished: false };
        let reply =
            self.worker.0.messages.request(envelope, limit.saturating_add(REPLY_GRACE)).await;
        guard.is_finished = true;
        let (verdict, output) =
            decode_with_rest::<IsolatedJobOutcome>(reply.map_err(to_job_error)?.bytes())
                .ok_or_else(|| IsolatedJobError::Failed("its reply is malformed".to_string()))?;
        match verdict {
            IsolatedJobOutcome::Done => {
                decode_payload(&output, "output").map_err(IsolatedJobError::Failed)
            }
            IsolatedJobOutcome::Failed(error) => Err(IsolatedJobError::Failed(error)),
            IsolatedJobOutcome::Full => Err(IsolatedJobError::Full),
            IsolatedJobOutcome::TimedOut => Err(IsolatedJobError::TimedOut),
            IsolatedJobOutcome::Died { signal } => Err(IsolatedJobError::Died { signal }),
            IsolatedJobOutcome::Closed => Err(IsolatedJobError::Closed),
        }
    }
}

/// Decodes the input or output of a job.
fn decode_payload<T: DeserializeOwned>(
    bytes: &Bytes,
    what: &str,
) -> std::result::Result<T, String> {
    let payload =
        Payload::from_appended(bytes).ok_or_else(|| format!("its {what} is malformed"))?;
    payload.decode().map_err(|reason| {
        let (encoding, type_name) = (payload.encoding(), std::any::type_name::<T>());
        format!("cannot decode its {what} ({encoding}) as {type_name}: {reason}")
    })
}

/// Converts the failure of the request to the primary.
fn to_job_error(error: MessageError) -> IsolatedJobError {
    match error {
        MessageError::Full => IsolatedJobError::Full,
        MessageError::TimedOut(_) => IsolatedJobError::TimedOut,
        MessageError::Closed | MessageError::Refused(_) => IsolatedJobError::Closed,
        other => IsolatedJobError::Failed(other.to_string()),
    }
}

/// Cancels a job when its caller stops waiting for it.
struct JobCancelGuard<'a> {
    pool: &'a IsolatedPool,
    token: u64,
    is_finished: bool,
}

impl Drop for JobCancelGuard<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // If the queue is full, the job runs although its result is not needed.
            let _ =
                self.pool.worker.try_send(&isolated::job_cancel_kind(&self.pool.name), &self.token);
        }
    }
}

/// Creates the application of an isolated worker: one job at a time, on a thread of its own, so that the worker keeps
/// its heartbeat.
pub(crate) fn isolated_worker_app(job: IsolatedJobFn) -> WorkerApp {
    custom_kind_app(move |worker| run_isolated_jobs(worker, Arc::clone(&job)))
}

/// Runs jobs until the worker drains.
async fn run_isolated_jobs(worker: Worker, job: IsolatedJobFn) -> Result<(), BoxError> {
    let mut jobs = worker.open_inbox(isolated::RUN_JOB_KIND);
    loop {
        let message = tokio::select! {
            // Jobs that arrived before the drain still run.
            biased;
            Some(message) = jobs.recv() => message,
            () = worker.draining() => return Ok(()),
        };
        let Some((id, input)) = decode_with_rest::<IsolatedJobId>(message.bytes()) else {
            continue;
        };
        let mut reply = JobReplyGuard {
            worker: &worker,
            id,
            verdict: IsolatedJobOutcome::Closed,
            output: None,
        };
        (reply.verdict, reply.output) = match run_on_thread(Arc::clone(&job), input).await {
            Ok(output) => (IsolatedJobOutcome::Done, Some(output)),
            Err(error) => (IsolatedJobOutcome::Failed(error), None),
        };
    }
}

/// Sends the result of a job when dropped, even if the drain deadline ends the job.
struct JobReplyGuard<'a> {
    worker: &'a Worker,
    id: IsolatedJobId,
    verdict: IsolatedJobOutcome,
    output: Option<Payload>,
}

impl Drop for JobReplyGuard<'_> {
    fn drop(&mut self) {
        let kind = isolated::job_result_kind(self.worker.kind());
        let encode = |verdict: &IsolatedJobOutcome, output: Option<&Payload>| {
            let outcome = match output {
                Some(output) => encode_with_payload(verdict, output),
                None => encode_with_rest(verdict, b""),
            };
            encode_with_rest(&self.id, &outcome)
        };
        let sent = self.worker.try_send(&kind, encode(&self.verdict, self.output.as_ref()));
        if let Err(e) = sent {
            let failed = IsolatedJobOutcome::Failed(e.to_string());
            let _ = self.worker.try_send(&kind, encode(&failed, None));
        }
    }
}

/// Runs a job on a new thread; a panic is an error.
async fn run_on_thread(job: IsolatedJobFn, input: Bytes) -> std::result::Result<Payload, String> {
    let (sender, done) = oneshot::channel();
    let run = move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&input)));
        // Fails if the worker drained meanwhile.
        let _ = sender.send(outcome.unwrap_or_else(|panic| Err(panic_message(&*panic))));
    };
    let thread = std::thread::Builder::new().name("isolated job".to_string()).spawn(run);
    thread.map_err(|e| format!("cannot start a thread for the job: {e}"))?;
    done.await.unwrap_or_else(|_| Err("its thread ended without a result".to_string()))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    format!("it panicked: {}", panic_text(panic))
}

/// Wraps a typed function: decodes its input and encodes its output.
pub(crate) fn isolated_job_fn<I, O, F>(job: F) -> IsolatedJobFn
where
    I: DeserializeOwned,
    O: Serialize,
    F: Fn(I) -> std::result::Result<O, String> + Send + Sync + 'static,
{
    Arc::new(move |input| {
        let output = job(decode_payload(input, "input")?)?;
        (&output).into_payload().map_err(|e| format!("cannot encode its output: {e}"))
    })
}
