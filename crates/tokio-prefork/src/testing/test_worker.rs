//! `TestWorker`: a worker handle without a cluster, for unit tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::ListenerNames;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::messages::{
    AttachedConnection, Envelope, Inbox, IntoPayload, Message, MessageAddress, MessageClass,
    MessageError, MessageThread, ReplyTo, WorkerMessageEnd,
};
use crate::scoreboard::Scoreboard;
use crate::worker::Worker;
use crate::worker::cpu_pool::WorkerPools;
use crate::worker::pending_work::{Holds, StopFunctions};
use crate::worker::worker_shared::{DrainSignal, WorkerShared};
use prefork_os::fd_passing::create_seqpacket_pair;
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

/// A [`Worker`] without a cluster, for unit tests of code that takes a handle.
///
/// Its pool runs jobs, [shared state](crate::shared) works, and the test plays the primary: it orders the drain, reads what
/// the worker sends, answers requests and sends messages. Messages to other workers arrive at the test as well. What the test
/// opens no inbox for is kept up to the limits of [`MessageLimits`], then dropped.
///
/// Id and slot are 1 and 0. [`Worker::current`] does not return it, as tests run in one process.
///
/// ```
/// use tokio_prefork::Worker;
/// use tokio_prefork::testing::TestWorker;
///
/// async fn report(worker: &Worker) -> Result<(), tokio_prefork::MessageError> {
///     let sum = worker.pool().run(|| 1 + 2).await.unwrap_or_default();
///     worker.send("sum", &sum).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let test = TestWorker::new();
/// report(&test.worker()).await?;
/// let message = test.open_inbox("sum").recv().await.expect("sent");
/// assert_eq!(message.decode::<i32>()?, 3);
///
/// test.start_drain();
/// assert!(test.worker().is_draining());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TestWorker {
    worker: Worker,
    /// The end of the message channel that the primary would have.
    primary_end: Arc<WorkerMessageEnd>,
    /// Reads and writes the messages of both ends.
    _message_thread: MessageThread,
}

impl Default for TestWorker {
    fn default() -> TestWorker {
        TestWorker::new()
    }
}

impl TestWorker {
    /// Creates a worker with the default configuration.
    ///
    /// # Panics
    ///
    /// As [`TestWorker::with_config`].
    #[track_caller]
    pub fn new() -> TestWorker {
        TestWorker::with_config(Config::default())
    }

    /// Creates a worker with this configuration: [`Worker::config`], its app settings, and the size of the pool.
    ///
    /// # Panics
    ///
    /// The system refuses memory, descriptors or a thread.
    #[track_caller]
    pub fn with_config(config: Config) -> TestWorker {
        create_test_worker(config).unwrap_or_else(|e| panic!("cannot create a test worker: {e}"))
    }

    /// Returns a handle to the worker.
    pub fn worker(&self) -> Worker {
        self.worker.clone()
    }

    /// Starts the drain, as a reload or a stop does: [`Worker::draining`] resolves.
    pub fn start_drain(&self) {
        self.worker.0.drain.set_draining();
    }

    /// Opens the inbox for what the worker sends with this kind: to the primary, to other workers, or to all.
    pub fn open_inbox(&self, kind: &str) -> Inbox {
        self.primary_end.open_inbox(Some(kind))
    }

    /// Sends a message to the worker, as the primary.
    ///
    /// # Errors
    ///
    /// As [`Worker::send`].
    pub async fn send(&self, kind: &str, payload: impl IntoPayload) -> Result<(), MessageError> {
        let sent = self.primary_end.send(envelope_of_primary(kind, payload)?).await;
        sent.map_err(|rejected| rejected.0)
    }

    /// Sends a request to the worker, as the primary, and waits up to `limit` for the reply.
    ///
    /// # Errors
    ///
    /// As [`Worker::request`].
    pub async fn request(
        &self,
        kind: &str,
        payload: impl IntoPayload,
        limit: Duration,
    ) -> Result<Message, MessageError> {
        self.primary_end.request(envelope_of_primary(kind, payload)?, limit).await
    }

    /// Replies to a request of the worker: `test.reply(message.reply_to(), ..)`.
    ///
    /// # Errors
    ///
    /// As [`Worker::reply`].
    pub fn reply(&self, to: &ReplyTo, payload: impl IntoPayload) -> Result<(), MessageError> {
        self.primary_end.reply(to, MessageClass::Reply, payload.into_payload()?)
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.worker.0.is_primary_connected.store(false, Ordering::Release);
    }
}

impl Worker {
    /// Returns a handle without a cluster, for unit tests: messages are not read, and [`Worker::retire`] starts the drain.
    ///
    /// To read messages and to play the primary, use [`TestWorker`]. The worker lives until the process exits.
    ///
    /// # Panics
    ///
    /// As [`TestWorker::with_config`].
    #[track_caller]
    pub fn for_tests() -> Worker {
        Box::leak(Box::new(TestWorker::new())).worker()
    }
}

fn envelope_of_primary(kind: &str, payload: impl IntoPayload) -> Result<Envelope, MessageError> {
    let payload = payload.into_payload()?;
    Envelope::new(MessageAddress::Primary, kind, payload, AttachedConnection::Absent)
}

fn create_test_worker(config: Config) -> Result<TestWorker> {
    let tag = WorkerTag {
        id: WorkerId(1),
        slot: Slot(0),
        generation: Generation(1),
        pid: Some(std::process::id()),
        kind: WEB_KIND,
    };
    let memory = |e| Error::system("create the scoreboard in shared memory", e);
    let mut scoreboard = Scoreboard::create(1).map_err(memory)?;
    let pages = scoreboard
        .allocate_pages(tag, 1)
        .ok_or_else(|| Error::internal("a new scoreboard has no free page"))?;
    let reader = scoreboard.reader(&[]);
    let page = scoreboard.keep_only_own_pages(pages).map_err(memory)?.pop();
    let page = page.ok_or_else(|| Error::internal("a new scoreboard has no page of its own"))?;
    let failed = |e| Error::system("start the message thread of a test worker", e);
    let (ours, theirs) = create_seqpacket_pair().map_err(failed)?;
    let thread = MessageThread::start("test-worker", tag, vec![ours, theirs]).map_err(failed)?;
    let [messages, primary_end] = thread.ends.as_slice() else {
        return Err(Error::internal("a message thread with two descriptors has not two ends"));
    };
    let (messages, primary_end) = (Arc::clone(messages), Arc::clone(primary_end));
    let worker = Worker(Arc::new(WorkerShared {
        request_ids: None,
        #[cfg(feature = "tls")]
        tls_config: None,
        #[cfg(feature = "tls")]
        session_tickets: None,
        tag,
        kinds: Vec::new(),
        listener_names: Arc::new(ListenerNames::default()),
        scoreboard: reader,
        own_page: page.thread_view(),
        messages,
        pools: WorkerPools::new(&config, &page, tag, 1),
        is_primary_connected: AtomicBool::new(true),
        drain: DrainSignal::default(),
        holds: Holds::default(),
        stop_functions: StopFunctions::default(),
        // No event loop reads them.
        loop_jobs: tokio::sync::mpsc::unbounded_channel().0,
        runtime: thread.runtime.clone(),
        config: Arc::new(config),
    }));
    Ok(TestWorker { worker, primary_end, _message_thread: thread })
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            tokio::time::timeout(LIMIT, future).await.expect("within the limit")
        })
    }

    #[test]
    fn the_test_reads_what_the_worker_sends_to_anybody() {
        let test = TestWorker::new();
        let worker = test.worker();
        block_on(async {
            worker.send("log", "to the primary").await.expect("sent");
            worker.send_to(Slot(3), "log", "to a slot").await.expect("sent");
            worker.broadcast("log", "to all").await.expect("sent");
            // Opened later: messages wait for it.
            let mut inbox = test.open_inbox("log");
            for text in ["to the primary", "to a slot", "to all"] {
                let message = inbox.recv().await.expect("a message");
                assert_eq!(message.decode::<String>().expect("text"), text);
            }
        });
    }

    #[test]
    fn requests_are_answered_in_both_directions() {
        let test = TestWorker::new();
        let worker = test.worker();
        let mut at_primary = test.open_inbox("double");
        let mut at_worker = worker.open_inbox("triple");
        block_on(async {
            let answer_worker = async {
                let message = at_primary.recv().await.expect("a request");
                let number: u32 = message.decode().expect("a number");
                test.reply(&message.reply_to().expect("a request"), &(2 * number)).expect("reply");
            };
            let (reply, ()) = tokio::join!(worker.request("double", &4u32, LIMIT), answer_worker);
            assert_eq!(reply.expect("a reply").decode::<u32>().expect("a number"), 8);
            let answer_test = async {
                let message = at_worker.recv().await.expect("a request");
                let number: u32 = message.decode().expect("a number");
                worker
                    .reply(&message.reply_to().expect("a request"), &(3 * number))
                    .expect("reply");
            };
            let (reply, ()) = tokio::join!(test.request("triple", &4u32, LIMIT), answer_test);
            assert_eq!(reply.expect("a reply").decode::<u32>().expect("a number"), 12);
        });
    }

    #[test]
    fn a_drain_starts_by_the_test_or_by_the_worker() {
        let test = TestWorker::new();
        let worker = test.worker();
        assert!(!worker.is_draining() && worker.is_ready() && worker.is_connected());
        block_on(async {
            let start = async { test.start_drain() };
            tokio::join!(worker.draining(), start);
        });
        assert!(worker.is_draining() && !worker.is_ready());
        let worker = Worker::for_tests();
        worker.retire();
        block_on(worker.draining());
    }

    #[test]
    fn a_dropped_test_worker_is_a_closed_channel() {
        let test = TestWorker::new();
        let worker = test.worker();
        let mut inbox = worker.open_inbox("any");
        drop(test);
        assert!(!worker.is_connected());
        block_on(async {
            assert!(inbox.recv().await.is_none());
            assert_eq!(worker.send("log", "lost").await, Err(MessageError::Closed));
        });
    }

    #[test]
    fn workers_of_tests_in_parallel_are_apart() {
        let (one, two) = (TestWorker::new(), TestWorker::new());
        one.start_drain();
        assert!(!two.worker().is_draining());
        assert_eq!(block_on(two.worker().pool().run(|| 6 * 7)).expect("result"), 42);
    }
}
