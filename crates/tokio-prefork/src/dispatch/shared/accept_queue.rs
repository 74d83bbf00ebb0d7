//! One worker's end of a listening socket, and when a connection wakes it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::unix::AsyncFdReadyGuard;

use crate::dispatch::shared::accept_fairness::{self, AcceptFairness, MIN_CONNECTION_DIFFERENCE};
use crate::scoreboard::OtherWorkerLoad;
use crate::worker::heartbeat;
use crate::worker::local_state::LocalWorkerState;
use prefork_os::shared_listener::{SharedListener, WakeMode};
use prefork_os::socket_name::SocketName;

/// How long a worker waits for another one to accept first. The resolution of tokio's timer.
const YIELD_TIME: Duration = Duration::from_millis(1);

/// A listening socket, as one worker accepts from it.
pub(crate) struct AcceptQueue {
    state: Rc<LocalWorkerState>,
    listener: SharedListener,
    /// Whether all workers accept from this socket.
    shared: bool,
    /// How many fewer connections another worker must have to accept first.
    min_difference: u64,
    fairness: RefCell<AcceptFairness>,
    /// The time of the last heartbeat at which the other workers were scanned or the scan was skipped.
    heartbeat_ms: Cell<u64>,
}

/// How many worker pages a worker reads per heartbeat on average. Each is a memory page of its own. With more
/// workers, each reads all worker pages only at every second heartbeat, every third and so on: otherwise 1024 workers that do
/// nothing keep a processor busy with reading each other's worker pages, and a reload, which brings more of them, can stand
/// still.
const ROWS_PER_HEARTBEAT: usize = 64;

impl AcceptQueue {
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        socket: OwnedFd,
        shared: bool,
    ) -> io::Result<AcceptQueue> {
        let listener = SharedListener::new(socket)?;
        let can_wake_exclusively = listener.can_wake_exclusively();
        if shared && !can_wake_exclusively {
            log::debug!(
                "{} is woken for every connection: /proc/self/fdinfo does not show tokio's epoll",
                state.tag
            );
        }
        // Without exclusive wake-ups all workers are woken, so each one that has fewer connections can accept.
        let min_difference = if can_wake_exclusively { MIN_CONNECTION_DIFFERENCE } else { 1 };
        let fairness = RefCell::default();
        let heartbeat_ms = Cell::new(0);
        let queue = AcceptQueue {
            state: Rc::clone(state),
            listener,
            shared,
            min_difference,
            fairness,
            heartbeat_ms,
        };
        if shared {
            queue.set_wake_mode(WakeMode::Exclusive);
        }
        Ok(queue)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        self.listener.socket()
    }

    /// Resolves when there may be a connection.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.listener.readable().await
    }

    /// Accepts one connection with the name of its client, after workers with far fewer connections have had a chance; `None` if none is left.
    pub(crate) async fn accept(
        &self,
        ready: Option<AsyncFdReadyGuard<'_, OwnedFd>>,
    ) -> io::Result<Option<(OwnedFd, SocketName)>> {
        let first = self.yield_to_idler_worker().await;
        let outcome = self.listener.accept(ready);
        if let Some(first) = first {
            let accepted = self
                .state
                .scoreboard
                .accepted_by(first.page_number, LocalWorkerState::monotonic_ms());
            self.fairness.borrow_mut().record_outcome(first, accepted);
        }
        outcome
    }

    /// Waits a millisecond if another worker has far fewer connections, and returns that worker.
    async fn yield_to_idler_worker(&self) -> Option<OtherWorkerLoad> {
        if !self.shared {
            return None;
        }
        let own = self.state.worker_page.open_connections();
        let first = self.fairness.borrow_mut().choose_idler_worker(
            own,
            self.min_difference,
            self.state.available_workers(),
        )?;
        self.move_to_end_of_wake_order();
        tokio::time::sleep(YIELD_TIME).await;
        Some(first)
    }

    /// Moves this worker to the end of the order of wake-ups if there is another one: the next connection wakes that.
    pub(crate) fn let_other_worker_wake(&self) {
        if self.shared && self.state.available_workers().next().is_some() {
            self.move_to_end_of_wake_order();
        }
    }

    /// Moves this worker to the end of the order of wake-ups: the next connection wakes another one.
    pub(crate) fn move_to_end_of_wake_order(&self) {
        if self.shared && self.listener.wake_mode() == WakeMode::Exclusive {
            self.set_wake_mode(WakeMode::Exclusive);
        }
    }

    /// Stops waking this worker for connections.
    pub(crate) fn stop_waking(&self) {
        self.set_wake_mode(WakeMode::Never);
    }

    /// Wakes this worker for connections again, if that was stopped.
    pub(crate) fn resume_waking(&self) {
        if self.listener.wake_mode() == WakeMode::Never {
            self.set_wake_mode(if self.shared { WakeMode::Exclusive } else { WakeMode::Always });
        }
    }

    /// Moves this worker to the end of the order of wake-ups if another one has fewer connections.
    pub(crate) fn move_to_end_of_wake_order_if_busier(&self) {
        if self.listener.wake_mode() != WakeMode::Exclusive {
            return self.choose_wake_mode();
        }
        let own = self.state.worker_page.open_connections();
        let (mut is_busier, mut most) = (false, 0);
        for other in self.state.available_workers() {
            is_busier |= other.open_connections < own;
            most = most.max(other.open_connections);
        }
        self.state.busiest_worker_connections.set(most);
        if is_busier {
            self.set_wake_mode(WakeMode::Exclusive);
        }
    }

    /// Rescans the other workers and chooses the wake mode. Returns whether a connection waits that the worker woken
    /// for it has not accepted.
    pub(crate) fn rescan_workers(&self) -> bool {
        if !self.shared || self.is_scan_due() {
            self.choose_wake_mode();
        }
        self.shared && self.listener.has_connection()
    }

    /// Whether to read the worker pages of all workers now: when a connection has ended between two heartbeats, or when it is
    /// the turn of this worker. Workers take turns by their worker pages.
    fn is_scan_due(&self) -> bool {
        let now = self.state.now_ms();
        let period = 1 + self.state.scoreboard.pages_used() / ROWS_PER_HEARTBEAT;
        if period == 1 || self.heartbeat_ms.replace(now) == now {
            return true;
        }
        let beat = now / heartbeat::HEARTBEAT_INTERVAL.as_millis() as u64;
        (beat + self.state.worker_page.page_number() as u64).is_multiple_of(period as u64)
    }

    /// Wakes this worker for every connection if others have far more, else in turn with them.
    fn choose_wake_mode(&self) {
        if !self.shared {
            return self.resume_waking();
        }
        let state = &self.state;
        let (own, worker_page) =
            (state.worker_page.open_connections(), state.worker_page.page_number());
        let (is_among_idlest, most) =
            accept_fairness::should_always_wake(own, worker_page, state.available_workers());
        if is_among_idlest {
            self.set_wake_mode(WakeMode::Always);
        } else if self.listener.wake_mode() != WakeMode::Exclusive {
            self.set_wake_mode(WakeMode::Exclusive);
        }
        // In mode `Always` this worker notices every connection anyway.
        state.busiest_worker_connections.set(if is_among_idlest { 0 } else { most });
    }

    fn set_wake_mode(&self, wake_mode: WakeMode) {
        if let Err(e) = self.listener.set_wake_mode(wake_mode) {
            // The next heartbeat tries again.
            log::warn!("{} cannot register a listening socket with epoll: {e}", self.state.tag);
        }
    }
}
