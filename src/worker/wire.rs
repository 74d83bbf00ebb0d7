//! The bytes of one HTTP connection: between the socket and hyper, counting, and giving the worker a say in
//! when the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::conn::{Conn, Told};
use super::link::Link;
use crate::scoreboard::Meter;

/// Raw bytes kept to look at the framing headers of a request as they were sent.
const KEPT: usize = 16 * 1024;

/// Where a socket is left when hyper has finished with it, so that it can be closed politely.
#[derive(Clone, Default)]
pub(super) struct Leftover(Arc<(Mutex<Option<Link>>, Notify)>);

impl Leftover {
    /// The socket, if it was left.
    pub(super) fn take(&self) -> Option<Link> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Resolves when nobody uses the connection any more, be it hyper or, after an upgrade, the application.
    pub(super) async fn left(&self) {
        self.0.1.notified().await;
    }

    fn leave(&self, link: Option<Link>) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = link;
        self.0.1.notify_one();
    }
}

/// What was received last, as it came.
pub(super) type Recent = Arc<Mutex<Vec<u8>>>;

/// Whether these are the first bytes of all the `received` ones.
pub(super) fn is_beginning(recent: &[u8], received: u64) -> bool {
    recent.len() as u64 == received.min(KEPT as u64)
}

/// What hyper reads from and writes to.
pub(super) struct Wire {
    /// `None` only while being dropped.
    link: Option<Link>,
    /// Received before hyper was there.
    first: Bytes,
    conn: Arc<Conn>,
    meter: Meter,
    recent: Recent,
    leftover: Leftover,
}

impl Wire {
    pub(super) fn new(link: Link, first: Bytes, conn: Arc<Conn>, meter: Meter) -> Wire {
        Wire {
            link: Some(link),
            first,
            conn,
            meter,
            recent: Recent::default(),
            leftover: Leftover::default(),
        }
    }

    pub(super) fn leftover(&self) -> Leftover {
        self.leftover.clone()
    }

    pub(super) fn recent(&self) -> Recent {
        Arc::clone(&self.recent)
    }

    fn note_received(&self, bytes: &[u8]) {
        self.meter.bytes_in(bytes.len());
        self.conn.received(bytes, self.meter.now_ms());
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.is_empty() {
            // A head is at the beginning.
            recent.extend_from_slice(&bytes[..bytes.len().min(KEPT)]);
            return;
        }
        if recent.len() + bytes.len() > KEPT {
            recent.clear();
        }
        // Never quite full, by which it can be told from a beginning.
        recent.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT - 1)..]);
    }

    /// The socket and what nobody has read, when hyper has let go of it.
    pub(super) fn into_parts(mut self) -> Option<(Link, Bytes)> {
        Some((self.link.take()?, std::mem::take(&mut self.first)))
    }

    fn note_sent(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &outcome {
            self.meter.bytes_out(*n);
        }
        self.conn.sent(outcome.is_pending(), self.meter.now_ms());
        outcome
    }

    fn link(&mut self) -> io::Result<Pin<&mut Link>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.link.as_mut().map(Pin::new).ok_or_else(gone)
    }
}

impl AsyncRead for Wire {
    /// A connection that was told to finish sees its end here, but only when nothing waits to be read: a
    /// request that has reached us is answered, never reset.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            let n = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first[..n]);
            let taken = this.first.split_to(n);
            this.note_received(&taken);
            return Poll::Ready(Ok(()));
        }
        if this.conn.puts_off() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        match this.link()?.poll_read(cx, buf) {
            Poll::Pending if this.conn.told() != Told::Nothing && !this.conn.upgraded() => {
                Poll::Ready(Ok(()))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => {
                outcome?;
                let bytes = &buf.filled()[before..];
                if bytes.is_empty() {
                    this.conn.set_peer_done();
                } else {
                    this.note_received(bytes);
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = this.link()?.poll_write(cx, buf);
        this.note_sent(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = this.link()?.poll_write_vectored(cx, bufs);
        this.note_sent(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = this.link()?.poll_flush(cx);
        if let Poll::Ready(Ok(())) = &outcome {
            this.conn.flushed();
        }
        outcome
    }

    /// A connection that travels goes on in another worker.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.conn.leaving() {
            return Poll::Ready(Ok(()));
        }
        this.link()?.poll_shutdown(cx)
    }
}

impl Drop for Wire {
    /// Closing a socket that has unread bytes resets it, and a reset can overtake the last response. So the
    /// socket is left for `close_politely`, unless the peer is through or the application has it.
    fn drop(&mut self) {
        let polite = !self.conn.peer_done() && !self.conn.upgraded();
        self.leftover.leave(self.link.take().filter(|_| polite));
    }
}

/// Closes our side and reads on until the peer closes its own: RFC 9112, section 9.6. Ended from outside when
/// it takes too long.
pub(super) async fn close_politely(mut link: Link) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    if link.shutdown().await.is_err() {
        return;
    }
    // What still comes is thrown away; a peer that never stops is a peer that does not listen.
    let mut waste = vec![0u8; 16 * 1024].into_boxed_slice();
    for _ in 0..256 {
        match link.read(&mut waste).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
}
