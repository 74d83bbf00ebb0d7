//! Accepts connections from a listening socket, and spreads them evenly over the workers that share it.
//!
//! Just in time: a worker begins to serve a connection before it accepts the next one (see `accept_budget`), and waits
//! up to a millisecond for the first byte of a silent one (see `first_byte`). All others stay in the kernel's queue, where any
//! worker can take them and none can lose them by dying.
//!
//! Evenly: a connection wakes the first sleeping worker in the order of exclusive wake-ups (see `accept_queue`). A worker that
//! has accepted moves to the end of this order. One with far fewer connections than others is woken for every connection,
//! and the worker woken beside it lets it accept first (see `accept_fairness`).
//!
//! A worker may be stopped or killed right after a connection has woken it. The next worker that is woken accepts that
//! connection as well, and all workers check the queue at each heartbeat, every 100 ms.
//!
//! Without free file descriptors or memory, the worker waits for a connection to close. Where accept fails for another reason (a
//! seccomp filter forbids it, another process has shut the socket down), it backs off, logs once, and does not count as serving until
//! accept succeeds or a reload opens the socket again.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::Domain;
use tokio::sync::Notify;

use crate::dispatch::accept_budget::AcceptBudget;
use crate::dispatch::first_byte::ConnectionStarter;
use crate::dispatch::queue_wait::Waits;
use crate::dispatch::shared::accept_queue::AcceptQueue;
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;

/// How long a handshake that has begun is waited for before a socket is closed for ever: a round trip to a client
/// not too far away.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// How long to wait when the process or the system is out of file descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// How long to wait after accepting has failed for a reason that is none of the connection's, for the first time. Doubled
/// each time.
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest of those waits.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// After how many such failures in a row a socket counts as one that gives no connections.
const FAILURES_UNTIL_ERROR: u32 = 3;

/// So many times in a row a listener may be ready with nobody to accept.
const MOST_IDLE: u32 = 1000;

/// Accepts from one listening socket until the worker drains.
pub(crate) struct Acceptor {
    state: Rc<LocalWorkerState>,
    queue: AcceptQueue,
    name: String,
    unix: bool,
    /// Whether it is the socket of our own slot.
    own: bool,
    starter: ConnectionStarter,
    waits: Waits,
    stop: Rc<Notify>,
    /// Whether it was told that descriptors have run out, and none came free since.
    exhausted: bool,
    /// How often in a row accepting has failed for a reason that is none of the connection's.
    failures: u32,
}

impl Acceptor {
    /// `polite` if others wait on the same socket, who may come first; `stop` is rung when it is to end before the
    /// worker drains.
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        listener: Listener,
        starter: ConnectionStarter,
        polite: bool,
        stop: Rc<Notify>,
    ) -> io::Result<Acceptor> {
        let unix = listener.socket.domain()? == Domain::UNIX;
        let own = !listener.is_shared_by_all_workers() && listener.slot == state.tag.slot;
        let queue = AcceptQueue::new(state, listener.socket.into(), polite)?;
        let (state, name) = (Rc::clone(state), listener.local.to_string());
        let waits = Waits::default();
        let (exhausted, failures) = (false, 0);
        Ok(Acceptor { state, queue, name, unix, own, starter, waits, stop, exhausted, failures })
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
            Some(order) if order.closing => self.close().await,
            // We may have been woken for it, and nobody else.
            _ if self.queue.is_shared() => self.empty_queue(1),
            _ => {}
        }
        self.recover();
        let state = Rc::clone(&self.state);
        // Our share in the socket ends here; as long as anybody else has one, it goes on listening.
        drop(self);
        state.active_acceptors.set(state.active_acceptors.get() - 1);
        state.capacity_freed.notify_waiters();
    }

    async fn accept_all(&mut self) {
        let state = Rc::clone(&self.state);
        let (mut idle, mut took, mut budget) = (0, false, AcceptBudget::default());
        loop {
            self.wait_for_room().await;
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
                    // Whoever was woken for it does not take it.
                    None
                }
            };
            let outcome = self.queue.accept(ready).await;
            match outcome {
                Ok(Some(fd)) => {
                    (self.exhausted, took) = (false, true);
                    self.recover();
                    let now = Instant::now();
                    let waited = self.waits.of(&fd, self.unix, now);
                    self.starter.start(fd, self.unix, waited);
                    self.count();
                    if self.starter.has_pending() {
                        self.queue.move_to_end();
                        self.starter.wait_for_first_byte().await;
                    }
                    budget.yield_after_accept(now).await;
                }
                Err(e) => self.endure(&e).await,
                Ok(None) => {
                    budget.reset();
                    self.recover();
                    if std::mem::take(&mut took) {
                        self.queue.move_to_end_if_busier();
                    }
                    // Another worker was faster. A listener that somebody shut down is "ready" for ever, too:
                    // it must not take the loop from the rest.
                    idle += 1;
                    if idle > MOST_IDLE {
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                    continue;
                }
            }
            idle = 0;
        }
    }

    async fn wait_for_room(&self) {
        let state = &self.state;
        let limit = u64::from(state.config.worker_connections);
        loop {
            let rung = state.capacity_freed.notified();
            let full = state.row.open() >= limit;
            state.row.accepting(!full && !state.cannot_accept());
            if full {
                self.queue.stop_waking();
                rung.await;
            } else {
                self.queue.resume_waking();
                return;
            }
        }
    }

    /// A connection has left the queue; said after it was counted as open.
    fn count(&self) {
        if self.own {
            self.state.load_page.count_accepted();
        }
    }

    /// Out of descriptors or memory: says so once, and waits until a connection is closed or a while passed.
    /// Anything else concerns the one connection that is gone.
    async fn endure(&mut self, error: &io::Error) {
        if prefork_os::socket::is_accepted_connection_error(error) {
            log::debug!("{} accept on {}: {error}", self.state.tag, self.name);
            return tokio::task::yield_now().await;
        }
        if !prefork_os::socket::is_resource_exhaustion(error) {
            return self.back_off(error).await;
        }
        if !std::mem::replace(&mut self.exhausted, true) {
            log::error!(
                "{} cannot accept on {}: {error}; waiting for connections to close (raise LimitNOFILE or lower \
                 worker-connections)",
                self.state.tag,
                self.name
            );
        }
        self.state.row.accepting(false);
        self.queue.stop_waking();
        let _ = tokio::time::timeout(EXHAUSTED, self.state.capacity_freed.notified()).await;
    }

    /// Waits longer each time, and is not woken meanwhile: whoever can accept is.
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

    /// The socket gives connections, or is not asked any more.
    fn recover(&mut self) {
        if std::mem::take(&mut self.failures) >= FAILURES_UNTIL_ERROR {
            self.state.failing_acceptors.set(self.state.failing_acceptors.get() - 1);
            self.state.publish_accept_state();
            log::info!("{} accepts on {} again", self.state.tag, self.name);
        }
    }

    /// The end of the socket: takes what is in its queue, and those who were in the middle of the handshake when it
    /// was closed to newcomers.
    async fn close(&self) {
        self.empty_queue(usize::MAX);
        tokio::time::sleep(HANDSHAKE).await;
        self.empty_queue(usize::MAX);
    }

    /// Takes up to `most` connections from the queue. What is queued when the last listener closes would be reset.
    pub(crate) fn empty_queue(&self, most: usize) {
        for _ in 0..most {
            let Ok(fd) = prefork_os::socket::accept_connection(self.queue.socket()) else { return };
            self.starter.start_despite_queue_wait(fd, self.unix);
            self.count();
        }
    }
}
