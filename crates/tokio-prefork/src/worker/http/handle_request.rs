//! Runs the application's handler for one request: validates, counts, and contains panics.
//!
//! A hand-written future and body instead of an `async fn`: moving an `async fn`'s state costs more per request than
//! all the work here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::request_boundary::check_http2_request;
use super::request_tracking::{RequestTracker, TrackedRequest};
use super::response_chunk::{MAX_COPIED_CHUNK, MIN_DIRECT_CHUNK, ResponseChunk};
use super::serve_context::ServeContext;
use super::timeouts::http_exchange::RequestExpiry;
use crate::error::BoxError;
use crate::https_redirect::RedirectFuture;
use crate::scoreboard::RequestRecorder;

/// The application's service, with the tracker of one connection.
pub(crate) struct TrackedService<S: 'static, H: ServeContext> {
    pub(crate) app: H::Ptr<S>,
    pub(crate) tracker: H::Ptr<RequestTracker<H>>,
}

pin_project! {
    /// Resolves to the response to one request.
    pub(crate) struct ResponseFuture<F, H>
    where
        H: ServeContext,
    {
        // `None` once moved into the response body.
        tracked: Option<TrackedRequest<H>>,
        version: Version,
        is_connect: bool,
        // The request asks to close the connection in a way that hyper overlooks.
        hides_close: bool,
        // hyper removes the body of a response to HEAD in HTTP/1 only.
        is_http2_head: bool,
        #[pin]
        source: ResponseSource<F>,
    }
}

pin_project! {
    /// Where the response to a request comes from.
    #[project = ResponseSourceProj]
    enum ResponseSource<F> {
        Handler { #[pin] future: F },
        Redirect { future: RedirectFuture },
        Error { status: StatusCode, reason: &'static str },
    }
}

pin_project! {
    /// The body of a response; dropping it ends the request.
    pub(crate) struct TrackedBody<B, H>
    where
        H: ServeContext,
    {
        #[pin]
        body: Either<B, Full<Bytes>>,
        tracked: Option<TrackedRequest<H>>,
        // How many bytes of the body may go to the socket without a copy.
        direct_left: u64,
        // What is left of a chunk that hyper copies in pieces. Boxed, because hyper moves this several times.
        rest: Option<Box<Bytes>>,
    }
}

const HANDLER_PANICKED: &str = "the handler panicked";

/// Starts the application's handler for `request`.
///
/// The response is an error if the request is invalid, times out, or its handler panics.
pub(crate) fn handle_request<S, H>(
    service: &TrackedService<S, H>,
    mut request: Request<Incoming>,
) -> ResponseFuture<S::Future, H>
where
    S: Service<Request<Incoming>> + 'static,
    H: ServeContext,
{
    let conn = &service.tracker.conn;
    let version = request.version();
    let tracked = TrackedRequest::begin(&service.tracker, &mut request);
    conn.set_accepts_interim_responses(version == Version::HTTP_11);
    let is_connect = *request.method() == Method::CONNECT;
    let is_http2_head = version == Version::HTTP_2 && *request.method() == Method::HEAD;
    let hides_close = conn.is_last_request() && hides_close(&request);
    let can_upgrade = is_connect || request.extensions().get::<OnUpgrade>().is_some();
    if conn.is_last_request() && !can_upgrade {
        conn.set_closes_after_response();
        if conn.is_request_complete() {
            conn.set_peer_done();
        }
    }
    // hyper keeps state of an upgrade that cannot be handed over.
    if conn.is_last_request() || can_upgrade {
        conn.pin_to_worker();
    }
    let checked = if version == Version::HTTP_2 { check_http2_request(&request) } else { Ok(()) };
    let source = match checked {
        Err(rejection) => {
            ResponseSource::Error { status: rejection.status(), reason: rejection.reason() }
        }
        // Stays if the handler panics.
        Ok(()) => ResponseSource::Error {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: HANDLER_PANICKED,
        },
    };
    let mut response = ResponseFuture {
        tracked: Some(tracked),
        version,
        is_connect,
        hides_close,
        is_http2_head,
        source,
    };
    if checked.is_err() {
        return response;
    }
    let source = &mut response.source;
    if let Some(redirect) = &service.tracker.https_redirect {
        *source = ResponseSource::Redirect { future: redirect.respond(&request) };
    } else if let Some(tracked) = &response.tracked {
        // All by reference, because each move copies some hundred bytes; `catch_unwind` alone would move twice.
        let mut request = Some(request);
        let _ = tracked.run_handler(|| {
            if let Some(request) = request.take() {
                *source = ResponseSource::Handler { future: service.app.call(request) };
            }
        });
    }
    response
}

/// Whether hyper may overlook that a request asks to close the connection: `close` beside bytes that are not ASCII, beside `keep-alive` in
/// HTTP/1.0, or in one of several fields.
fn hides_close(request: &Request<Incoming>) -> bool {
    let mut fields = request.headers().get_all(CONNECTION).iter();
    match (fields.next(), fields.next()) {
        (None, _) => false,
        (Some(only), None) => request.version() < Version::HTTP_11 || only.to_str().is_err(),
        (Some(_), Some(_)) => true,
    }
}

impl<F, B, E, H> Future for ResponseFuture<F, H>
where
    H: ServeContext,
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<TrackedBody<B, H>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Polled again after completion.
        let Some(tracked) = this.tracked.as_ref() else { return Poll::Pending };
        if let Some(expiry) = tracked.expiry() {
            let (status, reason) = expiry_status(expiry);
            // Drops the handler's future, which may panic.
            let _ =
                tracked.run_handler(|| this.source.set(ResponseSource::Error { status, reason }));
        }
        let facts = RequestFacts {
            version: *this.version,
            is_connect: *this.is_connect,
            hides_close: *this.hides_close,
            is_http2_head: *this.is_http2_head,
        };
        let rejection = tracked.tracker.conn.rejected_body();
        let response = match (rejection, this.source.project()) {
            (Some(rejection), _) => error_response(rejection.status(), rejection.reason()),
            (None, ResponseSourceProj::Handler { future }) => {
                let mut polled = None;
                let _ = tracked.run_handler(|| polled = Some(future.poll(cx)));
                match polled {
                    Some(polled) => match ready!(polled) {
                        Ok(response) => {
                            let finished = facts.finish(this.tracked, response, Either::Left);
                            return Poll::Ready(Ok(finished));
                        }
                        Err(e) => {
                            if let Some(tracked) = this.tracked {
                                tracked.set_handler_failed();
                            }
                            return Poll::Ready(Err(e.into()));
                        }
                    },
                    None => error_response(StatusCode::INTERNAL_SERVER_ERROR, HANDLER_PANICKED),
                }
            }
            (None, ResponseSourceProj::Redirect { future }) => ready!(future.as_mut().poll(cx)),
            (None, ResponseSourceProj::Error { status, reason }) => error_response(*status, reason),
        };
        Poll::Ready(Ok(facts.finish(this.tracked, response, Either::Right)))
    }
}

/// What a response depends on of its request.
#[derive(Clone, Copy)]
struct RequestFacts {
    version: Version,
    is_connect: bool,
    hides_close: bool,
    is_http2_head: bool,
}

impl RequestFacts {
    /// Completes the head of `response`, and adds what tracks the request to its body. Moves the response once, because that
    /// copies some hundred bytes.
    fn finish<T, B, H>(
        self,
        tracked: &mut Option<TrackedRequest<H>>,
        mut response: Response<T>,
        wrap: impl FnOnce(T) -> Either<B, Full<Bytes>>,
    ) -> Response<TrackedBody<B, H>>
    where
        T: Body<Data = Bytes>,
        B: Body<Data = Bytes>,
        H: ServeContext,
    {
        let mut tracked = tracked.take();
        if let Some(of_request) = &mut tracked {
            #[cfg(feature = "axum")]
            if is_missing_socket_addr(&response, &of_request.tracker) {
                response.headers_mut().remove(CONTENT_LENGTH);
                let text = Full::from(crate::client::connect_info::NO_SOCKET_ADDR);
                return self.finish(&mut tracked, response.map(|_| text), Either::Right);
            }
            if self.is_http2_head {
                let facts = RequestFacts { is_http2_head: false, ..self };
                return facts.finish(&mut tracked, without_body(response), Either::Right);
            }
            self.set_connection_state(&mut response, &of_request.tracker);
            of_request.tracker.add_hsts(&mut response);
            of_request.set_response_started(&mut response);
        }
        let direct_left = self.direct_length(&response);
        response.map(|body| TrackedBody { body: wrap(body), tracked, direct_left, rest: None })
    }

    /// Returns the length of the body if it is large, and hyper writes no framing around its chunks.
    fn direct_length<T: Body>(self, response: &Response<T>) -> u64 {
        let length = response.body().size_hint().exact().unwrap_or(0);
        let is_direct = length >= MIN_DIRECT_CHUNK as u64
            && self.version < Version::HTTP_2
            && !response.headers().contains_key(TRANSFER_ENCODING);
        if is_direct { length } else { 0 }
    }

    /// Records what `response` means for its connection, and says in it if it is the last one.
    fn set_connection_state<T: Body, H: ServeContext>(
        self,
        response: &mut Response<T>,
        tracker: &RequestTracker<H>,
    ) {
        let is_tunnel = self.is_connect && response.status().is_success();
        if is_tunnel && self.version >= Version::HTTP_2 {
            tracker.conn.add_http2_tunnel(tracker.context.now_ms());
        } else if response.status() == StatusCode::SWITCHING_PROTOCOLS || is_tunnel {
            tracker.conn.set_started_by_upgrade();
        }
        // Bytes after a rejected CONNECT may be meant for the tunnel, so the connection closes.
        let is_rejected_connect = self.is_connect && !is_tunnel && self.version < Version::HTTP_2;
        let must_close = is_rejected_connect || self.hides_close;
        set_connection_header(response, tracker, self.version, must_close);
    }
}

/// Whether `response` is that of a handler that asks for the IP address of a client of a Unix socket. Logs what to do.
#[cfg(feature = "axum")]
fn is_missing_socket_addr<T: Body, H: ServeContext>(
    response: &Response<T>,
    tracker: &RequestTracker<H>,
) -> bool {
    use crate::client::connect_info;
    if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
        return false;
    }
    let is_unix = tracker.info.as_ref().is_some_and(|info| info.peer().unix().is_some());
    let (status, length) = (response.status(), response.body().size_hint());
    let is_missing =
        is_unix && connect_info::is_missing_socket_addr(status, response.headers(), &length);
    if is_missing {
        connect_info::log_missing_socket_addr(tracker.context.tag());
    }
    is_missing
}

/// Removes the body of the response to a HEAD request, and says how long it would have been (RFC 9110, section 9.3.2).
#[cold]
fn without_body<T: Body>(response: Response<T>) -> Response<Full<Bytes>> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Full::default());
    let may_have_body =
        !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    // An application that knows the length without a body has said it itself.
    if let Some(length) = length.filter(|length| may_have_body && *length > 0) {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    response
}

/// Sets `Connection: close` if this response is the last one, and counts the response.
fn set_connection_header<B: Body, H: ServeContext>(
    response: &mut Response<B>,
    tracker: &RequestTracker<H>,
    version: Version,
    must_close: bool,
) {
    let RequestTracker { context, conn, .. } = tracker;
    let status = response.status();
    let mut has_connection_header = response.headers().keys().any(|name| name == CONNECTION);
    // If the body of a request is not read to its end, no request can follow. If a request asks to close, hyper adds the field itself. To
    // add it here would make the map of fields allocate memory.
    let is_last = context.should_announce_close(conn) || !conn.is_request_complete() || must_close;
    if version < Version::HTTP_2 && is_last && !conn.is_upgraded() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        has_connection_header = true;
    }
    if has_connection_header
        || (version < Version::HTTP_11 && response.body().size_hint().exact().is_none())
    {
        // Most likely `close`: another worker would wait in vain for the next request.
        conn.pin_to_worker();
    }
    context.worker_page().response_started(status.as_u16());
}

impl<B, H> Body for TrackedBody<B, H>
where
    H: ServeContext,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = ResponseChunk;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<ResponseChunk>, BoxError>>> {
        let this = self.project();
        let Some(tracked) = this.tracked else {
            return this.body.poll_frame(cx).map_ok(|frame| frame.map_data(ResponseChunk::Copied));
        };
        let conn = &tracked.tracker.conn;
        if conn.direct_chunk.must_wait() {
            // No waker: `should_poll_again` has hyper polled again once the chunk is written.
            return Poll::Pending;
        }
        if let Some(rest) = this.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(copy_in_pieces(*rest, this.rest)))));
        }
        let polled = tracked.in_scope(|| this.body.poll_frame(cx));
        tracked.record_body_poll(&polled);
        polled.map_ok(|frame| {
            frame.map_data(|bytes| {
                let length = bytes.len() as u64;
                let left =
                    std::mem::replace(this.direct_left, this.direct_left.saturating_sub(length));
                match bytes.len() {
                    MIN_DIRECT_CHUNK.. if length <= left => {
                        ResponseChunk::direct(bytes, &tracked.tracker.conn)
                    }
                    0..=MAX_COPIED_CHUNK => ResponseChunk::Copied(bytes),
                    // HTTP/2 copies nothing.
                    _ if tracked.tracker.conn.http2().is_some() => ResponseChunk::Copied(bytes),
                    _ => copy_in_pieces(bytes, this.rest),
                }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns the first piece of a chunk that hyper copies, and leaves what is behind it in `rest`.
fn copy_in_pieces(mut bytes: Bytes, rest: &mut Option<Box<Bytes>>) -> ResponseChunk {
    if bytes.len() > MAX_COPIED_CHUNK {
        let piece = bytes.split_to(MAX_COPIED_CHUNK);
        *rest = Some(Box::new(bytes));
        return ResponseChunk::Copied(piece);
    }
    ResponseChunk::Copied(bytes)
}

/// Returns the status and reason of the response to a request that timed out.
fn expiry_status(expiry: RequestExpiry) -> (StatusCode, &'static str) {
    match expiry {
        RequestExpiry::Body => {
            (StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")
        }
        RequestExpiry::Deadline => (StatusCode::SERVICE_UNAVAILABLE, "the request took too long"),
    }
}

/// Builds a plain-text response with `status` and `reason`.
#[cold]
fn error_response(status: StatusCode, reason: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{status}: {reason}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status != StatusCode::INTERNAL_SERVER_ERROR {
        // After a malformed request, the start of the next one is unknown.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
