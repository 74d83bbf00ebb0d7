//! The state that all tasks on one event loop share. One thread, so plain `Rc` and `Cell`.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::BootedApp;
use super::capacity_warning::CapacityWarning;
use super::connection_registry::ConnectionRegistry;
use super::drain::{DrainOrder, DrainState};
use super::handshake_queue::HandshakeQueue;
use super::http::connection_state::ConnectionState;
use super::http::request_observers::RequestObservers;
use super::parked::{self, ParkedConnections};
use super::worker_shared::WorkerShared;
use crate::access_log::{self, AccessLogWriter, LineBuffer};
use crate::channel::{HandoverMode, WorkerChannelEnd, WorkerReport};
use crate::client::ListenerNames;
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::dispatch::queue_wait::RejectionLog;
use crate::dispatch::reuseport::adopted_sockets::AdoptedSocket;
use crate::runtime::threads::ServingThreads;
use crate::scoreboard::{OtherWorkerLoad, RequestRecorder, ScoreboardReader, WorkerPage};
use crate::status::WorkerState;
use prefork_supervisor::WorkerTag;

/// The shared state of one worker.
pub(crate) struct LocalWorkerState {
    /// The part that other threads use as well.
    pub(crate) shared: Arc<WorkerShared>,
    pub(crate) tag: WorkerTag,
    pub(crate) config: Arc<Config>,
    /// The listening sockets that the worker was forked with.
    pub(crate) listener_names: Arc<ListenerNames>,
    pub(crate) worker_page: WorkerPage,
    /// What observes the requests; `None` if nothing does.
    pub(crate) observers: Option<Box<RequestObservers>>,
    /// Lines of the access log that were not handed over yet.
    pub(crate) line_buffer: RefCell<LineBuffer>,
    /// Writes the access log of the process.
    pub(crate) access_log_writer: Option<Arc<AccessLogWriter>>,
    /// The shared page on which this slot counts its connections for the kernel's dispatch program.
    pub(crate) load_page: LoadPage,
    pub(crate) scoreboard: ScoreboardReader,
    pub(crate) channel: WorkerChannelEnd,
    pub(crate) drain: DrainState,
    /// All open connections that a task serves.
    pub(crate) connections: RefCell<ConnectionRegistry>,
    /// The open connections without a task.
    pub(crate) parked: ParkedConnections,
    /// The TLS handshakes in progress.
    pub(crate) handshakes: HandshakeQueue,
    /// Notified when a connection closes.
    pub(crate) capacity_freed: Notify,
    /// Notified when acceptors have to compare workers and check the accept queue: at least at each heartbeat.
    pub(crate) accept_recheck: Notify,
    /// How many connections the busiest other worker had when an acceptor last compared.
    pub(crate) busiest_worker_connections: Cell<u64>,
    /// How many acceptors run.
    pub(crate) active_acceptors: Cell<usize>,
    /// How many of them cannot accept from their socket.
    pub(crate) failing_acceptors: Cell<usize>,
    /// Acceptors on the sockets of other slots.
    pub(crate) adopted_sockets: RefCell<Vec<AdoptedSocket>>,
    /// The threads that serve under the model `threads`, once the application boots.
    pub(crate) serving_threads: OnceCell<ServingThreads>,
    /// The application, from its boot to the end of the drain.
    pub(crate) app: RefCell<Option<Rc<BootedApp>>>,
    /// Rejected connections that are not logged yet.
    pub(crate) queue_wait_rejections: RejectionLog,
    /// Whether the log says that the worker is at its connection limit.
    pub(crate) capacity_warning: CapacityWarning,
}

impl LocalWorkerState {
    /// Starts to drain on the worker's own initiative, and sends `report` to the primary.
    pub(crate) fn begin_own_drain(self: &Rc<Self>, report: &WorkerReport) {
        if self.drain.current_order().is_some() {
            return;
        }
        // If the primary is gone or stuck, draining is still right.
        if let Err(e) = self.channel.send(report) {
            log::warn!("{} cannot report its drain to the primary: {e}", self.tag);
        }
        let hand_over = match self.config.hand_over {
            true => HandoverMode::WhenOthersServe,
            false => HandoverMode::Never,
        };
        let (grace, linger) = (self.config.graceful_timeout, self.config.linger_timeout);
        self.begin_drain(DrainOrder::new(grace, linger, false, hand_over));
    }

    /// Hands the lines of the access log over to the thread that writes them. Called at each heartbeat.
    pub(crate) fn hand_over_log_lines(&self, now_ms: u64) {
        if let Some(observers) = &self.observers {
            observers.hand_over_lines(&mut self.line_buffer.borrow_mut(), now_ms);
        }
        if let Some(threads) = self.serving_threads.get() {
            threads.context.hand_over_log_lines(now_ms);
        }
    }

    /// Writes the last lines of the access log, unless other threads of the process still add some.
    pub(crate) fn finish_access_log(&self, owns_process: bool) {
        self.hand_over_log_lines(LocalWorkerState::monotonic_ms());
        if let Some(writer) = self.access_log_writer.as_ref().filter(|_| owns_process) {
            access_log::flush(writer, self.tag);
        }
    }

    /// Whether this worker serves, has no connections, and the heartbeat has nothing to do for it.
    pub(crate) fn is_idle(&self) -> bool {
        self.app.borrow().is_some()
            && self.drain.current_order().is_none()
            && self.worker_page.open_connections() == 0
            && self.connections.borrow().is_empty()
            && self.failing_acceptors.get() == 0
            && self.serving_threads.get().is_none()
            && self.line_buffer.borrow().is_empty()
            && self.queue_wait_rejections.is_logged()
    }

    /// Whether this worker drains and another worker can take over its idle connections.
    pub(crate) fn should_hand_over(&self) -> bool {
        match self.drain.current_order().map(|order| order.hand_over) {
            Some(HandoverMode::Immediately) => true,
            Some(HandoverMode::WhenOthersServe) => self
                .scoreboard
                .has_other_serving_worker(&self.worker_page, LocalWorkerState::monotonic_ms()),
            Some(HandoverMode::Never) | None => false,
        }
    }

    /// Whether the next response has to carry `Connection: close`.
    pub(crate) fn should_announce_close(&self, conn: &ConnectionState) -> bool {
        self.drain.current_order().is_some_and(|order| {
            !(order.keeps_transferable_open(self.now_ms()) && conn.can_be_handed_over())
        })
    }

    /// Counts an open connection as closed, and lets another one be accepted.
    pub(crate) fn count_closed_connection(&self) {
        self.worker_page.connection_closed();
        self.load_page.count_closed();
        self.wake_acceptors_if_least_loaded();
        self.capacity_freed.notify_waiters();
    }

    /// Whether a connection is open.
    pub(crate) fn has_connections(&self) -> bool {
        !self.connections.borrow().is_empty() || !self.parked.is_empty()
    }

    /// Starts to drain, or updates the drain that is under way.
    pub(crate) fn begin_drain(self: &Rc<Self>, order: DrainOrder) {
        if self.drain.begin(order) {
            self.shared.drain.set_draining();
            self.shared.messages.begin_drain();
            self.worker_page.set_state(WorkerState::Draining);
            self.worker_page.set_accepting(false);
            self.load_page.stop_counting();
        }
        // A later order may allow to hand connections over.
        self.connections.borrow().wake_all();
        parked::start_handing_over(self);
    }

    /// Whether all acceptors fail.
    pub(crate) fn cannot_accept(&self) -> bool {
        self.failing_acceptors.get() > 0
            && self.failing_acceptors.get() >= self.active_acceptors.get()
    }

    /// Publishes on the scoreboard whether this worker accepts connections.
    pub(crate) fn publish_accept_state(&self) {
        if self.drain.current_order().is_some() {
            return;
        }
        let cannot = self.cannot_accept();
        self.worker_page.set_state(if cannot {
            WorkerState::CannotAccept
        } else {
            WorkerState::Serving
        });
        self.worker_page.set_accepting(!cannot);
    }

    /// Returns the other workers that could accept a connection now.
    pub(crate) fn available_workers(&self) -> impl Iterator<Item = OtherWorkerLoad> {
        self.scoreboard.other_accepting_workers(&self.worker_page, LocalWorkerState::monotonic_ms())
    }

    /// Notifies the acceptors if another worker has at least two connections more than this one.
    pub(crate) fn wake_acceptors_if_least_loaded(&self) {
        if self.worker_page.open_connections() + 2 <= self.busiest_worker_connections.get() {
            self.accept_recheck.notify_waiters();
        }
    }

    /// Milliseconds on the monotonic clock at the last heartbeat: up to 100 ms old, but needs no system call.
    pub(crate) fn now_ms(&self) -> u64 {
        self.worker_page.byte_meter().coarse_now_ms()
    }

    /// Milliseconds on the monotonic clock.
    pub(crate) fn monotonic_ms() -> u64 {
        prefork_os::system::monotonic_ms()
    }
}
