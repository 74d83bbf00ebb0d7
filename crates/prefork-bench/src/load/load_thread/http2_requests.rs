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
            let started = start_connection(self.address, self.tls.as_ref())
                .and_then(|transport| Ok(transport.zip(Some(Http2Connection::start(streams)?))));
            match started {
                Ok(None) => {
                    return self.ready_queue.push_back((now + FULL_QUEUE_DELAY_NANOS, at));
                }
                Ok(Some((transport, http2))) => {
                    self.record_opened(at);
                    let connection = &mut self.connections[at];
                    connection.transport = Some(transport);
                    connection.http2 = Some(Box::new(http2));
                }
                Err(why) => return self.fail_connection(at, why, now),
            }
        }
        self.advance_http2(at);
    }

    /// Processes what connection `at` has received, sends what waits, and writes it to the socket.
    ///
    /// Returns `false` if the connection has ended.
    pub(super) fn advance_http2(&mut self, at: usize) -> bool {
        let mut events = std::mem::take(&mut self.stream_events);
        let is_open = loop {
            let now = self.round.elapsed_nanos();
            let connection = &mut self.connections[at];
            let Some(http2) = connection.http2.as_mut() else { break false };
            while let Some(next) = connection.waiting.front() {
                if !http2.send(&self.http2_requests[usize::from(next.kind)], *next) {
                    break;
                }
                connection.waiting.pop_front();
            }
            let state = http2.advance(&self.response_parsers[0].expectations, &mut events);
            let is_done = self.plan.reconnect_each_request && !events.is_empty();
            let had_events = !events.is_empty();
            for event in events.drain(..) {
                self.handle_stream_event(at, event, now);
            }
            if let Err(why) = state {
                self.fail_connection(at, why, now);
                break false;
            }
            let is_drained = self.connections[at]
                .http2
                .as_ref()
                .is_some_and(|http2| http2.in_flight() == 0 && http2.is_going_away());
            if is_done || is_drained {
                self.fail_connection(at, RequestFailure::ClosedEarly, now);
                break false;
            }
            if !had_events {
                break true;
            }
        };
        self.stream_events = events;
        is_open && self.write_requests(at)
    }

    fn handle_stream_event(&mut self, at: usize, event: StreamEvent, now: u64) {
        let StreamEvent { sent, outcome } = event;
        match outcome {
            Ok(response) => self.record_response(at, sent, response, now),
            Err(StreamFailure::Unprocessed) if sent.retries < MAX_RETRIES => {
                self.counters.retried += 1;
                let retried = PendingRequest { retries: sent.retries + 1, ..sent };
                return self.connections[at].waiting.push_back(retried);
            }
            Err(failure) => {
                let why = match failure {
                    StreamFailure::Unprocessed => RequestFailure::StreamReset,
                    StreamFailure::Failed(why) => why,
                };
                self.end_request(at, sent, why, now);
            }
        }
        self.replace_stream(at, now);
    }

    /// Counts a request of connection `at` as failed.
    fn end_request(&mut self, at: usize, sent: PendingRequest, why: RequestFailure, now: u64) {
        self.in_flight -= 1;
        self.record_failure(sent, why, now, self.connections[at].server_end());
    }

    /// Lets the next request follow one that has ended.
    fn replace_stream(&mut self, at: usize, now: u64) {
        match &mut self.open_loop {
            Some((_, idle, _)) => idle.push_back(at),
            None if now < self.round.measure_end() && !self.plan.reconnect_each_request => {
                self.in_flight += 1;
                let next = PendingRequest { due: now, sent_at: now, ..PendingRequest::default() };
                self.connections[at].add_waiting(&self.cycle, next, 1);
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
        for sent in late.into_iter().chain(canceled) {
            self.end_request(at, sent, why, now);
            self.replace_stream(at, now);
        }
        match is_stuck {
            true => self.fail_connection(at, why, now),
            // Without a connection, the one that is scheduled takes what waits.
            false => _ = self.advance_http2(at),
        }
    }

    /// Schedules a new connection for the requests that still wait.
    pub(super) fn reconnect_for_waiting(&mut self, at: usize, now: u64) {
        if self.open_loop.is_some() && !self.connections[at].waiting.is_empty() {
            self.ready_queue.push_back((now + RECONNECT_DELAY_NANOS, at));
        }
    }
}
