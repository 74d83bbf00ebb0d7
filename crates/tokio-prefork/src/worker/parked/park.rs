//! Parks connections that have been idle for a moment.

use std::rc::Rc;

use bytes::Bytes;
use tokio::task::yield_now;

use super::{BATCH, ParkedConnection};
use crate::client::ConnectionInfo;
use crate::dispatch::{AcceptedConnection, ConnectionStart};
use crate::worker::connection_registry::ConnectionEntry;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;

/// How many connections are looked at before other tasks run.
const SCAN_BATCH: usize = 512;

/// The result of parking a connection.
pub(crate) enum ParkOutcome {
    /// The connection is parked: its registration has to be dissolved with `ConnectionGuard::keep_counted`.
    Parked,
    /// The socket failed and is closed.
    Gone,
    /// The connection could not be parked, and comes back with its unread bytes.
    Kept(LazyStream, Bytes),
}

/// Asks the tasks of all connections that are idle for long enough to release their sockets. Called at the heartbeat that has found
/// some; a task does it in batches, so that other connections are served in between.
pub(crate) fn park_idle_connections(state: &Rc<LocalWorkerState>) {
    if !state.parked.is_parking.replace(true) {
        tokio::task::spawn_local(request_parking(Rc::clone(state)));
    }
}

async fn request_parking(state: Rc<LocalWorkerState>) {
    let mut index = usize::MAX;
    loop {
        let now = state.now_ms();
        index = state.connections.borrow().request_parking(index, SCAN_BATCH, BATCH, now);
        if index == 0 || state.drain.current_order().is_some() {
            break;
        }
        yield_now().await;
    }
    state.parked.is_parking.set(false);
}

/// Parks a connection whose task has released its socket between two requests.
pub(crate) fn park_connection(
    state: &Rc<LocalWorkerState>,
    entry: &ConnectionEntry,
    stream: LazyStream,
    unread: Bytes,
    info: Option<&ConnectionInfo>,
) -> ParkOutcome {
    if !unread.is_empty() {
        return ParkOutcome::Kept(stream, unread);
    }
    let is_unix = stream.is_unix();
    let fd = match stream.into_fd() {
        Ok(fd) => fd,
        Err(e) => {
            log::warn!("{} lost a connection: cannot remove it from epoll: {e}", state.tag);
            return ParkOutcome::Gone;
        }
    };
    let parked = ParkedConnection {
        fd,
        is_unix,
        is_pinned: entry.conn.is_pinned(),
        start: ConnectionStart::NextRequest,
        since_ms: entry.conn.phase_since_ms(),
        closed_ms: None,
        info: info.map(|info| state.parked.keep_info(info)),
    };
    match state.parked.insert(state, parked) {
        Ok(()) => {
            let parked = &state.parked.parked_since_release;
            parked.set(parked.get() + 1);
            ParkOutcome::Parked
        }
        Err((parked, e)) => {
            log::debug!("{} cannot park a connection: {e}", state.tag);
            // Its task would ask once a second.
            entry.conn.forbid_parking();
            state.parked.drop_info(parked.info);
            ParkOutcome::Kept(LazyStream::new(parked.fd, is_unix), Bytes::new())
        }
    }
}

/// Parks a connection that another worker has handed over and whose client has sent nothing yet. Gives it back if that is not possible.
pub(crate) fn park_taken_over(
    state: &Rc<LocalWorkerState>,
    accepted: AcceptedConnection,
) -> Option<AcceptedConnection> {
    let can_park = accepted.first.is_empty() && state.drain.current_order().is_none();
    if !can_park {
        return Some(accepted);
    }
    let AcceptedConnection { stream, first, info, start, entry, guard } = accepted;
    let is_unix = stream.is_unix();
    let Ok(fd) = stream.into_fd() else { return None };
    let parked = ParkedConnection {
        fd,
        is_unix,
        is_pinned: false,
        start,
        since_ms: entry.conn.phase_since_ms(),
        closed_ms: None,
        info: info.as_ref().map(|info| state.parked.keep_info(info)),
    };
    match state.parked.insert(state, parked) {
        Ok(()) => {
            guard.keep_counted();
            None
        }
        Err((parked, _)) => {
            state.parked.drop_info(parked.info);
            let stream = LazyStream::new(parked.fd, is_unix);
            Some(AcceptedConnection { stream, first, info, start, entry, guard })
        }
    }
}
