//! Serves one HTTP connection with hyper, from its first bytes to its close.

use std::future::{Future, poll_fn};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use hyper::rt::Executor;
use hyper::server::conn::http1;
#[cfg(feature = "http2")]
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
#[cfg(feature = "http2")]
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::connection_state::{CloseRequest, ConnectionPhase, ConnectionState};
use super::handle_request::{ResponseFuture, TrackedBody, TrackedService, handle_request};
use super::http2::stream_executor::{Http2ServerConnExec, Http2StreamExecutor};
use super::hyper_io::HyperIo;
use super::lingering_socket::{LingeringSocket, LingeringSocketSlot, close_with_linger};
use super::request_boundary::RequestRejection;
use super::request_tracking::RequestTracker;
use super::response_chunk::ResponseChunk;
use super::serve_context::{ConnectionHandle, ServeContext};
use super::tls_hint;
use crate::client::ConnectionInfo;
#[cfg(feature = "tls")]
use crate::client::TlsInfo;
use crate::config::Config;
use crate::dispatch::{AcceptedConnection, ConnectionStart};
use crate::error::BoxError;
use crate::scoreboard::RequestRecorder;
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::handover::{self, HandoverOutcome};
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;
use crate::worker::parked::{self, ParkOutcome};
#[cfg(feature = "tls")]
use crate::worker::tls::{self, TlsConnection};
use prefork_os::system::monotonic_ns;

/// The HTTP/2 connection preface (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Size of the buffer that the first bytes of a silent client are read into.
const FIRST_READ_SIZE: usize = 2048;

/// How many pipelined requests are served before other tasks run. hyper itself reads as many at once.
const MAX_PIPELINED_POLLS: usize = 16;

/// How long to read and discard what a client sends after the last response. nginx's `lingering_time`.
const MAX_LINGER_MS: u64 = 30_000;

/// How long to read and discard what an HTTP/2 client sends after GOAWAY and the end of all streams.
const MAX_HTTP2_LINGER_MS: u64 = 5_000;

/// Serves an accepted connection until it closes or is handed over to another worker.
pub(crate) async fn serve_connection<S, B>(
    state: Rc<LocalWorkerState>,
    app: Rc<S>,
    accepted: AcceptedConnection,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let AcceptedConnection { stream, first, info, start, entry, guard } = accepted;
    let transport = HttpTransport { stream, first, is_http2: false };
    let begun = begin_http(&*state, &*entry, (transport, info), start).await;
    let Some((mut transport, info)) = begun else { return };
    while let Some(released) = serve_until_released::<S, B, LocalWorkerState, _, _>(
        &state,
        &app,
        &*entry,
        LocalExecutor,
        transport,
        info.as_ref(),
    )
    .await
    {
        let ReleasedConnection { stream, unread, is_for_parking } = released;
        if is_for_parking {
            match parked::park_connection(&state, &entry, stream, unread, info.as_ref()) {
                ParkOutcome::Parked => return guard.keep_counted(),
                ParkOutcome::Gone => break,
                ParkOutcome::Kept(stream, first) => {
                    transport = HttpTransport { stream, first, is_http2: false };
                }
            }
            continue;
        }
        let proxied = info.as_ref().and_then(ConnectionInfo::proxied_client);
        match handover::hand_over_connection(&state, stream, unread, proxied).await {
            HandoverOutcome::Gone => break,
            // Hand-over failed; keep serving the connection here.
            HandoverOutcome::Kept(stream, first) => {
                transport = HttpTransport { stream, first, is_http2: false };
            }
        }
        entry.conn.pin_to_worker();
    }
    drop(guard);
}

/// A connection between two requests whose hyper connection has ended.
pub(crate) struct ReleasedConnection {
    pub(crate) stream: LazyStream,
    /// The bytes received of its next request.
    pub(crate) unread: Bytes,
    /// Whether it was to be parked, not handed over.
    pub(crate) is_for_parking: bool,
}

/// What HTTP is served on.
pub(crate) struct HttpTransport {
    pub(crate) stream: LazyStream,
    /// Bytes that were read from the stream before.
    pub(crate) first: Bytes,
    pub(crate) is_http2: bool,
}

/// Performs the TLS handshake if there is one to perform, and finds out the version of HTTP. Returns `None` if the connection has
/// ended.
pub(crate) async fn begin_http<H: ServeContext, W: ConnectionHandle>(
    context: &H,
    handle: &W,
    (mut transport, info): (HttpTransport, Option<ConnectionInfo>),
    start: ConnectionStart,
) -> Option<(HttpTransport, Option<ConnectionInfo>)> {
    #[cfg(feature = "tls")]
    if start == ConnectionStart::Tls {
        handle.state().pin_to_worker();
        handle.state().forbid_parking();
        let HttpTransport { stream, first, .. } = transport;
        // Boxed, because a handshake needs memory that most of the life of a connection does not.
        let accepting = Box::pin(tls::accept(context, handle, stream, first, info.as_ref()));
        let TlsConnection { stream, is_http2, facts } = accepting.await?;
        let info = info.map(|info| info.with_tls(TlsInfo::new(facts)));
        let (stream, first) = (LazyStream::from_tls(stream), Bytes::new());
        return Some((HttpTransport { stream, first, is_http2 }, info));
    }
    debug_assert!(start != ConnectionStart::Tls);
    if start == ConnectionStart::Plain && is_http2_enabled(context.config()) {
        let HttpTransport { stream, first, is_http2 } = &mut transport;
        *first = detect_protocol(context, handle, stream, std::mem::take(first)).await;
        *is_http2 = first.starts_with(HTTP2_PREFACE);
    }
    Some((transport, info))
}

/// Reads until the bytes after `first` tell HTTP/2 from HTTP/1, and returns all of them.
///
/// The preface may arrive in pieces. Returns early when the worker drains or wants the connection closed.
async fn detect_protocol<H: ServeContext, W: ConnectionHandle>(
    context: &H,
    handle: &W,
    stream: &mut LazyStream,
    first: Bytes,
) -> Bytes {
    if first.len() >= HTTP2_PREFACE.len() || !HTTP2_PREFACE.starts_with(&first) {
        return first;
    }
    let mut read = BytesMut::from(first);
    while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
        let has_read = poll_fn(|cx| {
            handle.register_waker(cx.waker());
            if handle.state().close_request() != CloseRequest::None || context.is_draining() {
                return Poll::Ready(false);
            }
            // On the stack, and large enough for most requests: the wait needs no memory, and hyper no second read.
            let mut buffer = [MaybeUninit::uninit(); FIRST_READ_SIZE];
            let mut buffer = ReadBuf::uninit(&mut buffer);
            // The next read finds the error again.
            let _ = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            read.extend_from_slice(buffer.filled());
            Poll::Ready(!buffer.filled().is_empty())
        });
        if !has_read.await {
            break;
        }
        handle.state().record_received(context.now_ms());
    }
    read.freeze()
}

/// Serves a connection until it closes, or has to be handed over or parked between two requests.
///
/// Takes the bytes received so far along with the stream, and puts `info` into the extensions of each request. Returns the
/// connection to hand over or to park.
pub(crate) async fn serve_until_released<S, B, H, W, X>(
    context: &H::Ptr<H>,
    app: &H::Ptr<S>,
    handle: &W,
    exec: X,
    HttpTransport { stream, first, is_http2 }: HttpTransport,
    info: Option<&ConnectionInfo>,
) -> Option<ReleasedConnection>
where
    H: ServeContext,
    W: ConnectionHandle,
    Http2StreamExecutor<X>:
        Http2ServerConnExec<ResponseFuture<S::Future, H>, TrackedBody<B, H>> + Clone + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let (conn, meter) = (Arc::clone(handle.state()), context.worker_page().byte_meter());
    let hyper_io: HyperIo<H> = match is_http2 {
        true => {
            conn.set_http2(context.now_ms());
            HyperIo::http2(stream, first, conn, meter)
        }
        false => HyperIo::http1(stream, first, conn, meter, context.config(), info),
    };
    let lingering = hyper_io.lingering_slot();
    let tracker = RequestTracker::<H>::new(context.clone(), Arc::clone(handle.state()), info);
    let tracked = TrackedService { app: app.clone(), tracker: H::new_shared(tracker) };
    let service = service_fn(move |request| handle_request::<S, H>(&tracked, request));
    let io = TokioIo::new(hyper_io);
    if is_http2 {
        // Boxed, because HTTP/2 needs far more memory than the HTTP/1 connections that share this future.
        let exec = Http2StreamExecutor::new(
            exec,
            Arc::clone(handle.state()),
            context.worker_page().byte_meter(),
        );
        Box::pin(serve_http2(&**context, handle, exec, io, service)).await;
    } else if let Some(released) = serve_http1(&**context, handle, io, service).await {
        return Some(released);
    }
    close_connection(&**context, handle, &lingering, info).await;
    None
}

/// Serves an HTTP/1 connection. Returns it if it has to be handed over or parked.
async fn serve_http1<S, B, H, W>(
    context: &H,
    handle: &W,
    io: TokioIo<HyperIo<H>>,
    service: S,
) -> Option<ReleasedConnection>
where
    H: ServeContext,
    W: ConnectionHandle,
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError> + 'static,
    S::Future: 'static,
    B: Body<Data = ResponseChunk, Error = BoxError> + 'static,
{
    let conn = handle.state();
    let mut connection =
        http1_builder(context.config()).serve_connection(io, service).with_upgrades();
    let (mut is_leaving, mut is_for_parking, mut is_first_poll) = (false, false, true);
    let serving = poll_fn(|cx| {
        // hyper reads ahead before it responds, which would register the socket with epoll. A response that is ready at
        // once and the last one does not need that.
        conn.set_defer_reads(std::mem::take(&mut is_first_poll));
        let mut outcome = Pin::new(&mut connection).poll(cx);
        conn.set_defer_reads(false);
        let mut polls = 0;
        while outcome.is_pending() && conn.should_poll_again() {
            polls += 1;
            if polls == MAX_PIPELINED_POLLS {
                // Lets other tasks run first; this poll's unsent responses go out with the next ones.
                cx.waker().wake_by_ref();
                break;
            }
            outcome = Pin::new(&mut connection).poll(cx);
        }
        is_for_parking = outcome.is_pending() && conn.take_parking_request(|| context.now_ms());
        if is_for_parking
            || (outcome.is_pending()
                && context.is_draining()
                && conn.is_ready_for_handover()
                && context.should_hand_over())
        {
            // Only hyper knows whether it is between two requests: if so, it ends at once.
            conn.set_handing_over(true);
            Pin::new(&mut connection).graceful_shutdown();
            outcome = Pin::new(&mut connection).poll(cx);
            conn.set_handing_over(false);
            is_leaving = matches!(outcome, Poll::Ready(Ok(())));
            if !is_leaving {
                // hyper is in a request, and closes the connection after it.
                conn.pin_to_worker();
            }
        }
        outcome
    });
    drive_until_closed(handle, serving).await;
    if !is_leaving {
        return None;
    }
    let parts = connection.into_parts()?;
    let (stream, received) = parts.io.into_inner().into_parts()?;
    let unread = match received.is_empty() {
        true => parts.read_buf,
        false => [parts.read_buf, received].concat().into(),
    };
    Some(ReleasedConnection { stream, unread, is_for_parking })
}

fn http1_builder(config: &Config) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The worker enforces timeouts itself (see `connection_state`).
        .header_read_timeout(None)
        // One buffer for head and body costs less; `response_chunk` keeps large chunks out of it.
        .writev(false)
        .max_buf_size(config.max_header_size.max(64 * 1024))
        .max_header_size(config.max_header_size);
    builder
}

/// Whether connections may use HTTP/2: the feature is compiled in and the configuration allows it.
pub(crate) fn is_http2_enabled(config: &Config) -> bool {
    cfg!(feature = "http2") && config.http2
}

/// Never called: without the feature `http2`, no connection uses HTTP/2.
#[cfg(not(feature = "http2"))]
async fn serve_http2<H, W, X, S>(_: &H, _: &W, _: X, _: TokioIo<HyperIo<H>>, _: S) {}

/// Serves an HTTP/2 connection until it closes; sends GOAWAY when the worker drains.
#[cfg(feature = "http2")]
async fn serve_http2<S, B, H, W, X>(
    context: &H,
    handle: &W,
    exec: X,
    io: TokioIo<HyperIo<H>>,
    service: S,
) where
    H: ServeContext,
    W: ConnectionHandle,
    X: Http2ServerConnExec<S::Future, B> + Clone + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError> + 'static,
    S::Future: 'static,
    B: Body<Data = ResponseChunk, Error = BoxError> + 'static,
{
    let mut connection = pin!(http2_builder(exec, context.config()).serve_connection(io, service));
    let mut has_sent_goaway = false;
    let serving = poll_fn(|cx| {
        if !has_sent_goaway
            && (context.is_draining() || handle.state().close_request() != CloseRequest::None)
        {
            has_sent_goaway = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    drive_until_closed(handle, serving).await;
}

#[cfg(feature = "http2")]
fn http2_builder<X: Clone>(exec: X, config: &Config) -> http2::Builder<X> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(exec);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.http2_max_concurrent_streams)
        .initial_stream_window_size(size(config.http2_stream_window_size))
        .initial_connection_window_size(size(config.http2_connection_window_size))
        .keep_alive_interval(config.http2_ping_interval)
        .keep_alive_timeout(config.http2_ping_timeout)
        .max_header_list_size(size(config.max_header_size));
    if config.http2_extended_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Polls a hyper connection until it ends or the worker wants it closed now.
///
/// Logs errors at debug level only, because the client causes them: an aborted request, a reset, or bytes that are not
/// HTTP.
async fn drive_until_closed<E: std::fmt::Display>(
    handle: &impl ConnectionHandle,
    connection: impl Future<Output = Result<(), E>>,
) {
    let mut connection = pin!(connection);
    let outcome = poll_fn(|cx| {
        handle.register_waker(cx.waker());
        if handle.state().close_request() == CloseRequest::Now && !handle.state().is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        connection.as_mut().poll(cx)
    });
    if let Err(e) = outcome.await {
        log::debug!("connection failed: {e}");
    }
}

/// Closes the socket after hyper released it, without losing the last response to a reset.
async fn close_connection(
    context: &impl ServeContext,
    handle: &impl ConnectionHandle,
    lingering: &LingeringSocketSlot,
    info: Option<&ConnectionInfo>,
) {
    if handle.state().is_upgraded() {
        // The connection counts as open until the application drops it, or until the drain deadline.
        until_closed_now(handle, lingering.wait_released()).await;
        if let Some(record) = handle.state().take_upgrade_record() {
            context.report_ended(record, monotonic_ns());
        }
    } else if let Some(socket) = lingering.take_socket()
        && handle.state().close_request() != CloseRequest::Now
    {
        handle.state().set_phase(ConnectionPhase::Lingering, context.now_ms());
        until_closed_now(handle, send_rest_and_linger(context, handle.state(), socket, info)).await;
    }
}

/// Sends the unsent bytes and the response to a rejected request, then closes the socket with a linger.
async fn send_rest_and_linger(
    context: &impl ServeContext,
    conn: &ConnectionState,
    socket: LingeringSocket,
    info: Option<&ConnectionInfo>,
) {
    let LingeringSocket { mut stream, mut unsent, refused_line } = socket;
    if let Some(rejection) = conn.rejected_head() {
        log::debug!("{} rejected a request: {}", context.tag(), rejection.reason());
        if rejection == RequestRejection::TlsRecord {
            tls_hint::log_tls_on_plain_port(context, info);
        }
        report_refused(context, rejection.status().as_u16(), &refused_line, info);
        unsent.extend_from_slice(&rejection.response());
    }
    if !unsent.is_empty() {
        let length = unsent.len();
        if stream.write_all(&unsent).await.is_err() {
            return;
        }
        context.worker_page().byte_meter().add_bytes_out(length);
    }
    let begun = context.now_ms();
    // After GOAWAY and the end of its streams, an HTTP/2 client does not send the rest of a request any more.
    let max_ms = if conn.http2().is_some() { MAX_HTTP2_LINGER_MS } else { MAX_LINGER_MS };
    close_with_linger(stream, || {
        // A client that still sends has probably not read the response yet.
        let now = context.now_ms();
        conn.set_phase(ConnectionPhase::Lingering, now);
        now.saturating_sub(begun) < max_ms
    })
    .await;
}

/// Counts a request that was refused before it reached hyper, and hands it to the observers.
pub(crate) fn report_refused(
    context: &impl ServeContext,
    status: u16,
    first_line: &[u8],
    info: Option<&ConnectionInfo>,
) {
    context.worker_page().request_refused(status);
    if let Some(observers) = context.observers() {
        context.with_line_buffer(|buffer| {
            observers.request_refused(first_line, status, info, buffer);
        });
    }
}

/// Waits for `end`, or until the worker wants the connection closed now.
async fn until_closed_now(handle: &impl ConnectionHandle, end: impl Future<Output = ()>) {
    let mut end = pin!(end);
    poll_fn(|cx| {
        handle.register_waker(cx.waker());
        match handle.state().close_request() {
            CloseRequest::Now => Poll::Ready(()),
            CloseRequest::None | CloseRequest::WhenIdle => end.as_mut().poll(cx),
        }
    })
    .await;
}

/// Waits for the task that serves a raw connection, and aborts it when the worker wants the connection closed now.
pub(crate) async fn wait_or_abort_task(
    entry: Rc<ConnectionEntry>,
    guard: ConnectionGuard,
    task: tokio::task::JoinHandle<()>,
) {
    let abort = task.abort_handle();
    let mut task = pin!(task);
    poll_fn(|cx| {
        entry.register_waker(cx.waker());
        match entry.conn.close_request() {
            CloseRequest::Now => {
                abort.abort();
                Poll::Ready(())
            }
            // The panic hook has logged a panic of the task; it costs this connection only.
            CloseRequest::None | CloseRequest::WhenIdle => task.as_mut().poll(cx).map(|_| ()),
        }
    })
    .await;
    drop(guard);
}

/// Spawns HTTP/2 streams on the current thread, so handlers need not be `Send`.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
