//! Hands idle connections of a draining worker over to another worker, through the primary.
//!
//! The client does not notice. Bytes that arrive meanwhile wait in the kernel; bytes that hyper has read are sent
//! along. A connection that cannot be sent stays here and drains like any other. If the receiving worker dies before
//! it takes the connection, the connection closes, because no other process has it.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::lazy_stream::LazyStream;
use super::local_state::LocalWorkerState;
use crate::channel::{ConnectionHistory, HandoverState, WorkerReport};
use crate::client::ProxiedClient;

/// How long to wait for room in the channel to the primary before the connection stays here.
const HANDOVER_SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The result of handing a connection over.
pub(crate) enum HandoverOutcome {
    /// The connection was sent, or its socket failed and is closed.
    Gone,
    /// The connection could not be sent, and comes back with its unread bytes.
    Kept(LazyStream, Bytes),
}

/// Sends a connection to the primary, for another worker, with what its PROXY header has said.
pub(crate) async fn hand_over_connection(
    state: &LocalWorkerState,
    stream: LazyStream,
    unread: Bytes,
    proxied: Option<ProxiedClient>,
) -> HandoverOutcome {
    let Some(sent_along) = HandoverState::served(unread.to_vec(), proxied) else {
        return HandoverOutcome::Kept(stream, unread);
    };
    let unix = stream.is_unix();
    let fd = match stream.into_fd() {
        Ok(fd) => fd,
        Err(e) => {
            log::warn!("{} lost a connection: cannot remove it from epoll: {e}", state.tag);
            return HandoverOutcome::Gone;
        }
    };
    let word = WorkerReport::HandOverConnection(sent_along);
    let sent =
        tokio::time::timeout(HANDOVER_SEND_TIMEOUT, state.channel.send_with_fd(&word, fd.as_fd()))
            .await;
    match sent {
        Ok(Ok(())) => {
            state.worker_page.connection_handed_over();
            return HandoverOutcome::Gone;
        }
        Ok(Err(e)) => log::debug!("{} cannot hand a connection over: {e}", state.tag),
        Err(_) => {
            log::debug!("{} cannot hand a connection over: the channel is full", state.tag)
        }
    }
    HandoverOutcome::Kept(LazyStream::new(fd, unix), unread)
}

/// Serves a connection that another worker handed over, or that another process has only accepted.
///
/// Existing clients bypass the limit on connections. A worker that drains meanwhile hands the connection on.
pub(crate) fn take_over_connection(
    state: &Rc<LocalWorkerState>,
    fd: OwnedFd,
    handed_over: HandoverState,
) {
    let app = state.app.borrow().clone();
    let Some(app) = app.as_ref() else {
        return log::warn!("{} received a connection before it was ready", state.tag);
    };
    let is_unix = prefork_os::socket::is_unix_stream(&fd);
    let unix = match is_unix.and_then(|unix| prefork_os::fd::set_nonblocking(&fd).map(|()| unix)) {
        Ok(unix) => unix,
        Err(e) => {
            return log::warn!("{} received a descriptor that is not a connection: {e}", state.tag);
        }
    };
    let starter = app.connection_starter(state);
    let connection = starter.describe_received(fd, unix);
    match handed_over.history() {
        ConnectionHistory::Accepted => starter.start_taken_over(connection),
        ConnectionHistory::Served(proxied) => {
            starter.resume_taken_over(connection, handed_over.into_unread_bytes(), proxied);
        }
    }
}
