//! The I/O object between one connection's socket and hyper: validates requests, counts bytes, obeys close requests.
//!
//! hyper sees one request at a time. Bytes behind it wait in `received` until the response ends, and are forwarded
//! only if they are a valid request (see `request_boundary`). Responses to pipelined requests are sent with one
//! write: while the next request is already here, written bytes are collected in `unsent`.

mod write;

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::connection_state::{CloseRequest, ConnectionState};
use super::half_close::{HalfCloseVerdict, HalfClosedClient};
use super::lingering_socket::{LingeringSocket, LingeringSocketSlot, first_line};
use super::request_boundary::{BoundaryProgress, RequestBoundaryScanner};
use crate::client::ConnectionInfo;
use crate::config::{Config, HalfClosePolicy};
use crate::scoreboard::ByteMeter;
use crate::worker::lazy_stream::{LazyStream, bound_by_keys};

/// Size of the stack buffer for reading ahead, in bytes.
const READ_AHEAD_BUFFER_SIZE: usize = 2048;
/// How many bytes to read ahead while a request is in progress, before TCP back-pressure stops the client.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// The `AsyncRead + AsyncWrite` that hyper serves a connection on.
///
/// A type of its own for each `ServeContext`, so that each function of hyper's connection has one caller in a server with one
/// application: the compiler then inlines it, which saves 220 instructions per request.
pub(crate) struct HyperIo<H> {
    /// `None` only while being dropped.
    stream: Option<LazyStream>,
    /// Received bytes that are not yet forwarded to hyper.
    received: BytesMut,
    /// How many bytes at the start of `received` are validated and wait for room in hyper's buffer.
    validated: usize,
    /// `None` for HTTP/2, whose frames hyper validates.
    boundary: Option<RequestBoundaryScanner>,
    /// The client has closed its sending side.
    is_at_eof: bool,
    /// Bytes written by hyper, to be sent with the next response.
    unsent: BytesMut,
    /// The sending side has been shut down, over TLS with close_notify.
    is_shut_down: bool,
    /// The last flush would have blocked.
    is_flush_blocked: bool,
    /// What to do when a client closes its sending side while it waits for a response.
    half_close: HalfClosePolicy,
    /// The client, once it has done so.
    half_closed_client: Option<HalfClosedClient>,
    conn: Arc<ConnectionState>,
    meter: ByteMeter,
    lingering: LingeringSocketSlot,
    /// Where the connection comes from, if it had a PROXY header: for the worker that gets it after an upgrade.
    pub(crate) info: Option<ConnectionInfo>,
    context: PhantomData<fn() -> H>,
}

impl<H> HyperIo<H> {
    /// Creates the I/O object of an HTTP/1 connection; `first` holds the bytes already received.
    pub(crate) fn http1(
        stream: LazyStream,
        first: Bytes,
        conn: Arc<ConnectionState>,
        meter: ByteMeter,
        config: &Config,
        info: Option<&ConnectionInfo>,
    ) -> HyperIo<H> {
        let boundary = RequestBoundaryScanner::new(config.max_header_size);
        let mut hyper_io = HyperIo::new(stream, first, conn, meter, Some(boundary));
        hyper_io.half_close = config.half_close;
        hyper_io.info = info.filter(|info| info.proxied_client().is_some()).cloned();
        hyper_io
    }

    /// Creates the I/O object of an HTTP/2 connection; `first` holds the bytes already received.
    pub(crate) fn http2(
        stream: LazyStream,
        first: Bytes,
        conn: Arc<ConnectionState>,
        meter: ByteMeter,
    ) -> HyperIo<H> {
        HyperIo::new(stream, first, conn, meter, None)
    }

    fn new(
        stream: LazyStream,
        first: Bytes,
        conn: Arc<ConnectionState>,
        meter: ByteMeter,
        boundary: Option<RequestBoundaryScanner>,
    ) -> HyperIo<H> {
        let hyper_io = HyperIo {
            stream: Some(stream),
            received: first.into(),
            validated: 0,
            boundary,
            is_at_eof: false,
            unsent: BytesMut::new(),
            is_shut_down: false,
            is_flush_blocked: false,
            half_close: HalfClosePolicy::Cancel,
            half_closed_client: None,
            conn,
            meter,
            lingering: LingeringSocketSlot::default(),
            info: None,
            context: PhantomData,
        };
        if !hyper_io.received.is_empty() {
            hyper_io.record_received(hyper_io.received.len());
        }
        hyper_io
    }

    /// Returns where the socket is left when hyper drops this.
    pub(crate) fn lingering_slot(&self) -> LingeringSocketSlot {
        self.lingering.clone()
    }

    /// Returns the socket and the bytes that hyper has not seen.
    pub(crate) fn into_parts(mut self) -> Option<(LazyStream, Bytes)> {
        Some((self.stream.take()?, std::mem::take(&mut self.received).freeze()))
    }

    /// Returns the socket of an upgraded connection, and the bytes that the application has not read.
    pub(crate) fn into_upgraded_parts(mut self) -> io::Result<(LazyStream, Bytes)> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        if self.stream.as_ref().is_some_and(LazyStream::is_tls) {
            return Err(bound_by_keys());
        }
        if !self.unsent.is_empty() {
            let stream = self.stream.as_ref().ok_or_else(gone)?;
            let sent = prefork_os::socket::write_nonblocking(stream.socket_fd()?, &self.unsent)?;
            self.meter.add_bytes_out(sent);
            self.unsent.advance(sent);
        }
        match self.unsent.is_empty() {
            true => self.into_parts().ok_or_else(gone),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn record_received(&self, length: usize) {
        self.meter.add_bytes_in(length);
        let now_ms = self.meter.coarse_now_ms();
        self.conn.record_received(now_ms);
        if self.boundary.is_some() {
            self.conn.receiving.record_and_stop(length as u64, now_ms);
        }
    }

    /// HTTP/2: follows the frames in bytes that go to hyper.
    fn record_frames(&self, bytes: &[u8]) {
        if let Some(streams) = self.conn.http2() {
            streams.record_client_bytes(bytes, self.meter.coarse_now_ms());
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut LazyStream>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.stream.as_mut().map(Pin::new).ok_or_else(gone)
    }

    /// Reads from the socket into `buf`. Returns the number of bytes; 0 means end of file.
    fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let before = buf.filled().len();
        match self.stream()?.poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            // A TLS client that has closed the connection without saying so: HTTP knows itself whether a message is complete.
            Poll::Ready(Err(e))
                if e.kind() == io::ErrorKind::UnexpectedEof && !self.conn.is_upgraded() => {}
            Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            Poll::Pending => {
                if self.stream()?.is_within_tls_record() {
                    self.conn.record_partial_record(self.meter.coarse_now_ms());
                }
                return Poll::Pending;
            }
        }
        let length = buf.filled().len() - before;
        if length == 0 {
            self.is_at_eof = true;
            self.conn.set_peer_done();
        } else {
            self.record_received(length);
        }
        Poll::Ready(Ok(length))
    }

    /// Reads from the socket and appends to `received`. Returns the number of bytes; 0 means end of file.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the stack: most reads find nothing, and heap buffers of idle connections add up.
        let mut buffer = [MaybeUninit::uninit(); READ_AHEAD_BUFFER_SIZE];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        let length = ready!(self.poll_socket(cx, &mut buffer))?;
        self.received.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(length))
    }

    /// Moves validated bytes into hyper's buffer, as far as there is room.
    fn forward_validated(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.validated.min(buf.remaining());
        buf.put_slice(&self.received[..length]);
        self.received.advance(length);
        self.validated -= length;
        if self.received.is_empty() {
            // Idle connections are many, so they keep no buffer.
            self.received = BytesMut::new();
        }
    }

    /// Returns pending, or end of file if the connection shall close. Called only when nothing is left to read, so that
    /// every received request gets a response.
    fn pending_or_eof(&self) -> Poll<io::Result<()>> {
        let should_close =
            self.conn.close_request() != CloseRequest::None && !self.conn.is_upgraded();
        if should_close { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Reads without validation: HTTP/2 frames, or the application's protocol after an upgrade.
    fn poll_read_unvalidated(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if !self.received.is_empty() {
            self.validated = self.received.len();
            self.forward_validated(buf);
            self.record_frames(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        if self.conn.should_defer_read() {
            return Poll::Pending;
        }
        match self.poll_socket(cx, buf) {
            Poll::Pending => self.pending_or_eof(),
            Poll::Ready(outcome) => {
                self.record_frames(&buf.filled()[before..]);
                Poll::Ready(outcome.map(drop))
            }
        }
    }

    /// Reads ahead while a fully received request is in progress, which detects that the client is gone. The bytes wait
    /// until the response ends.
    fn poll_read_while_responding(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.should_defer_read() {
            return Poll::Pending;
        }
        if self.is_read_ahead_blocked(cx) {
            if !self.received.is_empty() {
                self.conn.set_has_held_back_bytes(true);
            }
            return Poll::Pending;
        }
        while !self.is_at_eof && self.received.len() < MAX_READ_AHEAD {
            match self.poll_read_ahead(cx)? {
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        if self.is_at_eof && self.conn.has_active_request() && self.is_client_gone(cx) {
            return match self.received.is_empty() {
                true => Poll::Ready(Ok(())),
                false => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        // hyper sees the end of file, too, only between two requests.
        if self.is_at_eof || !self.received.is_empty() {
            self.conn.set_has_held_back_bytes(true);
        }
        Poll::Pending
    }

    /// Whether there is nothing to read ahead at the moment.
    fn is_read_ahead_blocked(&self, cx: &mut Context<'_>) -> bool {
        let is_blocked = |stream: &LazyStream| stream.is_read_blocked(cx);
        !self.is_at_eof && self.stream.as_ref().is_some_and(is_blocked)
    }

    /// Whether a half-closed client no longer reads. Each heartbeat checks again.
    fn is_client_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let now_ms = self.meter.coarse_now_ms();
        let Some(stream) = &mut self.stream else { return true };
        self.conn.set_half_closed();
        let client = self.half_closed_client.get_or_insert_with(|| HalfClosedClient::new(now_ms));
        let mode = match self.half_close {
            // Pipelined requests that arrived before the end of file still get responses.
            HalfClosePolicy::Cancel if !self.received.is_empty() => HalfClosePolicy::Finish,
            mode => mode,
        };
        let Ok(fd) = stream.socket_fd() else { return true };
        let is_hung_up = mode != HalfClosePolicy::Cancel && prefork_os::socket::is_hung_up(fd);
        let (conn, is_unix) = (&self.conn, stream.is_unix());
        let send = |probe: &[u8]| stream.write_now(cx, probe);
        match client.check_client(mode, conn, is_hung_up, is_unix, now_ms, send) {
            HalfCloseVerdict::MayRead => false,
            HalfCloseVerdict::ProbeSent(length) => {
                self.meter.add_bytes_out(length);
                false
            }
            HalfCloseVerdict::Gone => true,
        }
    }

    /// Forwards the next bytes of one request, and none of the request behind it.
    fn poll_read_request(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.validated > 0 {
            self.forward_validated(buf);
            return Poll::Ready(Ok(()));
        }
        loop {
            if !self.received.is_empty() {
                match self.validate(None)? {
                    ReadStep::Forward(length) => {
                        self.validated = length;
                        self.forward_validated(buf);
                        return Poll::Ready(Ok(()));
                    }
                    ReadStep::Eof => return Poll::Ready(Ok(())),
                    // The header timeout runs from now on, even if the bytes arrived earlier.
                    ReadStep::NeedMore => self.conn.record_received(self.meter.coarse_now_ms()),
                }
            }
            if self.is_at_eof {
                return Poll::Ready(Ok(()));
            }
            if self.conn.should_defer_read() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            let read = match self.received.is_empty() {
                true => self.poll_socket(cx, buf),
                false => self.poll_read_ahead(cx),
            };
            let Poll::Ready(length) = read else {
                if self.conn.has_active_request() {
                    // The handler waits for the rest of the request body.
                    self.conn.receiving.start(self.meter.coarse_now_ms());
                }
                return self.pending_or_eof();
            };
            if length? == 0 {
                return Poll::Ready(Ok(()));
            }
            if !self.received.is_empty() {
                continue;
            }
            // The bytes are in hyper's buffer already: takes out what must not be forwarded yet.
            let read = &buf.filled()[before..];
            if let Some(boundary) = &mut self.boundary
                && boundary.forward_lone_head(read)
            {
                return Poll::Ready(Ok(()));
            }
            let step = self.validate(Some(read))?;
            let forwarded = if let ReadStep::Forward(length) = step { length } else { 0 };
            self.received.extend_from_slice(&buf.filled()[before + forwarded..]);
            buf.set_filled(before + forwarded);
            if !matches!(step, ReadStep::NeedMore) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Validates `input`, or `received` if it is `None`, and returns what to do with it.
    fn validate(&mut self, input: Option<&[u8]>) -> io::Result<ReadStep> {
        let Some(boundary) = &mut self.boundary else { return Ok(ReadStep::NeedMore) };
        match boundary.advance(input.unwrap_or(&self.received)) {
            Ok(BoundaryProgress::Forward(length)) => Ok(ReadStep::Forward(length)),
            Ok(BoundaryProgress::NeedMore) => Ok(ReadStep::NeedMore),
            Err(rejection) if self.conn.has_active_request() => {
                self.conn.reject_body(rejection);
                Err(io::Error::new(io::ErrorKind::InvalidData, rejection.reason()))
            }
            // hyper sees an end of file between two requests; the response is sent after hyper has released the socket.
            Err(rejection) => {
                self.conn.reject_head(rejection);
                Ok(ReadStep::Eof)
            }
        }
    }
}

/// What to do with received bytes.
enum ReadStep {
    /// Forward this many bytes to hyper.
    Forward(usize),
    /// Read more bytes first.
    NeedMore,
    /// Report end of file to hyper.
    Eof,
}

impl<H> AsyncRead for HyperIo<H> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(boundary) = this.boundary.as_ref().filter(|_| !this.conn.is_upgraded()) else {
            return this.poll_read_unvalidated(cx, buf);
        };
        if this.conn.is_rejected() {
            return Poll::Ready(Ok(()));
        }
        if this.validated == 0 && boundary.is_complete() {
            this.conn.set_request_read();
            if !this.conn.is_ready_for_next_request() {
                return this.poll_read_while_responding(cx);
            }
            if boundary.is_last() {
                return Poll::Ready(Ok(()));
            }
        }
        this.conn.set_has_held_back_bytes(false);
        let outcome = this.poll_read_request(cx, buf);
        if let Some(boundary) = &this.boundary {
            let is_complete = boundary.is_complete() && this.validated == 0;
            this.conn.set_request_progress(is_complete, boundary.is_last());
        }
        outcome
    }
}

impl<H> Drop for HyperIo<H> {
    /// Leaves the socket for `close_with_linger`, unless nothing more can arrive or the application owns it: closing a
    /// socket that has unread bytes resets it, and the reset can destroy the last response.
    fn drop(&mut self) {
        if self.conn.close_request() == CloseRequest::Now
            && self.conn.sending.is_waiting()
            && let Some(fd) = self.stream.as_ref().and_then(|stream| stream.socket_fd().ok())
        {
            // The client reads nothing, and the kernel would keep the unsent bytes for minutes.
            let _ = prefork_os::socket::set_reset_on_close(fd);
        }
        let has_nothing_to_lose = self.conn.is_peer_done()
            && self.received.is_empty()
            && self.unsent.is_empty()
            && !self.conn.is_rejected();
        // hyper does not shut a connection down whose client has asked for an upgrade in vain.
        let lacks_close_notify =
            !self.is_shut_down && self.stream.as_ref().is_some_and(LazyStream::is_tls);
        let is_closed = self.conn.is_upgraded() || (has_nothing_to_lose && !lacks_close_notify);
        let unsent = std::mem::take(&mut self.unsent);
        let is_rejected = self.conn.rejected_head().is_some();
        let refused_line =
            if is_rejected { first_line(&self.received).to_vec() } else { Vec::new() };
        let socket = self.stream.take();
        let socket = socket.map(|stream| LingeringSocket { stream, unsent, refused_line });
        self.lingering.store_socket(socket.filter(|_| !is_closed));
    }
}
