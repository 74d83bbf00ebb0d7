//! One request: checked, counted, its handler run so that a panic costs this request alone.
//!
//! Written out as a future and a body, not as an `async fn`: this runs for every request, and what an `async fn`
//! moves about cost more than all that is done here.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::request_boundary::check_http2_request;
use super::request_tracking::{Books, Serving};
use super::serve_context::House;
use super::timeouts::http_exchange::Expiry;
use crate::scoreboard::Row;

/// An error of a handler or a body.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What all requests of one connection share.
pub(crate) struct Context<S: 'static, H: House> {
    pub(crate) app: H::Ptr<S>,
    pub(crate) books: H::Ptr<Books<H>>,
}

pin_project! {
    /// The response of one request, while it is made.
    pub(crate) struct Answering<F, H>
    where
        H: House,
    {
        // `None` once it went with the response.
        serving: Option<Serving<H>>,
        version: Version,
        is_connect: bool,
        #[pin]
        step: Step<F>,
    }
}

pin_project! {
    #[project = StepNow]
    enum Step<F> {
        Handler { #[pin] future: F },
        Refused { status: StatusCode, why: &'static str },
    }
}

pin_project! {
    /// The body of a response. The books are closed when it is gone.
    pub(crate) struct Served<B, H>
    where
        H: House,
    {
        #[pin]
        body: Either<B, Full<Bytes>>,
        serving: Option<Serving<H>>,
    }
}

const PANICKED: &str = "the handler panicked";

/// Answers `request` with the application's response, or with ours if it may not or cannot.
pub(crate) fn answer<S, H>(
    ctx: &Context<S, H>,
    mut request: Request<Incoming>,
) -> Answering<S::Future, H>
where
    S: Service<Request<Incoming>> + 'static,
    H: House,
{
    let conn = &ctx.books.conn;
    let version = request.version();
    let serving = Serving::begin(&ctx.books, &mut request);
    conn.set_takes_interim_responses(version == Version::HTTP_11);
    let is_connect = version < Version::HTTP_2 && *request.method() == Method::CONNECT;
    // Of an upgrade hyper keeps more than can be handed over.
    if conn.is_last_request() && conn.is_request_complete() {
        // Nothing of the client can come any more.
        conn.set_peer_done();
    }
    if conn.is_last_request() || is_connect || request.extensions().get::<OnUpgrade>().is_some() {
        conn.root();
    }
    let checked = if version == Version::HTTP_2 { check_http2_request(&request) } else { Ok(()) };
    let step = match checked.map(|()| serving.on_loop(|| ctx.app.call(request))) {
        Err(why) => Step::Refused { status: why.status(), why: why.reason() },
        Ok(Some(future)) => Step::Handler { future },
        Ok(None) => Step::Refused { status: StatusCode::INTERNAL_SERVER_ERROR, why: PANICKED },
    };
    Answering { serving: Some(serving), version, is_connect, step }
}

impl<F, B, E, H> Future for Answering<F, H>
where
    H: House,
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Served<B, H>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Nobody asks again after the response.
        let Some(serving) = this.serving.as_ref() else { return Poll::Pending };
        if let Some(why) = serving.expiry() {
            let (status, why) = expired(why);
            // Drops the handler, which may panic like any other piece of it.
            let _ = serving.on_loop(|| this.step.set(Step::Refused { status, why }));
        }
        let rejection = serving.books.conn.rejected_body();
        let response = match this.step.project() {
            _ if let Some(why) = rejection => refusal(why.status(), why.reason()),
            StepNow::Handler { future } => match serving.on_loop(|| future.poll(cx)) {
                Some(polled) => ready!(polled).map_err(Into::into)?.map(Either::Left),
                None => refusal(StatusCode::INTERNAL_SERVER_ERROR, PANICKED),
            },
            StepNow::Refused { status, why } => refusal(*status, why),
        };
        let is_tunnel = *this.is_connect && response.status().is_success();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS || is_tunnel {
            serving.books.conn.set_upgraded();
        }
        serving.response_begun();
        // What follows a refused CONNECT may be meant for the tunnel, not for us.
        let is_refused_tunnel = *this.is_connect && !is_tunnel;
        let response = finished(response, &serving.books, *this.version, is_refused_tunnel);
        let serving = this.serving.take();
        Poll::Ready(Ok(response.map(|body| Served { body, serving })))
    }
}

/// Says and remembers whether the connection ends with this response.
fn finished<B: Body, H: House>(
    mut response: Response<B>,
    books: &Books<H>,
    version: Version,
    is_refused_tunnel: bool,
) -> Response<B> {
    let Books { house, conn, .. } = books;
    let status = response.status();
    let mut says = response.headers().keys().any(|name| name == CONNECTION);
    // A request whose rest is not read is followed by no other one.
    let ends = house.says_close(conn) || !conn.is_request_complete() || is_refused_tunnel;
    if version < Version::HTTP_2 && ends && !conn.upgraded() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        says = true;
    }
    if says || (version < Version::HTTP_11 && response.body().size_hint().exact().is_none()) {
        // Most likely it says `close`: after that no other worker should wait for a request.
        conn.root();
    }
    house.row().responded(status.as_u16());
    response
}

impl<B, H> Body for Served<B, H>
where
    H: House,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        if let Some(serving) = this.serving {
            serving.set_body_pending(polled.is_pending());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How a request is answered that is ended before its handler is done.
fn expired(why: Expiry) -> (StatusCode, &'static str) {
    match why {
        Expiry::Body => (StatusCode::REQUEST_TIMEOUT, "the request body did not come in time"),
        Expiry::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "the request took too long"),
    }
}

fn refusal<B>(status: StatusCode, why: &'static str) -> Response<Either<B, Full<Bytes>>> {
    let body = Full::new(Bytes::from(format!("{status}: {why}\n")));
    let mut response = Response::new(Either::Right(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status != StatusCode::INTERNAL_SERVER_ERROR {
        // Where a request was malformed, the next one may begin anywhere.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
