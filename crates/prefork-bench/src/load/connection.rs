//! One connection of the load: its transport, requests in flight, and bytes still to write.

use std::collections::VecDeque;
use std::io;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::http_response::ResponseReader;
use super::http2::Http2Connection;
use super::request_failure::RequestFailure;
use super::request_mix::RequestCycle;
use super::transport::Transport;

/// Edge-triggered reading, which saves an epoll call per request.
pub(crate) const EDGE_TRIGGERED: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// A connection to the server; `transport` is `None` between two connections.
pub(crate) struct LoadConnection {
    pub(crate) transport: Option<Transport>,
    registered: bool,
    /// Whether epoll also reports writability.
    wants_writable: bool,
    /// HTTP/2 of this connection; `None` for HTTP/1.1.
    pub(crate) http2: Option<Box<Http2Connection>>,
    /// Requests over HTTP/2 that are not yet sent.
    pub(crate) waiting: VecDeque<PendingRequest>,
    /// When bytes were last received, in nanoseconds since the start of the round.
    pub(crate) last_received: u64,
    /// Requests in flight over HTTP/1.1, oldest first.
    pub(crate) in_flight: VecDeque<PendingRequest>,
    /// Responses that are not yet followed by the next requests.
    pub(crate) answered: usize,
    /// Position of the next request in the cycle of requests.
    pub(crate) next_request: usize,
    /// Bytes of requests that are not yet written.
    unsent_bytes: usize,
    /// Where they begin in the cycle of requests.
    write_offset: usize,
    pub(crate) response_reader: ResponseReader,
    /// When the connection was begun, in nanoseconds since the start of the round; `None` once it is established.
    pub(crate) connecting_since: Option<u64>,
    /// What outlives the connection.
    pub(crate) slot: ConnectionSlot,
    /// Index of the process that answered last, in the thread's counters.
    pub(crate) process_index: Option<usize>,
}

/// One of the connections that the plan asks for, whose socket may be replaced.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConnectionSlot {
    /// Whether its first connection waits for its first response.
    pub(crate) awaits_first_response: bool,
    /// Responses, warm-up included.
    pub(crate) responses: u64,
}

/// A request in flight; times are nanoseconds since the start of the round.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PendingRequest {
    /// When it was due.
    pub(crate) due: u64,
    /// When it was sent, or first waited for a connection.
    pub(crate) sent_at: u64,
    /// Index of its kind, in a load with several kinds of requests.
    pub(crate) kind: u16,
    /// How often it was sent again, because the server had not processed it.
    pub(crate) retries: u8,
}

/// What is known about the process at the other end of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerEnd {
    /// Index of the process that answered last, in the thread's counters.
    pub(crate) process_index: Option<usize>,
    /// The client's TCP port, by which the process can be found.
    pub(crate) port: Option<u16>,
}

impl LoadConnection {
    /// Creates a connection that sends the requests of the cycle from this position on.
    pub(crate) fn new(cycle: &RequestCycle, next_request: usize) -> LoadConnection {
        LoadConnection {
            next_request,
            transport: None,
            registered: false,
            wants_writable: false,
            http2: None,
            waiting: VecDeque::new(),
            last_received: 0,
            in_flight: VecDeque::new(),
            answered: 0,
            unsent_bytes: 0,
            write_offset: cycle.start(next_request),
            response_reader: ResponseReader::new(),
            connecting_since: None,
            slot: ConnectionSlot::default(),
            process_index: None,
        }
    }

    /// Adds `count` requests of HTTP/1.1 to those in flight.
    pub(crate) fn add_requests(
        &mut self,
        cycle: &RequestCycle,
        request: PendingRequest,
        count: usize,
    ) {
        for _ in 0..count {
            let kind = cycle.kind(self.next_request);
            self.in_flight.push_back(PendingRequest { kind, ..request });
            self.unsent_bytes += cycle.request_len(self.next_request);
            self.next_request = cycle.next(self.next_request);
        }
    }

    /// Adds `count` requests of HTTP/2 to those that wait.
    pub(crate) fn add_waiting(
        &mut self,
        cycle: &RequestCycle,
        request: PendingRequest,
        count: usize,
    ) {
        for _ in 0..count {
            let kind = cycle.kind(self.next_request);
            self.waiting.push_back(PendingRequest { kind, ..request });
            self.next_request = cycle.next(self.next_request);
        }
    }

    /// Writes unsent bytes until the socket is full, and registers for writability if some remain.
    ///
    /// `at` is the epoll token.
    pub(crate) fn write_requests(
        &mut self,
        cycle: &RequestCycle,
        epoll: &Epoll,
        at: usize,
    ) -> Result<(), RequestFailure> {
        let Some(transport) = self.transport.as_mut() else { return Ok(()) };
        let is_full = loop {
            while self.unsent_bytes > 0 {
                let until = cycle.bytes.len().min(self.write_offset + self.unsent_bytes);
                let written = transport.write(&cycle.bytes[self.write_offset..until])?;
                if written == 0 {
                    break;
                }
                self.unsent_bytes -= written;
                self.write_offset = (self.write_offset + written) % cycle.cycle_len;
            }
            let has_frames = match &mut self.http2 {
                Some(http2) => http2.send_frames(|frames| transport.write(frames))?,
                None => false,
            };
            let has_unsent = has_frames || self.unsent_bytes > 0;
            let is_full = transport.flush()? || (transport.tls.is_none() && has_unsent);
            // TLS takes more once the socket has taken its records.
            if is_full || !has_unsent || !transport.has_tls_session() {
                break is_full;
            }
        };
        let wants_writable = self.wants_writable || is_full;
        let socket = &transport.socket;
        let room = if wants_writable { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(EDGE_TRIGGERED | room, at as u64);
        let registration = match (self.registered, self.wants_writable == wants_writable) {
            (false, _) => epoll.add(socket, event),
            (true, false) => epoll.modify(socket, &mut event),
            (true, true) => Ok(()),
        };
        (self.registered, self.wants_writable) = (true, wants_writable);
        registration.map_err(|_| RequestFailure::Local)
    }

    /// Returns all requests that have no response.
    pub(crate) fn requests(&self) -> impl Iterator<Item = PendingRequest> {
        let streams = self.http2.iter().flat_map(|http2| http2.requests_in_flight());
        self.in_flight.iter().copied().chain(streams).chain(self.waiting.iter().copied())
    }

    /// Returns what is known about the process that has this connection.
    pub(crate) fn server_end(&self) -> ServerEnd {
        let port = self.transport.as_ref().and_then(Transport::local_port);
        ServerEnd { process_index: self.process_index, port }
    }

    /// Returns the number of requests over HTTP/2 that have no response.
    pub(crate) fn outstanding(&self) -> usize {
        self.waiting.len() + self.http2.as_ref().map_or(0, |http2| http2.in_flight())
    }

    /// Returns the failure that a timeout means at this moment.
    pub(crate) fn timeout_kind(&self) -> RequestFailure {
        if self.transport.is_none() && !self.in_flight.is_empty() {
            // The accept queue of a Unix socket was full all the time.
            return RequestFailure::Refused;
        }
        match self.transport.as_ref().is_some_and(Transport::is_handshaking) {
            true => RequestFailure::HandshakeTimedOut,
            false => RequestFailure::TimedOut,
        }
    }
}

/// Returns the failure that an I/O error means for a request.
pub(crate) fn io_error_kind(error: &io::Error) -> RequestFailure {
    match error.raw_os_error().map(Errno::from_raw) {
        // A nonblocking connect to a Unix socket with a full accept queue returns EAGAIN.
        Some(Errno::ECONNREFUSED | Errno::ENOENT | Errno::EAGAIN) => RequestFailure::Refused,
        Some(Errno::ECONNRESET | Errno::EPIPE) => RequestFailure::Reset,
        Some(Errno::ETIMEDOUT) => RequestFailure::TimedOut,
        _ => RequestFailure::Local,
    }
}
