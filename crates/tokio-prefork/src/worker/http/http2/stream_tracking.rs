//! What an HTTP/2 connection is doing, read from its frames beside hyper: whether a header block is incomplete, and for
//! each request body whether the client may send and does not.
//!
//! hyper does not tell a handler's request which stream it came on. Streams reach the application in the order of
//! their first HEADERS frames, except those that were refused, so the ids are handed out in that order. A client that
//! breaks the protocol in such a way that the order is lost gets a GOAWAY.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frame_scanner::{FrameScanner, Piece, flag, kind};
use crate::worker::http::timeouts::http_exchange::Exchange;

/// Length of the client's connection preface, before its first frame.
const PREFACE: usize = 24;
/// SETTINGS_INITIAL_WINDOW_SIZE, and the initial value of all windows (RFC 9113, section 6.5.2).
const INITIAL_WINDOW_SETTING: u16 = 4;
const INITIAL_WINDOW: i64 = 65_535;
/// Error codes with which a server refuses a stream before its application sees it: NO_ERROR and CANCEL are not among
/// them (RFC 9113, section 7).
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;
/// Streams whose end we did not see are forgotten beyond this number; hyper allows 200 open ones.
const MAX_TRACKED: usize = 1024;

/// One HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Streams(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    input: FrameScanner,
    output: FrameScanner,
    table: Table,
}

#[derive(Debug)]
struct Table {
    /// Since when a header block, or the client's first SETTINGS frame, is incomplete.
    header_since: Option<u64>,
    has_settings: bool,
    /// The highest stream the client has opened.
    last_id: u32,
    /// Streams that the application has not got yet, oldest first.
    unclaimed: VecDeque<u32>,
    /// Streams whose request or response is not complete.
    open: Vec<Stream>,
    /// What a client may send on a new stream, and on the connection.
    initial_window: i64,
    connection_window: i64,
    is_order_lost: bool,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    /// What the client may still send of its body; `None` if the request is complete.
    body_window: Option<i64>,
    exchange: Option<Arc<Exchange>>,
}

impl Streams {
    pub(crate) fn new(now_ms: u64) -> Streams {
        let table = Table {
            header_since: Some(now_ms),
            has_settings: false,
            last_id: 0,
            unclaimed: VecDeque::new(),
            open: Vec::new(),
            initial_window: INITIAL_WINDOW,
            connection_window: INITIAL_WINDOW,
            is_order_lost: false,
        };
        let (input, output) = (FrameScanner::new(PREFACE), FrameScanner::new(0));
        Streams(Mutex::new(Inner { input, output, table }))
    }

    /// These bytes came from the client.
    pub(crate) fn received(&self, bytes: &[u8], now_ms: u64) {
        let Inner { input, table, .. } = &mut *self.lock();
        input.scan(bytes, |piece| table.came(piece, now_ms));
    }

    /// These bytes went to the client. Returns how many of them were bytes of response bodies.
    pub(crate) fn sent(&self, bytes: &[u8], now_ms: u64) -> usize {
        let Inner { output, table, .. } = &mut *self.lock();
        let mut data = 0;
        output.scan(bytes, |piece| {
            if let Piece::Payload(frame, n) = piece
                && frame.kind == kind::DATA
            {
                data += n;
            }
            table.went(piece, now_ms);
        });
        data
    }

    /// The next stream has reached the application as `exchange`.
    pub(crate) fn claim(&self, exchange: &Arc<Exchange>, now_ms: u64) {
        let table = &mut self.lock().table;
        let Some(id) = table.unclaimed.pop_front() else {
            table.is_order_lost = true;
            return;
        };
        if let Some(stream) = table.open.iter_mut().find(|stream| stream.id == id) {
            stream.exchange = Some(Arc::clone(exchange));
        }
        table.tend_bodies(now_ms);
    }

    /// `exchange` is over as far as the application is concerned.
    pub(crate) fn release(&self, exchange: &Arc<Exchange>) {
        let table = &mut self.lock().table;
        let is_it = |known: &Arc<Exchange>| Arc::ptr_eq(known, exchange);
        for stream in &mut table.open {
            if stream.exchange.as_ref().is_some_and(is_it) {
                stream.exchange = None;
            }
        }
    }

    /// Since when a header block is incomplete, if one is.
    pub(crate) fn header_since(&self) -> Option<u64> {
        self.lock().table.header_since
    }

    /// Whether requests can no longer be matched with their streams.
    pub(crate) fn is_order_lost(&self) -> bool {
        self.lock().table.is_order_lost
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics with the lock held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn came(&mut self, piece: Piece<'_>, now_ms: u64) {
        match piece {
            // Of what kind it is is not known yet: nine bytes, which only a stalling client splits.
            Piece::Begun(None) => {}
            Piece::Begun(Some(frame)) => {
                if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
                    self.header_since.get_or_insert(now_ms);
                }
            }
            Piece::Payload(frame, n) if frame.kind == kind::DATA => {
                self.connection_window -= n as i64;
                if let Some(stream) = self.find(frame.stream)
                    && let Some(window) = &mut stream.body_window
                {
                    *window -= n as i64;
                    if let Some(exchange) = &stream.exchange {
                        exchange.receiving.moved(n as u64, now_ms);
                    }
                }
                self.tend_bodies(now_ms);
            }
            Piece::Payload(..) => {}
            Piece::Complete(frame) => {
                match frame.kind {
                    kind::HEADERS | kind::CONTINUATION if frame.has(flag::END_HEADERS) => {
                        self.header_since = None;
                    }
                    kind::SETTINGS if !self.has_settings => {
                        (self.has_settings, self.header_since) = (true, None);
                    }
                    _ => {}
                }
                if frame.kind == kind::HEADERS && frame.stream > self.last_id {
                    self.last_id = frame.stream;
                    self.unclaimed.push_back(frame.stream);
                    let body_window = Some(self.initial_window);
                    self.open.push(Stream { id: frame.stream, body_window, exchange: None });
                    if self.open.len() > MAX_TRACKED {
                        self.is_order_lost = true;
                        self.open.remove(0);
                    }
                }
                let ends = frame.kind == kind::RST_STREAM
                    || matches!(frame.kind, kind::HEADERS | kind::DATA)
                        && frame.has(flag::END_STREAM);
                if ends && let Some(stream) = self.find(frame.stream) {
                    stream.body_window = None;
                    if let Some(exchange) = &stream.exchange {
                        exchange.receiving.stop(now_ms);
                    }
                }
            }
        }
    }

    fn went(&mut self, piece: Piece<'_>, now_ms: u64) {
        match piece {
            Piece::Begun(_) => {}
            Piece::Payload(frame, n) => {
                if frame.kind == kind::DATA
                    && let Some(stream) = self.find(frame.stream)
                    && let Some(exchange) = &stream.exchange
                    && exchange.sending.is_waiting()
                {
                    exchange.sending.progressed(n as u64, now_ms);
                }
            }
            Piece::Complete(frame) => match frame.kind {
                kind::SETTINGS if !frame.has(flag::ACK) => self.read_settings(frame.payload()),
                kind::WINDOW_UPDATE => {
                    if let Some(more) = frame.payload().first_chunk::<4>() {
                        let more = i64::from(u32::from_be_bytes(*more) & 0x7fff_ffff);
                        self.widen(frame.stream, more);
                        self.tend_bodies(now_ms);
                    }
                }
                kind::RST_STREAM => {
                    let code = frame.payload().first_chunk::<4>().map(|c| u32::from_be_bytes(*c));
                    self.refused(frame.stream, !matches!(code, Some(NO_ERROR | CANCEL)));
                    self.open.retain(|stream| stream.id != frame.stream);
                }
                kind::HEADERS | kind::DATA if frame.has(flag::END_STREAM) => {
                    self.refused(frame.stream, false);
                    // The rest of an unread body is nobody's concern.
                    self.open.retain(|stream| stream.id != frame.stream);
                }
                _ => {}
            },
        }
    }

    /// The server itself has answered or reset a stream. If the application never got it, the stream is not waited for;
    /// `by_protocol` if it should never have got it.
    fn refused(&mut self, id: u32, by_protocol: bool) {
        let before = self.unclaimed.len();
        self.unclaimed.retain(|waiting| *waiting != id);
        let was_given = self.open.iter().any(|s| s.id == id && s.exchange.is_some());
        if by_protocol && before == self.unclaimed.len() && was_given {
            self.is_order_lost = true;
        }
    }

    fn read_settings(&mut self, payload: &[u8]) {
        for setting in payload.as_chunks::<6>().0 {
            let [i0, i1, v0, v1, v2, v3] = *setting;
            if u16::from_be_bytes([i0, i1]) == INITIAL_WINDOW_SETTING {
                self.initial_window = i64::from(u32::from_be_bytes([v0, v1, v2, v3]));
            }
        }
    }

    fn widen(&mut self, stream: u32, more: i64) {
        match stream {
            0 => self.connection_window += more,
            id => {
                if let Some(window) = self.find(id).and_then(|stream| stream.body_window.as_mut()) {
                    *window += more;
                }
            }
        }
    }

    /// Has the clock run for each body whose client may send.
    fn tend_bodies(&self, now_ms: u64) {
        for stream in &self.open {
            let Some(exchange) = &stream.exchange else { continue };
            let is_open = stream.body_window.is_some_and(|window| window > 0);
            match is_open && self.connection_window > 0 {
                true => exchange.receiving.wait(now_ms),
                false => exchange.receiving.stop(now_ms),
            }
        }
    }

    fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.open.iter_mut().find(|stream| stream.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::http::timeouts::transfer_clock::TransferLimit;

    const LIMIT: TransferLimit = TransferLimit { idle_ms: Some(1_000), min_rate: None };

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut raw = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        raw.extend([kind, flags]);
        raw.extend(stream.to_be_bytes());
        raw.extend(payload);
        raw
    }

    fn greeted(now_ms: u64) -> Streams {
        let streams = Streams::new(now_ms);
        streams.received(&[b'x'; PREFACE], now_ms);
        streams.received(&frame(kind::SETTINGS, 0, 0, &[]), now_ms);
        streams.sent(&frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 100]), now_ms);
        streams
    }

    #[test]
    fn a_header_block_is_incomplete_from_its_first_frame_to_its_last() {
        let streams = Streams::new(5);
        assert_eq!(streams.header_since(), Some(5), "the preface is part of the first head");
        streams.received(&[b'x'; PREFACE], 6);
        assert_eq!(streams.header_since(), Some(5));
        streams.received(&frame(kind::SETTINGS, 0, 0, &[]), 7);
        assert_eq!(streams.header_since(), None);
        streams.received(&frame(6, 0, 0, b"a ping.."), 8);
        streams.received(&frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]), 8);
        assert_eq!(streams.header_since(), None, "neither is a head");
        streams.received(&frame(kind::HEADERS, flag::END_STREAM, 1, b"half"), 9);
        streams.received(&frame(kind::CONTINUATION, 0, 1, b"more"), 10);
        assert_eq!(streams.header_since(), Some(9));
        streams.received(&frame(kind::CONTINUATION, flag::END_HEADERS, 1, b"rest")[..11], 11);
        assert_eq!(streams.header_since(), Some(9));
        streams.received(b"st", 12);
        assert_eq!(streams.header_since(), None);
    }

    #[test]
    fn a_body_is_waited_for_while_its_client_may_send() {
        let streams = greeted(0);
        streams.received(&frame(kind::HEADERS, flag::END_HEADERS, 1, b"h"), 0);
        streams.received(&frame(kind::HEADERS, flag::END_HEADERS, 3, b"h"), 0);
        let (one, three) = (Exchange::new(None, String::new()), Exchange::new(None, String::new()));
        streams.claim(&one, 0);
        streams.claim(&three, 0);
        assert!(one.receiving.is_stalled(LIMIT, 1_000) && three.receiving.is_stalled(LIMIT, 1_000));
        // All of its window is used: the handler has to read first.
        streams.received(&frame(kind::DATA, 0, 1, &[0; 100]), 900);
        assert!(!one.receiving.is_stalled(LIMIT, 9_000));
        streams.sent(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 50]), 9_000);
        assert!(!one.receiving.is_stalled(LIMIT, 9_999));
        assert!(one.receiving.is_stalled(LIMIT, 10_000));
        streams.received(&frame(kind::DATA, flag::END_STREAM, 1, b"end"), 9_500);
        assert!(!one.receiving.is_stalled(LIMIT, 90_000));
        streams.received(&frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]), 9_500);
        assert!(!three.receiving.is_stalled(LIMIT, 90_000));
        assert!(!streams.is_order_lost());
    }

    #[test]
    fn a_refused_stream_is_not_mistaken_for_the_next_one() {
        let streams = greeted(0);
        streams.received(&frame(kind::HEADERS, flag::END_HEADERS, 1, b"bad"), 0);
        streams.sent(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 1]), 0);
        streams.received(&frame(kind::HEADERS, flag::END_HEADERS, 3, b"h"), 0);
        let exchange = Exchange::new(None, String::new());
        streams.claim(&exchange, 0);
        streams.received(&frame(kind::DATA, flag::END_STREAM, 3, b"x"), 500);
        assert!(!exchange.receiving.is_stalled(LIMIT, 5_000));
        // One that the application should never have got shows that the order is lost.
        streams.received(&frame(kind::HEADERS, flag::END_HEADERS, 5, b"h"), 0);
        streams.claim(&Exchange::new(None, String::new()), 0);
        streams.sent(&frame(kind::RST_STREAM, 0, 5, &[0, 0, 0, 1]), 0);
        assert!(streams.is_order_lost());
    }

    #[test]
    fn data_frames_of_responses_are_progress() {
        let streams = greeted(0);
        streams.received(&frame(kind::HEADERS, 5, 1, b"h"), 0);
        let exchange = Exchange::new(None, String::new());
        streams.claim(&exchange, 0);
        exchange.sending.wait(0);
        assert_eq!(streams.sent(&frame(kind::DATA, 0, 1, &[0; 40]), 800), 40);
        assert!(!exchange.sending.is_stalled(LIMIT, 1_799));
        assert!(exchange.sending.is_stalled(LIMIT, 1_800));
        assert_eq!(streams.sent(&frame(6, 1, 0, b"the pong"), 1_000), 0);
    }
}
