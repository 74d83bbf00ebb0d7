//! Writes what hyper sends: at once, with the responses that follow, or with a large chunk that hyper does not copy.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

use super::HyperIo;
use crate::worker::http::connection_state::{CloseRequest, ConnectionState};
use crate::worker::lazy_stream::LazyStream;

/// How many response bytes may wait to be sent with the next response.
const MAX_UNSENT: usize = 32 * 1024;
/// The first capacity for such bytes: 16 short responses, instead of growing with each of them.
const UNSENT_CAPACITY: usize = 4 * 1024;
/// The largest single write that waits for the next response, in bytes.
const MAX_UNSENT_WRITE: usize = 8 * 1024;

impl<H> HyperIo<H> {
    /// Records the outcome of a write, and returns it.
    fn record_write(
        &self,
        outcome: Poll<io::Result<usize>>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let now_ms = self.meter.coarse_now_ms();
        match &outcome {
            Poll::Ready(Ok(n)) => {
                self.meter.add_bytes_out(*n);
                self.conn.record_written(pieces, *n, now_ms);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let written = self.conn.written_bytes();
                let stream = self.stream.as_ref();
                let acknowledged = stream.map_or(0, |stream| stream.acknowledged_bytes(written));
                self.conn.record_write_blocked(acknowledged, now_ms);
            }
        }
        self.conn.record_write(outcome.is_pending(), now_ms);
        outcome
    }

    /// Whether the next request is already here, so that both responses can be sent together.
    fn has_next_request(&mut self) -> bool {
        !self.received.is_empty()
            && self.conn.close_request() == CloseRequest::None
            && self
                .boundary
                .as_mut()
                .is_some_and(|b| b.has_next_head(&self.received[self.validated..]))
    }

    /// Keeps bytes to send them with the next response.
    fn delay_write(&mut self, pieces: &[IoSlice<'_>]) {
        if self.unsent.is_empty() {
            self.unsent.reserve(UNSENT_CAPACITY);
        }
        pieces.iter().for_each(|piece| self.unsent.extend_from_slice(piece));
        self.conn.record_write(false, self.meter.coarse_now_ms());
    }

    /// Whether to delay sending `length` more bytes until the next response.
    fn should_delay_write(&mut self, length: usize) -> bool {
        let is_small = length <= MAX_UNSENT_WRITE && self.unsent.len() + length <= MAX_UNSENT;
        is_small && (!self.unsent.is_empty() || self.has_next_request())
    }

    /// Writes `copied` and the large chunk behind it. Returns how many bytes of `copied` were written.
    fn poll_write_with_chunk(
        &mut self,
        cx: &mut Context<'_>,
        copied: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send_unsent(cx))?;
        let mut chunk = self.conn.direct_chunk.take();
        let pieces = [IoSlice::new(copied), IoSlice::new(&chunk)];
        let outcome = poll_send(self.stream.as_mut(), &self.conn, cx, &pieces);
        let outcome = self.record_write(outcome, &pieces);
        let written = if let Poll::Ready(Ok(written)) = outcome { written } else { 0 };
        chunk.advance(written.saturating_sub(copied.len()));
        self.conn.direct_chunk.put(chunk);
        outcome.map_ok(|written| written.min(copied.len()))
    }

    fn poll_send_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.conn.direct_chunk.is_full() {
            let mut chunk = self.conn.direct_chunk.take();
            let pieces = [IoSlice::new(&chunk)];
            let outcome = poll_send(self.stream.as_mut(), &self.conn, cx, &pieces);
            let outcome = self.record_write(outcome, &[]);
            if let Poll::Ready(Ok(written)) = outcome {
                chunk.advance(written);
            }
            self.conn.direct_chunk.put(chunk);
            if ready!(outcome)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let pieces = [IoSlice::new(&self.unsent)];
            let outcome = poll_send(self.stream.as_mut(), &self.conn, cx, &pieces);
            let sent = ready!(self.record_write(outcome, &[]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

/// Writes to the socket. The last bytes of the connection leave with its end.
fn poll_send(
    stream: Option<&mut LazyStream>,
    conn: &ConnectionState,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let stream = Pin::new(stream.ok_or_else(gone)?);
    match pieces {
        pieces if conn.is_last_write() => stream.poll_write_before_shutdown(cx, pieces),
        [bytes] => stream.poll_write(cx, bytes),
        pieces => stream.poll_write_vectored(cx, pieces),
    }
}

impl<H> AsyncWrite for HyperIo<H> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.conn.direct_chunk.is_full() {
            return self.get_mut().poll_write_with_chunk(cx, buf);
        }
        let this = self.get_mut();
        if !this.unsent.is_empty() || !this.received.is_empty() {
            if this.should_delay_write(buf.len()) {
                this.delay_write(&[IoSlice::new(buf)]);
                return Poll::Ready(Ok(buf.len()));
            }
            ready!(this.poll_send_unsent(cx))?;
        }
        let pieces = [IoSlice::new(buf)];
        let outcome = match this.conn.is_last_write() {
            true => poll_send(this.stream.as_mut(), &this.conn, cx, &pieces),
            // Most writes. Through `poll_send`, which has other callers, they cost 50 instructions more.
            false => this.stream()?.poll_write(cx, buf),
        };
        this.record_write(outcome, &pieces)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.unsent.is_empty() || !this.received.is_empty() {
            let length = bufs.iter().map(|buf| buf.len()).sum();
            if this.should_delay_write(length) {
                this.delay_write(bufs);
                return Poll::Ready(Ok(length));
            }
            ready!(this.poll_send_unsent(cx))?;
        }
        let outcome = poll_send(this.stream.as_mut(), &this.conn, cx, bufs);
        this.record_write(outcome, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unsent.is_empty() {
            // The next response follows at once; if its handler waits, the next flush sends these bytes.
            if !this.conn.has_active_request() && this.has_next_request() {
                this.conn.record_flush();
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_send_unsent(cx))?;
        }
        ready!(this.poll_send_chunk(cx))?;
        let outcome = this.stream()?.poll_flush(cx);
        match &outcome {
            Poll::Ready(Ok(())) => {
                if std::mem::take(&mut this.is_flush_blocked) {
                    let _ = this.record_write(Poll::Ready(Ok(0)), &[]);
                }
                this.conn.set_flushed();
                this.conn.record_flush();
            }
            Poll::Ready(Err(_)) => {}
            // TLS: rustls has taken the bytes, but the socket has not.
            Poll::Pending => {
                this.is_flush_blocked = true;
                let _ = this.record_write(Poll::Pending, &[]);
            }
        }
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_unsent(cx))?;
        // Another worker goes on with the connection, or the response to a rejected request is still to be sent.
        if this.conn.is_handing_over() || this.conn.is_rejected() {
            return Poll::Ready(Ok(()));
        }
        let outcome = this.stream()?.poll_shutdown(cx);
        this.is_shut_down |= matches!(outcome, Poll::Ready(Ok(())));
        outcome
    }
}
