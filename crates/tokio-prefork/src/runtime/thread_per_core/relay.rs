//! Forwards commands of the primary to the threads of one worker, and their reports to the primary.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::access_log::{self, AccessLogWriter};
use crate::channel::{
    HandoverMode, HandoverState, PrimaryChannelEnd, ReceivedCommand, ReceivedReport,
    WorkerChannelEnd, WorkerCommand, WorkerReport,
};
use crate::config::Config;
use crate::messages::WorkerMessageEnd;
use crate::scoreboard::ThreadPageView;
use crate::worker::shutdown::MESSAGE_LEAVE_TIMEOUT;
use prefork_supervisor::{Slot, WorkerTag};

/// How long a connection that is handed over waits for room in the channel to the primary.
const HANDOVER_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The relay's end of one thread.
pub(super) struct RelayedThread {
    /// `None` once it is closed.
    pub(super) end: RefCell<Option<PrimaryChannelEnd>>,
    /// The task that reads its reports.
    pub(super) report_task: RefCell<Option<JoinHandle<()>>>,
    pub(super) worker_page: ThreadPageView,
    /// Held while its reports are forwarded: locking it waits for the last one.
    pub(super) reading: Mutex<()>,
}

/// The state that all tasks of the relay share.
pub(super) struct ThreadRelay {
    pub(super) tag: WorkerTag,
    pub(super) channel: WorkerChannelEnd,
    /// The application's messages, which all threads share.
    pub(super) messages: Arc<WorkerMessageEnd>,
    pub(super) config: Arc<Config>,
    /// Writes the access log of all threads.
    pub(super) access_log: Option<Arc<AccessLogWriter>>,
    pub(super) threads: Vec<RelayedThread>,
    /// How many threads have reported READY.
    pub(super) ready: Cell<usize>,
    /// Whether the worker drains, by its own report or by a command of the primary.
    pub(super) is_draining: Cell<bool>,
}

/// Starts the tasks that forward commands and reports, each over the channel of one thread.
pub(super) fn start_forwarding(
    relay: &Rc<ThreadRelay>,
    channels: Vec<tokio::io::unix::AsyncFd<OwnedFd>>,
) {
    for (number, channel) in channels.into_iter().enumerate() {
        let task = tokio::task::spawn_local(forward_reports(Rc::clone(relay), number, channel));
        relay.threads[number].report_task.replace(Some(task));
    }
    tokio::task::spawn_local(forward_commands(Rc::clone(relay)));
}

/// Forwards the commands of the primary until it closes its channel.
async fn forward_commands(relay: Rc<ThreadRelay>) {
    while let Some(order) = relay.channel.receive().await {
        match order {
            ReceivedCommand::Command(word @ WorkerCommand::Drain { .. }) => {
                relay.is_draining.set(true);
                relay.send_to_all(&word);
            }
            ReceivedCommand::Command(word @ WorkerCommand::RetireAcknowledged) => {
                relay.send_to_all(&word)
            }
            ReceivedCommand::TakeOverConnection(fd, unread) => relay.assign_connection(&fd, unread),
            ReceivedCommand::ReopenLog(file) => {
                // All threads share standard error.
                if let Err(e) = crate::log_output::replace_log_stream(&file) {
                    log::error!("{} cannot write to the reopened log: {e}", relay.tag);
                }
            }
            ReceivedCommand::ReopenAccessLog(file) => {
                if let Some(writer) = &relay.access_log {
                    writer.set_file(file);
                }
            }
            // One thread is enough for a socket that the next worker of the slot takes over.
            ReceivedCommand::AdoptSlot { fd, slot, closing } => {
                relay.adopt_socket(&fd, slot, closing)
            }
            ReceivedCommand::Command(WorkerCommand::AdoptSlot { slot, .. }) => {
                relay.send_to_primary(&WorkerReport::AdoptSlotFailed(slot))
            }
            ReceivedCommand::Command(word @ WorkerCommand::ReleaseSlot(_)) => {
                relay.send_to_all(&word)
            }
            // ARRIVE and LOG come with a descriptor, as `Take` and `Log`.
            ReceivedCommand::Command(
                WorkerCommand::TakeOverConnection(_)
                | WorkerCommand::ReopenLog
                | WorkerCommand::ReopenAccessLog
                | WorkerCommand::StartAccepting,
            ) => {}
        }
    }
    // The primary has exited. The threads see their channels close, and drain.
    relay.is_draining.set(true);
    for thread in &relay.threads {
        thread.end.take();
        if let Some(report_task) = thread.report_task.take() {
            report_task.abort();
        }
    }
}

/// Forwards the reports of a thread until it closes its channel.
async fn forward_reports(
    relay: Rc<ThreadRelay>,
    number: usize,
    read_half: tokio::io::unix::AsyncFd<OwnedFd>,
) {
    while let Ok(mut ready) = read_half.readable().await {
        if !relay.read_reports(number).await {
            return;
        }
        ready.clear_ready();
    }
}

impl ThreadRelay {
    /// Sends the last messages and writes the last lines of the access log, when all threads have ended.
    pub(super) async fn finish(&self) {
        self.messages.leave(MESSAGE_LEAVE_TIMEOUT).await;
        if let Some(writer) = &self.access_log {
            access_log::flush(writer, self.tag);
        }
    }

    /// Forwards all reports that a thread has sent so far. Returns `false` at the end of its channel.
    pub(super) async fn read_reports(&self, number: usize) -> bool {
        let _reading = self.threads[number].reading.lock().await;
        loop {
            let heard = match &*self.threads[number].end.borrow() {
                Some(end) => end.receive(),
                None => return false,
            };
            match heard {
                ReceivedReport::Report(WorkerReport::Ready) => {
                    self.ready.set(self.ready.get() + 1);
                    if self.ready.get() == self.threads.len() {
                        self.messages.finish_boot();
                        self.send_to_primary(&WorkerReport::Ready);
                    }
                }
                // This thread drains already; the others do not.
                ReceivedReport::Report(
                    word @ (WorkerReport::Retiring | WorkerReport::Disconnecting),
                ) => {
                    self.begin_drain(&word);
                }
                // The relay has reported this itself.
                ReceivedReport::Report(WorkerReport::Online) => {}
                ReceivedReport::Report(word) => self.send_to_primary(&word),
                ReceivedReport::HandedOverConnection(fd, unread) => {
                    self.hand_over_connection(number, &fd, unread).await
                }
                ReceivedReport::LostConnection => {
                    log::error!("{} lost a connection: no descriptor left", self.tag);
                }
                ReceivedReport::Empty => return true,
                ReceivedReport::Closed => return false,
                ReceivedReport::Invalid(why) => {
                    log::error!("{} cannot understand its thread {number}: {why}", self.tag);
                    return false;
                }
            }
        }
    }

    fn send_to_primary(&self, word: &WorkerReport) {
        if let Err(e) = self.channel.send(word) {
            log::warn!("{} cannot report to the primary: {e}", self.tag);
        }
    }

    /// Drains all threads, and sends this report, which says whether the worker wants a replacement.
    pub(super) fn begin_drain(&self, word: &WorkerReport) {
        if self.is_draining.replace(true) {
            return;
        }
        self.send_to_primary(word);
        let hand_over = match self.config.hand_over {
            true => HandoverMode::WhenOthersServe,
            false => HandoverMode::Never,
        };
        let (grace, linger) = (self.config.graceful_timeout, self.config.linger_timeout);
        // Unlike after the DRAIN of the primary, connections may still come until RELEASED.
        self.send_to_all(&WorkerCommand::Drain { grace, linger, closing: false, hand_over });
    }

    fn send_to_all(&self, word: &WorkerCommand) {
        for (number, thread) in self.threads.iter().enumerate() {
            let sent = thread.end.borrow().as_ref().map_or(Ok(()), |end| end.send(word));
            match sent {
                // The thread has ended.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
                // The channel is full: the thread is frozen, and the worker's drain timeout will end it.
                Err(e) => {
                    log::warn!("{} cannot send a command to its thread {number}: {e}", self.tag)
                }
                Ok(()) => {}
            }
        }
    }

    /// Sends a socket of the primary to the first thread that accepts it.
    fn adopt_socket(&self, fd: &OwnedFd, slot: Slot, closing: bool) {
        let word = WorkerCommand::AdoptSlot { slot, closing };
        if !self.threads.iter().any(|thread| thread.try_send(&word, fd)) {
            self.send_to_primary(&WorkerReport::AdoptSlotFailed(slot));
        }
    }

    /// Sends a connection of another worker to the thread with the fewest connections, else to any thread that accepts
    /// it.
    fn assign_connection(&self, fd: &OwnedFd, unread: HandoverState) {
        let now = prefork_os::system::monotonic_ms();
        let mut candidates: Vec<&RelayedThread> = self.threads.iter().collect();
        candidates.sort_by_key(|thread| {
            (!thread.worker_page.is_serving(now), thread.worker_page.open_connections())
        });
        let word = WorkerCommand::TakeOverConnection(unread);
        let is_sent = candidates.into_iter().any(|candidate| candidate.try_send(&word, fd));
        if !is_sent {
            log::error!("{} lost a connection: no thread takes it", self.tag);
        }
    }

    /// Sends a connection of a thread to the primary. If that fails or times out, the thread gets it back.
    async fn hand_over_connection(&self, number: usize, fd: &OwnedFd, unread: HandoverState) {
        let word = WorkerReport::HandOverConnection(unread.clone());
        let sent = tokio::time::timeout(
            HANDOVER_SEND_TIMEOUT,
            self.channel.send_with_fd(&word, fd.as_fd()),
        )
        .await;
        if !matches!(sent, Ok(Ok(())))
            && !self.threads[number].try_send(&WorkerCommand::TakeOverConnection(unread), fd)
        {
            log::error!("{} lost a connection: the primary does not take it", self.tag);
        }
    }
}

impl RelayedThread {
    fn try_send(&self, word: &WorkerCommand, fd: &OwnedFd) -> bool {
        let end = self.end.borrow();
        end.as_ref().is_some_and(|end| end.send_with_fd(word, fd.as_fd()).is_ok())
    }
}
