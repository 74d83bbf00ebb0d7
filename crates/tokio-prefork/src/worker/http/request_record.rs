//! The record of one request, for those that observe requests: the access log above all.
//!
//! A record exists only if the configuration of the worker asks for one: see `RequestObservers`. It is created when the
//! request reaches the worker, and handed to the observers when the request has ended, whatever ended it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::access_log::Captures;
use crate::client::{ClientInfo, ConnectionInfo, RequestId, TraceId, TraceParent};

/// What is recorded of one request.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    /// `None` if nothing wants to know how long the request took.
    pub(crate) started: Option<Instant>,
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    /// How long the connection was in the accept queue, for the first request of a connection, if that was measured.
    pub(crate) queue_wait: Option<Duration>,
    /// What a trusted proxy says about the client; `None` if the connection comes from no such proxy.
    pub(crate) forwarded: Option<Box<ClientInfo>>,
    /// The user of HTTP Basic authentication, if wanted.
    pub(crate) user: Option<Box<[u8]>>,
    /// The id of the request, if wanted and if requests have ids.
    pub(crate) request_id: Option<RequestId>,
    /// The id of the trace that the request belongs to, if wanted.
    pub(crate) trace_id: Option<TraceId>,
    /// The wanted headers of the request, in the order of `Captures`.
    pub(crate) request_headers: CapturedHeaders,
    /// The wanted headers of the response, in the order of `Captures`.
    pub(crate) response_headers: CapturedHeaders,
    status: Option<StatusCode>,
    body: BodyProgress,
}

/// Values of headers, of which the first two need no memory of their own.
#[derive(Debug, Default)]
pub(crate) struct CapturedHeaders {
    first: [Option<HeaderValue>; 2],
    more: Vec<Option<HeaderValue>>,
}

impl CapturedHeaders {
    fn capture(names: &[HeaderName], headers: &HeaderMap) -> CapturedHeaders {
        let value = |index| find_header(headers, names.get(index)?).cloned();
        let first = [value(0), value(1)];
        let more = match names.len() {
            0..=2 => Vec::new(),
            count => (2..count).map(value).collect(),
        };
        CapturedHeaders { first, more }
    }

    /// Returns the header with this index; `None` if the message has none.
    pub(crate) fn get(&self, index: usize) -> Option<&HeaderValue> {
        match self.first.get(index) {
            Some(value) => value.as_ref(),
            None => self.more.get(index - self.first.len())?.as_ref(),
        }
    }
}

/// Returns a header. Comparing the names of a few headers is faster than hashing one.
fn find_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    match headers.len() {
        0..=3 => headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value),
        _ => headers.get(name),
    }
}

/// How much of a response body hyper has taken.
#[derive(Debug, Clone, Copy, Default)]
struct BodyProgress {
    bytes: u64,
    /// The length that the head of the response states, or that of a body that is not streamed.
    expected: Option<u64>,
    /// Whether the body has ended, or has no bytes to send.
    has_ended: bool,
}

/// How the response to a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseEnd {
    /// hyper got the whole response.
    Complete(StatusCode),
    /// The head was sent, but not all of the body: the client left, a timeout or the drain ended it, or the body failed.
    Partial(StatusCode),
    /// The request ended before there was a response: the client left, or the worker had to close the connection.
    Missing,
}

impl RequestRecord {
    /// Starts the record of `request`.
    pub(crate) fn new<B>(request: &Request<B>, captures: &Captures) -> RequestRecord {
        let headers = request.headers();
        RequestRecord {
            started: captures.duration.then(Instant::now),
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            queue_wait: None,
            forwarded: None,
            user: if captures.user { basic_auth_user(headers) } else { None },
            request_id: if captures.request_id {
                request.extensions().get().cloned()
            } else {
                None
            },
            trace_id: captures
                .trace_id
                .then(|| TraceParent::of_headers(headers))
                .flatten()
                .map(|parent| parent.trace_id),
            request_headers: CapturedHeaders::capture(&captures.request_headers, headers),
            response_headers: CapturedHeaders::default(),
            status: None,
            body: BodyProgress::default(),
        }
    }

    /// Records what a trusted proxy says about the client, if `connection` comes from one.
    pub(crate) fn set_forwarded<B>(
        &mut self,
        request: &Request<B>,
        connection: Option<&ConnectionInfo>,
    ) {
        if connection.is_some_and(|connection| connection.trusted_for_headers().is_some()) {
            let client = ClientInfo::new(connection, request.uri(), request.headers());
            self.forwarded = Some(Box::new(client));
        }
    }

    /// Records the head of the response.
    pub(crate) fn response_started<B: Body>(
        &mut self,
        response: &Response<B>,
        captures: &Captures,
    ) {
        let status = response.status();
        let has_no_body = self.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || response.body().is_end_stream();
        self.status = Some(status);
        let expected = response.body().size_hint().exact();
        self.body = BodyProgress { bytes: 0, expected, has_ended: has_no_body };
        if !captures.response_headers.is_empty() {
            self.response_headers =
                CapturedHeaders::capture(&captures.response_headers, response.headers());
        }
    }

    /// Records that the handler failed, so that hyper closes the connection without a response. Counts as status 500.
    pub(crate) fn handler_failed(&mut self) {
        self.status = Some(StatusCode::INTERNAL_SERVER_ERROR);
    }

    /// Records what hyper got when it asked for more of the body.
    pub(crate) fn body_polled<E>(&mut self, polled: Option<Result<&Frame<Bytes>, E>>) {
        match polled {
            None => self.body.has_ended = true,
            Some(Ok(frame)) => {
                self.body.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(_)) => {}
        }
    }

    /// Returns how the response ended. Call it when the request has ended.
    pub(crate) fn response_end(&self) -> ResponseEnd {
        let Some(status) = self.status else { return ResponseEnd::Missing };
        let BodyProgress { bytes, expected, has_ended } = self.body;
        // hyper does not ask for the end of a body that has reached its length.
        match has_ended || expected.is_some_and(|expected| bytes >= expected) {
            true => ResponseEnd::Complete(status),
            false => ResponseEnd::Partial(status),
        }
    }

    /// Returns how many bytes of the response body hyper has taken.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body.bytes
    }

    /// Returns whether the connection goes on as something else than HTTP/1: after 101, or a CONNECT that succeeded.
    pub(crate) fn is_upgrade(&self) -> bool {
        let is_tunnel =
            self.method == Method::CONNECT && self.status.is_some_and(|s| s.is_success());
        let is_upgrade = self.status == Some(StatusCode::SWITCHING_PROTOCOLS) || is_tunnel;
        is_upgrade && self.version < Version::HTTP_2
    }
}

/// Returns the user name of HTTP Basic authentication.
fn basic_auth_user(headers: &HeaderMap) -> Option<Box<[u8]>> {
    let (scheme, token) = find_header(headers, &AUTHORIZATION)?.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let credentials = decode_base64(token.trim_ascii())?;
    let end = memchr::memchr(b':', &credentials)?;
    Some(credentials[..end].into())
}

/// Decodes standard Base64, with or without padding. Returns `None` if `text` is none.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for c in group {
            let digit = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * (4 - group.len());
        let [_, a, b, c] = bits.to_be_bytes();
        match group.len() {
            4 => bytes.extend([a, b, c]),
            3 => bytes.extend([a, b]),
            2 => bytes.push(a),
            _ => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    fn record_of(method: Method) -> RequestRecord {
        let request = Request::builder().method(method).uri("/path?query").body(());
        RequestRecord::new(&request.expect("a request"), &Captures::default())
    }

    fn start<B: Body>(record: &mut RequestRecord, response: &Response<B>) {
        record.response_started(response, &Captures::default());
    }

    fn response(status: u16, body: &'static str) -> Response<Full<Bytes>> {
        let body = Full::new(Bytes::from_static(body.as_bytes()));
        Response::builder().status(status).body(body).expect("a response")
    }

    fn take(record: &mut RequestRecord, data: &'static str) {
        let frame = Frame::data(Bytes::from_static(data.as_bytes()));
        record.body_polled::<()>(Some(Ok(&frame)));
    }

    #[test]
    fn a_response_is_complete_when_its_length_is_taken_or_its_body_has_ended() {
        let mut record = record_of(Method::GET);
        assert_eq!(record.response_end(), ResponseEnd::Missing);
        start(&mut record, &response(200, "four"));
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        take(&mut record, "fo");
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        record.body_polled::<()>(Some(Err(())));
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        take(&mut record, "ur");
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
        assert_eq!(record.body_bytes(), 4);
        let mut record = record_of(Method::GET);
        start(&mut record, &response(200, "four"));
        record.body_polled::<()>(None);
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
    }

    #[test]
    fn a_response_without_a_body_is_complete_at_once() {
        for (method, status) in [(Method::HEAD, 200), (Method::GET, 304), (Method::GET, 101)] {
            let mut record = record_of(method);
            start(&mut record, &response(status, "not sent"));
            assert!(matches!(record.response_end(), ResponseEnd::Complete(_)), "{status}");
            assert_eq!(record.body_bytes(), 0);
        }
        let mut record = record_of(Method::GET);
        start(&mut record, &Response::new(Empty::<Bytes>::new()));
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
    }

    #[test]
    fn the_user_of_basic_authentication_is_known_and_nothing_else_of_the_header() {
        let user = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
            basic_auth_user(&headers).map(|user| String::from_utf8_lossy(&user).into_owned())
        };
        for (value, name) in [
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", Some("Aladdin")),
            ("basic YTpi", Some("a")),
            ("Basic YTpiYw", Some("a")),
            ("Basic YTo=", Some("a")),
            ("Basic OnBhc3N3b3Jk", Some("")),
            ("Basic bm9jb2xvbg==", None),
            ("Basic !!!!", None),
            ("Basic Q", None),
            ("Basic ", None),
            ("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None),
            ("", None),
        ] {
            assert_eq!(user(value).as_deref(), name, "{value}");
        }
    }

    #[test]
    fn headers_are_captured_in_their_order() {
        let names = ["a", "b", "c", "d"].map(|name| name.parse().expect("a name"));
        let captures = Captures { request_headers: names.to_vec(), ..Captures::default() };
        let request = Request::builder().header("c", "3").header("a", "1").body(());
        let record = RequestRecord::new(&request.expect("a request"), &captures);
        let values: Vec<_> = (0..4).map(|n| record.request_headers.get(n)).collect();
        let values: Vec<_> = values.iter().map(|v| v.and_then(|v| v.to_str().ok())).collect();
        assert_eq!(values, [Some("1"), None, Some("3"), None]);
    }

    #[test]
    fn a_failed_handler_counts_as_status_500() {
        let mut record = record_of(Method::GET);
        record.handler_failed();
        let end = ResponseEnd::Partial(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(record.response_end(), end);
    }
}
