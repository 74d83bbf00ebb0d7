//! One client connection of the control server, without blocking.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::frame::{self, FrameReader, MAX_REQUEST_BYTES};
use super::protocol::Reply;
use crate::upgrade::{PassedClient, PassedClientState};
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_os::socket::{read_nonblocking, write_nonblocking};

/// How long a client may take to send a request or to read a part of a reply: 5 s.
pub(super) const IDLE_CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest part of a request that is passed to the next image.
const MAX_PASSED_REQUEST_BYTES: usize = 4096;

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientState {
    /// The server reads its request.
    ReadingRequest,
    /// The client waits for the reply to its request.
    WaitingForReply {
        request_id: u64,
        /// Whether the reply is sent when the operation is done, or when it has begun.
        until_done: bool,
        /// Whether the client waits for the exit of the primary after the reply.
        waits_for_exit: bool,
    },
    /// The client receives the events after number `after`, up to `until` or without end.
    StreamingEvents { after: u64, until: Option<u64> },
    /// The client waits for the exit of the primary.
    WaitingForExit,
    /// The connection is closed or is about to be closed.
    Closed,
}

/// The connection of one client.
#[derive(Debug)]
pub(super) struct ClientConnection {
    socket: OwnedFd,
    /// The name in the log: `control uid=0 pid=4711`.
    pub(super) client_name: String,
    pub(super) state: ClientState,
    incoming: FrameReader,
    outgoing: Vec<u8>,
    /// When the server began to wait for a request or for room to write. A partial request does not reset it, so that a
    /// client that sends one byte a second is closed too.
    since: Instant,
}

impl ClientConnection {
    pub(super) fn new(socket: OwnedFd, client_name: String, now: Instant) -> ClientConnection {
        let incoming = FrameReader::new(MAX_REQUEST_BYTES);
        ClientConnection {
            socket,
            client_name,
            state: ClientState::ReadingRequest,
            incoming,
            outgoing: Vec::new(),
            since: now,
        }
    }

    /// Restores a client that the previous image passed on.
    pub(super) fn from_passed(
        socket: OwnedFd,
        client_name: String,
        state: PassedClientState,
        now: Instant,
    ) -> ClientConnection {
        let mut connection = ClientConnection::new(socket, client_name, now);
        connection.state = match state {
            PassedClientState::ReadingRequest { received } => {
                connection.incoming.push_bytes(&received);
                ClientState::ReadingRequest
            }
            PassedClientState::WaitingForReply { request_id } => {
                ClientState::WaitingForReply { request_id, until_done: true, waits_for_exit: false }
            }
            PassedClientState::Following { after } => {
                ClientState::StreamingEvents { after, until: None }
            }
        };
        connection
    }

    /// Returns the state of this client for the next image; `None` if the next image cannot continue with it.
    pub(super) fn pass_to_next_image(&self) -> Option<PassedClient> {
        let state = match self.state {
            ClientState::ReadingRequest => {
                let received = self.incoming.received_bytes();
                // A long partial request is rare and must not make the manifest too large.
                let received =
                    (received.len() <= MAX_PASSED_REQUEST_BYTES).then(|| received.to_vec())?;
                PassedClientState::ReadingRequest { received }
            }
            ClientState::WaitingForReply { request_id, .. } => {
                PassedClientState::WaitingForReply { request_id }
            }
            ClientState::StreamingEvents { after, until: None } => {
                PassedClientState::Following { after }
            }
            ClientState::StreamingEvents { until: Some(_), .. }
            | ClientState::WaitingForExit
            | ClientState::Closed => return None,
        };
        let fd = self.socket.as_raw_fd();
        Some(PassedClient { fd, client_name: self.client_name.clone(), state })
    }

    pub(super) fn watched_fd(&self) -> WatchedFd<'_> {
        let interest = match self.state {
            _ if !self.outgoing.is_empty() => PollInterest::Writable,
            ClientState::ReadingRequest => PollInterest::Readable,
            _ => PollInterest::HangUp,
        };
        WatchedFd::new(self.as_fd(), interest)
    }

    /// Returns when the client has been idle for too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waits_for_it = self.state == ClientState::ReadingRequest || !self.outgoing.is_empty();
        waits_for_it.then(|| self.since + IDLE_CLIENT_TIMEOUT)
    }

    /// Returns since when the client has been idle; `None` if it waits for a reply or for events.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.state == ClientState::ReadingRequest && self.outgoing.is_empty())
            .then_some(self.since)
    }

    /// Returns how many bytes of replies are not sent yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Reads or writes when the descriptor is ready. Returns a complete request.
    pub(super) fn handle_ready(&mut self, now: Instant) -> Option<Vec<u8>> {
        match self.state {
            _ if !self.outgoing.is_empty() => self.write_replies(now),
            ClientState::ReadingRequest => return self.read_request(),
            _ => self.state = ClientState::Closed,
        }
        None
    }

    /// Sends a reply; what does not fit into the socket buffer is written later.
    pub(super) fn send_reply(&mut self, reply: &Reply, now: Instant) {
        if self.outgoing.is_empty() {
            self.since = now;
        }
        self.outgoing.extend_from_slice(&frame::encode_frame(&reply.encode()));
        self.write_replies(now);
    }

    /// Sends the reason if there is room, and closes the connection.
    pub(super) fn refuse_and_close(&mut self, why: String, now: Instant) {
        // After a partly written reply, another frame would corrupt the stream.
        if self.outgoing.is_empty() {
            self.send_reply(&Reply::Refused(why), now);
        }
        self.state = ClientState::Closed;
    }

    fn write_replies(&mut self, now: Instant) {
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
                    self.state = ClientState::Closed;
                }
            }
        }
        self.outgoing.shrink_to(4096);
    }

    fn read_request(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0u8; 4096];
        loop {
            let wanted = match self.incoming.missing_bytes() {
                Ok(0) => return Some(self.incoming.take_payload()),
                Ok(wanted) => wanted.min(buffer.len()),
                Err(long) => {
                    let frame::FrameTooLong { length, max } = long;
                    let why =
                        format!("a request of {length} bytes is too long: send {max} at most");
                    self.refuse_and_close(why, self.since);
                    return None;
                }
            };
            match read_nonblocking(&self.socket, &mut buffer[..wanted]) {
                Ok(0) => self.state = ClientState::Closed,
                Ok(n) => {
                    self.incoming.push_bytes(&buffer[..n]);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.state = ClientState::Closed,
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
