//! Parked connections: idle HTTP/1.1 connections without a task, a hyper connection and buffers.
//!
//! A kept connection costs about 12 KB while a task serves it, mostly hyper's buffers, and most kept connections are idle. So one that
//! has been idle for [`PARK_AFTER`] is taken apart between two requests, as for a hand-over to another worker, down to its socket, its
//! times and its addresses. All parked sockets of a worker are in one epoll instance, which tokio watches as a single descriptor. When
//! the client sends its next request, the worker reads its first bytes and serves the connection as if it had been taken over from
//! another worker.
//!
//! A parked connection counts as open everywhere. It closes at the same timeouts as any other, moves to another worker when this one
//! drains, and is parked there at once.
//!
//! Never parked are TLS and HTTP/2 connections, whose state is more than a socket, upgraded ones, and those that the application has
//! passed to `Worker::serve_http`.

mod info;
mod park;
mod slab;
mod timeouts;
mod wake;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::yield_now;

use super::handover::{self, HandoverOutcome};
use super::lazy_stream::LazyStream;
use super::local_state::LocalWorkerState;
pub(crate) use park::{ParkOutcome, park_connection, park_idle_connections, park_taken_over};
use prefork_os::allocator::release_free_memory;
use prefork_os::readiness_set::ReadinessSet;
use prefork_os::system::process_cpu_time_us;
use slab::{ParkedConnection, ParkedInfo, ParkedSlab, ParkedToken};

/// How long a connection is idle before it is parked.
///
/// To park and to wake a connection costs about as much CPU time as half a request. With one second, a client that sends at least one
/// request per second never pays for it.
pub(crate) const PARK_AFTER: Duration = Duration::from_secs(1);

/// How many connections are parked, woken or closed before other tasks run. About 200 us of work.
const BATCH: usize = 32;

/// The shortest time between two returns of free memory to the system.
const MIN_RELEASE_INTERVAL_MS: u64 = 1000;

/// How much longer than a return of memory takes the pause behind it is, so that it costs at most 1 % of a core. It takes about 1 ms for
/// 10 MB, and longer in a large and fragmented heap of the application; nothing else runs meanwhile.
const RELEASE_PAUSE_FACTOR: u64 = 100;

/// How many connections must have closed before their memory is returned: 3 MB.
const MIN_CLOSED_CONNECTIONS: u64 = 256;

/// The parked connections of a worker.
#[derive(Default)]
pub(crate) struct ParkedConnections {
    slab: RefCell<ParkedSlab>,
    /// How many connections are in the slab or on their way from it to another worker.
    count: Cell<usize>,
    /// Watches the sockets. Created with the first parked connection.
    set: OnceCell<Rc<ReadinessSet>>,
    /// No connection in the slab has an older `since_ms`.
    oldest_ms: Cell<u64>,
    /// How many connections in the slab are closed by the worker and wait for their clients.
    closed: Cell<usize>,
    is_parking: Cell<bool>,
    is_closing: Cell<bool>,
    is_handing_over: Cell<bool>,
    /// How many connections were parked since memory was returned to the system last.
    parked_since_release: Cell<usize>,
    /// The most connections that a heartbeat has found open since then.
    max_open_since_release: Cell<u64>,
    /// When memory may be returned again.
    next_release_ms: Cell<u64>,
}

impl ParkedConnections {
    pub(crate) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    fn set_count(&self, state: &LocalWorkerState, count: usize) {
        self.count.set(count);
        state.worker_page.set_parked_connections(count);
    }

    /// Puts a connection into the slab. Gives it back if the kernel cannot watch it.
    fn insert(
        &self,
        state: &Rc<LocalWorkerState>,
        parked: ParkedConnection,
    ) -> Result<(), (ParkedConnection, io::Error)> {
        let set = match self.watched_sockets(state) {
            Ok(set) => set,
            Err(e) => return Err((parked, e)),
        };
        let (since_ms, is_closed) = (parked.since_ms, parked.closed_ms.is_some());
        let mut slab = self.slab.borrow_mut();
        let oldest = if slab.len() == 0 { since_ms } else { self.oldest_ms.get().min(since_ms) };
        let token = slab.insert(parked);
        let added = match slab.get_mut(token) {
            Some(parked) => set.add(&parked.fd, token),
            None => Ok(()),
        };
        if let Err(e) = added
            && let Some(parked) = slab.remove(token)
        {
            return Err((parked, e));
        }
        self.oldest_ms.set(oldest);
        self.closed.set(self.closed.get() + usize::from(is_closed));
        self.set_count(state, self.count.get() + 1);
        Ok(())
    }

    /// Takes a connection out of the slab. It still counts until [`ParkedConnections::forget`].
    fn take(&self, token: ParkedToken) -> Option<ParkedConnection> {
        let parked = self.slab.borrow_mut().remove(token)?;
        if let Some(set) = self.set.get() {
            // Cannot fail for a socket that is in the set.
            let _ = set.remove(&parked.fd);
        }
        self.closed.set(self.closed.get() - usize::from(parked.closed_ms.is_some()));
        Some(parked)
    }

    /// Stops counting a connection that was taken out of the slab.
    fn forget(&self, state: &LocalWorkerState) {
        self.set_count(state, self.count.get() - 1);
    }

    /// Returns the set of the watched sockets. Creates it, and the task that waits for them, with the first connection.
    fn watched_sockets(&self, state: &Rc<LocalWorkerState>) -> io::Result<&Rc<ReadinessSet>> {
        if self.set.get().is_none() {
            let set = Rc::new(ReadinessSet::new()?);
            tokio::task::spawn_local(wake::wake_ready_connections(
                Rc::clone(state),
                Rc::clone(&set),
            ));
            // Set once, on this thread.
            let _ = self.set.set(set);
        }
        self.set.get().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Returns free memory to the system if connections were parked since the last time, or if half of many have closed. Called at each
    /// heartbeat, with the number of open connections.
    pub(crate) fn release_memory(&self, now_ms: u64, open: u64) {
        let max_open = self.max_open_since_release.get().max(open);
        self.max_open_since_release.set(max_open);
        let have_closed = max_open - open >= MIN_CLOSED_CONNECTIONS.max(max_open / 2);
        if (self.parked_since_release.get() == 0 && !have_closed)
            || self.is_parking.get()
            || now_ms < self.next_release_ms.get()
        {
            return;
        }
        self.parked_since_release.set(0);
        self.max_open_since_release.set(open);
        // Not the time that passes: on a busy machine, that would be a multiple.
        let begun_us = process_cpu_time_us();
        release_free_memory();
        let took_us = process_cpu_time_us().saturating_sub(begun_us);
        let pause_ms = took_us.saturating_mul(RELEASE_PAUSE_FACTOR) / 1000;
        self.next_release_ms.set(now_ms.saturating_add(pause_ms.max(MIN_RELEASE_INTERVAL_MS)));
    }
}

/// Hands the parked connections over to other workers, if this worker drains and others can take them. Returns at once; a task
/// does it.
pub(crate) fn start_handing_over(state: &Rc<LocalWorkerState>) {
    let parked = &state.parked;
    if !parked.is_empty() && state.should_hand_over() && !parked.is_handing_over.replace(true) {
        tokio::task::spawn_local(hand_over(Rc::clone(state)));
    }
}

async fn hand_over(state: Rc<LocalWorkerState>) {
    let (mut index, mut sent) = (0, 0);
    loop {
        let next = next_transferable(&state.parked.slab.borrow(), &mut index);
        let Some(token) = next.filter(|_| state.should_hand_over()) else { break };
        let Some(mut parked) = state.parked.take(token) else { continue };
        let proxied = state.parked.proxied_client(parked.info.as_ref());
        let stream = LazyStream::new(parked.fd, parked.is_unix);
        match handover::hand_over_connection(&state, stream, bytes::Bytes::new(), proxied).await {
            HandoverOutcome::Gone => {
                state.parked.drop_info(parked.info);
                state.parked.forget(&state);
                state.count_closed_connection();
            }
            // It stays here until it closes, like one with a task.
            HandoverOutcome::Kept(stream, _) => {
                state.parked.forget(&state);
                let Ok(fd) = stream.into_fd() else {
                    state.parked.drop_info(parked.info);
                    state.count_closed_connection();
                    continue;
                };
                parked.fd = fd;
                parked.is_pinned = true;
                if let Err((parked, _)) = state.parked.insert(&state, parked) {
                    state.parked.drop_info(parked.info);
                    state.count_closed_connection();
                }
            }
        }
        sent += 1;
        if sent % BATCH == 0 {
            yield_now().await;
        }
    }
    state.parked.is_handing_over.set(false);
}

/// Returns the next connection from `index` on that can move to another worker.
fn next_transferable(slab: &ParkedSlab, index: &mut usize) -> Option<ParkedToken> {
    while *index < slab.places() {
        let found = slab.at(*index);
        *index += 1;
        if let Some((token, parked)) = found
            && !parked.is_pinned
            && parked.closed_ms.is_none()
        {
            return Some(token);
        }
    }
    None
}
