//! Requests of a load thread over HTTP/2: several streams on each connection.
//!
//! A connection has requests in flight and requests that wait: until the server allows a further stream, or for
//! the next connection. What the server says it has not processed (GOAWAY, REFUSED_STREAM) waits again, with the
//! time it was due, and is not lost.

use super::{
    FULL_QUEUE_DELAY_NANOS, LoadThread, RECONNECT_DELAY_NANOS, RequestFailure, start_connection,
};
use crate::load::connection::PendingRequest;
use crate::load::http2::{Http2Connection, StreamEvent, StreamFailure};

/// How often a request is sent again that the server has not processed.
const MAX_RETRIES: u8 = 10;

impl LoadThread<'_> {
    /// Sends requests until connection `at` has as many as the plan says, and those that wait.
    pub(super) fn fill_http2(&mut self, at: usize, now: u64) {
        let streams = self.plan.requests_per_connection();
        let missing = streams.saturating_sub(self.connections[at].outstanding());
        let is_open = now < self.round.measure_end() && self.open_loop.is_none();
        let missing = if is_open { missing } else { 0 };
        self.send_http2(at, now, now, missing);
    }

    /// Sends `count` requests, over a new connection if there is none.
    pub(super) fn send_http2(&mut self, at: usize, due: u64, now: u64, count: usize) {
        let request = PendingRequest { due, sent_at: now, ..PendingRequest::default() };
        self.connections[at].add_waiting(&self.cycle, request, count);
        self.in_flight += count;
        if self.connections[at].waiting.is_empty() {
            return;
        }
        if self.connections[at].transport.is_none() {
            let streams = self.plan.requests_per_connection();
            match start_connection(self.address, self.tls.as_ref()) {
                Ok(None) => {
                    return self.ready_queue.push_back((now + FULL_QUEUE_DELAY_NANOS, at));
                }
                Ok(Some(transport)) => {
                    self.record_opened(at);
                    let connection = &mut self.connections[at];
                    connection.transport = Some(transport);
                    let repeats_request = self.http2_requests.len() == 1;
                    let http2 = Http2Connection::start(streams, repeats_request);
                    connection.http2 = Some(Box::new(http2));
                }
                Err(why) => return self.fail_connection(at, why, now),
            }
        }
        self.advance_http2(at, false, now);
    }

    /// Ends connection `at` if it has come to its end; otherwise sends what waits.
    ///
    /// `had_response` says that a request has just ended. Returns `false` if the connection has ended.
    pub(super) fn advance_http2(&mut self, at: usize, had_response: bool, now: u64) -> bool {
        let connection = &mut self.connections[at];
        let Some(http2) = connection.http2.as_mut() else { return false };
        let is_done = had_response && self.plan.reconnect_each_request;
        let is_drained = http2.in_flight() == 0 && http2.is_going_away();
        let ended = (is_done || is_drained).then_some(RequestFailure::ClosedEarly);
        if let Some(why) = http2.failure().or(ended) {
            self.fail_connection(at, why, now);
            return false;
        }
        while let Some(next) = connection.waiting.front() {
            if !http2.send(&self.http2_requests[usize::from(next.kind)], *next) {
                break;
            }
            connection.waiting.pop_front();
        }
        self.write_requests(at)
    }

    /// Counts what became of the streams that ended on connection `at`, and returns their number.
    pub(super) fn handle_stream_events(&mut self, at: usize, now: u64) -> usize {
        if self.stream_events.is_empty() {
            return 0;
        }
        let mut events = std::mem::take(&mut self.stream_events);
        let count = events.len();
        let ended = events.drain(..).filter(|event| self.handle_stream_event(at, event, now));
        let ended = ended.count();
        self.stream_events = events;
        self.replace_streams(at, ended);
        count
    }

    /// Returns whether the request has ended; otherwise it waits to be sent again.
    fn handle_stream_event(&mut self, at: usize, event: &StreamEvent, now: u64) -> bool {
        let StreamEvent { sent, outcome } = *event;
        match outcome {
            Ok(response) => self.record_response(at, sent, response, now),
            Err(StreamFailure::Unprocessed) if sent.retries < MAX_RETRIES => {
                self.counters.retried += 1;
                let retried = PendingRequest { retries: sent.retries + 1, ..sent };
                self.connections[at].waiting.push_back(retried);
                return false;
            }
            Err(failure) => {
                let why = match failure {
                    StreamFailure::Unprocessed => RequestFailure::StreamReset,
                    StreamFailure::Failed(why) => why,
                };
                self.end_request(at, sent, why, now);
            }
        }
        true
    }

    /// Counts a request of connection `at` as failed.
    fn end_request(&mut self, at: usize, sent: PendingRequest, why: RequestFailure, now: u64) {
        self.in_flight -= 1;
        self.record_failure(sent, why, now, self.connections[at].server_end());
    }

    /// Lets `count` requests follow as many that have ended.
    fn replace_streams(&mut self, at: usize, count: usize) {
        let now = self.round.elapsed_nanos();
        match self.open_loop {
            Some(_) => self.free_connection(at, count),
            None if self.held_back.is_some() => {
                self.held_back.iter_mut().for_each(|held| held.push(at))
            }
            None if now < self.round.measure_end() && !self.plan.reconnect_each_request => {
                self.in_flight += count;
                let next = PendingRequest { due: now, sent_at: now, ..PendingRequest::default() };
                self.connections[at].add_waiting(&self.cycle, next, count);
            }
            None => {}
        }
    }

    /// Fails the requests of connection `at` that were sent at `before` or earlier.
    ///
    /// Ends the connection if nothing has come since then; otherwise resets the streams.
    pub(super) fn fail_timed_out_streams(&mut self, at: usize, before: u64, now: u64) {
        let connection = &mut self.connections[at];
        let is_late = |request: &PendingRequest| request.sent_at <= before;
        let why = connection.timeout_kind();
        let (late, waiting) = connection.waiting.drain(..).partition::<Vec<_>, _>(is_late);
        connection.waiting.extend(waiting);
        let mut canceled = Vec::new();
        let mut is_stuck = false;
        if let Some(http2) = &mut connection.http2 {
            is_stuck = http2.requests_in_flight().any(|sent| is_late(&sent))
                && connection.last_received <= before;
            if !is_stuck {
                canceled = http2.cancel_sent_before(before);
            }
        }
        if late.is_empty() && canceled.is_empty() && !is_stuck {
            return;
        }
        let count = late.len() + canceled.len();
        for sent in late.into_iter().chain(canceled) {
            self.end_request(at, sent, why, now);
        }
        self.replace_streams(at, count);
        match is_stuck {
            true => self.fail_connection(at, why, now),
            // Without a connection, the one that is scheduled takes what waits.
            false => _ = self.advance_http2(at, false, now),
        }
    }

    /// Schedules a new connection for the requests that still wait.
    pub(super) fn reconnect_for_waiting(&mut self, at: usize, now: u64) {
        if self.open_loop.is_some() && !self.connections[at].waiting.is_empty() {
            self.ready_queue.push_back((now + RECONNECT_DELAY_NANOS, at));
        }
    }
}
