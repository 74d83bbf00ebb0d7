//! One thread of the load: its connections on one epoll instance, when each sends, and how it counts
//! responses.

use std::collections::VecDeque;
use std::io::{self, Read};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{self, EDGE_TRIGGERED, LoadConnection, PendingRequest};
use super::counters::{LoadCounters, RequestFailure};
use super::http_response::{ParsedResponse, ResponseError, ResponseExpectations};
use super::plan::LoadPlan;
use super::request_schedule::RequestSchedule;
use super::round_state::RoundState;
use super::target_url::ServerAddress;
use crate::chaos::FaultEffect;

/// Longest wait for events, and interval between checks for timed-out requests.
const EPOLL_TIMEOUT_MS: u8 = 20;
/// Epoll token of the timer.
const TIMER_TOKEN: u64 = u64::MAX;

/// How long a connection waits after a failure, so that a refusing server does not cause a busy loop.
const RECONNECT_DELAY_NANOS: u64 = 10_000_000;

/// Maps an unreadable response to its kind of failure.
fn response_error_kind(why: ResponseError) -> RequestFailure {
    match why {
        ResponseError::Malformed => RequestFailure::Malformed,
        ResponseError::TooManyFields => RequestFailure::TooManyFields,
        ResponseError::HeadTooLarge => RequestFailure::HeadTooLarge,
        ResponseError::ChunkLineTooLong => RequestFailure::ChunkLineTooLong,
    }
}

/// A load thread and its connections.
pub(crate) struct LoadThread<'a> {
    plan: &'a LoadPlan,
    address: &'a ServerAddress,
    round: &'a RoundState,
    /// The request, repeated as often as it fits into one write.
    requests: Vec<u8>,
    request_len: usize,
    expectations: ResponseExpectations,
    epoll: Epoll,
    connections: Vec<LoadConnection>,
    /// When connections may send again, and their indices; earliest first.
    ready_queue: VecDeque<(u64, usize)>,
    /// Open loop only: the schedule, idle connections, and the timer of the next request.
    open_loop: Option<(RequestSchedule, VecDeque<usize>, TimerFd)>,
    /// Requests in flight.
    in_flight: usize,
    /// Responses and failures not yet added to the progress of the round.
    unreported: [u64; 2],
    buffer: Vec<u8>,
    counters: LoadCounters,
}

impl<'a> LoadThread<'a> {
    pub(crate) fn new(
        plan: &'a LoadPlan,
        address: &'a ServerAddress,
        round: &'a RoundState,
        thread: usize,
    ) -> io::Result<LoadThread<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let request = plan.encode_request();
        let connections: Vec<LoadConnection> =
            (0..plan.thread_connections(thread)).map(|_| LoadConnection::new()).collect();
        let open_loop = match plan.rate {
            Some(rate) => {
                let timer = TimerFd::new(
                    ClockId::CLOCK_MONOTONIC,
                    TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
                )?;
                epoll.add(&timer, EpollEvent::new(EDGE_TRIGGERED, TIMER_TOKEN))?;
                Some((
                    RequestSchedule::new(rate, thread, plan.thread_count()),
                    (0..connections.len()).collect(),
                    timer,
                ))
            }
            None => None,
        };
        Ok(LoadThread {
            plan,
            address,
            round,
            request_len: request.len(),
            // One write fills the pipeline, unless the request is large.
            requests: request.repeat(plan.pipeline_depth.min(64 * 1024 / request.len() + 1)),
            expectations: ResponseExpectations {
                is_head_request: plan.method == "HEAD",
                pid_header: plan.pid_header.clone(),
            },
            epoll,
            connections,
            ready_queue: VecDeque::new(),
            open_loop,
            in_flight: 0,
            unreported: [0; 2],
            buffer: vec![0; 64 * 1024],
            counters: LoadCounters::new(),
        })
    }

    /// Runs until the round is over and every request is answered or given up.
    pub(crate) fn run_until_complete(mut self) -> io::Result<LoadCounters> {
        let mut events = [EpollEvent::empty(); 256];
        let mut next_timeout_check = 0;
        if self.open_loop.is_none() {
            self.ready_queue = (0..self.connections.len()).map(|at| (0, at)).collect();
        }
        loop {
            let now = self.round.elapsed_nanos();
            let end = self.round.measure_end();
            self.round.add_progress(std::mem::take(&mut self.unreported));
            self.send_due_requests(now, end)?;
            if now >= next_timeout_check {
                self.fail_timed_out(now);
                next_timeout_check = now + u64::from(EPOLL_TIMEOUT_MS) * 1_000_000;
            }
            if now >= end && (self.is_complete(end) || now >= self.round.drain_deadline()) {
                break;
            }
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(EPOLL_TIMEOUT_MS)) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready?,
            };
            for event in &events[..ready] {
                if event.data() != TIMER_TOKEN {
                    self.handle_event(event.data() as usize, event.events());
                }
            }
        }
        self.record_unanswered();
        Ok(self.counters)
    }

    fn is_complete(&self, end: u64) -> bool {
        let unsent =
            self.open_loop.as_ref().is_some_and(|(schedule, ..)| schedule.next_due() < end);
        self.in_flight == 0 && !unsent
    }

    fn send_due_requests(&mut self, now: u64, end: u64) -> io::Result<()> {
        while let Some((at, connection)) = self.ready_queue.front().copied()
            && at <= now
        {
            self.ready_queue.pop_front();
            if now < end {
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
                let wait = TimeSpec::from_duration(std::time::Duration::from_nanos(due - now));
                timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
                return Ok(());
            }
            schedule.advance();
            // The longest idle connection, so that all take part.
            if let Some(connection) = idle.pop_front() {
                self.send_requests(connection, due, now, 1);
            }
        }
    }

    /// Sends `count` requests, over a new connection if there is none.
    fn send_requests(&mut self, at: usize, due: u64, now: u64, count: usize) {
        let connection = &mut self.connections[at];
        connection
            .in_flight
            .extend(std::iter::repeat_n(PendingRequest { due, sent_at: now }, count));
        connection.unsent_bytes += count * self.request_len;
        connection.is_idle = false;
        self.in_flight += count;
        if connection.socket.is_none() {
            match self.address.start_connect() {
                Ok(socket) => {
                    self.counters.connections_opened += 1;
                    connection.socket = Some(socket);
                }
                Err(e) => return self.fail_connection(at, connection::io_error_kind(&e), now),
            }
        }
        if let Err(why) =
            connection.write_requests(&self.requests, self.request_len, &self.epoll, at)
        {
            self.fail_connection(at, why, now);
        }
    }

    /// Records every request that is still in flight, or was due but never sent, as timed out or abandoned.
    fn record_unanswered(&mut self) {
        let now = self.round.elapsed_nanos();
        let unsent = self
            .open_loop
            .iter()
            .flat_map(|(schedule, ..)| schedule.remaining_until(self.round.measure_end()));
        let unsent = unsent.map(|due| (PendingRequest { due, sent_at: now }, None));
        let waiting = |connection: &'_ LoadConnection| -> Vec<_> {
            connection.in_flight.iter().map(|sent| (*sent, connection.process_index)).collect()
        };
        let sent = self.connections.iter().flat_map(waiting);
        let left: Vec<(PendingRequest, Option<usize>)> = sent.chain(unsent).collect();
        for (sent, process) in left {
            match self.round.is_abandoned() {
                true => self.counters.abandoned += 1,
                false => self.record_failure(sent, RequestFailure::TimedOut, now, process),
            }
        }
    }
}

impl LoadThread<'_> {
    /// Handles an epoll event of connection `at`.
    pub(crate) fn handle_event(&mut self, at: usize, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) && self.connections[at].unsent_bytes > 0 {
            let written = self.connections[at].write_requests(
                &self.requests,
                self.request_len,
                &self.epoll,
                at,
            );
            if let Err(why) = written {
                return self.fail_connection(at, why, self.round.elapsed_nanos());
            }
        }
        // Each edge is reported once: after a hang-up, read to the end of file.
        let to_the_end =
            flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(mut socket) = self.connections[at].socket.as_ref() {
            let outcome = socket.read(&mut buffer);
            let now = self.round.elapsed_nanos();
            match outcome {
                Ok(0) => self.handle_eof(at, now),
                Ok(n) => {
                    let goes_on = self.handle_bytes(at, &buffer[..n], now);
                    if !goes_on || (n < buffer.len() && !to_the_end) {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.fail_connection(at, connection::io_error_kind(&e), now);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Parses received bytes and sends the next requests; returns `false` if the connection ended.
    fn handle_bytes(&mut self, at: usize, bytes: &[u8], now: u64) -> bool {
        let (mut used, mut answered) = (0, 0);
        while used < bytes.len() {
            match self.connections[at]
                .response_reader
                .read_bytes(&bytes[used..], &self.expectations)
            {
                Ok((taken, None)) => used += taken,
                Ok((taken, Some(response))) => {
                    used += taken;
                    let Some(sent) = self.connections[at].in_flight.pop_front() else {
                        self.fail_connection(at, RequestFailure::Malformed, now);
                        return false;
                    };
                    self.record_response(at, sent, response, now);
                    answered += 1;
                    if self.plan.reconnect_each_request || !response.can_reuse_connection {
                        self.fail_connection(at, RequestFailure::ClosedEarly, now);
                        return false;
                    }
                }
                Err(why) => {
                    self.fail_connection(at, response_error_kind(why), now);
                    return false;
                }
            }
        }
        if answered > 0 {
            match &mut self.open_loop {
                Some((_, idle, _)) => {
                    self.connections[at].is_idle = true;
                    idle.push_back(at);
                }
                None if now < self.round.measure_end() => {
                    self.send_requests(at, now, now, answered)
                }
                None => {}
            }
        }
        true
    }

    fn record_response(
        &mut self,
        at: usize,
        sent: PendingRequest,
        response: ParsedResponse,
        now: u64,
    ) {
        self.in_flight -= 1;
        let begin = self.round.measure_start();
        if now >= begin && now < self.round.measure_end() {
            self.counters.completed_in_time += 1;
            self.counters.bytes += response.bytes;
            self.counters.record_timeline(now - begin, false);
        }
        self.unreported[0] += 1;
        if sent.due < begin {
            self.counters.warm_up[0] += 1;
            return;
        }
        let connection = &mut self.connections[at];
        let latency = now.saturating_sub(sent.due);
        connection.process_index = self.counters.record_response(
            response.status,
            latency,
            response.pid,
            connection.process_index,
        );
        if self.plan.faults.is_none() {
            return;
        }
        let process = connection.process_index;
        if response.status == 503 {
            self.counters.record_affected(FaultEffect::Refused, sent.due, now, process);
        } else if latency > self.plan.late_threshold.as_nanos() as u64 {
            self.counters.record_affected(FaultEffect::Late, sent.due, now, process);
        }
    }

    fn handle_eof(&mut self, at: usize, now: u64) {
        if let Some(response) = self.connections[at].response_reader.finish_at_eof()
            && let Some(sent) = self.connections[at].in_flight.pop_front()
        {
            self.record_response(at, sent, response, now);
        }
        self.fail_connection(at, RequestFailure::ClosedEarly, now);
    }

    /// Closes the connection and records its requests in flight, if any, as failed.
    pub(crate) fn fail_connection(&mut self, at: usize, why: RequestFailure, now: u64) {
        let connection = &mut self.connections[at];
        let lost = std::mem::take(&mut connection.in_flight);
        let (is_idle, process) = (connection.is_idle, connection.process_index);
        // Closing the socket removes it from the epoll instance.
        *connection = LoadConnection::new();
        connection.is_idle = true;
        self.in_flight -= lost.len();
        for sent in &lost {
            self.record_failure(*sent, why, now, process);
        }
        match &mut self.open_loop {
            _ if is_idle => {}
            Some((_, idle, _)) => idle.push_back(at),
            None if lost.is_empty() => self.ready_queue.push_front((now, at)),
            None => self.ready_queue.push_back((now + RECONNECT_DELAY_NANOS, at)),
        }
    }

    pub(crate) fn record_failure(
        &mut self,
        sent: PendingRequest,
        why: RequestFailure,
        now: u64,
        process: Option<usize>,
    ) {
        self.unreported[1] += 1;
        let begin = self.round.measure_start();
        if sent.due < begin {
            self.counters.warm_up[1] += 1;
            return;
        }
        self.counters.record_failure(why);
        if self.plan.faults.is_some() {
            let what = if why == RequestFailure::Refused {
                FaultEffect::Refused
            } else {
                FaultEffect::Lost
            };
            self.counters.record_affected(what, sent.due, now, process);
        }
        if now >= begin && now < self.round.measure_end() {
            self.counters.record_timeline(now - begin, true);
        }
    }

    pub(crate) fn fail_timed_out(&mut self, now: u64) {
        let limit = self.plan.timeout.as_nanos() as u64;
        for at in 0..self.connections.len() {
            if self.connections[at]
                .in_flight
                .front()
                .is_some_and(|sent| sent.sent_at + limit <= now)
            {
                self.fail_connection(at, RequestFailure::TimedOut, now);
            }
        }
    }
}
