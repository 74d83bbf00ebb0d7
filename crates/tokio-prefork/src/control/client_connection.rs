//! One client connection of the control server: reads a request, writes a reply, never blocks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::frame::{self, FrameReader, MAX_REQUEST_BYTES};
use super::protocol::Reply;
use crate::upgrade::{PassedClient, PassedClientState};
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_os::socket::{read_nonblocking, write_nonblocking};

/// How long a client may take to send a request, or to read the next part of a reply: 5 s.
pub(super) const IDLE_CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest part of a request that is passed to the next image.
const MAX_PASSED_BYTES: usize = 4096;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The server reads its request.
    Asking,
    /// The client waits for the reply to its request.
    Waiting {
        ticket: u64,
        /// Whether it waits until the thing is done, or only until it has begun.
        patient: bool,
        /// Whether, after the answer, it waits for our end.
        last: bool,
    },
    /// The client gets the events after number `after`, up to `until` or without end.
    Streaming { after: u64, until: Option<u64> },
    /// The client waits for the end of the primary.
    Staying,
    /// The connection is closed, or about to be.
    Gone,
}

/// The connection of one client.
#[derive(Debug)]
pub(super) struct ClientConnection {
    socket: OwnedFd,
    /// As it stands in the log: `control uid=0 pid=4711`.
    pub(super) who: String,
    pub(super) state: State,
    incoming: FrameReader,
    outgoing: Vec<u8>,
    /// Since when we wait for a request, or for room to write. Bytes of a half request do not count: who sends
    /// one byte a second is silent, too.
    since: Instant,
}

impl ClientConnection {
    pub(super) fn new(socket: OwnedFd, who: String, now: Instant) -> ClientConnection {
        let incoming = FrameReader::new(MAX_REQUEST_BYTES);
        ClientConnection {
            socket,
            who,
            state: State::Asking,
            incoming,
            outgoing: Vec::new(),
            since: now,
        }
    }

    /// A client of another image of this process.
    pub(super) fn resume(
        socket: OwnedFd,
        who: String,
        state: PassedClientState,
        now: Instant,
    ) -> ClientConnection {
        let mut connection = ClientConnection::new(socket, who, now);
        connection.state = match state {
            PassedClientState::Asking { received } => {
                connection.incoming.push(&received);
                State::Asking
            }
            PassedClientState::Waiting { ticket } => {
                State::Waiting { ticket, patient: true, last: false }
            }
            PassedClientState::Following { after } => State::Streaming { after, until: None },
        };
        connection
    }

    /// What the next image has to know of this client; `None` for one that it cannot go on with.
    pub(super) fn pass_to_next_image(&self) -> Option<PassedClient> {
        let state = match self.state {
            State::Asking => {
                let received = self.incoming.received();
                // Half a request that is so long is rare, and must not make the manifest too large.
                let received = (received.len() <= MAX_PASSED_BYTES).then(|| received.to_vec())?;
                PassedClientState::Asking { received }
            }
            State::Waiting { ticket, .. } => PassedClientState::Waiting { ticket },
            State::Streaming { after, until: None } => PassedClientState::Following { after },
            State::Streaming { until: Some(_), .. } | State::Staying | State::Gone => return None,
        };
        let fd = self.socket.as_raw_fd();
        Some(PassedClient { fd, who: self.who.clone(), state })
    }

    pub(super) fn watched_fd(&self) -> WatchedFd<'_> {
        let interest = match self.state {
            _ if !self.outgoing.is_empty() => PollInterest::Writable,
            State::Asking => PollInterest::Readable,
            _ => PollInterest::HangUp,
        };
        WatchedFd::new(self.as_fd(), interest)
    }

    /// Returns when the client has been idle for too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waits_for_it = self.state == State::Asking || !self.outgoing.is_empty();
        waits_for_it.then(|| self.since + IDLE_CLIENT_TIMEOUT)
    }

    /// Since when no request came from it; `None` if it has every right to be silent.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        (self.state == State::Asking && self.outgoing.is_empty()).then_some(self.since)
    }

    /// Returns how many bytes of replies are not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Reads or writes when the descriptor is ready. Returns a complete request.
    pub(super) fn read_requests(&mut self, now: Instant) -> Option<Vec<u8>> {
        match self.state {
            _ if !self.outgoing.is_empty() => self.flush(now),
            State::Asking => return self.read(),
            _ => self.state = State::Gone,
        }
        None
    }

    /// Replies; the rest of what does not fit now is written when there is room.
    pub(super) fn send(&mut self, reply: &Reply, now: Instant) {
        if self.outgoing.is_empty() {
            self.since = now;
        }
        self.outgoing.extend_from_slice(&frame::encode_frame(&reply.encode()));
        self.flush(now);
    }

    /// Sends the reason if there is room, and closes the connection.
    pub(super) fn refuse_and_close(&mut self, why: String, now: Instant) {
        // Half a reply may be on its way already; then there is no room for another.
        if self.outgoing.is_empty() {
            self.send(&Reply::Refused(why), now);
        }
        self.state = State::Gone;
    }

    fn flush(&mut self, now: Instant) {
        while !self.outgoing.is_empty() {
            match write_nonblocking(&self.socket, &self.outgoing) {
                Ok(n) => {
                    self.outgoing.drain(..n);
                    self.since = now;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.outgoing.clear();
                    self.state = State::Gone;
                }
            }
        }
        self.outgoing.shrink_to(4096);
    }

    fn read(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0u8; 4096];
        loop {
            let wanted = match self.incoming.wanted() {
                Ok(0) => return Some(self.incoming.take()),
                Ok(wanted) => wanted.min(buffer.len()),
                Err(long) => {
                    let frame::FrameTooLong { claimed, max } = long;
                    let why =
                        format!("a request of {claimed} bytes is too long: send {max} at most");
                    self.refuse_and_close(why, self.since);
                    return None;
                }
            };
            match read_nonblocking(&self.socket, &mut buffer[..wanted]) {
                Ok(0) => self.state = State::Gone,
                Ok(n) => {
                    self.incoming.push(&buffer[..n]);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.state = State::Gone,
            }
            return None;
        }
    }
}

impl AsFd for ClientConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
