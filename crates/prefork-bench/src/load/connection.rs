//! The place of one connection: its socket, what is on the way on it, and what is still to be written.

use std::collections::VecDeque;
use std::io::{self, Write};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use socket2::Socket;

use super::counters::Failure;
use super::http_response::Reader;

/// Each change is told once, which saves a call for every request.
pub(crate) const EDGES: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// A connection, or the room for one.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) socket: Option<Socket>,
    registered: bool,
    /// Told when there is room to write.
    wants_room: bool,
    /// In the list of those that have nothing to do.
    pub(crate) listed: bool,
    /// Requests on the way, oldest first.
    pub(crate) waiting: VecDeque<Sent>,
    /// Bytes of them that are not written yet, and where in the requests they begin.
    pub(crate) owed: usize,
    offset: usize,
    pub(crate) reader: Reader,
    /// The process that answered last, as its place in the tally.
    pub(crate) process: Option<usize>,
}

/// A request on the way, in nanoseconds of the round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// When it was to be sent.
    pub(crate) due: u64,
    /// When it was.
    pub(crate) at: u64,
}

impl Slot {
    pub(crate) fn new() -> Slot {
        Slot {
            socket: None,
            registered: false,
            wants_room: false,
            listed: false,
            waiting: VecDeque::new(),
            owed: 0,
            offset: 0,
            reader: Reader::new(),
            process: None,
        }
    }

    /// Writes what is owed, as far as there is room, and sees to it that more room is noticed. `requests` is
    /// the request of `length` bytes, over and over.
    pub(crate) fn write(
        &mut self,
        requests: &[u8],
        length: usize,
        epoll: &Epoll,
        at: usize,
    ) -> Result<(), Failure> {
        let Some(mut socket) = self.socket.as_ref() else { return Ok(()) };
        while self.owed > 0 {
            let until = requests.len().min(self.offset + self.owed);
            match socket.write(&requests[self.offset..until]) {
                Ok(n) => {
                    self.owed -= n;
                    self.offset = (self.offset + n) % length;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(kind(&e)),
            }
        }
        let wants_room = self.wants_room || self.owed > 0;
        let room = if wants_room { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(EDGES | room, at as u64);
        let told = match (self.registered, self.wants_room == wants_room) {
            (false, _) => epoll.add(socket, event),
            (true, false) => epoll.modify(socket, &mut event),
            (true, true) => Ok(()),
        };
        (self.registered, self.wants_room) = (true, wants_room);
        told.map_err(|_| Failure::Local)
    }
}

/// What an error of the kernel means for a request.
pub(crate) fn kind(error: &io::Error) -> Failure {
    match error.raw_os_error().map(Errno::from_raw) {
        // A Unix socket whose queue is full says EAGAIN to a connect that does not wait.
        Some(Errno::ECONNREFUSED | Errno::ENOENT | Errno::EAGAIN) => Failure::Refused,
        Some(Errno::ECONNRESET | Errno::EPIPE) => Failure::Reset,
        Some(Errno::ETIMEDOUT) => Failure::TimedOut,
        _ => Failure::Local,
    }
}
