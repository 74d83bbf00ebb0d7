//! The control server of the primary, non-blocking and driven by the primary's poll loop.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::client_connection::{ClientConnection, ClientState};
use super::event_history::EventHistory;
use super::protocol::{Reply, Request};
use crate::error::{Error, Result};
use crate::socket_file::{SocketFileError, UnixSocketFile};
use crate::upgrade::{PassedControl, PassedFile};
use prefork_os::credentials::peer_credentials;
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_os::socket::{accept_connection, is_resource_exhaustion};

/// How many clients may be connected at the same time.
const MAX_CLIENTS: usize = 32;
/// The backlog of the listening socket.
const CONTROL_LISTEN_BACKLOG: i32 = 1024;
/// How many clients may follow the events at the same time.
const MAX_FOLLOWERS: usize = 8;
/// How many connections are accepted per wake-up: a flood must not delay the workers' reports.
const MAX_ACCEPTS_PER_WAKEUP: usize = 16;
/// How many unsent bytes of events one follower may have; further events stay in the event history.
const MAX_UNSENT_EVENT_BYTES: usize = 64 * 1024;
/// How long to wait before accepting again when the process is out of descriptors: 1 s.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The control socket and its clients.
#[derive(Debug)]
pub(crate) struct ControlServer {
    // Dropped before the clients, so that the file is removed before their connections close.
    /// `None` if no new client may connect, but clients of the previous image wait for replies.
    listening: Option<ControlListener>,
    /// The clients by id; ids increase with each connection.
    clients: BTreeMap<u64, ClientConnection>,
    /// The last id given to a client or a request.
    last: u64,
    paused_until: Option<Instant>,
}

/// The listening socket and its file.
#[derive(Debug)]
struct ControlListener {
    file: UnixSocketFile,
    listener: Socket,
}

/// Identifies a polled descriptor of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlPollToken {
    /// The listening socket.
    Listener,
    /// The client with this id.
    Client(u64),
}

/// A complete request whose client waits for a reply.
#[derive(Debug)]
pub(crate) struct ReceivedRequest {
    /// Identifies the request in `reply` and `stream_events`.
    pub(crate) request_id: u64,
    pub(crate) client_name: String,
    pub(crate) request: Request,
}

impl ControlServer {
    /// Listens at `path`, for root and the user of the primary only.
    pub(crate) fn bind(path: &Path) -> Result<ControlServer> {
        let listening = Some(bind_control_socket(path)?);
        Ok(ControlServer { listening, clients: BTreeMap::new(), last: 0, paused_until: None })
    }

    /// Takes over the socket and the clients of the previous image. Skips a descriptor that is not open.
    pub(crate) fn inherit(passed: PassedControl, now: Instant) -> ControlServer {
        let listening = passed.socket.and_then(|socket| {
            let listener = Socket::from(prefork_os::fd::take_inherited_fd(socket.fd).ok()?);
            Some(ControlListener {
                file: UnixSocketFile::inherit_by_inode(&socket.path, socket.inode),
                listener,
            })
        });
        let mut server = ControlServer {
            listening,
            clients: BTreeMap::new(),
            last: passed.last,
            paused_until: None,
        };
        for client in passed.clients {
            let Ok(socket) = prefork_os::fd::take_inherited_fd(client.fd) else { continue };
            server.last += 1;
            let connection =
                ClientConnection::from_passed(socket, client.client_name, client.state, now);
            server.clients.insert(server.last, connection);
        }
        server
    }

    /// Returns what the next image needs to continue with socket and clients. Closes clients with unsent replies.
    pub(crate) fn pass_to_next_image(&mut self) -> PassedControl {
        self.clients
            .retain(|_, client| client.unsent_bytes() == 0 && client.state != ClientState::Closed);
        let socket = self.listening.as_ref().and_then(|ControlListener { file, listener }| {
            file.path().to_str()?;
            let fd = listener.as_raw_fd();
            Some(PassedFile { path: file.path().to_path_buf(), inode: file.inode(), fd })
        });
        let clients =
            self.clients.values().filter_map(ClientConnection::pass_to_next_image).collect();
        PassedControl { socket, clients, last: self.last }
    }

    /// Returns the descriptors that `pass_to_next_image` names.
    pub(crate) fn passed_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = self.listening.iter().map(|listening| listening.listener.as_fd());
        let clients = self.clients.values().filter(|client| client.pass_to_next_image().is_some());
        socket.chain(clients.map(AsFd::as_fd))
    }

    /// Returns whether replies wait for room in a client's socket.
    pub(crate) fn has_unsent_replies(&self) -> bool {
        self.clients.values().any(|client| client.unsent_bytes() > 0)
    }

    /// Returns the path of the socket, if the server listens.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.listening.as_ref().map(|listening| listening.file.path())
    }

    /// Returns whether clients that connect to `path` reach this server.
    pub(crate) fn is_reachable_at(&self, path: &Path) -> bool {
        let Ok(path) = std::path::absolute(path) else { return false };
        let is_there = |one: &ControlListener| one.file.path() == path && one.file.is_in_place();
        self.listening.as_ref().is_some_and(is_there)
    }

    /// Replaces the listening socket by one at `path`. Clients stay connected. On an error nothing changes.
    pub(crate) fn rebind(&mut self, path: &Path) -> Result<()> {
        self.listening = Some(bind_control_socket(path)?);
        Ok(())
    }

    /// Closes the listening socket and removes its file. Clients stay connected.
    pub(crate) fn close_listener(&mut self) {
        self.listening = None;
    }

    /// Returns what to wait for. The tokens of ready descriptors go to `read_requests`.
    pub(crate) fn poll_sources(&self) -> impl Iterator<Item = (ControlPollToken, WatchedFd<'_>)> {
        let interest = match self.paused_until {
            Some(_) => PollInterest::HangUp,
            None => PollInterest::Readable,
        };
        let listener = self.listening.iter().map(move |one| {
            (ControlPollToken::Listener, WatchedFd::new(one.listener.as_fd(), interest))
        });
        let clients = self.clients.iter();
        listener.chain(clients.map(|(id, one)| (ControlPollToken::Client(*id), one.watched_fd())))
    }

    /// Polls for up to `timeout` and returns the tokens of the ready descriptors.
    #[cfg(test)]
    pub(crate) fn poll_ready(&self, timeout: Duration) -> Vec<ControlPollToken> {
        let (tokens, watched): (Vec<_>, Vec<_>) = self.poll_sources().unzip();
        let ready = prefork_os::poll::poll_fds(&watched, Some(timeout)).expect("poll");
        let ready = tokens.into_iter().zip(ready).filter(|(_, is_ready)| *is_ready);
        ready.map(|(token, _)| token).collect()
    }

    /// Returns when `send_events_and_close_idle` has to be called at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let clients = self.clients.values().filter_map(ClientConnection::next_deadline);
        clients.chain(self.paused_until).min()
    }

    /// Reads from ready clients, accepts new ones and returns the complete requests.
    pub(crate) fn read_requests(
        &mut self,
        ready: &[ControlPollToken],
        now: Instant,
    ) -> Vec<ReceivedRequest> {
        let mut received = Vec::new();
        for token in ready {
            let ControlPollToken::Client(id) = token else { continue };
            let Some(client) = self.clients.get_mut(id) else { continue };
            let Some(bytes) = client.handle_ready(now) else { continue };
            match Request::decode(&bytes) {
                Ok(request) => {
                    self.last += 1;
                    let until_done = !matches!(request, Request::Reload { wait: false });
                    let waits_for_exit = matches!(request, Request::Stop { .. });
                    client.state = ClientState::WaitingForReply {
                        request_id: self.last,
                        until_done,
                        waits_for_exit,
                    };
                    received.push(ReceivedRequest {
                        request_id: self.last,
                        client_name: client.client_name.clone(),
                        request,
                    });
                }
                Err(why) => client.send_reply(&Reply::Refused(why), now),
            }
        }
        if ready.contains(&ControlPollToken::Listener) {
            self.accept_clients(now);
        }
        self.remove_closed_clients();
        received
    }

    /// Replies to a request. Returns whether its client is still connected.
    pub(crate) fn reply(&mut self, request_id: u64, reply: &Reply, now: Instant) -> bool {
        let Some(client) = self.find_client_of_request(request_id) else { return false };
        client.state = match client.state {
            ClientState::WaitingForReply { waits_for_exit: true, .. }
                if !matches!(reply, Reply::Refused(_)) =>
            {
                ClientState::WaitingForExit
            }
            _ => ClientState::ReadingRequest,
        };
        client.send_reply(reply, now);
        true
    }

    /// Replies to a request with the events after `since`.
    pub(crate) fn stream_events(
        &mut self,
        request_id: u64,
        follow: bool,
        since: u64,
        history: &EventHistory,
        now: Instant,
    ) {
        let follows = |c: &&ClientConnection| {
            matches!(c.state, ClientState::StreamingEvents { until: None, .. })
        };
        if follow && self.clients.values().filter(follows).count() >= MAX_FOLLOWERS {
            let why = format!("{MAX_FOLLOWERS} clients follow the events already: try again later");
            self.reply(request_id, &Reply::Refused(why), now);
        } else if let Some(client) = self.find_client_of_request(request_id) {
            let after = since.clamp(history.first_number() - 1, history.last_number());
            let until = (!follow).then(|| history.last_number());
            client.state = ClientState::StreamingEvents { after, until };
        }
    }

    /// Sends new events to followers and closes idle or slow clients. Called before each wait.
    pub(crate) fn send_events_and_close_idle(&mut self, history: &EventHistory, now: Instant) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        for client in self.clients.values_mut() {
            if let ClientState::WaitingForReply { until_done: false, .. } = client.state {
                client.state = ClientState::ReadingRequest;
                let begun = "begun; `prefork events` tells how it goes".to_string();
                client.send_reply(&Reply::Done(begun), now);
            }
            send_new_events(client, history, now);
            if client.next_deadline().is_some_and(|at| at <= now) {
                client.refuse_and_close("nothing was asked for 5 s".to_string(), now);
            }
        }
        self.remove_closed_clients();
    }

    fn accept_clients(&mut self, now: Instant) {
        for _ in 0..MAX_ACCEPTS_PER_WAKEUP {
            let Some(ControlListener { listener, .. }) = &self.listening else { return };
            let socket = match accept_connection(listener) {
                Ok(socket) => socket,
                Err(e) => {
                    if is_resource_exhaustion(&e) {
                        self.paused_until = Some(now + ACCEPT_RETRY_INTERVAL);
                    }
                    return;
                }
            };
            let Ok(peer) = peer_credentials(&socket) else { continue };
            let client_name = format!("control uid={} pid={}", peer.uid, peer.pid);
            let mut client = ClientConnection::new(socket, client_name, now);
            if let Err(why) = check_client_user(peer.uid, effective_uid()) {
                client.refuse_and_close(why, now);
            } else if self.make_room_for_client(now) {
                self.last += 1;
                self.clients.insert(self.last, client);
            } else {
                let why =
                    format!("{MAX_CLIENTS} clients wait for answers already: try again later");
                client.refuse_and_close(why, now);
            }
        }
    }

    /// Makes room for one more client, if necessary by closing the one that has been idle longest. A client that waits for a
    /// reply is never closed.
    fn make_room_for_client(&mut self, now: Instant) -> bool {
        if self.clients.len() < MAX_CLIENTS {
            return true;
        }
        let silent = self.clients.iter().filter_map(|(id, c)| Some((c.idle_since()?, *id)));
        let Some((_, id)) = silent.min() else { return false };
        if let Some(mut client) = self.clients.remove(&id) {
            client.refuse_and_close("nothing was asked, and others want to ask".to_string(), now);
        }
        true
    }

    fn find_client_of_request(&mut self, id: u64) -> Option<&mut ClientConnection> {
        self.clients
            .values_mut()
            .find(|c| matches!(c.state, ClientState::WaitingForReply { request_id, .. } if request_id == id))
    }

    fn remove_closed_clients(&mut self) {
        self.clients.retain(|_, client| client.state != ClientState::Closed);
    }
}

fn bind_control_socket(path: &Path) -> Result<ControlListener> {
    let name = format!("control socket {}", path.display());
    let fail = |why: String| Error::bind(&name, why);
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let meta = std::fs::metadata(directory)
        .map_err(|e| fail(format!("its directory {}: {e}", directory.display())))?;
    if meta.mode() & 0o1002 == 0o0002 {
        // Any user could replace the socket by another one.
        let why = "everybody may rename files in its directory: configure another (control)";
        return Err(fail(why.to_string()));
    }
    let (listener, file) = UnixSocketFile::bind(path, Some(0o600), CONTROL_LISTEN_BACKLOG)
        .map_err(|error| match error {
            SocketFileError::InUse { .. } => {
                fail(format!("{error}; configure another path (control)"))
            }
            error @ SocketFileError::Failed { .. } => error.into_bind_error(&name),
        })?;
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::system(format!("make the {name} non-blocking"), e))?;
    Ok(ControlListener { file, listener })
}

/// Sends a client the events that it has not received yet, up to the limit on unsent bytes.
fn send_new_events(client: &mut ClientConnection, history: &EventHistory, now: Instant) {
    let ClientState::StreamingEvents { after, until } = client.state else { return };
    if after + 1 < history.first_number() {
        return client.refuse_and_close("too slow: events were lost; ask again".to_string(), now);
    }
    let mut sent = after;
    for entry in
        history.events_after(after).take_while(|e| until.is_none_or(|last| e.sequence <= last))
    {
        if client.unsent_bytes() > MAX_UNSENT_EVENT_BYTES || client.state == ClientState::Closed {
            break;
        }
        client.send_reply(&Reply::Event(entry.into()), now);
        sent = entry.sequence;
    }
    if client.state == ClientState::Closed {
        return;
    }
    client.state = ClientState::StreamingEvents { after: sent, until };
    if let Some(last) = until.filter(|last| *last <= sent) {
        client.state = ClientState::ReadingRequest;
        client.send_reply(&Reply::LastEvent(last), now);
    }
}

/// Allows root and the user of the primary; refuses all others.
fn check_client_user(uid: u32, own: u32) -> Result<(), String> {
    match uid == 0 || uid == own {
        true => Ok(()),
        false => Err(format!("uid {uid} may not ask: only root and uid {own} may")),
    }
}

/// Returns the effective user id of this process.
pub(super) fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
