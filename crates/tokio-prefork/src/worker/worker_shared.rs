//! The part of a worker's state that any thread of its process may use: what is behind a [`Worker`](super::Worker) handle.
//!
//! The serving path does not touch it. It keeps to [`LocalWorkerState`], whose drain order is a plain cell; a handle on another
//! thread sets a flag here and notifies a task on the worker's event loop.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{self, Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::{Notify, mpsc};

use super::cpu_pool::WorkerPools;
use super::local_state::LocalWorkerState;
use super::pending_work::{Holds, StopFunctions};
use crate::channel::WorkerReport;
use crate::client::{ListenerNames, RequestIds};
use crate::config::Config;
use crate::messages::WorkerMessageEnd;
use crate::scoreboard::{ScoreboardReader, ThreadPageView};
use prefork_supervisor::{Slot, WorkerTag};

/// The state of one worker that all threads of its process share.
pub(crate) struct WorkerShared {
    pub(crate) tag: WorkerTag,
    /// The custom worker kinds, each with its first slot.
    pub(crate) kinds: Vec<(&'static str, Slot)>,
    pub(crate) config: Arc<Config>,
    /// The listening sockets that the worker was forked with.
    pub(crate) listener_names: Arc<ListenerNames>,
    pub(crate) scoreboard: ScoreboardReader,
    /// The worker's own page, to read.
    pub(crate) own_page: ThreadPageView,
    pub(crate) messages: Arc<WorkerMessageEnd>,
    /// The application's CPU pools, shared by all event loops of the process.
    pub(crate) pools: Arc<WorkerPools>,
    /// Gives ids to requests; `None` without `request-id`.
    pub(crate) request_ids: Option<RequestIds>,
    /// How TLS is spoken; `None` without a certificate.
    #[cfg(feature = "tls")]
    pub(crate) tls_config: Option<Arc<rustls::ServerConfig>>,
    /// `None` if TLS sessions are not resumed.
    #[cfg(feature = "tls")]
    pub(crate) session_tickets: Option<Arc<crate::tls::SessionTickets>>,
    /// Whether the channel to the primary is open.
    pub(crate) is_primary_connected: AtomicBool,
    pub(crate) drain: DrainSignal,
    /// What a draining worker waits for beside its connections.
    pub(crate) holds: Holds,
    /// What runs when the worker has drained.
    pub(crate) stop_functions: StopFunctions,
    /// Runs functions on the worker's event loop.
    pub(crate) loop_jobs: mpsc::UnboundedSender<LoopJob>,
    /// The runtime of the worker's event loop.
    pub(crate) runtime: tokio::runtime::Handle,
}

/// A function that another thread runs on the worker's event loop.
pub(crate) type LoopJob = Box<dyn FnOnce(&Rc<LocalWorkerState>) + Send>;

/// Tells all threads that the worker drains, and tells its event loop that a thread wants it to.
#[derive(Default)]
pub(crate) struct DrainSignal {
    is_draining: AtomicBool,
    /// Notified once: when the drain starts.
    started: Notify,
    /// What to tell the primary about a drain that a handle has asked for; the first request counts.
    requested: OnceLock<WorkerReport>,
    /// Notified when `requested` is set.
    request_made: Notify,
}

impl DrainSignal {
    /// Whether the worker drains, or is about to because a handle has asked for it.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Records that the worker drains. Returns whether it did not before.
    pub(crate) fn set_draining(&self) -> bool {
        let is_first = !self.is_draining.swap(true, Ordering::AcqRel);
        if is_first {
            self.started.notify_waiters();
        }
        is_first
    }

    /// Waits until the worker drains.
    pub(crate) async fn wait_started(&self) {
        // Receives `notify_waiters` from its creation on, so a drain that starts after the check is not missed.
        let started = self.started.notified();
        if !self.is_draining() {
            started.await;
        }
    }

    /// Asks the event loop to drain. Has no effect if the worker drains already.
    fn request(&self, report: WorkerReport) {
        if self.set_draining() {
            // Only the first caller gets here, so this is never set twice.
            let _ = self.requested.set(report);
            self.request_made.notify_one();
        }
    }
}

impl WorkerShared {
    /// Drains the worker on its own initiative, and sends `report` to the primary. Called on any thread.
    ///
    /// On the worker's event loop the drain starts before this returns, so that a handler's own response can announce it.
    pub(crate) fn request_drain(self: &Arc<WorkerShared>, report: WorkerReport) {
        match current_local_state().filter(|local| Arc::ptr_eq(&local.shared, self)) {
            Some(local) => local.begin_own_drain(&report),
            None => self.drain.request(report),
        }
    }

    /// Whether a load balancer should send connections to this worker.
    pub(crate) fn is_ready(&self) -> bool {
        let can_accept = !self.own_page.cannot_accept() && !self.scoreboard.cannot_accept();
        !self.drain.is_draining() && !self.scoreboard.is_stopping() && can_accept
    }
}

/// Starts the drain that a handle on another thread asks for. Runs on the worker's event loop.
pub(crate) async fn follow_drain_requests(state: Rc<LocalWorkerState>) {
    let signal = &state.shared.drain;
    loop {
        if let Some(report) = signal.requested.get() {
            return state.begin_own_drain(report);
        }
        signal.request_made.notified().await;
    }
}

/// Runs the functions that other threads send to the worker's event loop.
pub(crate) async fn run_loop_jobs(
    state: Rc<LocalWorkerState>,
    mut jobs: mpsc::UnboundedReceiver<LoopJob>,
) {
    while let Some(job) = jobs.recv().await {
        job(&state);
    }
}

/// Whether this process is a worker.
static IS_WORKER_PROCESS: AtomicBool = AtomicBool::new(false);

/// The first worker of this process that is alive.
static PROCESS_WORKER: RwLock<sync::Weak<WorkerShared>> = RwLock::new(sync::Weak::new());

thread_local! {
    /// The worker whose event loop is this thread.
    static LOOP_WORKER: RefCell<Weak<LocalWorkerState>> = const { RefCell::new(Weak::new()) };
}

/// Returns whether this process is a worker of a cluster: Node's `cluster.isWorker`.
///
/// True on every thread from the fork on, before any worker code runs. False in the primary, before
/// [`Cluster::serve`](crate::Cluster::serve), and in programs that a worker starts.
pub fn is_worker() -> bool {
    IS_WORKER_PROCESS.load(Ordering::Relaxed)
}

/// Records that this process was forked as a worker. Call it right after the fork, in the child.
pub(crate) fn set_worker_process() {
    IS_WORKER_PROCESS.store(true, Ordering::Relaxed);
}

/// Makes `state` the worker of this thread, and of the process if that has none.
pub(crate) fn set_current(state: &Rc<LocalWorkerState>) {
    LOOP_WORKER.set(Rc::downgrade(state));
    let mut of_process = PROCESS_WORKER.write().unwrap_or_else(PoisonError::into_inner);
    if of_process.strong_count() == 0 {
        *of_process = Arc::downgrade(&state.shared);
    }
}

/// Returns the worker of this thread's event loop, else the first worker of the process.
pub(crate) fn current() -> Option<Arc<WorkerShared>> {
    if let Some(local) = current_local_state() {
        return Some(Arc::clone(&local.shared));
    }
    PROCESS_WORKER.read().unwrap_or_else(PoisonError::into_inner).upgrade()
}

/// Returns whether this thread is the event loop of a worker, which must not be blocked.
pub(crate) fn is_on_event_loop() -> bool {
    current_local_state().is_some()
}

/// Returns the worker whose event loop is this thread. `None` also while the thread ends.
fn current_local_state() -> Option<Rc<LocalWorkerState>> {
    LOOP_WORKER.try_with(|worker| worker.borrow().upgrade()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requested_drain_is_visible_at_once_and_wakes_waiting_threads() {
        let signal = Arc::new(DrainSignal::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.expect("runtime");
        let waiting = Arc::clone(&signal);
        let waiter = runtime.spawn(async move { waiting.wait_started().await });
        signal.request(WorkerReport::Retiring);
        assert!(signal.is_draining());
        runtime.block_on(waiter).expect("woken");
    }

    #[test]
    fn the_first_drain_request_counts() {
        let signal = DrainSignal::default();
        signal.request(WorkerReport::Disconnecting);
        signal.request(WorkerReport::Retiring);
        assert!(matches!(signal.requested.get(), Some(WorkerReport::Disconnecting)));
        let signal = DrainSignal::default();
        assert!(signal.set_draining());
        signal.request(WorkerReport::Retiring);
        assert!(signal.requested.get().is_none(), "the primary has ordered the drain already");
    }
}
