//! What the frames of the server mean for a connection and its streams.
//!
//! Lenient where only conformance is at stake, since the load generator does not judge it; strict where the count of
//! responses would be wrong.

use super::frames::{self, FrameHead, divide_into_frames, error_code, flag, kind, setting};
use super::hpack::{DEFAULT_TABLE_SIZE, HeaderFields};
use super::http2_connection::{
    CONNECTION_WINDOW, Http2Connection, MAX_HEADER_LIST_SIZE, STREAM_WINDOW, TableUse,
};
use super::stream_table::{StreamEvent, StreamFailure};
use crate::load::request_failure::RequestFailure::{self, Malformed};

/// Largest flow-control window.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Answers to PING and SETTINGS that may wait for a server that does not read.
const MAX_WAITING_ANSWERS: usize = 10_000;

impl Http2Connection {
    /// Processes bytes from the server, and appends the streams that ended to `events`.
    ///
    /// `pid_header` is the field that names the pid. After an error [`failure`](Self::failure) says why the connection has
    /// ended.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        pid_header: Option<&str>,
        events: &mut Vec<StreamEvent>,
    ) {
        if self.failure.is_some() {
            return;
        }
        self.has_received = true;
        let mut partial = std::mem::take(&mut self.partial);
        let divided = divide_into_frames(&mut partial, bytes, |head, payload| {
            self.handle_frame(head, payload, pid_header, events)
        });
        self.partial = partial;
        self.failure = divided.err();
    }

    fn handle_frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        pid_header: Option<&str>,
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        let is_expected = self.has_settings || head.kind == kind::SETTINGS;
        if !is_expected || self.continued.is_some() != (head.kind == kind::CONTINUATION) {
            return Err(Malformed);
        }
        match head.kind {
            kind::DATA => self.handle_data(head, payload, events),
            kind::HEADERS => {
                let part = frames::unpadded(head, payload)?;
                match head.has(flag::END_HEADERS) {
                    true => self.handle_headers(head, part, pid_header, events),
                    false => {
                        self.continued = Some((head, part.to_vec()));
                        Ok(())
                    }
                }
            }
            kind::CONTINUATION => {
                let (first, mut block) = self.continued.take().ok_or(Malformed)?;
                block.extend_from_slice(payload);
                match head.has(flag::END_HEADERS) {
                    _ if head.stream != first.stream => Err(Malformed),
                    _ if block.len() > MAX_HEADER_LIST_SIZE as usize => {
                        Err(RequestFailure::HeadTooLarge)
                    }
                    true => self.handle_headers(first, &block, pid_header, events),
                    false => {
                        self.continued = Some((first, block));
                        Ok(())
                    }
                }
            }
            kind::RST_STREAM => self.handle_reset(head, payload, events),
            kind::SETTINGS => self.handle_settings(head, payload),
            kind::PING => self.handle_ping(head, payload),
            kind::GOAWAY => self.handle_goaway(head, payload, events),
            kind::WINDOW_UPDATE => self.handle_window_update(head, payload),
            // Push is disabled.
            kind::PUSH_PROMISE => Err(Malformed),
            _ => Ok(()),
        }
    }

    /// Checks that a frame belongs to a stream that was opened.
    fn check_stream(&self, head: FrameHead) -> Result<(), RequestFailure> {
        if self.streams.was_opened(head.stream) { Ok(()) } else { Err(Malformed) }
    }

    fn handle_headers(
        &mut self,
        head: FrameHead,
        block: &[u8],
        pid_header: Option<&str>,
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        self.check_stream(head)?;
        // Also of streams that have ended, since the block may change the table.
        let fields = self.decoder.decode(block, pid_header).map_err(|_| Malformed)?;
        let HeaderFields { status, content_length, pid, bytes, is_malformed } = fields;
        let is_end = head.has(flag::END_STREAM);
        let Some(stream) = self.streams.get_mut(head.stream) else { return Ok(()) };
        let is_valid = match (stream.has_head, status) {
            _ if is_malformed => false,
            (false, Some(101)) => false,
            // An interim response.
            (false, Some(100..200)) => !is_end,
            (false, Some(status)) => {
                stream.has_head = true;
                (stream.response.status, stream.response.pid) = (status, pid);
                let has_body = !stream.is_head_request && !matches!(status, 204 | 304);
                stream.expected_length = content_length.filter(|_| has_body);
                stream.response.bytes += bytes;
                true
            }
            // Trailers.
            (true, None) => is_end,
            _ => false,
        };
        match is_valid {
            false => self.fail_stream(head.stream, events),
            true if is_end => self.complete_stream(head.stream, events),
            true => {}
        }
        Ok(())
    }

    fn handle_data(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        self.check_stream(head)?;
        let data = frames::unpadded(head, payload)?;
        // Padding counts too, and what comes on streams that have ended.
        self.unacknowledged += head.length as u32;
        if self.unacknowledged > CONNECTION_WINDOW {
            return Err(Malformed);
        }
        if self.unacknowledged >= CONNECTION_WINDOW / 2 {
            let more = std::mem::take(&mut self.unacknowledged);
            self.write_window_update(0, more);
        }
        let Some(stream) = self.streams.get_mut(head.stream) else { return Ok(()) };
        stream.add_body(data);
        stream.unacknowledged += head.length as u32;
        let is_too_long = stream.expected_length.is_some_and(|most| stream.body_length > most);
        if !stream.has_head || is_too_long || stream.unacknowledged > STREAM_WINDOW {
            self.fail_stream(head.stream, events);
        } else if head.has(flag::END_STREAM) {
            self.complete_stream(head.stream, events);
        } else if stream.unacknowledged >= STREAM_WINDOW / 2 {
            let more = std::mem::take(&mut stream.unacknowledged);
            self.write_window_update(head.stream, more);
        }
        Ok(())
    }

    /// Ends a stream after its complete response.
    fn complete_stream(&mut self, id: u32, events: &mut Vec<StreamEvent>) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.expected_length.is_some_and(|length| stream.body_length != length) {
            return self.fail_stream(id, events);
        }
        events.push(StreamEvent { sent: stream.sent, outcome: Ok(stream.complete_response()) });
        // The server has answered without the rest.
        if !stream.unsent_body.is_empty() {
            self.write_reset(id, error_code::CANCEL);
        }
        self.streams.remove(id);
    }

    fn handle_reset(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        self.check_stream(head)?;
        let why = match frames::number(payload)? {
            error_code::REFUSED_STREAM => StreamFailure::Unprocessed,
            _ => StreamFailure::Failed(RequestFailure::StreamReset),
        };
        self.end_stream(head.stream, why, events);
        Ok(())
    }

    fn handle_settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), RequestFailure> {
        if head.stream != 0 || !payload.len().is_multiple_of(6) {
            return Err(Malformed);
        }
        if head.has(flag::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(Malformed) };
        }
        if !self.has_settings {
            self.has_settings = true;
            self.server_max_streams = usize::MAX;
            if self.table_use == TableUse::AfterSettings {
                self.table_use = TableUse::Insert;
            }
        }
        for parameter in payload.chunks_exact(6) {
            let (name, value) = parameter.split_at(2);
            let value = frames::number(value)?;
            match u16::from_be_bytes([name[0], name[1]]) {
                setting::MAX_CONCURRENT_STREAMS => self.server_max_streams = value as usize,
                setting::HEADER_TABLE_SIZE if (value as usize) < DEFAULT_TABLE_SIZE => {
                    self.table_use = TableUse::Never;
                    self.announces_empty_table = true;
                }
                setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => return Err(Malformed),
                setting::INITIAL_WINDOW_SIZE => {
                    let difference = i64::from(value) - i64::from(self.initial_send_window);
                    self.initial_send_window = value;
                    self.streams.change_send_windows(difference);
                }
                _ => {}
            }
        }
        self.write_answer(kind::SETTINGS, &[])
    }

    fn handle_ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), RequestFailure> {
        match (head.stream, payload.len()) {
            (0, 8) if head.has(flag::ACK) => Ok(()),
            (0, 8) => self.write_answer(kind::PING, payload),
            _ => Err(Malformed),
        }
    }

    /// Acknowledges a frame of the server.
    fn write_answer(&mut self, kind: u8, payload: &[u8]) -> Result<(), RequestFailure> {
        FrameHead::write(&mut self.outgoing, payload.len(), kind, flag::ACK, 0);
        self.outgoing.extend_from_slice(payload);
        self.waiting_answers += 1;
        if self.waiting_answers < MAX_WAITING_ANSWERS { Ok(()) } else { Err(Malformed) }
    }

    fn handle_goaway(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        let last = payload.get(..4).ok_or(Malformed)?;
        if head.stream != 0 || payload.len() < 8 {
            return Err(Malformed);
        }
        self.is_going_away = true;
        let last = frames::number(last)? & MAX_WINDOW;
        let beyond = self.streams.iter().map(|(id, _)| id).filter(|id| *id > last);
        for id in beyond.collect::<Vec<_>>() {
            self.end_stream(id, StreamFailure::Unprocessed, events);
        }
        Ok(())
    }

    fn handle_window_update(
        &mut self,
        head: FrameHead,
        payload: &[u8],
    ) -> Result<(), RequestFailure> {
        let more = i64::from(frames::number(payload)? & MAX_WINDOW);
        if more == 0 {
            return Err(Malformed);
        }
        let window = match head.stream {
            0 => &mut self.send_window,
            id => {
                self.check_stream(head)?;
                let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
                &mut stream.send_window
            }
        };
        *window += more;
        if *window > i64::from(MAX_WINDOW) { Err(Malformed) } else { Ok(()) }
    }
}
