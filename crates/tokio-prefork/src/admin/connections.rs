//! Accepts and serves the connections of the admin listener, within limits: no client can keep another one from an answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handle_request::handle_request;
use super::process::AdminState;
use crate::error::{Error, Result};
use crate::listener::Listener;

/// How many connections are open at a time. Another one takes the place of the one whose client has been idle for longest.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a client may take to read the next bytes of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a draining process keeps idle connections for a request that is on its way, and how long a client has to read an error
/// response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest request head in bytes, and the size of the buffers of a connection. hyper allows no less.
const MAX_HEAD_BYTES: usize = 8192;

/// The most header fields of a request.
const MAX_HEADER_FIELDS: usize = 64;

/// How long to wait before accepting again when the system is out of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For the rest of a request head, or for the first one.
    ReadingHead,
    /// For the next request.
    Idle,
    /// For its response to be sent.
    Responding,
}

/// A connection of the admin listener.
pub(crate) struct Connection {
    pub(crate) is_unix: bool,
    phase: Cell<Phase>,
    /// When the phase began.
    since: Cell<Instant>,
    /// Since when the client has not read what was to be written.
    write_blocked_since: Cell<Option<Instant>>,
    /// Told when the client has read.
    written: Notify,
    task: RefCell<Option<AbortHandle>>,
}

/// The open connections.
#[derive(Default)]
pub(crate) struct Connections {
    open: RefCell<Vec<Rc<Connection>>>,
    /// Told when a connection has ended.
    ended: Notify,
}

impl Connection {
    fn new(is_unix: bool) -> Connection {
        Connection {
            is_unix,
            phase: Cell::new(Phase::ReadingHead),
            since: Cell::new(Instant::now()),
            write_blocked_since: Cell::new(None),
            written: Notify::new(),
            task: RefCell::new(None),
        }
    }

    pub(crate) fn request_started(&self) {
        self.set_phase(Phase::Responding);
    }

    /// Waits for the turn of the next request of this connection: other connections come first, and the client must have read what
    /// was written, so that no client fills the memory with responses to pipelined requests.
    async fn wait_for_turn(&self) {
        tokio::task::yield_now().await;
        while self.write_blocked_since.get().is_some() {
            self.written.notified().await;
        }
    }

    pub(crate) fn response_ended(&self) {
        self.set_phase(Phase::Idle);
    }

    fn bytes_received(&self) {
        if self.phase.get() == Phase::Idle {
            self.set_phase(Phase::ReadingHead);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// Returns whether the client has taken too long.
    fn is_overdue(&self, now: Instant, drain_since: Option<Instant>) -> bool {
        let waited = |since: Instant| now.saturating_duration_since(since);
        if self.write_blocked_since.get().is_some_and(|since| waited(since) >= WRITE_TIMEOUT) {
            return true;
        }
        let since = self.since.get();
        match (self.phase.get(), drain_since) {
            (Phase::Responding, _) => false,
            (_, Some(drain)) => waited(since.max(drain)) >= LINGER_TIMEOUT,
            (Phase::ReadingHead, None) => waited(since) >= HEAD_TIMEOUT,
            (Phase::Idle, None) => waited(since) >= IDLE_TIMEOUT,
        }
    }

    /// Returns since when the connection waits for its client. `None` while a response is on its way to a client that reads.
    fn waits_for_client_since(&self) -> Option<Instant> {
        let is_waiting = self.phase.get() != Phase::Responding;
        self.write_blocked_since.get().or_else(|| is_waiting.then(|| self.since.get()))
    }

    fn close(&self) {
        self.task.borrow().iter().for_each(AbortHandle::abort);
    }
}

impl Connections {
    pub(crate) fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Closes the connections whose clients take too long.
    pub(crate) fn close_overdue(&self, drain_since: Option<Instant>) {
        let now = Instant::now();
        let open = self.open.borrow();
        open.iter()
            .filter(|connection| connection.is_overdue(now, drain_since))
            .for_each(|connection| connection.close());
    }

    /// Waits until no connection is open.
    pub(crate) async fn wait_until_none(&self) {
        while self.count() > 0 {
            self.ended.notified().await;
        }
    }

    /// Waits until one more connection may be open. Closes the one that has waited for its client for longest.
    async fn wait_for_room(&self) {
        while self.count() >= MAX_CONNECTIONS {
            self.close_most_idle();
            self.ended.notified().await;
        }
    }

    fn close_most_idle(&self) {
        let open = self.open.borrow();
        let waiting = open.iter().filter_map(|one| Some((one.waits_for_client_since()?, one)));
        let longest = waiting.min_by_key(|(since, _)| *since);
        longest.into_iter().for_each(|(_, one)| one.close());
    }

    fn remove(&self, connection: &Rc<Connection>) {
        self.open.borrow_mut().retain(|one| !Rc::ptr_eq(one, connection));
        self.ended.notify_waiters();
    }
}

/// A listening socket in the runtime.
pub(crate) enum AdminAcceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AdminAcceptor {
    /// Registers a listener with the current runtime.
    pub(crate) fn new(listener: Listener) -> Result<AdminAcceptor> {
        if listener.is_unix() {
            let socket = std::os::fd::OwnedFd::from(listener.socket);
            UnixListener::from_std(socket.into()).map(AdminAcceptor::Unix)
        } else {
            TcpListener::from_std(listener.socket.into()).map(AdminAcceptor::Tcp)
        }
        .map_err(|e| Error::system("register a socket of the admin listener", e))
    }

    /// Accepts and serves connections until the process drains.
    pub(crate) async fn run(self, state: Rc<AdminState>) {
        loop {
            state.connections.wait_for_room().await;
            let accepted = match &self {
                AdminAcceptor::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| serve_tcp(&state, stream))
                }
                AdminAcceptor::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| serve(&state, stream, true))
                }
            };
            if accepted.is_err_and(|e| !prefork_os::socket::is_accepted_connection_error(&e)) {
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn serve_tcp(state: &Rc<AdminState>, stream: TcpStream) {
    // Without it a response only leaves later.
    let _ = stream.set_nodelay(true);
    serve(state, stream, false);
}

/// Serves a connection in a task of its own.
fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    state: &Rc<AdminState>,
    stream: S,
    is_unix: bool,
) {
    let connection = Rc::new(Connection::new(is_unix));
    state.connections.open.borrow_mut().push(Rc::clone(&connection));
    state.own_page.set_open_connections(state.connections.count());
    let guard = OpenConnection { state: Rc::clone(state), connection: Rc::clone(&connection) };
    let task = tokio::task::spawn_local(serve_http(guard, stream));
    connection.task.replace(Some(task.abort_handle()));
}

/// Removes the connection from the open ones when its task ends, or is aborted.
struct OpenConnection {
    state: Rc<AdminState>,
    connection: Rc<Connection>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.state.connections.remove(&self.connection);
        self.state.own_page.set_open_connections(self.state.connections.count());
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(guard: OpenConnection, stream: S) {
    let OpenConnection { state, connection } = &guard;
    let service = service_fn(|request| async move {
        connection.wait_for_turn().await;
        Ok::<_, std::convert::Infallible>(handle_request(state, connection, &request))
    });
    let mut stream = ObservedStream { stream, connection: Rc::clone(connection) };
    let serving = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADER_FIELDS)
        .half_close(true)
        .serve_connection(TokioIo::new(&mut stream), service);
    // An error is one of the client: it went away, or sent no HTTP, which hyper has answered.
    if serving.await.is_err() {
        discard_rest(stream).await;
    }
}

/// Closes the sending side and reads until the client has closed its own. Bytes that nobody has read when a socket closes reset the
/// connection, and the client would not see the error response.
async fn discard_rest<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let discard = async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that goes on sending is cut off.
    let _ = tokio::time::timeout(LINGER_TIMEOUT, discard).await;
}

/// A stream that records what its client does.
struct ObservedStream<S> {
    stream: S,
    connection: Rc<Connection>,
}

impl<S> ObservedStream<S> {
    fn record_write<T>(&self, outcome: Poll<T>) -> Poll<T> {
        let blocked = &self.connection.write_blocked_since;
        match outcome {
            Poll::Ready(_) => {
                blocked.set(None);
                self.connection.written.notify_waiters();
            }
            Poll::Pending => blocked.set(blocked.get().or_else(|| Some(Instant::now()))),
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ObservedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.bytes_received();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ObservedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.record_write(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.record_write(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_clients_are_overdue_and_those_that_wait_for_a_response_are_not() {
        let connection = Connection::new(false);
        let start = connection.since.get();
        let after = |span: Duration| connection.is_overdue(start + span, None);
        assert!(!after(HEAD_TIMEOUT - Duration::from_millis(1)));
        assert!(after(HEAD_TIMEOUT), "no request head");
        connection.request_started();
        assert!(!after(IDLE_TIMEOUT * 10), "a stream of events may last");
        connection.write_blocked_since.set(Some(start));
        assert!(after(WRITE_TIMEOUT), "but not without a reader");
        assert_eq!(connection.waits_for_client_since(), Some(start), "and gives way to others");
        connection.write_blocked_since.set(None);
        assert_eq!(connection.waits_for_client_since(), None);
        connection.response_ended();
        connection.since.set(start);
        assert!(!after(HEAD_TIMEOUT) && after(IDLE_TIMEOUT), "a kept connection");
        let drains =
            connection.is_overdue(start + LINGER_TIMEOUT * 2, Some(start + LINGER_TIMEOUT));
        assert!(drains, "a process that drains does not wait for the next request");
        connection.bytes_received();
        connection.since.set(start);
        assert!(after(HEAD_TIMEOUT), "the next head");
    }
}
