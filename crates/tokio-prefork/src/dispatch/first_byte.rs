//! Starts serving connections that a worker has accepted.
//!
//! What the client has sent already is read right after the accept. If that is nothing, the worker waits up to 1 ms for
//! the first byte before it accepts the next connection, so that other workers can take it. After a client that stayed
//! silent, the wait is skipped for ever more connections (see `SkipBackoff`).
//!
//! What the wait buys, measured in 6 turns on 2 busy cores with 2 workers: 8 clients that send 300 us after they
//! connect get 13 900 responses per second instead of 6 100, at 31 instead of 39 us of CPU time; beside 500 silent
//! connections per second 5 700 instead of 4 700. With 64 such clients there is no difference, nor in the requests lost
//! per `kill -9`. Of 64 kept connections opened in a burst over 8 workers (`cargo bench --bench dispatch -- balance`) a
//! worker had 7 to 9 in all of 10 tries; without the wait, one had only 2 in 3 of 12 tries. Waiting for several silent
//! clients side by side was no better in any of these.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{ConnectionInfo, ListenerName, ProxiedClient};
use crate::dispatch::{proxy_header, queue_wait};
use crate::skip_backoff::SkipBackoff;
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::http::connection_state::ConnectionPhase;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;
use crate::worker::parked;
use prefork_os::socket_name::SocketName;

/// An accepted connection, with the bytes that its client has sent already.
pub(crate) struct AcceptedConnection {
    pub(crate) stream: LazyStream,
    pub(crate) first: Bytes,
    /// Where it comes from. `None` if the application does not use it.
    pub(crate) info: Option<ConnectionInfo>,
    pub(crate) start: ConnectionStart,
    pub(crate) entry: Rc<ConnectionEntry>,
    pub(crate) guard: ConnectionGuard,
}

/// What the next bytes of a connection begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionStart {
    /// What the application speaks.
    Plain,
    /// A TLS handshake.
    Tls,
    /// The next request of an HTTP/1 connection, on which the client cannot begin HTTP/2 any more.
    NextRequest,
}

impl ConnectionStart {
    fn new(is_tls: bool) -> ConnectionStart {
        if is_tls { ConnectionStart::Tls } else { ConnectionStart::Plain }
    }
}

/// A connection as accept returned it.
pub(crate) struct NewConnection {
    pub(crate) fd: OwnedFd,
    /// Whether it is a Unix socket, not TCP.
    pub(crate) is_unix: bool,
    pub(crate) info: Option<ConnectionInfo>,
    /// Whether it begins with a TLS handshake.
    pub(crate) is_tls: bool,
}

/// How long to wait for a client's first byte before the next accept.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(1);

/// Hands accepted connections to the application, after a short wait for the first byte of silent ones.
pub(crate) struct ConnectionStarter {
    state: Rc<LocalWorkerState>,
    /// Whether to wait for the client's first bytes: protocols in which the server speaks first must not.
    client_speaks_first: bool,
    handle: Rc<dyn Fn(AcceptedConnection)>,
    /// Skips the wait for a first byte after waits in vain.
    backoff: SkipBackoff,
    /// The connection that waits for its first byte.
    pending: Option<AcceptedConnection>,
}

impl ConnectionStarter {
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        client_speaks_first: bool,
        handle: &Rc<dyn Fn(AcceptedConnection)>,
    ) -> ConnectionStarter {
        let (state, handle) = (Rc::clone(state), Rc::clone(handle));
        let backoff = SkipBackoff::default();
        ConnectionStarter { state, client_speaks_first, handle, backoff, pending: None }
    }

    /// Whether the protocol lets the client send first, as HTTP does.
    pub(crate) fn client_speaks_first(&self) -> bool {
        self.client_speaks_first
    }

    /// Describes a connection that was accepted from `listener`, if the application uses that.
    pub(crate) fn describe_accepted(
        &self,
        (fd, peer): (OwnedFd, SocketName),
        listener: &Arc<ListenerName>,
    ) -> NewConnection {
        let is_unix = matches!(peer, SocketName::Unix(_));
        let trusted = &self.state.config.trusted_proxies;
        let info =
            self.wants_info().then(|| ConnectionInfo::accepted(&fd, peer, listener, trusted));
        NewConnection { fd, is_unix, info, is_tls: listener.is_tls() }
    }

    /// Describes a connection that another process has accepted, if the application uses that.
    pub(crate) fn describe_received(&self, fd: OwnedFd, is_unix: bool) -> NewConnection {
        let (listeners, trusted) = (&self.state.listener_names, &self.state.config.trusted_proxies);
        let info = self.wants_info().then(|| ConnectionInfo::of_socket(&fd, listeners, trusted));
        let is_tls = listeners.is_tls_connection(&fd);
        NewConnection { fd, is_unix, info, is_tls }
    }

    /// Whether the application or the access log can see where a connection comes from.
    fn wants_info(&self) -> bool {
        self.state.config.wants_connection_info() || !self.client_speaks_first
    }

    /// Serves a connection that was in the kernel's queue for `waited`, unless that was too long. If its client is
    /// silent, it may be kept for [`ConnectionStarter::wait_for_first_byte`].
    pub(crate) fn start(&mut self, connection: NewConnection, waited: Option<Duration>) {
        let is_http = self.client_speaks_first;
        let connection = queue_wait::check_queue_wait(&self.state, connection, waited, is_http);
        let Some(connection) = connection else { return };
        let accepted = self.register(connection, self.state.now_ms());
        if let Some(waited) = waited.filter(|_| self.state.observers.is_some()) {
            accepted.entry.conn.set_queue_wait(waited);
        }
        if self.client_speaks_first && accepted.first.is_empty() && self.backoff.should_try() {
            self.pending = Some(accepted);
        } else {
            self.serve(accepted);
        }
    }

    /// Serves a connection even if it waited too long, because its queue is about to be closed.
    pub(crate) fn start_despite_queue_wait(&self, connection: NewConnection) {
        self.serve(self.register(connection, LocalWorkerState::monotonic_ms()));
    }

    /// Serves a connection that another process has accepted and read nothing from, instead of this worker.
    pub(crate) fn start_taken_over(&self, connection: NewConnection) {
        let accepted = self.register_taken_over(connection);
        if self.client_speaks_first
            && let Ok(fd) = accepted.stream.socket_fd()
        {
            let first = first_bytes(fd);
            return self.serve(AcceptedConnection { first, ..accepted });
        }
        self.serve(accepted);
    }

    /// Goes on with a connection that another worker has served, with the bytes it has received of the next request, and what
    /// the PROXY header has said.
    pub(crate) fn resume_taken_over(
        &self,
        connection: NewConnection,
        unread: Vec<u8>,
        proxied: Option<ProxiedClient>,
    ) {
        let mut accepted = self.register_taken_over(connection);
        // A worker that has read from a TLS connection keeps it.
        accepted.start = ConnectionStart::Plain;
        accepted.first = unread.into();
        if let Some(proxied) = proxied {
            accepted.info = accepted.info.map(|info| info.with_proxied_client(proxied));
        }
        let accepted = match self.client_speaks_first {
            true => parked::park_taken_over(&self.state, accepted),
            false => Some(accepted),
        };
        if let Some(accepted) = accepted {
            (self.handle)(accepted);
        }
    }

    fn register_taken_over(&self, connection: NewConnection) -> AcceptedConnection {
        let NewConnection { fd, is_unix, info, is_tls } = connection;
        let entry = ConnectionEntry::new(self.state.now_ms());
        entry.conn.set_phase(ConnectionPhase::Idle, self.state.now_ms());
        self.state.worker_page.connection_taken_over();
        let guard = ConnectionGuard::new(&self.state, &entry);
        let (stream, first) = (LazyStream::new(fd, is_unix), Bytes::new());
        let start = ConnectionStart::new(is_tls);
        AcceptedConnection { stream, first, info, start, entry, guard }
    }

    /// Whether the connection started last is kept until its first byte.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Serves the silent connection when it has sent something, or after a millisecond.
    ///
    /// If this future is dropped before, [`ConnectionStarter::start_pending`] has to be called.
    pub(crate) async fn wait_for_first_byte(&mut self) {
        let Some(accepted) = &mut self.pending else { return };
        let spoke = tokio::time::timeout(FIRST_BYTE_TIMEOUT, accepted.stream.readable()).await;
        match spoke.is_ok() {
            true => self.backoff.record_hit(),
            false => self.backoff.record_miss(),
        }
        self.start_pending();
    }

    /// Serves the silent connection now, if there is one.
    pub(crate) fn start_pending(&mut self) {
        if let Some(mut accepted) = self.pending.take() {
            accepted.first = accepted.stream.socket_fd().map(first_bytes).unwrap_or_default();
            self.serve(accepted);
        }
    }

    /// Passes a connection to the application, behind its PROXY header if it may have one.
    fn serve(&self, accepted: AcceptedConnection) {
        if accepted.start == ConnectionStart::Tls {
            let max = self.state.config.max_tls_handshakes();
            self.state.handshakes.begin(&accepted.entry, max, self.state.now_ms());
        }
        let expected = accepted.info.as_ref().and_then(ConnectionInfo::expected_proxy_header);
        match expected {
            None => (self.handle)(accepted),
            Some(expected) => proxy_header::serve_after_header(
                &self.state,
                &self.handle,
                expected,
                accepted,
                self.client_speaks_first,
            ),
        }
    }

    fn register(&self, connection: NewConnection, now: u64) -> AcceptedConnection {
        let NewConnection { fd, is_unix, info, is_tls } = connection;
        let first = if self.client_speaks_first { first_bytes(&fd) } else { Bytes::new() };
        let entry = ConnectionEntry::new(now);
        self.state.worker_page.connection_accepted();
        let guard = ConnectionGuard::new(&self.state, &entry);
        let stream = LazyStream::new(fd, is_unix);
        let start = ConnectionStart::new(is_tls);
        AcceptedConnection { stream, first, info, start, entry, guard }
    }
}

thread_local! {
    /// The buffer for first bytes. Kept, as clearing one for each connection costs more than the read.
    static FIRST_BYTES_BUFFER: RefCell<[u8; 4096]> = const { RefCell::new([0; 4096]) };
}

/// Returns the bytes that the client has already sent; empty if none. The end and errors are left for later reads.
fn first_bytes(fd: impl AsFd) -> Bytes {
    read_first_bytes(fd).unwrap_or_default()
}

/// Returns the bytes that the client has already sent; empty at the end of what it sends.
pub(crate) fn read_first_bytes(fd: impl AsFd) -> io::Result<Bytes> {
    FIRST_BYTES_BUFFER.with_borrow_mut(|buffer| {
        let length = prefork_os::socket::read_nonblocking(fd, buffer)?;
        Ok(Bytes::copy_from_slice(&buffer[..length]))
    })
}
