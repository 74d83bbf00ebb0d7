//! Isolated jobs: how a worker asks for one, and how an isolated worker does it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::custom_kind::kind_app;
use super::{App, Worker};
use crate::error::Result;
use crate::isolated::{self, IsolatedJobError, Job, JobId, Verdict, join, split};
use crate::messages::{Carried, IntoPayload, MessageError, Place, letter};
use crate::text::panic_text;

/// So much longer than the deadline of a job its caller waits: the primary tells it in time, unless it is stuck.
const STUCK: Duration = Duration::from_secs(1);

/// What an isolated worker does with the bytes of an input.
pub(crate) type Work = Arc<dyn Fn(&[u8]) -> std::result::Result<Vec<u8>, String> + Send + Sync>;

thread_local! {
    /// Names the jobs that this worker asks for.
    static TOKEN: Cell<u64> = const { Cell::new(1) };
}

/// A pool of isolated workers, as those see it that have jobs for it: see [`Worker::isolated_pool`].
#[derive(Debug, Clone)]
pub struct IsolatedPool {
    worker: Worker,
    name: Rc<str>,
}

impl Worker {
    /// The pool of isolated workers with this name.
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
    /// Has a job done in a process of its own, and waits for its result for up to `limit`, counted from now. A job
    /// that has begun by then is ended with its process; one that waits is not begun. If this future is dropped, a
    /// job that waits is removed, and one that has begun goes on to its end or deadline.
    ///
    /// # Errors
    /// Why there is no result: see [`IsolatedJobError`]. A job whose process dies is told of at once.
    pub async fn run<I, O>(
        &self,
        input: &I,
        limit: Duration,
    ) -> std::result::Result<O, IsolatedJobError>
    where
        I: Serialize + ?Sized,
        O: DeserializeOwned,
    {
        let token = TOKEN.replace(TOKEN.get() + 1);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let input =
            postcard::to_stdvec(input).map_err(|e| IsolatedJobError::Failed(e.to_string()))?;
        let payload = join(&Job { token, limit_ms }, &input);
        let ask = isolated::ask_kind(&self.name);
        let letter = letter(Place::Primary, &ask, payload, Carried::Nothing).map_err(failed)?;
        let waits = Waits { pool: self, token, over: Cell::new(false) };
        let answer = self.worker.0.messages.request(letter, limit.saturating_add(STUCK)).await;
        waits.over.set(true);
        let (verdict, output) = split::<Verdict>(answer.map_err(failed)?.bytes())
            .ok_or_else(|| IsolatedJobError::Failed("its answer is garbage".to_string()))?;
        match verdict {
            Verdict::Done => postcard::from_bytes(&output).map_err(|e| {
                IsolatedJobError::Failed(format!("its output is not of this type: {e}"))
            }),
            Verdict::Failed(why) => Err(IsolatedJobError::Failed(why)),
            Verdict::Full => Err(IsolatedJobError::Full),
            Verdict::TimedOut => Err(IsolatedJobError::TimedOut),
            Verdict::Died { signal } => Err(IsolatedJobError::Died { signal }),
            Verdict::Closed => Err(IsolatedJobError::Closed),
        }
    }
}

fn failed(error: MessageError) -> IsolatedJobError {
    match error {
        MessageError::Full => IsolatedJobError::Full,
        MessageError::TimedOut(_) => IsolatedJobError::TimedOut,
        MessageError::Closed | MessageError::Refused(_) => IsolatedJobError::Closed,
        other => IsolatedJobError::Failed(other.to_string()),
    }
}

/// Says so if nobody waits for the job any more.
struct Waits<'a> {
    pool: &'a IsolatedPool,
    token: u64,
    over: Cell<bool>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if !self.over.get() {
            // If there is no room for this, the job is done in vain.
            let _ = self.pool.worker.try_send(&isolated::gone_kind(&self.pool.name), &self.token);
        }
    }
}

/// An isolated worker: one job at a time, in a thread of its own, so that the worker stays alive beside it.
pub(crate) fn isolated_app(work: Work) -> App {
    kind_app(move |worker| serve(worker, Arc::clone(&work)))
}

async fn serve(worker: Worker, work: Work) -> Result<()> {
    let mut jobs = worker.open_inbox(isolated::DO);
    loop {
        let message = tokio::select! {
            // What came before the order to leave is done.
            biased;
            Some(message) = jobs.recv() => message,
            () = worker.draining() => return Ok(()),
        };
        let Some((id, input)) = split::<JobId>(message.bytes()) else { continue };
        let mut answer =
            Answer { worker: &worker, id, verdict: Verdict::Closed, output: Vec::new() };
        (answer.verdict, answer.output) = match in_thread(Arc::clone(&work), input).await {
            Ok(output) => (Verdict::Done, output),
            Err(why) => (Verdict::Failed(why), Vec::new()),
        };
    }
}

/// Answers when it is dropped, also when the job is cut off as the worker has to leave.
struct Answer<'a> {
    worker: &'a Worker,
    id: JobId,
    verdict: Verdict,
    output: Vec<u8>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let kind = isolated::done_kind(self.worker.kind());
        let said = |verdict: &Verdict, output: &[u8]| join(&self.id, &join(verdict, output));
        if let Err(e) = self.worker.try_send(&kind, said(&self.verdict, &self.output)) {
            let _ = self.worker.try_send(&kind, said(&Verdict::Failed(e.to_string()), &[]));
        }
    }
}

async fn in_thread(work: Work, input: Bytes) -> std::result::Result<Vec<u8>, String> {
    let (sender, done) = oneshot::channel();
    let job = move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&input)));
        // Whoever has to leave waits no more.
        let _ = sender.send(outcome.unwrap_or_else(|panic| Err(panicked(&*panic))));
    };
    let thread = std::thread::Builder::new().name("isolated job".to_string()).spawn(job);
    thread.map_err(|e| format!("no thread for the job: {e}"))?;
    done.await.unwrap_or_else(|_| Err("its thread has ended".to_string()))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    format!("it panicked: {}", panic_text(panic))
}

/// The bytes that an output becomes, and an input was.
pub(crate) fn work<I, O, W>(work: W) -> Work
where
    I: DeserializeOwned,
    O: Serialize,
    W: Fn(I) -> std::result::Result<O, String> + Send + Sync + 'static,
{
    Arc::new(move |input| {
        let input = postcard::from_bytes(input).map_err(|e| format!("its input: {e}"))?;
        let output = (&work(input)?).into_payload().map_err(|e| format!("its output: {e}"))?;
        Ok(output.into())
    })
}
