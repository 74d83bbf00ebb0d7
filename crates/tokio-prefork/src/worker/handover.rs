//! Connections that go from one worker to another: a draining worker hands its idle ones over, through the
//! primary, to one that goes on serving, and the client notices nothing.
//!
//! What arrives at the socket meanwhile waits in the kernel and travels with it; what hyper has read already
//! goes along as bytes. A connection that cannot be sent is served on here and drained like any other. One that
//! is sent to a worker that dies before it takes it dies with that worker: there is no other copy of it.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::connection_registry::{ConnectionEntry, ConnectionGuard};
use super::http::connection_state::ConnectionPhase;
use super::lazy_stream::LazyStream;
use super::local_state::LocalWorkerState;
use crate::channel::{ToPrimary, Unread};
use crate::dispatch::AcceptedConnection;

/// How long a connection waits for room in the channel to the primary. Beyond it, a client is better served here.
const HANDOVER_SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What became of a connection that was to be handed over.
pub(crate) enum HandoverOutcome {
    /// It is on its way, or broken.
    Gone,
    /// It could not be sent.
    Stays(LazyStream, Bytes),
}

/// Sends a connection to the primary, for another worker.
pub(crate) async fn hand_over_connection(
    state: &LocalWorkerState,
    stream: LazyStream,
    unread: Bytes,
) -> HandoverOutcome {
    let Some(travelling) = Unread::new(unread.to_vec()) else {
        return HandoverOutcome::Stays(stream, unread);
    };
    let unix = stream.is_unix();
    let fd = match stream.into_fd() {
        Ok(fd) => fd,
        Err(e) => return broken(state, &e),
    };
    let word = ToPrimary::Travel(travelling);
    let sent =
        tokio::time::timeout(HANDOVER_SEND_TIMEOUT, state.channel.send_with(&word, fd.as_fd()))
            .await;
    match sent {
        Ok(Ok(())) => {
            state.row.handed_over();
            return HandoverOutcome::Gone;
        }
        Ok(Err(e)) => log::debug!("{} cannot hand a connection over: {e}", state.tag),
        Err(_) => {
            log::debug!("{} cannot hand a connection over: no room in the channel", state.tag)
        }
    }
    HandoverOutcome::Stays(LazyStream::new(fd, unix), unread)
}

fn broken(state: &LocalWorkerState, error: &std::io::Error) -> HandoverOutcome {
    log::warn!("{} lost a connection on its way out of the event loop: {error}", state.tag);
    HandoverOutcome::Gone
}

/// Goes on with a connection that another worker began. It is an existing client, so it is welcome even where a
/// new one would have to wait; a worker that has begun to drain meanwhile sends it on.
pub(crate) fn arrive(state: &Rc<LocalWorkerState>, fd: OwnedFd, unread: Unread) {
    let Some(handle) = state.app.get().map(|handler| &handler.handle) else {
        return log::warn!("{} was sent a connection before it was ready", state.tag);
    };
    let is_unix = prefork_os::socket::is_unix_stream(&fd);
    let unix = match is_unix.and_then(|unix| prefork_os::fd::set_nonblocking(&fd).map(|()| unix)) {
        Ok(unix) => unix,
        Err(e) => return log::warn!("{} was sent what is no connection: {e}", state.tag),
    };
    let entry = ConnectionEntry::new(state.now_ms());
    entry.conn.set_phase(ConnectionPhase::Idle, state.now_ms());
    state.row.taken_over();
    let guard = ConnectionGuard::new(state, &entry);
    let stream = LazyStream::new(fd, unix);
    handle(AcceptedConnection { stream, first: unread.into_bytes().into(), entry, guard });
}
