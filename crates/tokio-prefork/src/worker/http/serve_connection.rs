//! One HTTP connection from its first bytes to its close.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
#[cfg(feature = "http2")]
use std::time::Duration;

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
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection_state::{Conn, Phase, Told};
use super::handle_request::{Answering, BoxError, Context, Served, answer};
use super::http2::stream_executor::{Http2ServerConnExec, StreamExecutor};
use super::hyper_io::{Leftover, LingeringSocket, Wire, close_politely};
use super::request_tracking::Books;
use super::serve_context::{House, Seat};
use crate::config::Config;
use crate::dispatch::AcceptedConnection;
use crate::scoreboard::Row;
use crate::worker::connection_registry::{Entry, Guard};
use crate::worker::handover::{self, Departure};
use crate::worker::lazy_stream::Link;
use crate::worker::local_state::State;

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pipelined requests that are served before other tasks run. As many as hyper itself reads in one go.
const MAX_TURNS: usize = 16;

/// How long we read what a client still sends after the last response. nginx's `lingering_time`.
const MAX_LINGER_MS: u64 = 30_000;

/// The same for HTTP/2, after GOAWAY and the end of all streams.
const MAX_HTTP2_LINGER_MS: u64 = 5_000;

/// How long an HTTP/2 peer may take to answer a ping before it counts as gone.
#[cfg(feature = "http2")]
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves `accepted` with the application `app` until it ends.
pub(crate) async fn serve<S, B>(state: Rc<State>, app: Rc<S>, accepted: AcceptedConnection)
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let AcceptedConnection { mut link, mut first, entry, guard } = accepted;
    if speaks_http2(&state.config) {
        first = read_protocol(&*state, &*entry, &mut link, first).await;
    }
    while let Some((left, unread)) =
        serve_on::<S, B, State, _, _>(&state, &app, &*entry, OnThisThread, link, first).await
    {
        match handover::depart(&state, left, unread).await {
            Departure::Gone => break,
            // It goes on here, as if it had never been thought of.
            Departure::Stays(stays, unread) => (link, first) = (stays, unread),
        }
        entry.conn.root();
    }
    drop(guard);
}

/// Reads behind `first` until it tells HTTP/2 from HTTP/1: the preface may come in pieces. Given up when the worker has
/// other plans with the connection.
pub(crate) async fn read_protocol<H: House, W: Seat>(
    house: &H,
    seat: &W,
    link: &mut Link,
    first: Bytes,
) -> Bytes {
    if first.len() >= PREFACE.len() || !PREFACE.starts_with(&first) {
        return first;
    }
    let mut read = BytesMut::from(first);
    while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
        let mut next = pin!(link.read_buf(&mut read));
        let length = poll_fn(|cx| {
            seat.watch(cx.waker());
            if seat.conn().told() != Told::Nothing || house.is_draining() {
                return Poll::Ready(Ok(0));
            }
            next.as_mut().poll(cx)
        });
        // The end, or an error, is found again by the next read.
        if length.await.unwrap_or(0) == 0 {
            break;
        }
        seat.conn().received(house.now_ms());
    }
    read.freeze()
}

/// Serves a connection until it ends, or stands between two requests and is wanted elsewhere: then it is
/// returned, with what was received of the next request.
pub(crate) async fn serve_on<S, B, H, W, X>(
    house: &H::Ptr<H>,
    app: &H::Ptr<S>,
    seat: &W,
    exec: X,
    link: Link,
    first: Bytes,
) -> Option<(Link, Bytes)>
where
    H: House,
    W: Seat,
    StreamExecutor<X>: Http2ServerConnExec<Answering<S::Future, H>, Served<B, H>> + Clone + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let is_http2 = speaks_http2(house.config()) && first.starts_with(PREFACE);
    let (conn, meter) = (Arc::clone(seat.conn()), house.row().meter());
    let wire = match is_http2 {
        true => {
            conn.set_http2(house.now_ms());
            Wire::http2(link, first, conn, meter)
        }
        false => Wire::http1(link, first, conn, meter, house.config()),
    };
    let leftover = wire.leftover();
    let books = Books::<H> { house: house.clone(), conn: Arc::clone(seat.conn()) };
    let ctx = Context { app: app.clone(), books: H::share(books) };
    let service = service_fn(move |request| answer::<S, H>(&ctx, request));
    let io = TokioIo::new(wire);
    if is_http2 {
        let exec = StreamExecutor::new(exec, Arc::clone(seat.conn()), house.row().meter());
        // Boxed, as it is far larger than the state of an HTTP/1 connection.
        Box::pin(serve_http2(&**house, seat, exec, io, service)).await;
    } else if let Some(parts) = serve_http1(&**house, seat, io, service).await {
        return Some(parts);
    }
    finish(&**house, seat, &leftover).await;
    None
}

/// The socket, if it is to go to another worker.
async fn serve_http1<S, B, H, W>(
    house: &H,
    seat: &W,
    io: TokioIo<Wire>,
    service: S,
) -> Option<(Link, Bytes)>
where
    H: House,
    W: Seat,
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError> + 'static,
    S::Future: 'static,
    B: Body<Data = Bytes, Error = BoxError> + 'static,
{
    let conn = seat.conn();
    let mut connection =
        http1_builder(house.config()).serve_connection(io, service).with_upgrades();
    let (mut leaves, mut first_turn) = (false, true);
    let ending = poll_fn(|cx| {
        // hyper would look for the client's end before it answers, and with that have the socket registered: if the
        // answer is there at once and the last, there is no need to.
        conn.set_busy_first(std::mem::take(&mut first_turn));
        let mut outcome = Pin::new(&mut connection).poll(cx);
        conn.set_busy_first(false);
        let mut turns = 0;
        while outcome.is_pending() && conn.should_poll_again() {
            turns += 1;
            if turns == MAX_TURNS {
                // Others come first; what is put together to be sent goes on with the next request.
                cx.waker().wake_by_ref();
                break;
            }
            outcome = Pin::new(&mut connection).poll(cx);
        }
        if outcome.is_pending() && conn.may_travel() && house.hands_over() {
            // hyper alone knows whether it is between two requests: if so, it ends at once.
            conn.set_leaving(true);
            Pin::new(&mut connection).graceful_shutdown();
            outcome = Pin::new(&mut connection).poll(cx);
            conn.set_leaving(false);
            leaves = matches!(outcome, Poll::Ready(Ok(())));
            if !leaves {
                // If not, it ends with this request.
                conn.root();
            }
        }
        outcome
    });
    run(seat, ending).await;
    if !leaves {
        return None;
    }
    let parts = connection.into_parts()?;
    let (link, received) = parts.io.into_inner().into_parts()?;
    let unread = match received.is_empty() {
        true => parts.read_buf,
        false => [parts.read_buf, received].concat().into(),
    };
    Some((link, unread))
}

fn http1_builder(config: &Config) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The worker tends the timeouts itself (see `conn`).
        .header_read_timeout(None)
        .max_buf_size(config.max_header_size.max(64 * 1024))
        .max_header_size(config.max_header_size);
    builder
}

/// Returns whether connections may speak HTTP/2.
pub(crate) fn speaks_http2(config: &Config) -> bool {
    cfg!(feature = "http2") && config.http2
}

/// Never called: without the feature no connection speaks HTTP/2.
#[cfg(not(feature = "http2"))]
async fn serve_http2<H, W, X, S>(_: &H, _: &W, _: X, _: TokioIo<Wire>, _: S) {}

#[cfg(feature = "http2")]
async fn serve_http2<S, B, H, W, X>(house: &H, seat: &W, exec: X, io: TokioIo<Wire>, service: S)
where
    H: House,
    W: Seat,
    X: Http2ServerConnExec<S::Future, B> + Clone + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError> + 'static,
    S::Future: 'static,
    B: Body<Data = Bytes, Error = BoxError> + 'static,
{
    let connection = http2::Builder::new(exec)
        .timer(TokioTimer::new())
        .keep_alive_interval(house.config().keep_alive_timeout)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(u32::try_from(house.config().max_header_size).unwrap_or(u32::MAX))
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut going = false;
    let goodbye = poll_fn(|cx| {
        if !going && (house.is_draining() || seat.conn().told() != Told::Nothing) {
            going = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    run(seat, goodbye).await;
}

/// Drives a connection until it ends or is cut. Its errors are the client's: a request that breaks off, a
/// reset, bytes that are no HTTP; hyper has answered what can be answered.
async fn run<E: std::fmt::Display>(
    seat: &impl Seat,
    connection: impl Future<Output = Result<(), E>>,
) {
    let mut connection = pin!(connection);
    let outcome = poll_fn(|cx| {
        seat.watch(cx.waker());
        if seat.conn().told() == Told::Cut && !seat.conn().upgraded() {
            return Poll::Ready(Ok(()));
        }
        connection.as_mut().poll(cx)
    });
    if let Err(e) = outcome.await {
        log::debug!("connection ended: {e}");
    }
}

/// Closes what hyper left of the connection, without hurting a response that is still on its way.
async fn finish(house: &impl House, seat: &impl Seat, leftover: &Leftover) {
    if seat.conn().upgraded() {
        // The application has it: it counts as open until that lets go of it, or the deadline comes.
        unless_cut(seat, leftover.left()).await;
    } else if let Some(socket) = leftover.take()
        && seat.conn().told() != Told::Cut
    {
        seat.conn().enter(Phase::Closing, house.now_ms());
        unless_cut(seat, linger(house, seat.conn(), socket)).await;
    }
}

/// Sends what is still to be sent, the answer to a malformed request included, and closes.
async fn linger(house: &impl House, conn: &Conn, socket: LingeringSocket) {
    let LingeringSocket { mut link, mut unsent } = socket;
    if let Some(rejection) = conn.rejected_head() {
        log::debug!("{} refused a request: {}", house.tag(), rejection.reason());
        house.row().responded(rejection.status().as_u16());
        unsent.extend_from_slice(&rejection.response());
    }
    if !unsent.is_empty() {
        let length = unsent.len();
        if link.write_all(&unsent).await.is_err() {
            return;
        }
        house.row().meter().bytes_out(length);
    }
    let begun = house.now_ms();
    // The frames of HTTP/2 have said that the streams are over: what a client still sends is not the rest of a request.
    let max_ms = if conn.http2().is_some() { MAX_HTTP2_LINGER_MS } else { MAX_LINGER_MS };
    close_politely(link, || {
        // A client that still sends has not read the response yet.
        let now = house.now_ms();
        conn.enter(Phase::Closing, now);
        now.saturating_sub(begun) < max_ms
    })
    .await;
}

/// Waits for `end`, unless the connection is cut before.
async fn unless_cut(seat: &impl Seat, end: impl Future<Output = ()>) {
    let mut end = pin!(end);
    poll_fn(|cx| {
        seat.watch(cx.waker());
        match seat.conn().told() {
            Told::Cut => Poll::Ready(()),
            Told::Nothing | Told::Finish => end.as_mut().poll(cx),
        }
    })
    .await;
}

/// Ends a connection of the lower door with its task, or its task when it is cut.
pub(crate) async fn until_cut(entry: Rc<Entry>, guard: Guard, task: tokio::task::JoinHandle<()>) {
    let abort = task.abort_handle();
    let mut task = pin!(task);
    poll_fn(|cx| {
        entry.watch(cx.waker());
        match entry.conn.told() {
            Told::Cut => {
                abort.abort();
                Poll::Ready(())
            }
            // A panic has been reported by the panic hook; it costs this connection.
            Told::Nothing | Told::Finish => task.as_mut().poll(cx).map(|_| ()),
        }
    })
    .await;
    drop(guard);
}

/// Runs HTTP/2 streams on this thread: handlers need not be `Send`.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output: 'static> + 'static> Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
