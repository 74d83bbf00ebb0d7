//! Serves raw connections: counts them as requests, names them in the status, and logs panics of their handler.

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::accepted_stream::AcceptedStream;
use super::connection_registry::{ConnectionEntry, ConnectionGuard};
use super::http::serve_connection::wait_or_abort_task;
use super::local_state::LocalWorkerState;
#[cfg(feature = "tls")]
use super::tls::{self, TlsConnection};
use crate::client::ConnectionInfo;
#[cfg(feature = "tls")]
use crate::client::TlsInfo;
use crate::dispatch::AcceptedConnection;
#[cfg(feature = "tls")]
use crate::dispatch::ConnectionStart;
use crate::scoreboard::{InFlightEntry, RequestRecorder};
use crate::text::panic_text;

/// Stands in place of a method where the status lists a raw connection, before the client's address.
const CONNECTION_METHOD: &str = "connection";

thread_local! {
    /// Whether this thread runs the handler of a raw connection.
    static IS_IN_RAW_CONNECTION: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the calling code is the handler of a raw connection, which is counted and registered.
pub(crate) fn is_in_raw_connection() -> bool {
    IS_IN_RAW_CONNECTION.get()
}

/// Starts the application's handler for a raw connection.
pub(crate) fn serve_raw_connection<H, C>(
    state: &Rc<LocalWorkerState>,
    handler: &Rc<H>,
    accepted: AcceptedConnection,
) where
    H: Fn(AcceptedStream) -> C + 'static,
    C: Future<Output = ()> + 'static,
{
    #[cfg(feature = "tls")]
    if accepted.start == ConnectionStart::Tls {
        let (state, handler) = (Rc::clone(state), Rc::clone(handler));
        tokio::task::spawn_local(async move {
            serve_after_handshake(&state, &handler, accepted).await;
        });
        return;
    }
    let AcceptedConnection { stream, first, info, entry, guard, .. } = accepted;
    let socket = match stream.into_stream() {
        Ok(socket) => socket,
        Err(e) => return log::warn!("{} cannot serve a connection: {e}", state.tag),
    };
    let info = info.unwrap_or_else(|| describe_socket(state, &socket));
    start_handler(state, handler, AcceptedStream::new(socket, first, info), entry, guard);
}

/// Starts the handler with the decrypted stream, after the TLS handshake.
#[cfg(feature = "tls")]
async fn serve_after_handshake<H, C>(
    state: &Rc<LocalWorkerState>,
    handler: &Rc<H>,
    accepted: AcceptedConnection,
) where
    H: Fn(AcceptedStream) -> C + 'static,
    C: Future<Output = ()> + 'static,
{
    let AcceptedConnection { stream, first, info, entry, guard, .. } = accepted;
    let info = match (info, stream.socket_fd()) {
        (Some(info), _) => info,
        (None, Ok(socket)) => describe_socket(state, socket),
        (None, Err(_)) => return,
    };
    let accepting = Box::pin(tls::accept(&**state, &*entry, stream, first, Some(&info)));
    if let Some(TlsConnection { stream, facts, .. }) = accepting.await {
        let info = info.with_tls(TlsInfo::new(facts));
        start_handler(state, handler, AcceptedStream::from_tls(stream, info), entry, guard);
    }
}

fn describe_socket(state: &LocalWorkerState, socket: impl AsFd) -> ConnectionInfo {
    let (listeners, trusted) = (&state.listener_names, &state.config.trusted_proxies);
    ConnectionInfo::of_socket(socket, listeners, trusted)
}

fn start_handler<H, C>(
    state: &Rc<LocalWorkerState>,
    handler: &Rc<H>,
    stream: AcceptedStream,
    entry: Rc<ConnectionEntry>,
    guard: ConnectionGuard,
) where
    H: Fn(AcceptedStream) -> C + 'static,
    C: Future<Output = ()> + 'static,
{
    // Only the application knows when such a connection is idle, so only the drain deadline closes it.
    entry.conn.begin_request(state.now_ms());
    let tracked = TrackedConnection::begin(state, stream.connection_info());
    let handler = Rc::clone(handler);
    let task = tokio::task::spawn_local(tracked.run(async move { handler(stream).await }));
    tokio::task::spawn_local(wait_or_abort_task(entry, guard, task));
}

/// A raw connection on the scoreboard. Dropping this ends it.
struct TrackedConnection {
    state: Rc<LocalWorkerState>,
    entry: Option<InFlightEntry>,
}

impl TrackedConnection {
    fn begin(state: &Rc<LocalWorkerState>, info: &ConnectionInfo) -> TrackedConnection {
        let peer = info.peer().to_string();
        state.worker_page.log_lines().add_raw_connection();
        let entry = state.worker_page.request_started(CONNECTION_METHOD, &peer, state.now_ms());
        TrackedConnection { state: Rc::clone(state), entry }
    }

    /// Runs the handler, and marks the connection as the one that occupies the event loop while it does.
    async fn run(self, handler: impl Future<Output = ()>) {
        let mut handler = pin!(handler);
        poll_fn(|cx| {
            self.state.worker_page.set_running_request(self.entry);
            IS_IN_RAW_CONNECTION.set(true);
            let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
            IS_IN_RAW_CONNECTION.set(false);
            self.state.worker_page.set_running_request(None);
            polled.unwrap_or_else(|panic| {
                self.report_panic(&*panic);
                Poll::Ready(())
            })
        })
        .await;
    }

    #[cold]
    fn report_panic(&self, panic: &(dyn Any + Send)) {
        self.state.worker_page.handler_panicked();
        let name = self.state.worker_page.describe_request(self.entry);
        let name = name.unwrap_or_else(|| "a connection".to_string());
        log::error!("{} the handler of {name} panicked: {}", self.state.tag, panic_text(panic));
    }
}

impl Drop for TrackedConnection {
    fn drop(&mut self) {
        self.state.worker_page.request_finished(self.entry);
    }
}
