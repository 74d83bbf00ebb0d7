//! How a load thread counts what became of requests, connections and handshakes.

use super::LoadThread;
use crate::chaos::{AffectedRequest, FaultEffect};
use crate::load::connection::{LoadConnection, PendingRequest, ServerEnd};
use crate::load::counters::record_latency;
use crate::load::http_response::ParsedResponse;
use crate::load::request_failure::RequestFailure;
use crate::load::tls::CompletedHandshake;
use crate::load::transport::Transport;

impl LoadThread<'_> {
    pub(super) fn record_response(
        &mut self,
        at: usize,
        sent: PendingRequest,
        response: ParsedResponse,
        now: u64,
    ) {
        self.in_flight -= 1;
        let slot = &mut self.connections[at].slot;
        slot.responses += 1;
        if slot.awaits_first_response {
            self.record_first_response(at, now);
        }
        let begin = self.round.measure_start();
        if now >= begin && now < self.round.measure_end() {
            self.counters.completed_in_time += 1;
            self.counters.bytes += response.bytes;
            self.counters.record_timeline(now - begin, Some(now.saturating_sub(sent.due)));
        }
        self.unreported[0] += 1;
        if sent.due < begin {
            self.counters.warm_up[0] += 1;
            return;
        }
        self.counters.answered_after_end += u64::from(now >= self.round.measure_end());
        let connection = &mut self.connections[at];
        let latency = now.saturating_sub(sent.due);
        if self.counters.has_parts() {
            for part in self.counters.parts(sent.kind, self.round.ramp_step(sent.due)) {
                part.record_response(response.status, latency, response.bytes);
            }
        }
        connection.process_index = self.counters.record_response(
            response.status,
            latency,
            response.pid,
            connection.process_index,
        );
        if self.plan.faults.is_none() {
            return;
        }
        let effect = match response.status {
            503 => FaultEffect::Refused,
            _ if latency > self.plan.late_threshold.as_nanos() as u64 => FaultEffect::Late,
            _ => return,
        };
        let server = connection.server_end();
        self.record_affected(effect, sent, now, server);
    }

    pub(super) fn record_affected(
        &mut self,
        effect: FaultEffect,
        sent: PendingRequest,
        now: u64,
        server: ServerEnd,
    ) {
        let ServerEnd { process_index, port } = server;
        let request = AffectedRequest { effect, from: sent.due, until: now, pid: None, port };
        self.counters.record_affected(request, process_index);
    }

    pub(super) fn record_failure(
        &mut self,
        sent: PendingRequest,
        why: RequestFailure,
        now: u64,
        server: ServerEnd,
    ) {
        self.unreported[1] += 1;
        let begin = self.round.measure_start();
        if sent.due < begin {
            self.counters.warm_up[1] += 1;
            return;
        }
        self.counters.record_failure(why);
        for part in self.counters.parts(sent.kind, self.round.ramp_step(sent.due)) {
            part.failures += 1;
        }
        if self.plan.faults.is_some() {
            let what = if why == RequestFailure::Refused {
                FaultEffect::Refused
            } else {
                FaultEffect::Lost
            };
            self.record_affected(what, sent, now, server);
        }
        if now >= begin && now < self.round.measure_end() {
            self.counters.record_timeline(now - begin, None);
        }
    }

    /// Records every request that is still in flight, or was due but never sent, as timed out or abandoned.
    pub(super) fn record_unanswered(&mut self) {
        let now = self.round.elapsed_nanos();
        let unsent = self
            .open_loop
            .iter()
            .flat_map(|(schedule, ..)| schedule.remaining_until(self.round.measure_end()));
        let unsent: Vec<_> = unsent
            .enumerate()
            .map(|(number, due)| {
                let kind = self.cycle.kind(self.cycle.first_position(number));
                let request = PendingRequest { due, sent_at: now, kind, retries: 0 };
                (request, RequestFailure::TimedOut, ServerEnd::default())
            })
            .collect();
        let begin = self.round.measure_start();
        let never_sent = unsent.iter().filter(|(request, ..)| request.due >= begin).count();
        if !self.round.is_abandoned() {
            self.counters.never_sent += never_sent as u64;
        }
        let waiting = |connection: &'_ LoadConnection| -> Vec<_> {
            let (why, server) = (connection.timeout_kind(), connection.server_end());
            connection.requests().map(|sent| (sent, why, server)).collect()
        };
        let sent = self.connections.iter().flat_map(waiting);
        let left: Vec<(PendingRequest, RequestFailure, ServerEnd)> = sent.chain(unsent).collect();
        for (sent, why, server) in left {
            match self.round.is_abandoned() {
                true => self.counters.abandoned += 1,
                false => self.record_failure(sent, why, now, server),
            }
        }
    }

    /// Counts a completed handshake.
    ///
    /// # Errors
    /// The server has chosen another protocol than the load needs.
    pub(super) fn record_handshake(
        &mut self,
        at: usize,
        handshake: CompletedHandshake,
        now: u64,
    ) -> Result<(), RequestFailure> {
        let transport = self.connections[at].transport.as_ref();
        let Some(tls) = transport.and_then(|transport| transport.tls.as_ref()) else {
            return Ok(());
        };
        let counters = &mut self.counters.handshakes;
        if counters.negotiated.is_none() {
            counters.negotiated = tls.negotiated();
        }
        if now >= self.round.measure_start() && now < self.round.measure_end() {
            counters.record_completed(handshake);
        }
        if self.plan.is_http2() && tls.alpn_protocol() != Some(b"h2") {
            counters.record_failed(RequestFailure::NoHttp2);
            return Err(RequestFailure::NoHttp2);
        }
        Ok(())
    }

    /// Records how long it took to connect, once connection `at` is established.
    pub(super) fn record_connect_time(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        if connection.connecting_since.is_some()
            && connection.transport.as_ref().is_some_and(Transport::is_connected)
            && let Some(since) = connection.connecting_since.take()
        {
            let took = self.round.elapsed_nanos().saturating_sub(since);
            record_latency(&mut self.counters.connect_time, took);
        }
    }

    /// Ends the wait for the first response of connection `at`.
    pub(super) fn record_first_response(&mut self, at: usize, now: u64) {
        let slot = &mut self.connections[at].slot;
        if std::mem::take(&mut slot.awaits_first_response) {
            self.opening.record_answered(now);
            self.round.record_first_response(now);
            self.counters.all_answered = now;
        }
    }

    /// Counts a connection whose opening has begun.
    pub(super) fn record_opened(&mut self, at: usize) {
        self.counters.connections_opened += 1;
        self.connections[at].connecting_since = Some(self.round.elapsed_nanos());
    }
}
