//! The socket of a connection that hyper has released: it is closed without losing the last response.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::worker::lazy_stream::LazyStream;

/// A socket that hyper has released, with bytes still to be sent on it.
pub(crate) struct LingeringSocket {
    pub(crate) stream: LazyStream,
    pub(crate) unsent: BytesMut,
    /// The first line of a request that was refused before it reached hyper.
    pub(crate) refused_line: Vec<u8>,
}

/// The most bytes that are kept of the first line of a refused request.
const MAX_REFUSED_LINE: usize = 8 * 1024;

/// Where `HyperIo` leaves the socket when hyper drops it, so that it can be closed without losing a response.
#[derive(Clone, Default)]
pub(crate) struct LingeringSocketSlot(Arc<(Mutex<Option<LingeringSocket>>, Notify)>);

impl LingeringSocketSlot {
    /// Takes the socket, if hyper has released it.
    pub(crate) fn take_socket(&self) -> Option<LingeringSocket> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until hyper, or the application after an upgrade, drops the connection.
    pub(crate) async fn wait_released(&self) {
        self.0.1.notified().await;
    }

    pub(super) fn store_socket(&self, socket: Option<LingeringSocket>) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        self.0.1.notify_one();
    }
}

/// Returns the first line of a request head, without its end.
pub(crate) fn first_line(head: &[u8]) -> &[u8] {
    // RFC 9112 lets empty lines stand before it.
    let start = head.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(0);
    let head = &head[start..];
    let end = memchr::memchr(b'\n', head).unwrap_or(head.len()).min(MAX_REFUSED_LINE);
    head[..end].strip_suffix(b"\r").unwrap_or(&head[..end])
}

/// Closes the sending side, then reads until the client closes its side (RFC 9112, section 9.6).
///
/// Calls `should_continue` after each read. The caller limits the wait for a client that sends nothing.
pub(crate) async fn close_with_linger(mut stream: LazyStream, should_continue: impl Fn() -> bool) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = vec![0u8; 16 * 1024].into_boxed_slice();
    while stream.read(&mut discarded).await.is_ok_and(|length| length > 0) && should_continue() {}
}
