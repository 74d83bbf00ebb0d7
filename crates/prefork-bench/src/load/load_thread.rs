//! One thread of the load: its connections on one epoll instance, when each sends, and how it counts
//! responses.

mod http2_requests;
mod results;

use std::collections::VecDeque;
use std::io;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{self, EDGE_TRIGGERED, LoadConnection, PendingRequest, ServerEnd};
use super::connection_opening::ConnectionOpening;
use super::counters::{LoadCounters, record_latency};
use super::http_response::{ResponseExpectations, ResponseParser};
use super::http2::{Http2Request, StreamEvent};
use super::part_counters::{PartCounters, RAMP_STEPS};
use super::plan::LoadPlan;
use super::request_failure::{RequestFailure, response_error_kind};
use super::request_mix::RequestCycle;
use super::request_schedule::{RateRamp, RequestSchedule};
use super::round_state::RoundState;
use super::target_url::ServerAddress;
use super::tls::{TlsClient, TlsStream};
use super::transport::{ReadOutcome, Transport};
use super::wake_time::WakeTime;

/// Longest wait for events, and interval between checks for timed-out requests.
const EPOLL_TIMEOUT_MS: u8 = 20;
/// Epoll token of the timer.
const TIMER_TOKEN: u64 = u64::MAX;

/// How long a connection waits after a failure, so that a refusing server does not cause a busy loop.
const RECONNECT_DELAY_NANOS: u64 = 10_000_000;

/// How long a connection waits after its Unix socket has refused it because the accept queue was full: 1 ms.
const FULL_QUEUE_DELAY_NANOS: u64 = 1_000_000;

/// Connections whose responses are read before the next requests are written on them.
///
/// A request that is written alone wakes the server for itself, which costs both more than the request does.
const SEND_BATCH: usize = 16;

/// A load thread and its connections.
pub(crate) struct LoadThread<'a> {
    plan: &'a LoadPlan,
    address: &'a ServerAddress,
    /// `None` for plain HTTP.
    tls: Option<TlsClient>,
    round: &'a RoundState,
    /// The requests, in the order in which each connection sends them.
    cycle: RequestCycle,
    /// The request of each kind over HTTP/2; empty for HTTP/1.1.
    http2_requests: Vec<Http2Request>,
    /// Parser of the responses to each kind of request.
    response_parsers: Vec<ResponseParser>,
    epoll: Epoll,
    connections: Vec<LoadConnection>,
    /// When connections may send again, and their indices; earliest first.
    ready_queue: VecDeque<(u64, usize)>,
    /// When connections are opened for the first time, and their indices; earliest first.
    to_open: VecDeque<(u64, usize)>,
    /// Limits the connections that are opened at a time.
    opening: ConnectionOpening,
    /// Connections whose requests have been answered and must be followed by others.
    to_send: Vec<usize>,
    /// Connections that wait until all have had a response; `None` once they need not.
    held_back: Option<Vec<usize>>,
    /// Open loop only: the schedule, idle connections, and the timer of the next request.
    open_loop: Option<(RequestSchedule, VecDeque<usize>, TimerFd)>,
    /// When the request is due for which the timer is set, in nanoseconds since the start of the round.
    timer_at: u64,
    wake_time: WakeTime,
    /// Requests in flight.
    in_flight: usize,
    /// Responses and failures not yet added to the progress of the round.
    unreported: [u64; 2],
    buffer: Vec<u8>,
    /// Kept to save an allocation each time.
    stream_events: Vec<StreamEvent>,
    counters: LoadCounters,
}

impl<'a> LoadThread<'a> {
    pub(crate) fn new(
        plan: &'a LoadPlan,
        address: &'a ServerAddress,
        tls: Option<&TlsClient>,
        round: &'a RoundState,
        thread: usize,
    ) -> io::Result<LoadThread<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let cycle = RequestCycle::from_plan(plan).map_err(io::Error::other)?;
        let plans = plan.plans_of_kinds().map_err(io::Error::other)?;
        let connections: Vec<LoadConnection> = (0..plan.thread_connections(thread))
            .map(|at| LoadConnection::new(&cycle, cycle.first_position(at)))
            .collect();
        let open_loop = match plan.rate {
            Some(rate) => {
                let timer = TimerFd::new(
                    ClockId::CLOCK_MONOTONIC,
                    TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
                )?;
                epoll.add(&timer, EpollEvent::new(EDGE_TRIGGERED, TIMER_TOKEN))?;
                let idle = (0..plan.requests_per_connection()).flat_map(|_| 0..connections.len());
                let ramp = plan.rate_at_end.map(|rate_at_end| RateRamp {
                    rate_at_end,
                    begin: round.measure_start(),
                    end: round.planned_end(),
                });
                let schedule = RequestSchedule::new(rate, ramp, thread, plan.thread_count());
                Some((schedule, idle.collect(), timer))
            }
            None => None,
        };
        Ok(LoadThread {
            plan,
            address,
            tls: tls.map(TlsClient::for_thread),
            round,
            cycle,
            http2_requests: match plan.is_http2() {
                true => plans
                    .iter()
                    .map(|plan| Http2Request::from_plan(plan).map_err(io::Error::other))
                    .collect::<io::Result<_>>()?,
                false => Vec::new(),
            },
            response_parsers: plans
                .iter()
                .map(|plan| ResponseParser::new(ResponseExpectations::from_plan(plan)))
                .collect(),
            to_open: round.opening_times(plan, thread),
            epoll,
            connections,
            ready_queue: VecDeque::new(),
            opening: ConnectionOpening::new(plan.thread_count()),
            to_send: Vec::with_capacity(SEND_BATCH),
            held_back: plan.opens_before_load().then(Vec::new),
            open_loop,
            timer_at: 0,
            wake_time: WakeTime::default(),
            in_flight: 0,
            unreported: [0; 2],
            buffer: vec![0; 64 * 1024],
            stream_events: Vec::new(),
            counters: LoadCounters {
                kinds: PartCounters::list(plan.mix.len()),
                ramp_steps: PartCounters::list(if plan.has_ramp() { RAMP_STEPS } else { 0 }),
                ..LoadCounters::new()
            },
        })
    }

    /// Runs until the round is over and every request is answered or given up.
    pub(crate) fn run_until_complete(mut self) -> io::Result<LoadCounters> {
        let mut events = [EpollEvent::empty(); 256];
        let mut next_timeout_check = 0;
        loop {
            let now = self.round.elapsed_nanos();
            let end = self.round.measure_end();
            self.send_due_requests(now, end)?;
            if self.held_back.is_some() && !self.round.is_opening(now) {
                self.release_held_back(now);
            }
            if now >= next_timeout_check {
                // The other threads use the same cache line.
                self.round.add_progress(std::mem::take(&mut self.unreported));
                self.fail_timed_out(now);
                next_timeout_check = now + u64::from(EPOLL_TIMEOUT_MS) * 1_000_000;
            }
            if now >= end && (self.is_complete(end) || now >= self.round.drain_deadline()) {
                break;
            }
            let polls = self.plan.busy_wait || self.is_request_due_soon(now);
            let timeout = if polls { 0 } else { EPOLL_TIMEOUT_MS };
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(timeout)) {
                Err(Errno::EINTR) => 0,
                ready => ready?,
            };
            for (number, event) in events[..ready].iter().enumerate() {
                match event.data() {
                    TIMER_TOKEN if polls => {}
                    TIMER_TOKEN => self.wake_time.record_woken(self.round.elapsed_nanos()),
                    at => self.handle_event(at as usize, event.events()),
                }
                if self.to_send.len() >= SEND_BATCH {
                    self.send_next_requests();
                }
                // Requests of an open loop must not wait for the responses to many others.
                if self.open_loop.is_some() && number % SEND_BATCH == SEND_BATCH - 1 {
                    self.send_due_requests(self.round.elapsed_nanos(), end)?;
                }
            }
            self.send_next_requests();
        }
        self.record_unanswered();
        self.round.add_progress(std::mem::take(&mut self.unreported));
        let responses = self.connections.iter().map(|connection| connection.slot.responses);
        let fewest_and_most = responses.clone().min().zip(responses.max()).map(|(a, b)| [a, b]);
        self.counters.record_responses_of_connections(fewest_and_most);
        Ok(self.counters)
    }

    fn is_complete(&self, end: u64) -> bool {
        let unsent =
            self.open_loop.as_ref().is_some_and(|(schedule, ..)| schedule.next_due() < end);
        self.in_flight == 0 && !unsent
    }

    /// Returns whether the next request of an open loop is due so soon that sleeping would make it late.
    fn is_request_due_soon(&self, now: u64) -> bool {
        let Some((schedule, idle, _)) = &self.open_loop else { return false };
        !idle.is_empty() && self.wake_time.is_soon(schedule.next_due(), now)
    }

    fn send_due_requests(&mut self, now: u64, end: u64) -> io::Result<()> {
        while let Some((at, connection)) = self.to_open.front().copied()
            && at <= now
            && self.opening.may_open(now)
        {
            self.to_open.pop_front();
            self.opening.record_opened(now);
            self.connections[connection].slot.awaits_first_response = true;
            self.ready_queue.push_back((at, connection));
        }
        while let Some((at, connection)) = self.ready_queue.front().copied()
            && at <= now
        {
            self.ready_queue.pop_front();
            if self.plan.is_http2() {
                self.fill_http2(connection, now);
            } else if !self.connections[connection].in_flight.is_empty() {
                // The accept queue was full. A timeout meanwhile may have scheduled the connection a second time.
                if self.connections[connection].transport.is_none() {
                    self.connect_and_write(connection, now);
                }
            } else if now < end {
                self.send_requests(connection, now, now, self.plan.pipeline_depth);
            }
        }
        loop {
            let Some((schedule, idle, timer)) = &mut self.open_loop else { return Ok(()) };
            let due = schedule.next_due();
            if due >= end || idle.is_empty() {
                return Ok(());
            }
            if due > now {
                let polls = self.plan.busy_wait || self.wake_time.is_soon(due, now);
                if self.timer_at != due && !polls {
                    let expires = self.wake_time.set_timer(due);
                    // An absolute time, since the thread may be interrupted between here and the system call.
                    let at = Expiration::OneShot(self.round.monotonic_time(expires));
                    timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
                    self.timer_at = due;
                }
                return Ok(());
            }
            schedule.advance();
            // The longest idle connection, so that all take part.
            if let Some(connection) = idle.pop_front() {
                // Read again, as earlier sends of this loop have taken time.
                let now = self.round.elapsed_nanos();
                if due >= self.round.measure_start() {
                    record_latency(&mut self.counters.send_delay, now.saturating_sub(due));
                }
                self.send_requests(connection, due, now, 1);
            }
        }
    }

    /// Sends `count` requests, over a new connection if there is none.
    fn send_requests(&mut self, at: usize, due: u64, now: u64, count: usize) {
        if self.plan.is_http2() {
            return self.send_http2(at, due, now, count);
        }
        let connection = &mut self.connections[at];
        let request = PendingRequest { due, sent_at: now, ..PendingRequest::default() };
        connection.add_requests(&self.cycle, request, count);
        self.in_flight += count;
        match connection.transport.is_none() {
            true => self.connect_and_write(at, now),
            false => drop(self.write_requests(at)),
        }
    }

    /// Opens connection `at` for the requests that wait for it, and writes them.
    fn connect_and_write(&mut self, at: usize, now: u64) {
        match start_connection(self.address, self.tls.as_ref()) {
            Ok(Some(transport)) => {
                self.record_opened(at);
                self.connections[at].transport = Some(transport);
                self.write_requests(at);
            }
            Ok(None) => self.ready_queue.push_back((now + FULL_QUEUE_DELAY_NANOS, at)),
            Err(why) => self.fail_connection(at, why, now),
        }
    }
}

impl LoadThread<'_> {
    /// Handles an epoll event of connection `at`.
    pub(crate) fn handle_event(&mut self, at: usize, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) && !self.write_requests(at) {
            return;
        }
        // Each edge is reported once: after a hang-up, read to the end of file.
        let to_the_end =
            flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(outcome) = self.read_once(at, &mut buffer) {
            if outcome == ReadOutcome::Blocked || (outcome == ReadOutcome::Drained && !to_the_end) {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Reads once from connection `at` and handles what came; `None` if there is no connection, or it ended.
    fn read_once(&mut self, at: usize, buffer: &mut [u8]) -> Option<ReadOutcome> {
        // Taken out of the connection, which the responses change meanwhile.
        let mut transport = self.connections[at].transport.take()?;
        let mut answered = 0;
        let mut received_at = None;
        let read = transport.read(buffer, |bytes| {
            // All responses of one read, or of one TLS record, have come by then.
            let now = self.round.elapsed_nanos();
            received_at = Some(now);
            self.handle_bytes(at, bytes, now, &mut answered)
        });
        let has_unsent = transport.tls.as_ref().is_some_and(|tls| tls.has_unsent());
        self.connections[at].transport = Some(transport);
        let now = received_at.unwrap_or_else(|| self.round.elapsed_nanos());
        // Also if the connection has failed, since these streams have ended before.
        let ended_streams = self.handle_stream_events(at, now);
        let (outcome, handshake) = match read {
            Ok(read) => read,
            Err(why) => {
                self.free_connection(at, answered);
                self.fail_connection(at, why, now);
                return None;
            }
        };
        if outcome != ReadOutcome::Blocked {
            self.connections[at].last_received = now;
        }
        if let Some(handshake) = handshake
            && let Err(why) = self.record_handshake(at, handshake, now)
        {
            self.fail_connection(at, why, now);
            return None;
        }
        if self.connections[at].http2.is_some() && !self.advance_http2(at, ended_streams > 0, now) {
            return None;
        }
        if let ReadOutcome::Ended { is_complete } = outcome {
            self.handle_eof(at, is_complete, now);
            return None;
        }
        match answered {
            0 if (handshake.is_some() || has_unsent) && !self.write_requests(at) => None,
            0 => Some(outcome),
            answered => {
                self.replace_answered(at, answered, now);
                Some(outcome)
            }
        }
    }

    /// Writes what connection `at` has to send; returns `false` if that ended the connection.
    fn write_requests(&mut self, at: usize) -> bool {
        let written = self.connections[at].write_requests(&self.cycle, &self.epoll, at);
        if let Err(why) = written {
            self.fail_connection(at, why, self.round.elapsed_nanos());
            return false;
        }
        self.record_connect_time(at);
        true
    }

    /// Parses received bytes, and adds the number of complete responses to `answered`.
    ///
    /// # Errors
    /// The connection must be closed: with requests in flight it failed, without it is done.
    fn handle_bytes(
        &mut self,
        at: usize,
        bytes: &[u8],
        now: u64,
        answered: &mut usize,
    ) -> Result<(), RequestFailure> {
        if let Some(http2) = &mut self.connections[at].http2 {
            let pid_header = self.response_parsers[0].expectations.pid_header.as_deref();
            http2.receive(bytes, pid_header, &mut self.stream_events);
            return Ok(());
        }
        let mut used = 0;
        while used < bytes.len() {
            let connection = &mut self.connections[at];
            let kind = connection.in_flight.front().map_or(0, |sent| usize::from(sent.kind));
            let (taken, response) = connection
                .response_reader
                .read_bytes(&bytes[used..], &mut self.response_parsers[kind])
                .map_err(response_error_kind)?;
            used += taken;
            let Some(response) = response else { continue };
            let sent = self.connections[at].in_flight.pop_front();
            let sent = sent.ok_or(RequestFailure::Malformed)?;
            self.record_response(at, sent, response, now);
            *answered += 1;
            if self.plan.reconnect_each_request || !response.can_reuse_connection {
                return Err(RequestFailure::ClosedEarly);
            }
        }
        Ok(())
    }

    /// Sends as many requests as were answered, or makes the connection available for the next due one.
    fn replace_answered(&mut self, at: usize, answered: usize, now: u64) {
        match self.open_loop {
            Some(_) => self.free_connection(at, answered),
            None if now < self.round.measure_end() => {
                let connection = &mut self.connections[at];
                if connection.answered == 0 {
                    self.held_back.as_mut().unwrap_or(&mut self.to_send).push(at);
                }
                connection.answered += answered;
            }
            None => {}
        }
    }

    /// Lets the connections go on that have waited for the first response of others.
    fn release_held_back(&mut self, now: u64) {
        let mut held = self.held_back.take().unwrap_or_default();
        match self.plan.is_http2() {
            true => held.iter().for_each(|at| self.fill_http2(*at, now)),
            false => {
                self.to_send.append(&mut held);
                self.send_next_requests();
            }
        }
    }

    /// Sends the requests that follow answered ones.
    fn send_next_requests(&mut self) {
        for next in 0..self.to_send.len() {
            let at = self.to_send[next];
            // 0 if the connection has ended meanwhile.
            let count = std::mem::take(&mut self.connections[at].answered);
            let now = self.round.elapsed_nanos();
            if count > 0 && now < self.round.measure_end() {
                self.send_requests(at, now, now, count);
            }
        }
        self.to_send.clear();
    }

    /// Makes connection `at` available for `count` further due requests.
    fn free_connection(&mut self, at: usize, count: usize) {
        if let Some((_, idle, _)) = &mut self.open_loop {
            idle.extend(std::iter::repeat_n(at, count));
        }
    }

    /// Handles the end of a connection; `is_complete` says that nothing was cut off.
    fn handle_eof(&mut self, at: usize, is_complete: bool, now: u64) {
        if is_complete
            && let Some(response) = self.connections[at].response_reader.finish_at_eof()
            && let Some(sent) = self.connections[at].in_flight.pop_front()
        {
            self.record_response(at, sent, response, now);
            self.free_connection(at, 1);
        }
        self.fail_connection(at, RequestFailure::ClosedEarly, now);
    }

    /// Closes the connection and records its requests in flight, if any, as failed.
    pub(crate) fn fail_connection(&mut self, at: usize, why: RequestFailure, now: u64) {
        // The same alert tells of a server without HTTP/1.1.
        let is_for_http2 = self.plan.is_http2();
        let why = match why {
            RequestFailure::NoHttp2 if !is_for_http2 => RequestFailure::HandshakeRefused,
            why => why,
        };
        self.record_first_response(at, now);
        let next = LoadConnection::new(&self.cycle, self.connections[at].next_request);
        let mut failed = std::mem::replace(&mut self.connections[at], next);
        self.connections[at].slot = failed.slot;
        // What was not sent may be sent on the next connection, unless this one has come to nothing.
        let may_reconnect = failed.http2.as_ref().is_some_and(|http2| http2.has_received());
        if may_reconnect {
            self.connections[at].waiting = std::mem::take(&mut failed.waiting);
        }
        let lost: Vec<PendingRequest> = failed.requests().collect();
        // Only needed for failures, and only known while the socket is open.
        let server = if lost.is_empty() { ServerEnd::default() } else { failed.server_end() };
        match failed.transport.take() {
            Some(transport) if lost.is_empty() => transport.close(),
            Some(transport) => self.end_handshake(transport, why),
            None => {}
        }
        self.in_flight -= lost.len();
        for sent in &lost {
            self.record_failure(*sent, why, now, server);
        }
        self.free_connection(at, lost.len());
        match lost.is_empty() {
            _ if self.open_loop.is_some() => self.reconnect_for_waiting(at, now),
            true => self.ready_queue.push_front((now, at)),
            false => self.ready_queue.push_back((now + RECONNECT_DELAY_NANOS, at)),
        }
    }

    /// Counts the handshake of a failed connection if it was not complete.
    ///
    /// Ends the round at once if no handshake can succeed, so that the user need not wait for the report.
    fn end_handshake(&mut self, transport: Transport, why: RequestFailure) {
        let counters = &mut self.counters.handshakes;
        if transport.is_handshaking() || why == RequestFailure::HandshakeRefused {
            counters.record_failed(why);
        }
        match transport.abort() {
            Some(error) => counters.note_error(why, error),
            None if why.advice().is_some() => counters.note_error(why, why.phrase().to_string()),
            None => {}
        }
        if why.is_permanent() && !self.counters.has_responses() {
            self.round.end_measurement();
        }
    }

    pub(crate) fn fail_timed_out(&mut self, now: u64) {
        let limit = self.plan.timeout.as_nanos() as u64;
        for at in 0..self.connections.len() {
            if self.plan.is_http2() {
                self.fail_timed_out_streams(at, now.saturating_sub(limit), now);
                continue;
            }
            if self.connections[at]
                .in_flight
                .front()
                .is_some_and(|sent| sent.sent_at + limit <= now)
            {
                self.fail_connection(at, self.connections[at].timeout_kind(), now);
            }
        }
    }
}

/// Starts to connect, and with TLS to shake hands; `None` if the accept queue of a Unix socket is full.
fn start_connection(
    address: &ServerAddress,
    tls: Option<&TlsClient>,
) -> Result<Option<Transport>, RequestFailure> {
    let socket = match address.start_connect() {
        // TCP has no such answer, and would repeat the SYN.
        Err(e) if e.raw_os_error() == Some(Errno::EAGAIN as i32) => return Ok(None),
        started => started.map_err(|e| connection::io_error_kind(&e))?,
    };
    let tls = tls.map(TlsStream::start).transpose()?.map(Box::new);
    Ok(Some(Transport::new(socket, tls)))
}
