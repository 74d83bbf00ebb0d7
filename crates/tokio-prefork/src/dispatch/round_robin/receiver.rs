//! Takes the connections that the primary has accepted out of the worker's queue, one by one.
//!
//! What the worker has not taken yet, the primary can take back for another one. The worker holds the listening sockets
//! as well, and accepts from them only at the end, when the primary no longer does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::connection_queue::{QueueRead, QueuedConnection, read_queue};
use crate::dispatch::accept_budget::AcceptBudget;
use crate::dispatch::first_byte::ConnectionStarter;
use crate::dispatch::full_worker;
use crate::dispatch::queue_wait::measure_queue_wait;
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;
use prefork_os::socket_name::accept_named_connection;

/// How long to wait for a free descriptor.
const EXHAUSTED_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How close to the limit on open files the worker checks for a free descriptor before it reads: a connection read
/// without one is lost.
const DESCRIPTOR_RESERVE: u64 = 16;

/// Takes connections until the worker drains, then the remaining ones.
pub(crate) struct ConnectionReceiver {
    state: Rc<LocalWorkerState>,
    queue: AsyncFd<OwnedFd>,
    listeners: Vec<Listener>,
    starter: ConnectionStarter,
    /// Descriptors from this number on are close to the limit.
    reserve_start: i32,
    /// Whether the descriptor read last was close to the limit.
    is_near_limit: bool,
    /// Whether exhaustion of descriptors was logged and has not ended since.
    is_exhausted: bool,
    /// Whether the next connection has waited because the worker was full.
    has_held_up_queue: bool,
}

impl ConnectionReceiver {
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        queue: OwnedFd,
        listeners: Vec<Listener>,
        starter: ConnectionStarter,
    ) -> io::Result<ConnectionReceiver> {
        let queue = prefork_os::async_fd::register_readable(queue)?;
        let limit = prefork_os::process::open_file_limit()?.saturating_sub(DESCRIPTOR_RESERVE);
        let reserve_start = i32::try_from(limit).unwrap_or(i32::MAX);
        let (is_near_limit, is_exhausted, has_held_up_queue) = (false, false, false);
        let state = Rc::clone(state);
        Ok(ConnectionReceiver {
            state,
            queue,
            listeners,
            starter,
            reserve_start,
            is_near_limit,
            is_exhausted,
            has_held_up_queue,
        })
    }

    pub(crate) async fn run(mut self) {
        let state = Rc::clone(&self.state);
        tokio::select! {
            biased;
            () = state.drain.wait_started() => {}
            () = self.take_all() => state.drain.wait_started().await,
        }
        self.starter.start_pending();
        // These connections were sent before DRAIN.
        loop {
            match read_queue(self.queue.get_ref()) {
                Ok(QueueRead::Connection(connection)) => self.start_despite_queue_wait(connection),
                Ok(QueueRead::Lost) => self.record_lost(),
                Ok(QueueRead::Probe) => {}
                Ok(QueueRead::Empty | QueueRead::Closed) | Err(_) => break,
            }
        }
        if state.drain.current_order().is_some_and(|order| order.closing) {
            self.empty_accept_queues();
        }
        // Other processes keep their copies open, so the sockets go on listening.
        self.listeners.clear();
        state.active_acceptors.set(state.active_acceptors.get() - 1);
        state.capacity_freed.notify_waiters();
        // During a stop, the primary still sends the connections that a dead worker has left.
        self.take_until_closed().await;
    }

    async fn take_all(&mut self) {
        let mut budget = AcceptBudget::default();
        loop {
            self.wait_for_capacity().await;
            match self.read_next().await {
                QueueRead::Connection(connection) => {
                    if std::mem::take(&mut self.has_held_up_queue) {
                        self.state.worker_page.connection_over_limit();
                    }
                    self.is_near_limit = connection.fd.as_raw_fd() >= self.reserve_start;
                    // The connections come from several accept queues, so the kernel is asked about each.
                    let waited = measure_queue_wait(&connection.fd, connection.is_unix);
                    let QueuedConnection { fd, is_unix } = connection;
                    self.starter.start(self.starter.describe_received(fd, is_unix), waited);
                    self.starter.wait_for_first_byte().await;
                    budget.yield_after_accept(Instant::now()).await;
                }
                QueueRead::Lost => self.record_lost(),
                QueueRead::Empty => budget.reset(),
                QueueRead::Probe => {}
                // The channel ends as well, and that starts the drain.
                QueueRead::Closed => return,
            }
        }
    }

    async fn take_until_closed(&mut self) {
        loop {
            match self.read_next().await {
                QueueRead::Connection(connection) => self.start_despite_queue_wait(connection),
                QueueRead::Lost => self.record_lost(),
                QueueRead::Empty | QueueRead::Probe => {}
                QueueRead::Closed => return,
            }
        }
    }

    async fn read_next(&self) -> QueueRead {
        let Ok(mut ready) = self.queue.readable().await else { return QueueRead::Closed };
        let outcome = ready.try_io(|queue| match read_queue(queue.get_ref()) {
            Ok(QueueRead::Empty) => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        });
        match outcome {
            Ok(Ok(read)) => read,
            Ok(Err(e)) => {
                log::warn!("{} cannot read its queue of connections: {e}", self.state.tag);
                QueueRead::Closed
            }
            Err(_would_block) => QueueRead::Empty,
        }
    }

    async fn wait_for_capacity(&mut self) {
        let state = Rc::clone(&self.state);
        let limit = u64::from(state.config.worker_connections);
        let mut was_full = false;
        loop {
            let freed = state.capacity_freed.notified();
            let is_full = state.worker_page.open_connections() >= limit;
            let is_scarce = self.is_near_limit && self.queue.get_ref().try_clone().is_err();
            state.worker_page.set_accepting(!is_full && !is_scarce);
            if is_scarce {
                self.log_exhausted();
                let _ = tokio::time::timeout(EXHAUSTED_RETRY_INTERVAL, freed).await;
            } else if is_full {
                was_full = true;
                full_worker::wait_until_freed(&state, freed, || self.refuse_queued()).await;
            } else {
                self.is_exhausted = false;
                // The primary leaves connections in the queues of its sockets while all workers are full.
                let queues = self.listeners.iter().map(AsFd::as_fd);
                self.has_held_up_queue |= was_full && full_worker::has_queued(queues);
                return;
            }
        }
    }

    /// Refuses the connections that the primary does not accept, as all workers are full.
    fn refuse_queued(&self) {
        let is_http = self.starter.client_speaks_first();
        for listener in &self.listeners {
            let is_http = is_http && !self.state.listener_names.name_of(listener).is_tls();
            full_worker::refuse_queued(&self.state, listener, true, is_http);
        }
    }

    fn log_exhausted(&mut self) {
        if !std::mem::replace(&mut self.is_exhausted, true) {
            log::error!(
                "{} cannot accept on its queue of connections: no descriptor left; waiting for connections to close \
                 (raise LimitNOFILE or lower worker-connections)",
                self.state.tag
            );
        }
    }

    fn record_lost(&mut self) {
        self.is_near_limit = true;
        log::error!("{} lost a connection: no descriptor left", self.state.tag);
    }

    fn start_despite_queue_wait(&self, QueuedConnection { fd, is_unix }: QueuedConnection) {
        self.starter.start_despite_queue_wait(self.starter.describe_received(fd, is_unix));
    }

    /// Accepts all queued connections, which would be reset when the last listener closes.
    fn empty_accept_queues(&self) {
        for listener in &self.listeners {
            let name = self.state.listener_names.name_of(listener);
            while let Ok(accepted) = accept_named_connection(listener) {
                let connection = self.starter.describe_accepted(accepted, &name);
                self.starter.start_despite_queue_wait(connection);
            }
        }
    }
}
