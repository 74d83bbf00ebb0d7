//! The state of one connection, shared by the task that serves it and the heartbeat that enforces its timeouts.
//!
//! hyper has no idle timeout, allocates a timer per request for its header timeout, and closes idle connections
//! without checking for unread bytes. So the worker enforces timeouts itself: `HyperIo` and the request handler
//! record the connection's phase here, and each heartbeat `ConnectionRegistry::enforce_timeouts` compares it with the
//! limits. A connection that is too slow gets a `CloseRequest`, which `HyperIo::poll_read` obeys.

mod release;
mod tls_handshake;

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::http2::stream_tracking::Http2StreamTracker;
use super::request_boundary::RequestRejection;
use super::request_record::RequestRecord;
use super::response_chunk::DirectChunkSlot;
use super::timeouts::http_exchange::{HttpExchange, RequestExpiry, TrackedExchanges};
use super::timeouts::transfer_clock::TransferClock;

/// The stage of its life that a connection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ConnectionPhase {
    /// Accepted; no bytes received yet.
    New = 0,
    /// A request head, or the client's part of a TLS handshake, has arrived in part.
    ReadingHead = 1,
    /// One or more requests are being handled.
    Responding = 2,
    /// Between requests.
    Idle = 3,
    /// Closed for writing; the worker reads until the client closes, because an early reset could destroy the last
    /// response.
    Lingering = 4,
}

/// How urgently the worker wants a connection closed. Ordered: a later variant replaces an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CloseRequest {
    /// Keep the connection open.
    None = 0,
    /// Close as soon as no received bytes are left to read.
    WhenIdle = 1,
    /// Close now.
    Now = 2,
}

/// The state of one connection.
///
/// Uses atomics because an upgraded connection may be sent to another thread, and because other threads serve it in the
/// `threads` model. No field depends on the order in which another one is written, so all accesses are relaxed.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    phase: AtomicU8,
    close_request: AtomicU8,
    /// When the phase began, or when bytes last moved in it.
    phase_since_ms: AtomicU64,
    /// Requests being handled; HTTP/2 has several at once.
    active_requests: AtomicU32,
    /// The client sends no more bytes, so closing cannot lose any.
    is_peer_done: AtomicBool,
    /// The application owns the connection after a 101 response or CONNECT.
    is_upgraded: AtomicBool,
    /// The last write would have blocked: the client reads slowly.
    is_write_blocked: AtomicBool,
    /// The last request was received and forwarded to hyper completely.
    is_request_complete: AtomicBool,
    /// No request can follow the last one.
    is_last_request: AtomicBool,
    /// HTTP/1: hyper shuts the connection down in the poll that writes the end of the response in progress.
    closes_after_response: AtomicBool,
    /// HTTP/1: hyper has read the last request to its end. The application may hold an unread body for longer than its response takes.
    is_request_read: AtomicBool,
    /// Received bytes wait until the response ends.
    has_held_back_bytes: AtomicBool,
    /// Why the next request is rejected: a [`RequestRejection`], or 0.
    rejected_head: AtomicU8,
    /// Why the request in progress is rejected, for its body: a [`RequestRejection`], or 0.
    rejected_body: AtomicU8,
    /// hyper has flushed everything it wrote.
    is_flushed: AtomicBool,
    /// hyper has flushed the last response, at least into `HyperIo`. If hyper sees an end of file or the next request
    /// earlier, it treats the current request as aborted and drops the response.
    is_response_flushed: AtomicBool,
    /// The connection cannot be handed over to another worker.
    is_pinned: AtomicBool,
    /// The connection cannot be parked.
    never_parks: AtomicBool,
    /// The task shall release the socket to be parked, if the connection still is idle.
    is_parking_requested: AtomicBool,
    /// hyper releases the socket for a hand-over and must not shut it down.
    is_handing_over: AtomicBool,
    /// Reads return pending without asking the socket.
    defer_reads: AtomicBool,
    /// A read was deferred, so hyper has to be polled again.
    has_deferred_read: AtomicBool,
    /// HTTP/1: the client has closed its sending side while it waits for a response.
    is_half_closed: AtomicBool,
    /// The request in progress is HTTP/1.1, which has interim (1xx) responses.
    accepts_interim_responses: AtomicBool,
    /// When `close_request` was last changed.
    close_request_ms: AtomicU64,
    /// HTTP/1: how long the worker waits for the body of the request in progress.
    pub(crate) receiving: TransferClock,
    /// How long the worker waits for the client to take response bytes.
    pub(crate) sending: TransferClock,
    /// HTTP/1: why the request in progress is ended early: a `RequestExpiry`, or 0.
    request_expiry: AtomicU8,
    /// HTTP/1: the handler has produced the head of the response.
    has_response_started: AtomicBool,
    /// HTTP/1: the response body returned pending when hyper last polled it.
    is_response_body_pending: AtomicBool,
    /// The TLS handshake is in progress, or has just failed.
    is_handshaking: AtomicBool,
    /// The handshake was ended in favour of a newer one.
    is_evicted: AtomicBool,
    /// Bytes written to the socket.
    written: AtomicU64,
    /// Bytes of `written` that the client is known to have acknowledged.
    acknowledged: AtomicU64,
    /// An `UnsentCheck`.
    unsent_check: AtomicU8,
    /// When `unsent_check` was last changed.
    unsent_check_ms: AtomicU64,
    /// HTTP/1: a large chunk of a response body on its way to the socket.
    pub(crate) direct_chunk: DirectChunkSlot,
    /// Requests with timeouts of their own.
    pub(crate) exchanges: TrackedExchanges,
    /// The streams of an HTTP/2 connection; empty for HTTP/1.
    http2: OnceLock<Box<Http2StreamTracker>>,
    /// The record of the request that has upgraded the connection.
    upgrade_record: Mutex<Option<Box<RequestRecord>>>,
    /// How many microseconds the connection was in the accept queue, plus one; 0 if that is unknown or was taken.
    queue_wait_us: AtomicU64,
    /// The stream that the application received last; hyper spawns its task next.
    next_stream: Mutex<Option<Arc<HttpExchange>>>,
}

/// Progress of asking the kernel how many written bytes the client has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UnsentCheck {
    /// No check is under way.
    None = 0,
    /// The connection's task shall ask the kernel.
    Requested = 1,
    /// The task has asked; `sending` is up to date.
    Measured = 2,
}

impl ConnectionState {
    pub(crate) fn new(now_ms: u64) -> ConnectionState {
        ConnectionState {
            phase: AtomicU8::new(ConnectionPhase::New as u8),
            close_request: AtomicU8::new(CloseRequest::None as u8),
            phase_since_ms: AtomicU64::new(now_ms),
            active_requests: AtomicU32::new(0),
            is_peer_done: AtomicBool::new(false),
            is_upgraded: AtomicBool::new(false),
            is_write_blocked: AtomicBool::new(false),
            is_request_complete: AtomicBool::new(true),
            is_last_request: AtomicBool::new(false),
            closes_after_response: AtomicBool::new(false),
            is_request_read: AtomicBool::new(true),
            has_held_back_bytes: AtomicBool::new(false),
            rejected_head: AtomicU8::new(0),
            rejected_body: AtomicU8::new(0),
            is_flushed: AtomicBool::new(true),
            is_response_flushed: AtomicBool::new(true),
            is_pinned: AtomicBool::new(false),
            never_parks: AtomicBool::new(false),
            is_parking_requested: AtomicBool::new(false),
            is_handing_over: AtomicBool::new(false),
            defer_reads: AtomicBool::new(false),
            has_deferred_read: AtomicBool::new(false),
            is_half_closed: AtomicBool::new(false),
            accepts_interim_responses: AtomicBool::new(false),
            close_request_ms: AtomicU64::new(now_ms),
            receiving: TransferClock::default(),
            sending: TransferClock::default(),
            request_expiry: AtomicU8::new(0),
            has_response_started: AtomicBool::new(false),
            is_response_body_pending: AtomicBool::new(false),
            is_handshaking: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            written: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unsent_check: AtomicU8::new(UnsentCheck::None as u8),
            unsent_check_ms: AtomicU64::new(0),
            direct_chunk: DirectChunkSlot::default(),
            exchanges: TrackedExchanges::default(),
            http2: OnceLock::new(),
            upgrade_record: Mutex::new(None),
            queue_wait_us: AtomicU64::new(0),
            next_stream: Mutex::new(None),
        }
    }

    /// Switches to HTTP/2: the phase follows frames instead of bytes from now on.
    pub(crate) fn set_http2(&self, now_ms: u64) {
        self.http2.get_or_init(|| Box::new(Http2StreamTracker::new(now_ms)));
        self.set_phase(ConnectionPhase::Idle, now_ms);
    }

    /// Returns the streams, if this is an HTTP/2 connection.
    pub(crate) fn http2(&self) -> Option<&Http2StreamTracker> {
        self.http2.get().map(|streams| &**streams)
    }

    /// HTTP/2: remembers the stream that reached the application, for the task that hyper spawns next.
    pub(crate) fn set_next_stream(&self, exchange: &Arc<HttpExchange>) {
        *self.next_stream.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(exchange));
    }

    /// Keeps the record of the request that has upgraded the connection, until the connection ends.
    pub(crate) fn set_upgrade_record(&self, record: Box<RequestRecord>) {
        *self.upgrade_record.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }

    /// Takes the record of the request that has upgraded the connection.
    pub(crate) fn take_upgrade_record(&self) -> Option<Box<RequestRecord>> {
        self.upgrade_record.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sets how long the connection was in the accept queue.
    pub(crate) fn set_queue_wait(&self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX - 1);
        self.queue_wait_us.store(micros + 1, Relaxed);
    }

    /// Takes how long the connection was in the accept queue, for its first request.
    pub(crate) fn take_queue_wait(&self) -> Option<Duration> {
        match self.queue_wait_us.load(Relaxed) {
            0 => None,
            micros => {
                self.queue_wait_us.store(0, Relaxed);
                Some(Duration::from_micros(micros - 1))
            }
        }
    }

    /// HTTP/2: takes the stream remembered by `set_next_stream`.
    pub(crate) fn take_next_stream(&self) -> Option<Arc<HttpExchange>> {
        self.next_stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn phase(&self) -> ConnectionPhase {
        match self.phase.load(Relaxed) {
            0 => ConnectionPhase::New,
            1 => ConnectionPhase::ReadingHead,
            2 => ConnectionPhase::Responding,
            // Threads serve streams in parallel: one may end (`Idle`) just after another has started.
            3 if self.active_requests.load(Relaxed) > 0 => ConnectionPhase::Responding,
            3 => ConnectionPhase::Idle,
            _ => ConnectionPhase::Lingering,
        }
    }

    pub(crate) fn set_phase(&self, phase: ConnectionPhase, now_ms: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.phase_since_ms.store(now_ms, Relaxed);
    }

    /// Records that bytes arrived.
    pub(crate) fn record_received(&self, now_ms: u64) {
        if self.http2().is_some() {
            return;
        }
        if matches!(self.phase(), ConnectionPhase::New | ConnectionPhase::Idle) {
            self.set_phase(ConnectionPhase::ReadingHead, now_ms);
        }
    }

    /// Records that the kernel took the first `n` bytes of `pieces`.
    pub(crate) fn record_written(&self, pieces: &[IoSlice<'_>], n: usize, now_ms: u64) {
        self.written.store(self.written.load(Relaxed).wrapping_add(n as u64), Relaxed);
        self.sending.stop(now_ms);
        let Some(streams) = self.http2() else { return };
        let (mut left, mut data) = (n, 0);
        for piece in pieces {
            let part = &piece[..piece.len().min(left)];
            data += streams.record_server_bytes(part, now_ms);
            left -= part.len();
        }
        if data > 0 && self.phase() == ConnectionPhase::Idle {
            // hyper still sends a response whose handler has finished.
            self.phase_since_ms.store(now_ms, Relaxed);
        }
    }

    /// Returns how many bytes were written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Records that a write would block, and how many bytes the client has acknowledged.
    pub(crate) fn record_write_blocked(&self, acknowledged: u64, now_ms: u64) {
        let more = acknowledged.saturating_sub(self.acknowledged.swap(acknowledged, Relaxed));
        match self.sending.is_waiting() {
            true if more == 0 => {}
            _ => self.sending.record_and_continue(more, now_ms),
        }
        if self.unsent_check() == UnsentCheck::Requested {
            self.set_unsent_check(UnsentCheck::Measured, now_ms);
        }
    }

    pub(crate) fn unsent_check(&self) -> UnsentCheck {
        match self.unsent_check.load(Relaxed) {
            0 => UnsentCheck::None,
            1 => UnsentCheck::Requested,
            _ => UnsentCheck::Measured,
        }
    }

    pub(crate) fn set_unsent_check(&self, check: UnsentCheck, now_ms: u64) {
        self.unsent_check.store(check as u8, Relaxed);
        self.unsent_check_ms.store(now_ms, Relaxed);
    }

    /// How long ago `unsent_check` was last changed.
    pub(crate) fn unsent_check_age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.unsent_check_ms.load(Relaxed))
    }

    /// Whether each heartbeat has to check if a half-closed client still reads.
    pub(crate) fn needs_half_close_check(&self) -> bool {
        self.is_half_closed.load(Relaxed) && self.has_active_request()
    }

    pub(crate) fn set_half_closed(&self) {
        self.is_half_closed.store(true, Relaxed);
    }

    /// Whether an interim response can be sent before the response in progress.
    pub(crate) fn accepts_interim_responses(&self) -> bool {
        self.accepts_interim_responses.load(Relaxed)
    }

    pub(crate) fn set_accepts_interim_responses(&self, accepts: bool) {
        self.accepts_interim_responses.store(accepts, Relaxed);
    }

    /// Whether hyper has flushed everything it wrote.
    pub(crate) fn is_flushed(&self) -> bool {
        self.is_flushed.load(Relaxed)
    }

    /// HTTP/1: returns why the request in progress ends early, if it does.
    pub(crate) fn request_expiry(&self) -> Option<RequestExpiry> {
        RequestExpiry::from_number(self.request_expiry.load(Relaxed))
    }

    /// HTTP/1: ends the request in progress early.
    pub(crate) fn expire_request(&self, expiry: RequestExpiry) {
        self.request_expiry.store(expiry as u8, Relaxed);
    }

    /// HTTP/1: whether the handler has produced the head of the response in progress.
    pub(crate) fn has_response_started(&self) -> bool {
        self.has_response_started.load(Relaxed)
    }

    /// HTTP/1: whether the response body waits for its handler, which may wait for the request body.
    pub(crate) fn is_response_body_pending(&self) -> bool {
        self.is_response_body_pending.load(Relaxed)
    }

    pub(crate) fn set_response_body_pending(&self, is_pending: bool) {
        self.is_response_body_pending.store(is_pending, Relaxed);
    }

    pub(crate) fn set_response_started(&self) {
        self.has_response_started.store(true, Relaxed);
    }

    /// Records an attempt to write, and whether it would have blocked.
    pub(crate) fn record_write(&self, is_blocked: bool, now_ms: u64) {
        self.is_write_blocked.store(is_blocked, Relaxed);
        self.is_flushed.store(false, Relaxed);
        // An idle HTTP/2 connection writes answers to pings, which must not keep it open.
        if self.phase() == ConnectionPhase::Idle && self.http2().is_none() {
            self.phase_since_ms.store(now_ms, Relaxed);
        }
    }

    /// Records that hyper has flushed everything it wrote.
    pub(crate) fn set_flushed(&self) {
        self.is_flushed.store(true, Relaxed);
    }

    /// Records that hyper flushes the last response, unless one is still in progress.
    pub(crate) fn record_flush(&self) {
        if !self.has_active_request() {
            self.is_response_flushed.store(true, Relaxed);
        }
    }

    /// Records that a request reached the application.
    pub(crate) fn begin_request(&self, now_ms: u64) {
        self.add_active_requests(1);
        self.is_response_flushed.store(false, Relaxed);
        self.is_request_read.store(false, Relaxed);
        self.set_phase(ConnectionPhase::Responding, now_ms);
    }

    /// Records that a request and its response ended.
    pub(crate) fn end_request(&self, now_ms: u64) {
        self.is_flushed.store(false, Relaxed);
        if self.http2().is_none() {
            self.receiving.reset();
            self.request_expiry.store(0, Relaxed);
            self.has_response_started.store(false, Relaxed);
            self.is_response_body_pending.store(false, Relaxed);
        }
        if self.add_active_requests(u32::MAX) == 1 && self.phase() == ConnectionPhase::Responding {
            let is_next_here = self.has_held_back_bytes.load(Relaxed);
            self.set_phase(
                if is_next_here { ConnectionPhase::ReadingHead } else { ConnectionPhase::Idle },
                now_ms,
            );
        }
    }

    /// Adds to the number of requests in progress, and returns what it was.
    fn add_active_requests(&self, n: u32) -> u32 {
        if self.http2().is_some() {
            return self.active_requests.fetch_add(n, Relaxed);
        }
        // HTTP/1: only the task of the connection writes this, so it needs no locked instruction.
        let before = self.active_requests.load(Relaxed);
        self.active_requests.store(before.wrapping_add(n), Relaxed);
        before
    }

    /// Whether hyper may read the bytes behind the last request.
    pub(crate) fn is_ready_for_next_request(&self) -> bool {
        !self.has_active_request() && self.is_response_flushed.load(Relaxed)
    }

    /// Whether a request is in progress.
    pub(crate) fn has_active_request(&self) -> bool {
        self.active_requests.load(Relaxed) > 0
    }

    /// Whether the last request was received completely. Only then can another one follow.
    pub(crate) fn is_request_complete(&self) -> bool {
        self.is_request_complete.load(Relaxed)
    }

    /// Whether no request can follow the last one.
    pub(crate) fn is_last_request(&self) -> bool {
        self.is_last_request.load(Relaxed)
    }

    pub(crate) fn set_request_progress(&self, is_complete: bool, is_last: bool) {
        self.is_request_complete.store(is_complete, Relaxed);
        self.is_last_request.store(is_last, Relaxed);
    }

    /// HTTP/1: records that hyper shuts the connection down in the poll that writes the end of the response in progress.
    pub(crate) fn set_closes_after_response(&self) {
        self.closes_after_response.store(true, Relaxed);
    }

    /// HTTP/1: whether what hyper writes now is the end of the last response, so that it shuts the connection down in the same poll.
    pub(crate) fn is_last_write(&self) -> bool {
        self.closes_after_response.load(Relaxed)
            && !self.has_active_request()
            && self.is_request_read.load(Relaxed)
    }

    /// Records whether received bytes wait until the response ends.
    pub(crate) fn set_has_held_back_bytes(&self, has_bytes: bool) {
        self.has_held_back_bytes.store(has_bytes, Relaxed);
    }

    /// Rejects the next request.
    pub(crate) fn reject_head(&self, rejection: RequestRejection) {
        self.rejected_head.store(rejection as u8, Relaxed);
    }

    /// Rejects the request in progress because of its body.
    pub(crate) fn reject_body(&self, rejection: RequestRejection) {
        self.rejected_body.store(rejection as u8, Relaxed);
    }

    pub(crate) fn rejected_head(&self) -> Option<RequestRejection> {
        RequestRejection::from_number(self.rejected_head.load(Relaxed))
    }

    pub(crate) fn rejected_body(&self) -> Option<RequestRejection> {
        RequestRejection::from_number(self.rejected_body.load(Relaxed))
    }

    /// Whether a request was rejected. Nothing is read after that.
    pub(crate) fn is_rejected(&self) -> bool {
        self.rejected_head.load(Relaxed) | self.rejected_body.load(Relaxed) != 0
    }

    pub(crate) fn close_request(&self) -> CloseRequest {
        match self.close_request.load(Relaxed) {
            0 => CloseRequest::None,
            1 => CloseRequest::WhenIdle,
            _ => CloseRequest::Now,
        }
    }

    /// Asks the connection's task to close the connection.
    pub(crate) fn request_close(&self, request: CloseRequest, now_ms: u64) {
        self.close_request.store(request as u8, Relaxed);
        self.close_request_ms.store(now_ms, Relaxed);
    }

    /// How long ago the close request last changed.
    pub(crate) fn close_request_age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.close_request_ms.load(Relaxed))
    }

    pub(crate) fn is_peer_done(&self) -> bool {
        self.is_peer_done.load(Relaxed)
    }

    pub(crate) fn set_peer_done(&self) {
        self.is_peer_done.store(true, Relaxed);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Relaxed)
    }

    /// Keeps an HTTP/2 connection from being idle: one of its streams is a tunnel. Nothing tells when a tunnel ends, but the
    /// client then closes the connection, at the latest after GOAWAY.
    pub(crate) fn add_http2_tunnel(&self, now_ms: u64) {
        self.begin_request(now_ms);
    }

    pub(crate) fn set_started_by_upgrade(&self) {
        self.is_upgraded.store(true, Relaxed);
    }

    pub(crate) fn is_handing_over(&self) -> bool {
        self.is_handing_over.load(Relaxed)
    }

    pub(crate) fn set_handing_over(&self, is_handing_over: bool) {
        self.is_handing_over.store(is_handing_over, Relaxed);
    }

    /// Turns on or off that reads are deferred until the bytes at hand are handled.
    pub(crate) fn set_defer_reads(&self, defer: bool) {
        self.defer_reads.store(defer, Relaxed);
    }

    /// Whether to defer a read. If so, records that hyper has to be polled again for it.
    pub(crate) fn should_defer_read(&self) -> bool {
        // The application reads an upgraded connection, and nothing would make up for its reads.
        let should_defer = self.defer_reads.load(Relaxed) && !self.is_upgraded();
        if should_defer {
            self.has_deferred_read.store(true, Relaxed);
        }
        should_defer
    }

    /// Whether hyper may now read bytes that an earlier poll withheld from it, or is needed for a chunk that it does not see.
    pub(crate) fn should_poll_again(&self) -> bool {
        if self.has_deferred_read.load(Relaxed) {
            self.has_deferred_read.store(false, Relaxed);
            return true;
        }
        // A write that is blocked wakes the task.
        if !self.is_write_blocked() && self.direct_chunk.needs_poll() {
            return true;
        }
        self.has_held_back_bytes.load(Relaxed) && self.is_ready_for_next_request()
    }

    /// When the phase began, or bytes last moved in it.
    pub(crate) fn phase_since_ms(&self) -> u64 {
        self.phase_since_ms.load(Relaxed)
    }

    /// How long ago the phase began, or bytes last moved in it.
    pub(crate) fn phase_age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.phase_since_ms.load(Relaxed))
    }

    /// Whether the last write would have blocked.
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.is_write_blocked.load(Relaxed)
    }
}
