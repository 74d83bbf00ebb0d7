//! Tracks the streams of an HTTP/2 connection from its frames, because hyper does not expose their state.
//!
//! Detects incomplete header blocks, and request bodies whose client may send but does not. hyper does not say which
//! stream a request came on. Streams reach the application in the order of their first HEADERS frames, except
//! rejected ones, so requests are matched with streams in that order. A client whose protocol errors make the order
//! uncertain gets GOAWAY.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frame_scanner::{FrameEvent, FrameScanner, frame_flag, frame_type};
use crate::worker::http::timeouts::http_exchange::HttpExchange;

/// Length of the client's connection preface, before its first frame.
const PREFACE_LENGTH: usize = 24;

/// The identifier of SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
const INITIAL_WINDOW_SIZE_ID: u16 = 4;

/// The size of all windows before any SETTINGS frame, in bytes.
const INITIAL_WINDOW: i64 = 65_535;

/// The error code NO_ERROR (RFC 9113, section 7): hyper never rejects a new stream with it.
const NO_ERROR: u32 = 0;

/// The error code CANCEL (RFC 9113, section 7): hyper never rejects a new stream with it.
const CANCEL: u32 = 8;

/// How many streams to track. Beyond this the oldest is forgotten; hyper allows 200 open ones.
const MAX_TRACKED_STREAMS: usize = 1024;

/// Tracks the streams of one HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Http2StreamTracker(Mutex<StreamTrackerState>);

#[derive(Debug)]
struct StreamTrackerState {
    input: FrameScanner,
    output: FrameScanner,
    table: StreamTable,
}

#[derive(Debug)]
struct StreamTable {
    /// When the incomplete header block, or the client's first SETTINGS frame, started to arrive.
    incomplete_header_since: Option<u64>,
    has_client_settings: bool,
    /// The highest stream the client has opened.
    last_id: u32,
    /// Streams that have not reached the application yet, oldest first.
    unassigned: VecDeque<u32>,
    /// Streams whose request or response is incomplete.
    open: Vec<TrackedStream>,
    /// How many body bytes the client may send on a new stream.
    initial_window: i64,
    /// How many body bytes the client may still send on the connection.
    connection_window: i64,
    /// Whether requests can no longer be matched with their streams.
    is_order_lost: bool,
}

#[derive(Debug)]
struct TrackedStream {
    id: u32,
    /// How many body bytes the client may still send; `None` if the request is complete.
    body_window: Option<i64>,
    exchange: Option<Arc<HttpExchange>>,
}

impl Http2StreamTracker {
    pub(crate) fn new(now_ms: u64) -> Http2StreamTracker {
        let table = StreamTable {
            incomplete_header_since: Some(now_ms),
            has_client_settings: false,
            last_id: 0,
            unassigned: VecDeque::new(),
            open: Vec::new(),
            initial_window: INITIAL_WINDOW,
            connection_window: INITIAL_WINDOW,
            is_order_lost: false,
        };
        let (input, output) = (FrameScanner::new(PREFACE_LENGTH), FrameScanner::new(0));
        Http2StreamTracker(Mutex::new(StreamTrackerState { input, output, table }))
    }

    /// Follows the frames in bytes from the client.
    pub(crate) fn record_client_bytes(&self, bytes: &[u8], now_ms: u64) {
        let StreamTrackerState { input, table, .. } = &mut *self.lock();
        input.scan_frames(bytes, |event| table.on_client_frame(event, now_ms));
    }

    /// Follows the frames in bytes sent to the client. Returns how many of them belong to response bodies.
    pub(crate) fn record_server_bytes(&self, bytes: &[u8], now_ms: u64) -> usize {
        let StreamTrackerState { output, table, .. } = &mut *self.lock();
        let mut data = 0;
        output.scan_frames(bytes, |event| {
            if let FrameEvent::Payload(frame, n) = event
                && frame.kind == frame_type::DATA
            {
                data += n;
            }
            table.on_server_frame(event, now_ms);
        });
        data
    }

    /// Matches `exchange` with the next stream: its request has reached the application.
    pub(crate) fn assign_next_stream(&self, exchange: &Arc<HttpExchange>, now_ms: u64) {
        let table = &mut self.lock().table;
        let Some(id) = table.unassigned.pop_front() else {
            table.is_order_lost = true;
            return;
        };
        if let Some(stream) = table.open.iter_mut().find(|stream| stream.id == id) {
            stream.exchange = Some(Arc::clone(exchange));
        }
        table.update_body_clocks(now_ms);
    }

    /// Detaches `exchange` from its stream: the application is done with it.
    pub(crate) fn detach_exchange(&self, exchange: &Arc<HttpExchange>) {
        let table = &mut self.lock().table;
        let is_same = |known: &Arc<HttpExchange>| Arc::ptr_eq(known, exchange);
        for stream in &mut table.open {
            if stream.exchange.as_ref().is_some_and(is_same) {
                stream.exchange = None;
            }
        }
    }

    /// Returns when the incomplete header block started to arrive, if there is one.
    pub(crate) fn incomplete_header_since(&self) -> Option<u64> {
        self.lock().table.incomplete_header_since
    }

    /// Whether requests can no longer be matched with their streams.
    pub(crate) fn is_order_lost(&self) -> bool {
        self.lock().table.is_order_lost
    }

    fn lock(&self) -> MutexGuard<'_, StreamTrackerState> {
        // Nothing panics with the lock held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamTable {
    fn on_client_frame(&mut self, event: FrameEvent<'_>, now_ms: u64) {
        match event {
            // The type of the frame is still unknown: its nine header bytes are incomplete.
            FrameEvent::Header(None) => {}
            FrameEvent::Header(Some(frame)) => {
                if matches!(frame.kind, frame_type::HEADERS | frame_type::CONTINUATION) {
                    self.incomplete_header_since.get_or_insert(now_ms);
                }
            }
            FrameEvent::Payload(frame, n) if frame.kind == frame_type::DATA => {
                self.connection_window -= n as i64;
                if let Some(stream) = self.find_stream(frame.stream)
                    && let Some(window) = &mut stream.body_window
                {
                    *window -= n as i64;
                    if let Some(exchange) = &stream.exchange {
                        exchange.receiving.record_and_stop(n as u64, now_ms);
                    }
                }
                self.update_body_clocks(now_ms);
            }
            FrameEvent::Payload(..) => {}
            FrameEvent::Complete(frame) => {
                match frame.kind {
                    frame_type::HEADERS | frame_type::CONTINUATION
                        if frame.has_flag(frame_flag::END_HEADERS) =>
                    {
                        self.incomplete_header_since = None;
                    }
                    frame_type::SETTINGS if !self.has_client_settings => {
                        (self.has_client_settings, self.incomplete_header_since) = (true, None);
                    }
                    _ => {}
                }
                if frame.kind == frame_type::HEADERS && frame.stream > self.last_id {
                    self.last_id = frame.stream;
                    self.unassigned.push_back(frame.stream);
                    let body_window = Some(self.initial_window);
                    self.open.push(TrackedStream { id: frame.stream, body_window, exchange: None });
                    if self.open.len() > MAX_TRACKED_STREAMS {
                        self.is_order_lost = true;
                        self.open.remove(0);
                    }
                }
                let ends = frame.kind == frame_type::RST_STREAM
                    || matches!(frame.kind, frame_type::HEADERS | frame_type::DATA)
                        && frame.has_flag(frame_flag::END_STREAM);
                if ends && let Some(stream) = self.find_stream(frame.stream) {
                    stream.body_window = None;
                    if let Some(exchange) = &stream.exchange {
                        exchange.receiving.stop(now_ms);
                    }
                }
            }
        }
    }

    fn on_server_frame(&mut self, event: FrameEvent<'_>, now_ms: u64) {
        match event {
            FrameEvent::Header(_) => {}
            FrameEvent::Payload(frame, n) => {
                if frame.kind == frame_type::DATA
                    && let Some(stream) = self.find_stream(frame.stream)
                    && let Some(exchange) = &stream.exchange
                    && exchange.sending.is_waiting()
                {
                    exchange.sending.record_and_continue(n as u64, now_ms);
                }
            }
            FrameEvent::Complete(frame) => match frame.kind {
                frame_type::SETTINGS if !frame.has_flag(frame_flag::ACK) => {
                    self.read_settings(frame.payload())
                }
                frame_type::WINDOW_UPDATE => {
                    if let Some(more) = frame.payload().first_chunk::<4>() {
                        let more = i64::from(u32::from_be_bytes(*more) & 0x7fff_ffff);
                        self.add_window(frame.stream, more);
                        self.update_body_clocks(now_ms);
                    }
                }
                frame_type::RST_STREAM => {
                    let code = frame.payload().first_chunk::<4>().map(|c| u32::from_be_bytes(*c));
                    self.remove_unassigned(frame.stream, !matches!(code, Some(NO_ERROR | CANCEL)));
                    self.open.retain(|stream| stream.id != frame.stream);
                }
                frame_type::HEADERS | frame_type::DATA
                    if frame.has_flag(frame_flag::END_STREAM) =>
                {
                    self.remove_unassigned(frame.stream, false);
                    // The rest of an unread request body no longer matters.
                    self.open.retain(|stream| stream.id != frame.stream);
                }
                _ => {}
            },
        }
    }

    /// Removes a stream that hyper answered or reset from those that wait for the application.
    ///
    /// `is_rejected`: hyper rejected the stream, so an exchange matched with it shows that the order is lost.
    fn remove_unassigned(&mut self, id: u32, is_rejected: bool) {
        let before = self.unassigned.len();
        self.unassigned.retain(|waiting| *waiting != id);
        let was_assigned = self.open.iter().any(|s| s.id == id && s.exchange.is_some());
        if is_rejected && before == self.unassigned.len() && was_assigned {
            self.is_order_lost = true;
        }
    }

    fn read_settings(&mut self, payload: &[u8]) {
        for setting in payload.as_chunks::<6>().0 {
            let [i0, i1, v0, v1, v2, v3] = *setting;
            if u16::from_be_bytes([i0, i1]) == INITIAL_WINDOW_SIZE_ID {
                self.initial_window = i64::from(u32::from_be_bytes([v0, v1, v2, v3]));
            }
        }
    }

    fn add_window(&mut self, stream: u32, more: i64) {
        match stream {
            0 => self.connection_window += more,
            id => {
                if let Some(window) =
                    self.find_stream(id).and_then(|stream| stream.body_window.as_mut())
                {
                    *window += more;
                }
            }
        }
    }

    /// Runs the clock of each request body whose client may send, and stops the others.
    fn update_body_clocks(&self, now_ms: u64) {
        for stream in &self.open {
            let Some(exchange) = &stream.exchange else { continue };
            let is_open = stream.body_window.is_some_and(|window| window > 0);
            match is_open && self.connection_window > 0 {
                true => exchange.receiving.start(now_ms),
                false => exchange.receiving.stop(now_ms),
            }
        }
    }

    fn find_stream(&mut self, id: u32) -> Option<&mut TrackedStream> {
        self.open.iter_mut().find(|stream| stream.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_scanner::tests::encode_frame;
    use super::*;
    use crate::worker::http::timeouts::transfer_clock::TransferLimits;

    const IDLE_LIMIT: TransferLimits = TransferLimits { idle_ms: Some(1_000), min_rate: None };

    fn tracker_after_settings(now_ms: u64) -> Http2StreamTracker {
        let streams = Http2StreamTracker::new(now_ms);
        streams.record_client_bytes(&[b'x'; PREFACE_LENGTH], now_ms);
        streams.record_client_bytes(&encode_frame(frame_type::SETTINGS, 0, 0, &[]), now_ms);
        streams.record_server_bytes(
            &encode_frame(frame_type::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 100]),
            now_ms,
        );
        streams
    }

    #[test]
    fn header_block_is_incomplete_until_end_headers() {
        let streams = Http2StreamTracker::new(5);
        assert_eq!(
            streams.incomplete_header_since(),
            Some(5),
            "the preface counts as part of the first header block"
        );
        streams.record_client_bytes(&[b'x'; PREFACE_LENGTH], 6);
        assert_eq!(streams.incomplete_header_since(), Some(5));
        streams.record_client_bytes(&encode_frame(frame_type::SETTINGS, 0, 0, &[]), 7);
        assert_eq!(streams.incomplete_header_since(), None);
        streams.record_client_bytes(&encode_frame(6, 0, 0, b"a ping.."), 8);
        streams
            .record_client_bytes(&encode_frame(frame_type::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]), 8);
        assert_eq!(streams.incomplete_header_since(), None, "neither frame starts a header block");
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_STREAM, 1, b"half"),
            9,
        );
        streams.record_client_bytes(&encode_frame(frame_type::CONTINUATION, 0, 1, b"more"), 10);
        assert_eq!(streams.incomplete_header_since(), Some(9));
        streams.record_client_bytes(
            &encode_frame(frame_type::CONTINUATION, frame_flag::END_HEADERS, 1, b"rest")[..11],
            11,
        );
        assert_eq!(streams.incomplete_header_since(), Some(9));
        streams.record_client_bytes(b"st", 12);
        assert_eq!(streams.incomplete_header_since(), None);
    }

    #[test]
    fn body_clock_runs_only_while_the_window_is_open() {
        let streams = tracker_after_settings(0);
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 1, b"h"),
            0,
        );
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 3, b"h"),
            0,
        );
        let (one, three) =
            (HttpExchange::new(None, String::new()), HttpExchange::new(None, String::new()));
        streams.assign_next_stream(&one, 0);
        streams.assign_next_stream(&three, 0);
        assert!(
            one.receiving.is_stalled(IDLE_LIMIT, 1_000)
                && three.receiving.is_stalled(IDLE_LIMIT, 1_000)
        );
        // The window is used up: the handler has to read first.
        streams.record_client_bytes(&encode_frame(frame_type::DATA, 0, 1, &[0; 100]), 900);
        assert!(!one.receiving.is_stalled(IDLE_LIMIT, 9_000));
        streams.record_server_bytes(
            &encode_frame(frame_type::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 50]),
            9_000,
        );
        assert!(!one.receiving.is_stalled(IDLE_LIMIT, 9_999));
        assert!(one.receiving.is_stalled(IDLE_LIMIT, 10_000));
        streams.record_client_bytes(
            &encode_frame(frame_type::DATA, frame_flag::END_STREAM, 1, b"end"),
            9_500,
        );
        assert!(!one.receiving.is_stalled(IDLE_LIMIT, 90_000));
        streams
            .record_client_bytes(&encode_frame(frame_type::RST_STREAM, 0, 3, &[0, 0, 0, 8]), 9_500);
        assert!(!three.receiving.is_stalled(IDLE_LIMIT, 90_000));
        assert!(!streams.is_order_lost());
    }

    #[test]
    fn rejected_stream_is_skipped_when_matching_requests() {
        let streams = tracker_after_settings(0);
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 1, b"bad"),
            0,
        );
        streams.record_server_bytes(&encode_frame(frame_type::RST_STREAM, 0, 1, &[0, 0, 0, 1]), 0);
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 3, b"h"),
            0,
        );
        let exchange = HttpExchange::new(None, String::new());
        streams.assign_next_stream(&exchange, 0);
        streams.record_client_bytes(
            &encode_frame(frame_type::DATA, frame_flag::END_STREAM, 3, b"x"),
            500,
        );
        assert!(!exchange.receiving.is_stalled(IDLE_LIMIT, 5_000));
        // A rejected stream that was matched with a request shows that the order is lost.
        streams.record_client_bytes(
            &encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 5, b"h"),
            0,
        );
        streams.assign_next_stream(&HttpExchange::new(None, String::new()), 0);
        streams.record_server_bytes(&encode_frame(frame_type::RST_STREAM, 0, 5, &[0, 0, 0, 1]), 0);
        assert!(streams.is_order_lost());
    }

    #[test]
    fn sent_data_frames_restart_the_send_clock() {
        let streams = tracker_after_settings(0);
        streams.record_client_bytes(&encode_frame(frame_type::HEADERS, 5, 1, b"h"), 0);
        let exchange = HttpExchange::new(None, String::new());
        streams.assign_next_stream(&exchange, 0);
        exchange.sending.start(0);
        assert_eq!(
            streams.record_server_bytes(&encode_frame(frame_type::DATA, 0, 1, &[0; 40]), 800),
            40
        );
        assert!(!exchange.sending.is_stalled(IDLE_LIMIT, 1_799));
        assert!(exchange.sending.is_stalled(IDLE_LIMIT, 1_800));
        assert_eq!(streams.record_server_bytes(&encode_frame(6, 1, 0, b"the pong"), 1_000), 0);
    }
}
