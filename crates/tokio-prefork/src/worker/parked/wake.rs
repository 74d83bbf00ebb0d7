//! Goes on with parked connections whose clients have sent something or have closed them.

use std::rc::Rc;

use bytes::Bytes;
use tokio::task::yield_now;

use super::{BATCH, ParkedConnection, ParkedToken};
use crate::dispatch::{AcceptedConnection, first_byte};
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::http::connection_state::ConnectionPhase;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;
use prefork_os::readiness_set::{ReadinessSet, ReadyTokens};
use prefork_os::socket::read_nonblocking;

/// How long to read and discard what a client sends after its connection was closed. nginx's `lingering_time`.
const MAX_LINGER_MS: u64 = 30_000;

/// How many batches to wake at once if ever more connections are ready: 512 connections, as many events as nginx handles in a row.
const MAX_BATCHES: usize = 512 / BATCH;

/// Serves the connections that become ready, for the life of the worker.
pub(super) async fn wake_ready_connections(state: Rc<LocalWorkerState>, set: Rc<ReadinessSet>) {
    let mut ready = ReadyTokens::with_capacity(BATCH);
    while set.wait().await.is_ok() {
        let mut batches = 1;
        while wake_batches(&state, &set, &mut ready, batches) {
            // All may speak at once: those that are served already must not wait for all of them. Nor may the others wait for
            // a turn of those that are served for each few, as these turns get longer.
            yield_now().await;
            batches = (batches * 2).min(MAX_BATCHES);
        }
    }
}

/// Wakes at most `batches` batches of ready connections; returns whether more may be ready.
fn wake_batches(
    state: &Rc<LocalWorkerState>,
    set: &ReadinessSet,
    ready: &mut ReadyTokens,
    batches: usize,
) -> bool {
    for _ in 0..batches {
        let count = set.take_ready(ready);
        ready.iter().for_each(|token| wake_connection(state, token));
        if count < BATCH {
            return false;
        }
    }
    true
}

/// Goes on with a connection that is readable, or closes it if its client has.
fn wake_connection(state: &Rc<LocalWorkerState>, token: ParkedToken) {
    let first = {
        let mut slab = state.parked.slab.borrow_mut();
        // It may have been closed or handed over since the event.
        let Some(parked) = slab.get_mut(token) else { return };
        match parked.closed_ms {
            Some(closed_ms) => discard(parked, closed_ms.get(), state.now_ms()),
            None => match first_byte::read_first_bytes(&parked.fd) {
                Ok(first) if first.is_empty() => Readable::Closed,
                Ok(first) => Readable::Request(first),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Readable::Nothing,
                Err(_) => Readable::Closed,
            },
        }
    };
    match first {
        Readable::Request(first) => resume(state, token, first),
        Readable::Closed => close(state, token),
        Readable::Nothing => rearm(state, token),
    }
}

/// What a readable connection has.
enum Readable {
    /// Bytes of the next request.
    Request(Bytes),
    /// The end, or an error.
    Closed,
    /// Nothing to act upon.
    Nothing,
}

/// Reads and discards what arrives after the worker has closed its side.
fn discard(parked: &mut ParkedConnection, closed_ms: u64, now_ms: u64) -> Readable {
    let mut discarded = [0; 4096];
    match read_nonblocking(&parked.fd, &mut discarded) {
        Ok(0) => Readable::Closed,
        Ok(_) if now_ms.saturating_sub(closed_ms) >= MAX_LINGER_MS => Readable::Closed,
        Ok(_) => {
            // A client that still sends has probably not read the last response yet.
            parked.since_ms = now_ms;
            Readable::Nothing
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Readable::Nothing,
        Err(_) => Readable::Closed,
    }
}

/// Serves a parked connection again, from the `first` bytes of its next request on.
pub(super) fn resume(state: &Rc<LocalWorkerState>, token: ParkedToken, first: Bytes) {
    let Some(parked) = state.parked.take(token) else { return };
    let ParkedConnection { fd, is_unix, is_pinned, start, since_ms, info, .. } = parked;
    let app = state.app.borrow().clone();
    let entry = ConnectionEntry::new(since_ms);
    entry.conn.set_phase(ConnectionPhase::Idle, since_ms);
    if is_pinned {
        entry.conn.pin_to_worker();
    }
    let guard = ConnectionGuard::counted_before(state, &entry);
    state.parked.forget(state);
    let info = info.map(|kept| state.parked.restore_info(state, &fd, kept));
    let stream = LazyStream::new(fd, is_unix);
    // Without an application, which is dropped after the last connection, it closes.
    if let Some(app) = app {
        app.handle(AcceptedConnection { stream, first, info, start, entry, guard });
    }
}

/// Closes a parked connection.
pub(super) fn close(state: &LocalWorkerState, token: ParkedToken) {
    if let Some(parked) = state.parked.take(token) {
        state.parked.drop_info(parked.info);
        state.parked.forget(state);
        state.count_closed_connection();
    }
}

/// Waits for a connection again.
fn rearm(state: &LocalWorkerState, token: ParkedToken) {
    let is_armed = match (state.parked.slab.borrow_mut().get_mut(token), state.parked.set.get()) {
        (Some(parked), Some(set)) => set.rearm(&parked.fd, token).is_ok(),
        _ => return,
    };
    if !is_armed {
        close(state, token);
    }
}
