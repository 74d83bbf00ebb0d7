//! A connection of HTTP/2: sends requests, and knows what may be sent. What the server sends is handled in
//! `received_frames`.

use std::collections::VecDeque;

use super::frames::{FrameHead, MAX_PAYLOAD, PREFACE, error_code, flag, kind, setting};
use super::hpack::{HeaderDecoder, TABLE_SIZE_ZERO};
use super::http2_request::Http2Request;
use super::stream_table::{Stream, StreamEvent, StreamFailure, StreamTable};
use crate::load::connection::PendingRequest;
use crate::load::request_failure::RequestFailure;

/// Flow-control window of a stream: 1 MiB.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection: 16 MiB.
pub(super) const CONNECTION_WINDOW: u32 = 1 << 24;
/// Flow-control window of streams and connections until the other side changes it.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// Largest response head, in bytes.
pub(super) const MAX_HEADER_LIST_SIZE: u32 = 1 << 20;
/// Streams in flight until the SETTINGS of the server say how many it takes (RFC 9113, 6.5.2: no fewer than 100).
const STREAMS_BEFORE_SETTINGS: usize = 100;
/// No further part of a body is added while more bytes than these wait for the socket.
const MAX_UNSENT_SIZE: usize = 64 * 1024;

/// A connection, with up to `max_streams` requests in flight.
pub(crate) struct Http2Connection {
    /// Frames for the server, of which the first `written` bytes are sent.
    pub(super) outgoing: Vec<u8>,
    written: usize,
    /// Answers to PING and SETTINGS in `outgoing`.
    pub(super) waiting_answers: usize,
    /// The received part of an incomplete frame.
    pub(super) partial: Vec<u8>,
    pub(super) decoder: HeaderDecoder,
    /// A HEADERS frame without END_HEADERS, and the header block received until now.
    pub(super) continued: Option<(FrameHead, Vec<u8>)>,
    pub(super) streams: StreamTable,
    /// Streams with a body that is not all sent.
    unsent_bodies: VecDeque<u32>,
    max_streams: usize,
    /// What the server allows.
    pub(super) server_max_streams: usize,
    pub(super) initial_send_window: u32,
    pub(super) send_window: i64,
    pub(super) table_use: TableUse,
    /// Whether the server must be told that its dynamic table is not used.
    pub(super) announces_empty_table: bool,
    /// Bytes that the server has not been told it may send again.
    pub(super) unacknowledged: u32,
    /// Whether the server takes no further request, because of GOAWAY.
    pub(super) is_going_away: bool,
    pub(super) has_settings: bool,
    pub(super) has_received: bool,
    /// Why the connection has ended.
    pub(super) failure: Option<RequestFailure>,
}

/// Which form of the request's header block comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableUse {
    /// Without the dynamic table: requests differ, or the server has a small table.
    Never,
    /// Without it until the SETTINGS of the server say how large its table is.
    AfterSettings,
    /// Adds fields to it.
    Insert,
    /// Uses what was added.
    Inserted,
}

impl Http2Connection {
    /// Starts a connection; preface and SETTINGS wait to be sent.
    ///
    /// `repeats_request` says that all requests are the same.
    pub(crate) fn start(max_streams: usize, repeats_request: bool) -> Http2Connection {
        let mut outgoing = PREFACE.to_vec();
        let settings = [
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (setting::MAX_HEADER_LIST_SIZE, MAX_HEADER_LIST_SIZE),
        ];
        FrameHead::write(&mut outgoing, 6 * settings.len(), kind::SETTINGS, 0, 0);
        for (name, value) in settings {
            outgoing.extend_from_slice(&name.to_be_bytes());
            outgoing.extend_from_slice(&value.to_be_bytes());
        }
        let mut connection = Http2Connection {
            outgoing,
            written: 0,
            waiting_answers: 0,
            partial: Vec::new(),
            decoder: HeaderDecoder::default(),
            continued: None,
            streams: StreamTable::new(),
            unsent_bodies: VecDeque::new(),
            max_streams,
            server_max_streams: STREAMS_BEFORE_SETTINGS,
            initial_send_window: DEFAULT_WINDOW,
            send_window: i64::from(DEFAULT_WINDOW),
            table_use: if repeats_request { TableUse::AfterSettings } else { TableUse::Never },
            announces_empty_table: false,
            unacknowledged: 0,
            is_going_away: false,
            has_settings: false,
            has_received: false,
            failure: None,
        };
        connection.write_window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW);
        connection
    }

    /// Returns the number of requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.streams.len()
    }

    /// Returns whether the server has announced the end of the connection.
    pub(crate) fn is_going_away(&self) -> bool {
        self.is_going_away
    }

    pub(crate) fn has_received(&self) -> bool {
        self.has_received
    }

    /// Returns why the connection has ended.
    pub(crate) fn failure(&self) -> Option<RequestFailure> {
        self.failure
    }

    /// Returns the requests in flight.
    pub(crate) fn requests_in_flight(&self) -> impl Iterator<Item = PendingRequest> {
        self.streams.iter().map(|(_, stream)| stream.sent)
    }

    /// Sends a request; returns `false` if the server allows no further one now.
    pub(crate) fn send(&mut self, request: &Http2Request, sent: PendingRequest) -> bool {
        let allowed = self.max_streams.min(self.server_max_streams);
        if self.is_going_away || self.in_flight() >= allowed {
            return false;
        }
        let Some(id) = self.streams.next_id() else {
            self.is_going_away = true;
            return false;
        };
        self.write_headers(request, id);
        let window = i64::from(self.initial_send_window);
        let mut stream = Stream::new(sent, request.is_head_request, window);
        if !request.body.is_empty() {
            stream.unsent_body = request.body.clone();
            self.unsent_bodies.push_back(id);
        }
        self.streams.add(stream);
        true
    }

    /// Writes the header block of a request, in CONTINUATION as well if it is large.
    fn write_headers(&mut self, request: &Http2Request, id: u32) {
        let block = match self.table_use {
            TableUse::Never | TableUse::AfterSettings => &request.block.plain,
            TableUse::Insert => &request.block.inserting,
            TableUse::Inserted => &request.block.indexed,
        };
        if self.table_use == TableUse::Insert {
            self.table_use = TableUse::Inserted;
        }
        let end_stream = if request.body.is_empty() { flag::END_STREAM } else { 0 };
        let update: &[u8] = if self.announces_empty_table { &[TABLE_SIZE_ZERO] } else { &[] };
        self.announces_empty_table = false;
        let (mut part, mut rest) = block.split_at(block.len().min(MAX_PAYLOAD - update.len()));
        let end_headers = |rest: &[u8]| if rest.is_empty() { flag::END_HEADERS } else { 0 };
        let out = &mut self.outgoing;
        let flags = end_stream | end_headers(rest);
        FrameHead::write(out, update.len() + part.len(), kind::HEADERS, flags, id);
        out.extend_from_slice(update);
        out.extend_from_slice(part);
        while !rest.is_empty() {
            (part, rest) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            FrameHead::write(out, part.len(), kind::CONTINUATION, end_headers(rest), id);
            out.extend_from_slice(part);
        }
    }

    /// Writes as much of the bodies as the server allows, up to [`MAX_UNSENT_SIZE`].
    fn write_bodies(&mut self) {
        // Streams that have not been looked at since something was written.
        let mut turns = self.unsent_bodies.len();
        while turns > 0 && self.send_window > 0 && self.outgoing.len() < MAX_UNSENT_SIZE {
            turns -= 1;
            let Some(id) = self.unsent_bodies.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(id) else { continue };
            let allowed = self.send_window.min(stream.send_window).max(0) as usize;
            let length = allowed.min(MAX_PAYLOAD).min(stream.unsent_body.len());
            if length > 0 {
                let part = stream.unsent_body.split_to(length);
                stream.send_window -= length as i64;
                self.send_window -= length as i64;
                let flags = if stream.unsent_body.is_empty() { flag::END_STREAM } else { 0 };
                FrameHead::write(&mut self.outgoing, length, kind::DATA, flags, id);
                self.outgoing.extend_from_slice(&part);
                turns = self.unsent_bodies.len() + 1;
            }
            if !stream.unsent_body.is_empty() {
                self.unsent_bodies.push_back(id);
            }
        }
    }

    /// Passes the bytes for the server to `write`, which returns how many it took.
    ///
    /// Returns whether some remain.
    pub(crate) fn send_frames<E>(
        &mut self,
        mut write: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        loop {
            self.write_bodies();
            if self.outgoing.is_empty() {
                return Ok(false);
            }
            while self.written < self.outgoing.len() {
                match write(&self.outgoing[self.written..])? {
                    0 => return Ok(true),
                    taken => self.written += taken,
                }
            }
            self.outgoing.clear();
            (self.written, self.waiting_answers) = (0, 0);
        }
    }

    /// Resets the streams of all requests that were sent at or before `before`, and returns these requests.
    pub(crate) fn cancel_sent_before(&mut self, before: u64) -> Vec<PendingRequest> {
        let late = self.streams.iter().filter(|(_, stream)| stream.sent.sent_at <= before);
        let late: Vec<(u32, PendingRequest)> = late.map(|(id, stream)| (id, stream.sent)).collect();
        for (id, _) in &late {
            self.write_reset(*id, error_code::CANCEL);
            self.streams.remove(*id);
        }
        late.into_iter().map(|(_, sent)| sent).collect()
    }

    /// Ends a stream after a response that violates HTTP.
    pub(super) fn fail_stream(&mut self, id: u32, events: &mut Vec<StreamEvent>) {
        self.write_reset(id, error_code::PROTOCOL_ERROR);
        self.end_stream(id, StreamFailure::Failed(RequestFailure::Malformed), events);
    }

    /// Ends a stream without a response.
    pub(super) fn end_stream(
        &mut self,
        id: u32,
        why: StreamFailure,
        events: &mut Vec<StreamEvent>,
    ) {
        if let Some(stream) = self.streams.get_mut(id) {
            events.push(StreamEvent { sent: stream.sent, outcome: Err(why) });
            self.streams.remove(id);
        }
    }

    pub(super) fn write_reset(&mut self, id: u32, code: u32) {
        FrameHead::write(&mut self.outgoing, 4, kind::RST_STREAM, 0, id);
        self.outgoing.extend_from_slice(&code.to_be_bytes());
    }

    /// Allows the server to send `more` bytes on a stream, or on the connection if `id` is 0.
    pub(super) fn write_window_update(&mut self, id: u32, more: u32) {
        FrameHead::write(&mut self.outgoing, 4, kind::WINDOW_UPDATE, 0, id);
        self.outgoing.extend_from_slice(&more.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "http2_connection_tests.rs"]
mod tests;
