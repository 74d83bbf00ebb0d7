//! Connections that the primary accepts (`round-robin`), taken out of this worker's queue one by one.
//!
//! Just in time, as everywhere: what is not taken the primary can give to somebody else. The listening sockets are held, too, and
//! used only when the primary holds them no more: then what waits in them is ours to serve.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::{Dealt, read_dealt};
use crate::dispatch::accept_budget::AcceptBudget;
use crate::dispatch::first_byte::ConnectionStarter;
use crate::dispatch::queue_wait::wait_of;
use crate::listener::Listener;
use crate::worker::local_state::LocalWorkerState;

/// How long to wait for a descriptor to come free.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// So near to the limit on open files it is made sure that there is room for another: what is read without
/// room is lost.
const NEAR: u64 = 16;

/// Takes connections until the worker drains, and what is left after it.
pub(crate) struct Taker {
    state: Rc<LocalWorkerState>,
    queue: AsyncFd<OwnedFd>,
    listeners: Vec<Listener>,
    starter: ConnectionStarter,
    /// From this number on descriptors are about to run out.
    scarce: i32,
    /// The last one that came was so high.
    near: bool,
    /// Whether it was told that descriptors have run out, and none came free since.
    exhausted: bool,
}

impl Taker {
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        queue: OwnedFd,
        listeners: Vec<Listener>,
        starter: ConnectionStarter,
    ) -> io::Result<Taker> {
        let queue = prefork_os::async_fd::register_readable(queue)?;
        let scarce = prefork_os::process::open_file_limit()?.saturating_sub(NEAR);
        let scarce = i32::try_from(scarce).unwrap_or(i32::MAX);
        let (state, near, exhausted) = (Rc::clone(state), false, false);
        Ok(Taker { state, queue, listeners, starter, scarce, near, exhausted })
    }

    pub(crate) async fn run(mut self) {
        let state = Rc::clone(&self.state);
        tokio::select! {
            biased;
            () = state.drain.started() => {}
            () = self.take_all() => state.drain.started().await,
        }
        self.starter.start_pending();
        // All that the primary sent before it told us to leave.
        loop {
            match read_dealt(self.queue.get_ref()) {
                Ok(Dealt::One(newcomer)) => {
                    self.starter.start_despite_queue_wait(newcomer.fd, newcomer.unix)
                }
                Ok(Dealt::Lost) => self.lost(),
                Ok(Dealt::Probe) => {}
                Ok(Dealt::Nothing | Dealt::End) | Err(_) => break,
            }
        }
        if state.drain.order().is_some_and(|order| order.closing) {
            self.empty_sockets();
        }
        // Our share in the sockets ends here; as long as anybody else has one, they go on listening.
        self.listeners.clear();
        state.active_acceptors.set(state.active_acceptors.get() - 1);
        state.capacity_freed.notify_waiters();
        // At a stop, what another worker left when it died.
        self.take_the_rest().await;
    }

    async fn take_all(&mut self) {
        let mut budget = AcceptBudget::default();
        loop {
            self.wait_for_room().await;
            match self.next().await {
                Dealt::One(newcomer) => {
                    self.near = newcomer.fd.as_raw_fd() >= self.scarce;
                    // These may come from several queues, and by several ways: each is asked for.
                    let waited = wait_of(&newcomer.fd, newcomer.unix);
                    self.starter.start(newcomer.fd, newcomer.unix, waited);
                    self.starter.wait_for_first_byte().await;
                    budget.yield_after_accept(Instant::now()).await;
                }
                Dealt::Lost => self.lost(),
                Dealt::Nothing => budget.reset(),
                Dealt::Probe => {}
                // The end of the channel, which comes as well, says what to do.
                Dealt::End => return,
            }
        }
    }

    async fn take_the_rest(&mut self) {
        loop {
            match self.next().await {
                Dealt::One(newcomer) => {
                    self.starter.start_despite_queue_wait(newcomer.fd, newcomer.unix)
                }
                Dealt::Lost => self.lost(),
                Dealt::Nothing | Dealt::Probe => {}
                Dealt::End => return,
            }
        }
    }

    async fn next(&self) -> Dealt {
        let Ok(mut ready) = self.queue.readable().await else { return Dealt::End };
        let outcome = ready.try_io(|queue| match read_dealt(queue.get_ref()) {
            Ok(Dealt::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        });
        match outcome {
            Ok(Ok(dealt)) => dealt,
            Ok(Err(e)) => {
                log::warn!("{} cannot read its queue of connections: {e}", self.state.tag);
                Dealt::End
            }
            Err(_would_block) => Dealt::Nothing,
        }
    }

    async fn wait_for_room(&mut self) {
        let state = Rc::clone(&self.state);
        let limit = u64::from(state.config.worker_connections);
        loop {
            let rung = state.capacity_freed.notified();
            let full = state.row.open() >= limit;
            let scarce = self.near && self.queue.get_ref().try_clone().is_err();
            state.row.accepting(!full && !scarce);
            if scarce {
                self.tell_exhausted();
                let _ = tokio::time::timeout(EXHAUSTED, rung).await;
            } else if full {
                rung.await;
            } else {
                self.exhausted = false;
                return;
            }
        }
    }

    fn tell_exhausted(&mut self) {
        if !std::mem::replace(&mut self.exhausted, true) {
            log::error!(
                "{} cannot accept on its queue of connections: no descriptor left; waiting for connections to close \
                 (raise LimitNOFILE or lower worker-connections)",
                self.state.tag
            );
        }
    }

    fn lost(&mut self) {
        self.near = true;
        log::error!("{} lost a connection: no descriptor left", self.state.tag);
    }

    /// What is queued when the last listener closes would be reset: it is taken now.
    fn empty_sockets(&self) {
        for listener in &self.listeners {
            let unix = listener.is_unix();
            while let Ok(fd) = prefork_os::socket::accept_connection(listener) {
                self.starter.start_despite_queue_wait(fd, unix);
            }
        }
    }
}
