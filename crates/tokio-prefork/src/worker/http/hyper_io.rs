//! The bytes of one HTTP connection: between the socket and hyper, checking and counting them, and giving the worker a
//! say in when the connection ends.
//!
//! hyper sees one request at a time. What comes behind it waits in `received` until the response is over, and is then
//! passed on if it is a request (see `request_boundary`). Responses to requests that came in one piece are written in one
//! piece, too: while the next request is there already, what is to be sent is kept in `unsent`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::connection_state::{Conn, Told};
use super::half_close::{HalfClosed, Peer};
use super::request_boundary::{Progress, RequestBoundary};
use crate::config::{Config, HalfClose};
use crate::scoreboard::Meter;
use crate::worker::lazy_stream::Link;

/// Bytes read at once where they are kept here, on the stack.
const READ_AHEAD_PIECE: usize = 2048;

/// Bytes that are read ahead while a request is answered, beyond which the client has to wait.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// Bytes of responses that wait for the next one, and of the longest piece that does.
const MAX_UNSENT: usize = 32 * 1024;
const MAX_UNSENT_PIECE: usize = 8 * 1024;

/// A socket that hyper has finished with, and what is still to be sent on it.
pub(crate) struct LingeringSocket {
    pub(crate) link: Link,
    pub(crate) unsent: BytesMut,
}

/// Where the socket is left when hyper has finished with it, so that it can be closed without losing a response.
#[derive(Clone, Default)]
pub(crate) struct Leftover(Arc<(Mutex<Option<LingeringSocket>>, Notify)>);

impl Leftover {
    /// The socket, if it was left.
    pub(crate) fn take(&self) -> Option<LingeringSocket> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Resolves when nobody uses the connection any more, be it hyper or, after an upgrade, the application.
    pub(crate) async fn left(&self) {
        self.0.1.notified().await;
    }

    fn leave(&self, socket: Option<LingeringSocket>) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        self.0.1.notify_one();
    }
}

/// What hyper reads from and writes to.
pub(crate) struct Wire {
    /// `None` only while being dropped.
    link: Option<Link>,
    /// Received and not passed on to hyper.
    received: BytesMut,
    /// This many bytes at the beginning of `received` are checked: hyper's buffer had no room for them.
    checked: usize,
    /// `None` for HTTP/2, whose frames are hyper's to check.
    boundary: Option<RequestBoundary>,
    /// The client has ended its side.
    at_end: bool,
    /// Written by hyper, to be sent with the next response.
    unsent: BytesMut,
    /// What becomes of a client that ends its side while it waits for a response, and whether it has.
    half_close: HalfClose,
    half_closed: Option<HalfClosed>,
    conn: Arc<Conn>,
    meter: Meter,
    leftover: Leftover,
}

impl Wire {
    /// `first` was received before hyper was there.
    pub(crate) fn http1(
        link: Link,
        first: Bytes,
        conn: Arc<Conn>,
        meter: Meter,
        config: &Config,
    ) -> Wire {
        let boundary = RequestBoundary::new(config.max_header_size);
        let mut wire = Wire::new(link, first, conn, meter, Some(boundary));
        wire.half_close = config.half_close;
        wire
    }

    pub(crate) fn http2(link: Link, first: Bytes, conn: Arc<Conn>, meter: Meter) -> Wire {
        Wire::new(link, first, conn, meter, None)
    }

    fn new(
        link: Link,
        first: Bytes,
        conn: Arc<Conn>,
        meter: Meter,
        boundary: Option<RequestBoundary>,
    ) -> Wire {
        let wire = Wire {
            link: Some(link),
            received: first.into(),
            checked: 0,
            boundary,
            at_end: false,
            unsent: BytesMut::new(),
            half_close: HalfClose::Cancel,
            half_closed: None,
            conn,
            meter,
            leftover: Leftover::default(),
        };
        if !wire.received.is_empty() {
            wire.note_received(wire.received.len());
        }
        wire
    }

    pub(crate) fn leftover(&self) -> Leftover {
        self.leftover.clone()
    }

    /// The socket and what hyper has not seen, when hyper has let go of it.
    pub(crate) fn into_parts(mut self) -> Option<(Link, Bytes)> {
        Some((self.link.take()?, std::mem::take(&mut self.received).freeze()))
    }

    fn note_received(&self, length: usize) {
        self.meter.bytes_in(length);
        let now_ms = self.meter.now_ms();
        self.conn.received(now_ms);
        if self.boundary.is_some() {
            self.conn.receiving.moved(length as u64, now_ms);
        }
    }

    /// HTTP/2: these bytes go to hyper.
    fn note_frames(&self, bytes: &[u8]) {
        if let Some(streams) = self.conn.http2() {
            streams.received(bytes, self.meter.now_ms());
        }
    }

    fn note_sent(
        &self,
        outcome: Poll<io::Result<usize>>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let now_ms = self.meter.now_ms();
        match &outcome {
            Poll::Ready(Ok(n)) => {
                self.meter.bytes_out(*n);
                self.conn.wrote(pieces, *n, now_ms);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let fd = self.link.as_ref().and_then(|link| link.fd().ok());
                let unsent =
                    fd.and_then(|fd| prefork_os::socket::unsent_bytes(fd).ok()).unwrap_or(0);
                self.conn.cannot_write(unsent, now_ms);
            }
        }
        self.conn.sent(outcome.is_pending(), now_ms);
        outcome
    }

    fn link(&mut self) -> io::Result<Pin<&mut Link>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.link.as_mut().map(Pin::new).ok_or_else(gone)
    }

    /// Reads into `buf`. Returns how many bytes; 0 is the client's end.
    fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let before = buf.filled().len();
        ready!(self.link()?.poll_read(cx, buf))?;
        let length = buf.filled().len() - before;
        if length == 0 {
            self.at_end = true;
            self.conn.set_peer_done();
        } else {
            self.note_received(length);
        }
        Poll::Ready(Ok(length))
    }

    /// Reads behind what is in `received`. Returns how many bytes; 0 is the client's end.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the stack: most reads find nothing, and buffers of idle connections add up.
        let mut piece = [MaybeUninit::uninit(); READ_AHEAD_PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        let length = ready!(self.poll_socket(cx, &mut piece))?;
        self.received.extend_from_slice(piece.filled());
        Poll::Ready(Ok(length))
    }

    /// Passes on what is checked, as far as there is room.
    fn pass_checked(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.checked.min(buf.remaining());
        buf.put_slice(&self.received[..length]);
        self.received.advance(length);
        self.checked -= length;
        if self.received.is_empty() {
            // Idle connections are many: they keep no buffer.
            self.received = BytesMut::new();
        }
    }

    /// Nothing is to be read: the connection waits, or sees its end if it was told to finish. Only then: a request that
    /// has reached us is answered, never reset.
    fn wait_or_end(&self) -> Poll<io::Result<()>> {
        let is_told = self.conn.told() != Told::Nothing && !self.conn.upgraded();
        if is_told { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// HTTP/2, or what the application speaks after an upgrade.
    fn poll_read_unchecked(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if !self.received.is_empty() {
            self.checked = self.received.len();
            self.pass_checked(buf);
            self.note_frames(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        if self.conn.puts_off() {
            return Poll::Pending;
        }
        match self.poll_socket(cx, buf) {
            Poll::Pending => self.wait_or_end(),
            Poll::Ready(outcome) => {
                self.note_frames(&buf.filled()[before..]);
                Poll::Ready(outcome.map(drop))
            }
        }
    }

    /// A request is being answered, and all of it was passed on: the next one has to wait. Reads ahead, which tells
    /// whether the client is gone.
    fn poll_read_ahead_of_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.puts_off() {
            return Poll::Pending;
        }
        while !self.at_end && self.received.len() < MAX_READ_AHEAD {
            match self.poll_read_ahead(cx)? {
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        if self.at_end && self.conn.is_answering() && self.is_client_gone() {
            return match self.received.is_empty() {
                true => Poll::Ready(Ok(())),
                false => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        // The client's end, too, is shown to hyper only between two requests.
        if self.at_end || !self.received.is_empty() {
            self.conn.set_held_back(true);
        }
        Poll::Pending
    }

    /// Whether a client that has ended its side is there no more. Asked again at each heartbeat.
    fn is_client_gone(&mut self) -> bool {
        let now_ms = self.meter.now_ms();
        let Some((link, fd)) = self.link.as_ref().and_then(|l| Some((l, l.fd().ok()?))) else {
            return true;
        };
        self.conn.set_half_closed();
        let client = self.half_closed.get_or_insert_with(|| HalfClosed::new(now_ms));
        let mode = match self.half_close {
            // Requests that came before its end are answered all the same.
            HalfClose::Cancel if !self.received.is_empty() => HalfClose::Finish,
            mode => mode,
        };
        match client.look(mode, &self.conn, fd, link.is_unix(), now_ms) {
            Peer::MayRead => false,
            Peer::Probed(length) => {
                self.meter.bytes_out(length);
                false
            }
            Peer::Gone => true,
        }
    }

    /// Passes on what comes next of a request, and of one only.
    fn poll_read_request(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.checked > 0 {
            self.pass_checked(buf);
            return Poll::Ready(Ok(()));
        }
        loop {
            if !self.received.is_empty() {
                match self.advance(None)? {
                    Step::Pass(length) => {
                        self.checked = length;
                        self.pass_checked(buf);
                        return Poll::Ready(Ok(()));
                    }
                    Step::End => return Poll::Ready(Ok(())),
                    // Its time has begun, whenever it was received.
                    Step::More => self.conn.received(self.meter.now_ms()),
                }
            }
            if self.at_end {
                return Poll::Ready(Ok(()));
            }
            if self.conn.puts_off() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            let read = match self.received.is_empty() {
                true => self.poll_socket(cx, buf),
                false => self.poll_read_ahead(cx),
            };
            let Poll::Ready(length) = read else {
                if self.conn.is_answering() {
                    // The rest of a body that the handler wants.
                    self.conn.receiving.wait(self.meter.now_ms());
                }
                return self.wait_or_end();
            };
            if length? == 0 {
                return Poll::Ready(Ok(()));
            }
            if !self.received.is_empty() {
                continue;
            }
            // In hyper's buffer already: what is not to be passed on is taken out of it.
            let step = self.advance(Some(&buf.filled()[before..]))?;
            let passed = if let Step::Pass(length) = step { length } else { 0 };
            self.received.extend_from_slice(&buf.filled()[before + passed..]);
            buf.set_filled(before + passed);
            if !matches!(step, Step::More) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// What to do with `input`, or with what was received before.
    fn advance(&mut self, input: Option<&[u8]>) -> io::Result<Step> {
        let Some(boundary) = &mut self.boundary else { return Ok(Step::More) };
        match boundary.advance(input.unwrap_or(&self.received)) {
            Ok(Progress::Pass(length)) => Ok(Step::Pass(length)),
            Ok(Progress::More) => Ok(Step::More),
            Err(rejection) if self.conn.is_answering() => {
                self.conn.reject_body(rejection);
                Err(io::Error::new(io::ErrorKind::InvalidData, rejection.reason()))
            }
            // hyper sees a plain end between two requests; the response is written when it has let go of the socket.
            Err(rejection) => {
                self.conn.reject_head(rejection);
                Ok(Step::End)
            }
        }
    }

    /// Whether another request is there, whose response can go out together with this one.
    fn has_next_request(&mut self) -> bool {
        !self.received.is_empty()
            && self.conn.told() == Told::Nothing
            && self
                .boundary
                .as_mut()
                .is_some_and(|b| b.has_next_head(&self.received[self.checked..]))
    }

    /// Whether `length` more bytes are kept until the next response is there.
    fn keeps_unsent(&mut self, length: usize) -> bool {
        let is_small = length <= MAX_UNSENT_PIECE && self.unsent.len() + length <= MAX_UNSENT;
        is_small && (!self.unsent.is_empty() || self.has_next_request())
    }

    fn poll_send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let gone = || io::Error::from(io::ErrorKind::NotConnected);
            let link = Pin::new(self.link.as_mut().ok_or_else(gone)?);
            let outcome = link.poll_write(cx, &self.unsent);
            let sent = ready!(self.note_sent(outcome, &[]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

/// What is done with bytes that were received.
enum Step {
    Pass(usize),
    More,
    /// Nothing is read from here on.
    End,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(boundary) = this.boundary.as_ref().filter(|_| !this.conn.upgraded()) else {
            return this.poll_read_unchecked(cx, buf);
        };
        if this.conn.is_rejected() {
            return Poll::Ready(Ok(()));
        }
        if this.checked == 0 && boundary.is_complete() {
            if !this.conn.is_ready_for_next() {
                return this.poll_read_ahead_of_turn(cx);
            }
            if boundary.is_last() {
                return Poll::Ready(Ok(()));
            }
        }
        this.conn.set_held_back(false);
        let outcome = this.poll_read_request(cx, buf);
        if let Some(boundary) = &this.boundary {
            let is_complete = boundary.is_complete() && this.checked == 0;
            this.conn.set_request(is_complete, boundary.is_last());
        }
        outcome
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.unsent.is_empty() || !this.received.is_empty() {
            let length = bufs.iter().map(|buf| buf.len()).sum();
            if this.keeps_unsent(length) {
                bufs.iter().for_each(|buf| this.unsent.extend_from_slice(buf));
                this.conn.sent(false, this.meter.now_ms());
                return Poll::Ready(Ok(length));
            }
            ready!(this.poll_send_unsent(cx))?;
        }
        let outcome = this.link()?.poll_write_vectored(cx, bufs);
        this.note_sent(outcome, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unsent.is_empty() {
            // The next response comes at once, or the next flush does: a handler that waits holds up nothing.
            if !this.conn.is_answering() && this.has_next_request() {
                this.conn.note_flush();
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_send_unsent(cx))?;
        }
        let outcome = this.link()?.poll_flush(cx);
        if let Poll::Ready(Ok(())) = &outcome {
            this.conn.flushed();
            this.conn.note_flush();
        }
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_unsent(cx))?;
        // It goes on in another worker, or has another response to come.
        if this.conn.leaving() || this.conn.is_rejected() {
            return Poll::Ready(Ok(()));
        }
        this.link()?.poll_shutdown(cx)
    }
}

impl Drop for Wire {
    /// Closing a socket that has unread bytes resets it, and a reset can overtake the last response. So the
    /// socket is left for `close_politely`, unless nothing more can come or the application has it.
    fn drop(&mut self) {
        if self.conn.told() == Told::Cut
            && self.conn.sending.is_waiting()
            && let Some(fd) = self.link.as_ref().and_then(|link| link.fd().ok())
        {
            // The client takes nothing: the kernel would keep what was not sent for minutes.
            let _ = prefork_os::socket::set_reset_on_close(fd);
        }
        let can_lose_nothing = self.conn.peer_done()
            && self.received.is_empty()
            && self.unsent.is_empty()
            && !self.conn.is_rejected();
        let is_closed = self.conn.upgraded() || can_lose_nothing;
        let unsent = std::mem::take(&mut self.unsent);
        let socket = self.link.take().map(|link| LingeringSocket { link, unsent });
        self.leftover.leave(socket.filter(|_| !is_closed));
    }
}

/// Closes our side and reads on until the peer closes its own: RFC 9112, section 9.6. Ended from outside when nothing
/// comes for too long; each read is told to `note_read`, which says whether to go on.
pub(crate) async fn close_politely(mut link: Link, note_read: impl Fn() -> bool) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    if link.shutdown().await.is_err() {
        return;
    }
    // What still comes is thrown away.
    let mut waste = vec![0u8; 16 * 1024].into_boxed_slice();
    while link.read(&mut waste).await.is_ok_and(|length| length > 0) && note_read() {}
}
