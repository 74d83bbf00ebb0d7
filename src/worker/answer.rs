//! One request: checked, counted, its handler run so that a panic costs this request alone.

use std::any::Any;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};

use super::conn::Conn;
use super::edge::{Edge, Framing, head_length};
use super::framing;
use super::state::State;
use super::wire::{Recent, is_beginning};
use crate::scoreboard::Ticket;

/// An error of a handler or a body.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What all requests of one connection share.
pub(super) struct Context<S> {
    pub(super) app: Rc<S>,
    pub(super) state: Rc<State>,
    pub(super) conn: Arc<Conn>,
    pub(super) recent: Recent,
}

/// A request's place in the books, from its head to the end of its response.
struct Serving {
    state: Rc<State>,
    conn: Arc<Conn>,
    recent: Recent,
    ticket: Option<Ticket>,
    framing: Framing,
}

impl Serving {
    fn begin<S>(ctx: &Context<S>, request: &Request<Incoming>) -> Serving {
        let now = ctx.state.now_ms();
        let framing = framing_of(ctx, request);
        ctx.conn.request_begun(now);
        if request.extensions().get::<OnUpgrade>().is_some() {
            // hyper keeps more about it than can be handed over.
            ctx.conn.root();
        }
        let ticket = ctx.state.row.begin(request.method().as_str(), request.uri().path(), now);
        let (state, conn) = (Rc::clone(&ctx.state), Arc::clone(&ctx.conn));
        Serving { state, conn, recent: Arc::clone(&ctx.recent), ticket, framing }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.state.row.finish(self.ticket);
        let (received, tail) = self.conn.progress();
        let edge = Edge::of(self.framing, received, tail);
        self.conn.request_over(edge, self.state.now_ms());
        // Idle connections are many: they keep no more than a small buffer each.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.framing.end().filter(|end| edge == Edge::Exact && *end <= received);
        match end.and_then(|end| usize::try_from(end).ok()) {
            // What is there of the next request is looked at again.
            Some(end) if recent.len() as u64 == received => drop(recent.drain(..end)),
            _ => recent.clear(),
        }
        self.conn.count_from(recent.len() as u64);
        recent.shrink_to(1024);
    }
}

/// Where the body of this request will end.
fn framing_of<S>(ctx: &Context<S>, request: &Request<Incoming>) -> Framing {
    let recent = ctx.recent.lock().unwrap_or_else(PoisonError::into_inner);
    // Bytes that are there may belong to the last request, if its end is not known.
    let known = ctx.conn.edge() != Edge::Unknown && is_beginning(&recent, ctx.conn.progress().0);
    let head = if known { head_length(&recent) } else { None };
    Framing { head, body: request.body().size_hint().exact() }
}

/// Answers `request` with the application's response, or with ours if it may not or cannot.
pub(super) async fn answer<S, B>(
    ctx: Rc<Context<S>>,
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError>>, BoxError>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let serving = Serving::begin(&ctx, &request);
    let version = request.version();
    if closes(&request) {
        ctx.conn.set_peer_done();
    }
    if !stays_open(&request) {
        ctx.conn.root();
    }
    let raw = || ctx.recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut response = match framing::fault(&request, raw) {
        Some(why) => refusal(StatusCode::BAD_REQUEST, why),
        None => match contained(&ctx, serving.ticket, request).await {
            Some(outcome) => outcome.map_err(Into::into)?.map(Either::Left),
            None => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked"),
        },
    };
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        ctx.conn.set_upgraded();
    } else if version < Version::HTTP_2 && ctx.state.says_close(&ctx.conn) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let ends_with_connection =
        version < Version::HTTP_11 && response.body().size_hint().exact().is_none();
    if response.headers().contains_key(CONNECTION) || ends_with_connection {
        // Most likely it says `close`: after that no other worker should wait for a request.
        ctx.conn.root();
    }
    ctx.state.row.responded(status.as_u16());
    // The books are closed when the body is: the closure lives as long as it.
    Ok(response.map(|body| {
        body.map_err(move |e| {
            let _ = &serving;
            e
        })
    }))
}

/// Runs the handler, marked on the scoreboard whenever it has the loop. `None` if it panicked.
async fn contained<S>(
    ctx: &Context<S>,
    ticket: Option<Ticket>,
    request: Request<Incoming>,
) -> Option<Result<S::Response, S::Error>>
where
    S: Service<Request<Incoming>>,
{
    let row = &ctx.state.row;
    let on_loop = |run: &mut dyn FnMut()| {
        row.running(ticket);
        let done = catch_unwind(AssertUnwindSafe(run));
        row.running(None);
        done.map_err(|panic| panicked(ctx, ticket, &*panic)).is_ok()
    };
    let mut request = Some(request);
    let mut future = None;
    if !on_loop(&mut || future = request.take().map(|r| ctx.app.call(r))) {
        return None;
    }
    let mut future = pin!(future?);
    poll_fn(|cx| {
        let mut polled = Poll::Pending;
        if on_loop(&mut || polled = future.as_mut().poll(cx)) {
            polled.map(Some)
        } else {
            Poll::Ready(None)
        }
    })
    .await
}

fn panicked<S>(ctx: &Context<S>, ticket: Option<Ticket>, panic: &(dyn Any + Send)) {
    ctx.state.row.panicked();
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let request = ctx.state.row.describe(ticket).unwrap_or_else(|| "a request".to_string());
    log::error!("{} the handler of {request} panicked: {text}", ctx.state.tag);
}

/// Whether the client closes the connection after this request, so that nothing of it can come any more.
fn closes(request: &Request<Incoming>) -> bool {
    let asks = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    request.body().is_end_stream() && request.headers().get(CONNECTION).is_some_and(asks)
}

/// Whether an older client wants to go on after this request, which a newer one always does.
fn stays_open(request: &Request<Incoming>) -> bool {
    let asks = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
    request.version() > Version::HTTP_10 || request.headers().get(CONNECTION).is_some_and(asks)
}

fn refusal<B>(status: StatusCode, why: &'static str) -> Response<Either<B, Full<Bytes>>> {
    let body = Full::new(Bytes::from(format!("{status}: {why}\n")));
    let mut response = Response::new(Either::Right(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::BAD_REQUEST {
        // Where a request was malformed, the next one may begin anywhere.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
