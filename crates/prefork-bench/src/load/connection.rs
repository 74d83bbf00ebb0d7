//! The place of one connection: its socket, what is on the way on it, and what is still to be written.

use std::collections::VecDeque;
use std::io::{self, Write};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use socket2::Socket;

use super::counters::RequestFailure;
use super::http_response::ResponseReader;

/// Each change is told once, which saves a call for every request.
pub(crate) const EDGE_TRIGGERED: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// A connection, or the room for one.
#[derive(Debug)]
pub(crate) struct LoadConnection {
    pub(crate) socket: Option<Socket>,
    registered: bool,
    /// Told when there is room to write.
    wants_writable: bool,
    /// In the list of those that have nothing to do.
    pub(crate) is_idle: bool,
    /// Requests on the way, oldest first.
    pub(crate) in_flight: VecDeque<PendingRequest>,
    /// Bytes of them that are not written yet, and where in the requests they begin.
    pub(crate) unsent_bytes: usize,
    write_offset: usize,
    pub(crate) response_reader: ResponseReader,
    /// The process that answered last, as its place in the tally.
    pub(crate) process_index: Option<usize>,
}

/// A request on the way, in nanoseconds of the round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingRequest {
    /// When it was to be sent.
    pub(crate) due: u64,
    /// When it was.
    pub(crate) sent_at: u64,
}

impl LoadConnection {
    pub(crate) fn new() -> LoadConnection {
        LoadConnection {
            socket: None,
            registered: false,
            wants_writable: false,
            is_idle: false,
            in_flight: VecDeque::new(),
            unsent_bytes: 0,
            write_offset: 0,
            response_reader: ResponseReader::new(),
            process_index: None,
        }
    }

    /// Writes what is owed, as far as there is room, and sees to it that more room is noticed. `requests` is
    /// the request of `request_len` bytes, over and over.
    pub(crate) fn write_requests(
        &mut self,
        requests: &[u8],
        request_len: usize,
        epoll: &Epoll,
        at: usize,
    ) -> Result<(), RequestFailure> {
        let Some(mut socket) = self.socket.as_ref() else { return Ok(()) };
        while self.unsent_bytes > 0 {
            let until = requests.len().min(self.write_offset + self.unsent_bytes);
            match socket.write(&requests[self.write_offset..until]) {
                Ok(n) => {
                    self.unsent_bytes -= n;
                    self.write_offset = (self.write_offset + n) % request_len;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error_kind(&e)),
            }
        }
        let wants_writable = self.wants_writable || self.unsent_bytes > 0;
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
}

/// What an error of the kernel means for a request.
pub(crate) fn io_error_kind(error: &io::Error) -> RequestFailure {
    match error.raw_os_error().map(Errno::from_raw) {
        // A Unix socket whose queue is full says EAGAIN to a connect that does not wait.
        Some(Errno::ECONNREFUSED | Errno::ENOENT | Errno::EAGAIN) => RequestFailure::Refused,
        Some(Errno::ECONNRESET | Errno::EPIPE) => RequestFailure::Reset,
        Some(Errno::ETIMEDOUT) => RequestFailure::TimedOut,
        _ => RequestFailure::Local,
    }
}
