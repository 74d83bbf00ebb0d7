//! Accepts connections from a listening socket, and spreads them evenly over the workers that share it.
//!
//! Just in time: a worker begins to serve a connection before it accepts the next one (see `accept_budget`), and waits
//! up to a millisecond for the first byte of a silent one (see `first_byte`). All others stay in the kernel's queue,
//! where any worker can take them and none can lose them by dying.
//!
//! Evenly: a connection wakes the first sleeping worker in the order of exclusive wake-ups (see `accept_queue`). A
//! worker that has accepted moves to the end of this order. One with far fewer connections than others is woken for
//! every connection, and the worker woken beside it lets it accept first (see `accept_fairness`).
//!
//! A worker may be stopped or killed right after a connection has woken it. The next worker that is woken accepts that
//! connection as well, and all workers check the queue at each heartbeat, every 100 ms.
//!
//! Without free file descriptors or memory, the worker waits for a connection to close. Where accept fails for another
//! reason (a seccomp filter forbids it, another process has shut the socket down), it backs off, logs once, and does
//! not count as serving until accept succeeds or a reload opens the socket again.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Domain;
use tokio::sync::Notify;

use crate::client::ListenerName;
use crate::dispatch::accept_budget::AcceptBudget;
use crate::dispatch::first_byte::ConnectionStarter;
use crate::dispatch::full_worker;
use crate::dispatch::queue_wait::QueueWaitSampler;
use crate::dispatch::shared::accept_queue::AcceptQueue;
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;
use prefork_os::socket_name::accept_named_connection;

/// How long to wait for pending handshakes before a socket is closed for good: one round trip to most clients.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(50);

/// How long to wait when the process or the system is out of file descriptors or memory.
const EXHAUSTED_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The first pause after an error that does not concern a single connection. Doubles with each error in a row.
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest pause after such an error.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// How many such errors in a row make a socket count as failing.
const FAILURES_UNTIL_ERROR: u32 = 3;

/// How many times in a row a listener may be ready without a connection before the loop pauses.
const MAX_EMPTY_WAKE_UPS: u32 = 1000;

/// Accepts from one listening socket until the worker drains.
pub(crate) struct AcceptLoop {
    state: Rc<LocalWorkerState>,
    queue: AcceptQueue,
    name: String,
    listener_name: Arc<ListenerName>,
    is_unix: bool,
    /// Whether the socket belongs to the worker's own slot.
    is_own_slot: bool,
    starter: ConnectionStarter,
    waits: QueueWaitSampler,
    stop: Rc<Notify>,
    /// Whether exhaustion of descriptors was logged and has not ended since.
    is_exhausted: bool,
    /// Errors in a row that do not concern a single connection.
    failures: u32,
    /// Whether the next connections have waited in the queue because the worker was full.
    has_held_up_queue: bool,
}

impl AcceptLoop {
    /// Creates the loop. `is_shared` if other workers accept from the same socket; notify `stop` to end the loop before
    /// the worker drains.
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        listener: Listener,
        starter: ConnectionStarter,
        is_shared: bool,
        stop: Rc<Notify>,
    ) -> io::Result<AcceptLoop> {
        let is_unix = listener.socket.domain()? == Domain::UNIX;
        let is_own_slot = !listener.is_shared_by_all_workers() && listener.slot == state.tag.slot;
        let listener_name = state.listener_names.name_of(&listener);
        let queue = AcceptQueue::new(state, listener.socket.into(), is_shared)?;
        let (state, name) = (Rc::clone(state), listener.local.to_string());
        let waits = QueueWaitSampler::default();
        let (is_exhausted, failures, has_held_up_queue) = (false, 0, false);
        Ok(AcceptLoop {
            state,
            queue,
            name,
            listener_name,
            is_unix,
            is_own_slot,
            starter,
            waits,
            stop,
            is_exhausted,
            failures,
            has_held_up_queue,
        })
    }

    pub(crate) async fn run(mut self) {
        let drain = Rc::clone(&self.state);
        let stop = Rc::clone(&self.stop);
        tokio::select! {
            biased;
            () = drain.drain.wait_started() => {}
            () = stop.notified() => {}
            () = self.accept_all() => {}
        }
        self.starter.start_pending();
        match drain.drain.current_order() {
            Some(order) if order.closing => self.accept_before_close().await,
            // A connection may have woken only this worker.
            _ if self.queue.is_shared() => self.accept_queued(1),
            _ => {}
        }
        self.clear_failures();
        let state = Rc::clone(&self.state);
        // Other processes keep their copies open, so the socket goes on listening.
        drop(self);
        state.active_acceptors.set(state.active_acceptors.get() - 1);
        // Those that are left may all be failing.
        state.publish_accept_state();
        state.capacity_freed.notify_waiters();
    }

    async fn accept_all(&mut self) {
        let state = Rc::clone(&self.state);
        let (mut empty_wake_ups, mut took, mut budget) = (0, false, AcceptBudget::default());
        loop {
            self.wait_for_capacity().await;
            let ready = tokio::select! {
                biased;
                ready = self.queue.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => return,
                },
                () = state.accept_recheck.notified() => {
                    if !self.queue.rescan_workers() {
                        continue;
                    }
                    // The worker that was woken for this connection has not accepted it.
                    None
                }
            };
            let outcome = self.queue.accept(ready).await;
            match outcome {
                Ok(Some(accepted)) => {
                    (self.is_exhausted, took) = (false, true);
                    if self.has_held_up_queue {
                        self.state.worker_page.connection_over_limit();
                    }
                    self.clear_failures();
                    let now = Instant::now();
                    let limit = self.state.config.max_queue_wait;
                    let waited = self.waits.measure(&accepted.0, self.is_unix, now, limit);
                    let connection = self.starter.describe_accepted(accepted, &self.listener_name);
                    self.starter.start(connection, waited);
                    self.count_accepted();
                    if self.starter.has_pending() {
                        self.queue.let_other_worker_wake();
                        self.starter.wait_for_first_byte().await;
                    }
                    budget.yield_after_accept(now).await;
                }
                Err(e) => self.handle_accept_error(&e).await,
                Ok(None) => {
                    self.has_held_up_queue = false;
                    budget.reset();
                    self.clear_failures();
                    if std::mem::take(&mut took) {
                        self.queue.move_to_end_of_wake_order_if_busier();
                    }
                    // Another worker accepted the connection first. A listener that was shut down is always ready as
                    // well, and must not starve the other tasks.
                    empty_wake_ups += 1;
                    if empty_wake_ups > MAX_EMPTY_WAKE_UPS {
                        tokio::time::sleep(EXHAUSTED_RETRY_INTERVAL).await;
                    }
                    continue;
                }
            }
            empty_wake_ups = 0;
        }
    }

    async fn wait_for_capacity(&mut self) {
        let state = Rc::clone(&self.state);
        let limit = u64::from(state.config.worker_connections);
        let mut was_full = false;
        loop {
            let freed = state.capacity_freed.notified();
            let is_full = state.worker_page.open_connections() >= limit;
            state.worker_page.set_accepting(!is_full && !state.cannot_accept());
            if !is_full {
                if was_full {
                    self.has_held_up_queue = full_worker::has_queued([self.queue.socket().as_fd()]);
                }
                return self.queue.resume_waking();
            }
            was_full = true;
            self.queue.stop_waking();
            let refuse = || {
                let is_http = self.starter.client_speaks_first() && !self.listener_name.is_tls();
                let queue = &self.queue;
                full_worker::refuse_queued(&state, queue.socket(), queue.is_shared(), is_http);
            };
            full_worker::wait_until_freed(&state, freed, refuse).await;
        }
    }

    /// Counts an accepted connection for `least-conn`. Call it after the connection was counted as open.
    fn count_accepted(&self) {
        if self.is_own_slot {
            self.state.load_page.count_accepted();
        }
    }

    /// Handles an error of accept. Without free descriptors or memory, logs once and waits for a connection to close,
    /// at most 100 ms; after any other persistent error, backs off.
    async fn handle_accept_error(&mut self, error: &io::Error) {
        if prefork_os::socket::is_accepted_connection_error(error) {
            log::debug!("{} accept on {}: {error}", self.state.tag, self.name);
            return tokio::task::yield_now().await;
        }
        if !prefork_os::socket::is_resource_exhaustion(error) {
            return self.back_off(error).await;
        }
        if !std::mem::replace(&mut self.is_exhausted, true) {
            log::error!(
                "{} cannot accept on {}: {error}; waiting for connections to close (raise LimitNOFILE or lower \
                 worker-connections)",
                self.state.tag,
                self.name
            );
        }
        self.state.worker_page.set_accepting(false);
        self.queue.stop_waking();
        let _ =
            tokio::time::timeout(EXHAUSTED_RETRY_INTERVAL, self.state.capacity_freed.notified())
                .await;
    }

    /// Pauses accepting, longer after each failure in a row. Meanwhile connections wake other workers.
    async fn back_off(&mut self, error: &io::Error) {
        self.failures = self.failures.saturating_add(1);
        let doubled = ACCEPT_RETRY_MIN.saturating_mul(1 << self.failures.min(16));
        if self.failures == FAILURES_UNTIL_ERROR {
            log::error!(
                "{} cannot accept on {}: {error}; trying again each second (if the socket was shut down, a reload opens \
                 it again; if a seccomp filter or a security module forbids accept4, allow it)",
                self.state.tag,
                self.name
            );
            self.state.failing_acceptors.set(self.state.failing_acceptors.get() + 1);
            self.state.publish_accept_state();
        }
        self.queue.stop_waking();
        tokio::time::sleep(doubled.min(ACCEPT_RETRY_MAX)).await;
    }

    /// Resets the back-off: accept has succeeded, or the loop ends.
    fn clear_failures(&mut self) {
        if std::mem::take(&mut self.failures) >= FAILURES_UNTIL_ERROR {
            self.state.failing_acceptors.set(self.state.failing_acceptors.get() - 1);
            self.state.publish_accept_state();
            log::info!("{} accepts on {} again", self.state.tag, self.name);
        }
    }

    /// Accepts the connections that are queued or in the middle of their handshake: the socket is about to close for
    /// good.
    async fn accept_before_close(&self) {
        self.accept_queued(usize::MAX);
        tokio::time::sleep(HANDSHAKE_TIMEOUT).await;
        self.accept_queued(usize::MAX);
    }

    /// Accepts up to `max` queued connections, which would be reset when the last listener closes.
    pub(crate) fn accept_queued(&self, max: usize) {
        for _ in 0..max {
            let Ok(accepted) = accept_named_connection(self.queue.socket()) else { return };
            let connection = self.starter.describe_accepted(accepted, &self.listener_name);
            self.starter.start_despite_queue_wait(connection);
            self.count_accepted();
        }
    }
}
