//! One connection as the worker sees it.
//!
//! hyper has no idle timeout of its own, arms its header timeout only with a timer (one allocation a request),
//! and closes idle connections without looking whether a request is on its way. So the worker watches: `Wire`
//! (the bytes) and `answer` (the requests) keep a phase in `Conn`, and once a beat `Registry::tend` compares
//! phases with limits. A connection whose time is up is told so by its order; what that means stands in
//! `Wire::poll_read`.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::http2::stream_tracking::Streams;
use super::request_boundary::Rejection;
use super::timeouts::http_exchange::{Exchange, Exchanges, Expiry};
use super::timeouts::transfer_clock::TransferClock;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Accepted; nothing received yet.
    Fresh = 0,
    /// Some bytes of a request head have arrived.
    Head = 1,
    /// Requests are being answered.
    Busy = 2,
    /// Between requests.
    Idle = 3,
    /// Our side is closed; we read on so that the last response is not lost to a reset.
    Closing = 4,
}

/// What a connection has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Told {
    /// Nothing.
    Nothing = 0,
    /// End as soon as nothing waits to be read.
    Finish = 1,
    /// End now.
    Cut = 2,
}

/// The state of one connection. Atomics because an upgraded connection may be `Send`, and as other threads serve it
/// under `threads`. Each field says something on its own, so all accesses are relaxed.
#[derive(Debug)]
pub(crate) struct Conn {
    phase: AtomicU8,
    told: AtomicU8,
    /// When the phase began, or when bytes last moved in it.
    since_ms: AtomicU64,
    /// Requests being answered: HTTP/2 has several at once.
    requests: AtomicU32,
    /// The peer has ended, or will after this response: nothing of it can be lost by closing.
    peer_done: AtomicBool,
    /// Handed over to the application after a 101 response.
    upgraded: AtomicBool,
    /// The last write did not go through: the peer reads slowly.
    blocked: AtomicBool,
    /// All of the last request was received and passed on to hyper.
    request_complete: AtomicBool,
    /// No request can follow the last one.
    last_request: AtomicBool,
    /// Received bytes wait for the response to be over.
    held_back: AtomicBool,
    /// Why the request that would come next is refused, and why the one that is answered is: a [`Rejection`], or 0.
    rejected_head: AtomicU8,
    rejected_body: AtomicU8,
    /// hyper has written out everything, the end of the last response included.
    flushed: AtomicBool,
    /// hyper has flushed the last response, if only to us. Until then it takes an end, or the next request, for a
    /// request that broke off, and throws the response away.
    response_flushed: AtomicBool,
    /// Must stay with this worker until it is closed.
    rooted: AtomicBool,
    /// hyper lets go of the socket now and must not shut it down.
    leaving: AtomicBool,
    /// Reading is put off while this is on, and the next is set if there was something to put off.
    busy_first: AtomicBool,
    put_off: AtomicBool,
    /// HTTP/1: the client has ended its side while it waits for a response.
    half_closed: AtomicBool,
    /// The request in progress is of HTTP/1.1, which has interim responses.
    takes_interim: AtomicBool,
    /// When `told` was last changed.
    told_ms: AtomicU64,
    /// HTTP/1: how long the client lets us wait for the body of the request in progress.
    pub(crate) receiving: TransferClock,
    /// How long the client lets us wait until it takes what we have to send.
    pub(crate) sending: TransferClock,
    /// HTTP/1: why the request in progress is ended early: an `Expiry`, or 0.
    expiry: AtomicU8,
    /// HTTP/1: the head of its response was produced.
    has_begun: AtomicBool,
    /// HTTP/1: the body of that response was asked for more and had nothing yet.
    is_response_pending: AtomicBool,
    /// Bytes given to the kernel, and how many of them the client is known to have taken.
    written: AtomicU64,
    taken: AtomicU64,
    /// A `SendCheck`, and when it was asked for.
    send_check: AtomicU8,
    send_check_ms: AtomicU64,
    /// Requests that the heartbeat looks at one by one.
    pub(crate) exchanges: Exchanges,
    /// Set for HTTP/2.
    http2: OnceLock<Box<Streams>>,
    /// The stream that the application was given last, for the task that is about to be spawned for it.
    next_stream: Mutex<Option<Arc<Exchange>>>,
}

/// How far it is known what the client has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SendCheck {
    /// Nobody has asked.
    None = 0,
    /// The task of the connection is to ask the kernel.
    Asked = 1,
    /// It has done so.
    Measured = 2,
}

impl Conn {
    pub(crate) fn new(now_ms: u64) -> Conn {
        Conn {
            phase: AtomicU8::new(Phase::Fresh as u8),
            told: AtomicU8::new(Told::Nothing as u8),
            since_ms: AtomicU64::new(now_ms),
            requests: AtomicU32::new(0),
            peer_done: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            request_complete: AtomicBool::new(true),
            last_request: AtomicBool::new(false),
            held_back: AtomicBool::new(false),
            rejected_head: AtomicU8::new(0),
            rejected_body: AtomicU8::new(0),
            flushed: AtomicBool::new(true),
            response_flushed: AtomicBool::new(true),
            rooted: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            busy_first: AtomicBool::new(false),
            put_off: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            takes_interim: AtomicBool::new(false),
            told_ms: AtomicU64::new(now_ms),
            receiving: TransferClock::default(),
            sending: TransferClock::default(),
            expiry: AtomicU8::new(0),
            has_begun: AtomicBool::new(false),
            is_response_pending: AtomicBool::new(false),
            written: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            send_check: AtomicU8::new(SendCheck::None as u8),
            send_check_ms: AtomicU64::new(0),
            exchanges: Exchanges::default(),
            http2: OnceLock::new(),
            next_stream: Mutex::new(None),
        }
    }

    /// From now on its frames say what it is doing, and any bytes are no head of a request.
    pub(crate) fn set_http2(&self, now_ms: u64) {
        self.http2.get_or_init(|| Box::new(Streams::new(now_ms)));
        self.enter(Phase::Idle, now_ms);
    }

    pub(crate) fn http2(&self) -> Option<&Streams> {
        self.http2.get().map(|streams| &**streams)
    }

    /// HTTP/2: a stream reached the application as `exchange`; its task is spawned next.
    pub(crate) fn stream_begun(&self, exchange: &Arc<Exchange>) {
        *self.next_stream.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(exchange));
    }

    /// The stream that began last, once.
    pub(crate) fn take_next_stream(&self) -> Option<Arc<Exchange>> {
        self.next_stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Fresh,
            1 => Phase::Head,
            2 => Phase::Busy,
            // Streams of HTTP/2 may be served on several threads: what ends may come after what begins.
            3 if self.requests.load(Relaxed) > 0 => Phase::Busy,
            3 => Phase::Idle,
            _ => Phase::Closing,
        }
    }

    pub(crate) fn enter(&self, phase: Phase, now_ms: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.since_ms.store(now_ms, Relaxed);
    }

    /// Bytes arrived.
    pub(crate) fn received(&self, now_ms: u64) {
        if self.http2().is_some() {
            // Its frames say what it is doing.
            return;
        }
        if matches!(self.phase(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Head, now_ms);
        }
    }

    /// The first `n` bytes of `pieces` were given to the kernel.
    pub(crate) fn wrote(&self, pieces: &[IoSlice<'_>], n: usize, now_ms: u64) {
        self.written.store(self.written.load(Relaxed).wrapping_add(n as u64), Relaxed);
        self.sending.stop(now_ms);
        let Some(streams) = self.http2() else { return };
        let (mut left, mut data) = (n, 0);
        for piece in pieces {
            let part = &piece[..piece.len().min(left)];
            data += streams.sent(part, now_ms);
            left -= part.len();
        }
        if data > 0 && self.phase() == Phase::Idle {
            // The rest of a response, which the handler has given to hyper as a whole.
            self.since_ms.store(now_ms, Relaxed);
        }
    }

    /// The kernel takes no more, while the client has not yet taken `unsent` bytes of what it has.
    pub(crate) fn cannot_write(&self, unsent: u64, now_ms: u64) {
        let taken = self.written.load(Relaxed).saturating_sub(unsent);
        let more = taken.saturating_sub(self.taken.swap(taken, Relaxed));
        match self.sending.is_waiting() {
            true if more == 0 => {}
            _ => self.sending.progressed(more, now_ms),
        }
        if self.send_check() == SendCheck::Asked {
            self.set_send_check(SendCheck::Measured, now_ms);
        }
    }

    pub(crate) fn send_check(&self) -> SendCheck {
        match self.send_check.load(Relaxed) {
            0 => SendCheck::None,
            1 => SendCheck::Asked,
            _ => SendCheck::Measured,
        }
    }

    pub(crate) fn set_send_check(&self, check: SendCheck, now_ms: u64) {
        self.send_check.store(check as u8, Relaxed);
        self.send_check_ms.store(now_ms, Relaxed);
    }

    /// How long `send_check` has been what it is.
    pub(crate) fn send_check_age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.send_check_ms.load(Relaxed))
    }

    /// Whether to look after a client that has ended its side at each heartbeat.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.half_closed.load(Relaxed) && self.is_answering()
    }

    pub(crate) fn set_half_closed(&self) {
        self.half_closed.store(true, Relaxed);
    }

    /// Whether an interim response can be sent before the response in progress.
    pub(crate) fn takes_interim_responses(&self) -> bool {
        self.takes_interim.load(Relaxed)
    }

    pub(crate) fn set_takes_interim_responses(&self, takes_interim: bool) {
        self.takes_interim.store(takes_interim, Relaxed);
    }

    /// Whether all that was made of responses is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed.load(Relaxed)
    }

    /// HTTP/1: why the request in progress is to be ended, if it is.
    pub(crate) fn expiry(&self) -> Option<Expiry> {
        Expiry::from_number(self.expiry.load(Relaxed))
    }

    pub(crate) fn expire(&self, why: Expiry) {
        self.expiry.store(why as u8, Relaxed);
    }

    /// HTTP/1: whether the response in progress has begun.
    pub(crate) fn response_has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// HTTP/1: whether the response in progress has begun and waits for its handler, which may wait for the request.
    pub(crate) fn is_response_pending(&self) -> bool {
        self.is_response_pending.load(Relaxed)
    }

    pub(crate) fn set_response_pending(&self, is_pending: bool) {
        self.is_response_pending.store(is_pending, Relaxed);
    }

    pub(crate) fn response_begun(&self) {
        self.has_begun.store(true, Relaxed);
    }

    /// Bytes were written, or could not be.
    pub(crate) fn sent(&self, blocked: bool, now_ms: u64) {
        self.blocked.store(blocked, Relaxed);
        self.flushed.store(false, Relaxed);
        // An idle HTTP/2 connection still answers pings.
        if self.phase() == Phase::Idle && self.http2().is_none() {
            self.since_ms.store(now_ms, Relaxed);
        }
    }

    /// hyper flushes only what it has written out to the last byte.
    pub(crate) fn flushed(&self) {
        self.flushed.store(true, Relaxed);
    }

    /// hyper flushes: the response, unless one is still being made.
    pub(crate) fn note_flush(&self) {
        if !self.is_answering() {
            self.response_flushed.store(true, Relaxed);
        }
    }

    pub(crate) fn request_begun(&self, now_ms: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.response_flushed.store(false, Relaxed);
        self.enter(Phase::Busy, now_ms);
    }

    pub(crate) fn request_over(&self, now_ms: u64) {
        self.flushed.store(false, Relaxed);
        if self.http2().is_none() {
            self.receiving.reset();
            self.expiry.store(0, Relaxed);
            self.has_begun.store(false, Relaxed);
            self.is_response_pending.store(false, Relaxed);
        }
        if self.requests.fetch_sub(1, Relaxed) == 1 && self.phase() == Phase::Busy {
            let has_begun_next = self.held_back.load(Relaxed);
            self.enter(if has_begun_next { Phase::Head } else { Phase::Idle }, now_ms);
        }
    }

    /// Whether hyper can be shown what comes behind the last request.
    pub(crate) fn is_ready_for_next(&self) -> bool {
        !self.is_answering() && self.response_flushed.load(Relaxed)
    }

    /// Whether a response is being made or sent.
    pub(crate) fn is_answering(&self) -> bool {
        self.requests.load(Relaxed) > 0
    }

    /// Whether all of the request that was passed on last was received. Only then can another one follow.
    pub(crate) fn is_request_complete(&self) -> bool {
        self.request_complete.load(Relaxed)
    }

    /// Whether no request can follow the one that was passed on last.
    pub(crate) fn is_last_request(&self) -> bool {
        self.last_request.load(Relaxed)
    }

    pub(crate) fn set_request(&self, is_complete: bool, is_last: bool) {
        self.request_complete.store(is_complete, Relaxed);
        self.last_request.store(is_last, Relaxed);
    }

    pub(crate) fn set_held_back(&self, held_back: bool) {
        self.held_back.store(held_back, Relaxed);
    }

    /// Refuses the request that would come next.
    pub(crate) fn reject_head(&self, rejection: Rejection) {
        self.rejected_head.store(rejection as u8, Relaxed);
    }

    /// Refuses the request that is being answered, for its body.
    pub(crate) fn reject_body(&self, rejection: Rejection) {
        self.rejected_body.store(rejection as u8, Relaxed);
    }

    pub(crate) fn rejected_head(&self) -> Option<Rejection> {
        Rejection::from_number(self.rejected_head.load(Relaxed))
    }

    pub(crate) fn rejected_body(&self) -> Option<Rejection> {
        Rejection::from_number(self.rejected_body.load(Relaxed))
    }

    /// Whether anything was refused, after which nothing more is read.
    pub(crate) fn is_rejected(&self) -> bool {
        self.rejected_head.load(Relaxed) | self.rejected_body.load(Relaxed) != 0
    }

    pub(crate) fn told(&self) -> Told {
        match self.told.load(Relaxed) {
            0 => Told::Nothing,
            1 => Told::Finish,
            _ => Told::Cut,
        }
    }

    pub(crate) fn tell(&self, told: Told, now_ms: u64) {
        self.told.store(told as u8, Relaxed);
        self.told_ms.store(now_ms, Relaxed);
    }

    /// For how long it has been told what it was told last.
    pub(crate) fn told_age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.told_ms.load(Relaxed))
    }

    pub(crate) fn peer_done(&self) -> bool {
        self.peer_done.load(Relaxed)
    }

    pub(crate) fn set_peer_done(&self) {
        self.peer_done.store(true, Relaxed);
    }

    pub(crate) fn upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    pub(crate) fn set_upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// From now on the connection stays with this worker.
    pub(crate) fn root(&self) {
        self.rooted.store(true, Relaxed);
    }

    /// Whether it may be handed to another worker, now or when its request is over.
    pub(crate) fn can_travel(&self) -> bool {
        let stays = self.rooted.load(Relaxed) || self.upgraded() || self.peer_done();
        !stays && self.is_request_complete() && !self.is_rejected()
    }

    /// Whether it may be handed to another worker now: it stands between two requests, as far as can be seen
    /// from here, and nothing waits to be written.
    pub(crate) fn may_travel(&self) -> bool {
        matches!(self.phase(), Phase::Fresh | Phase::Idle)
            && self.told() == Told::Nothing
            && self.flushed.load(Relaxed)
            && self.can_travel()
    }

    pub(crate) fn leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Relaxed);
    }

    /// Begins or ends a poll in which what was received already is seen to before more is read.
    pub(crate) fn set_busy_first(&self, busy_first: bool) {
        self.busy_first.store(busy_first, Relaxed);
    }

    /// Whether reading is to be put off, which then has to be made up for.
    pub(crate) fn puts_off(&self) -> bool {
        // An upgraded connection is read from elsewhere.
        let puts_off = self.busy_first.load(Relaxed) && !self.upgraded();
        if puts_off {
            self.put_off.store(true, Relaxed);
        }
        puts_off
    }

    /// Whether hyper was not shown something that it can be shown now.
    pub(crate) fn should_poll_again(&self) -> bool {
        self.put_off.swap(false, Relaxed)
            || (self.held_back.load(Relaxed) && self.is_ready_for_next())
    }

    /// How long nothing has happened in this phase.
    pub(crate) fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms.load(Relaxed))
    }

    /// Whether the peer reads slowly.
    pub(crate) fn blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }
}
