//! The record of one request, for those that observe requests: the access log above all.
//!
//! A record exists only if the configuration of the worker asks for one: see `RequestObservers`. It is created when the
//! request reaches the worker, and handed to the observers when the request has ended, whatever ended it.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};

use crate::access_log::Captures;
use crate::client::{ClientInfo, ConnectionInfo, RequestId, TraceId, TraceParent};

/// What is recorded of one request.
///
/// Its texts are copied, which costs less than to share them and pins no buffer of the connection. An event loop uses its
/// records again, so that a request needs no new memory for one.
#[derive(Debug, Default)]
pub(crate) struct RequestRecord {
    /// When it started, in nanoseconds on the monotonic clock; 0 if nothing wants to know how long the request took.
    pub(crate) started_ns: u64,
    pub(crate) version: Version,
    is_head: bool,
    is_connect: bool,
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
    /// The request line, the authority of the target, the wanted headers of the request, and those of the response.
    texts: TextList,
    parts: RequestLineParts,
    request_headers: usize,
    status: Option<StatusCode>,
    body: BodyProgress,
}

/// Where the parts of a request line are.
#[derive(Debug, Clone, Copy, Default)]
struct RequestLineParts {
    target: usize,
    path: usize,
    target_end: usize,
}

/// The index of the request line in the texts.
const REQUEST_LINE: usize = 0;

/// The index of the authority of the target.
const AUTHORITY: usize = 1;

/// The index of the first header.
const HEADERS: usize = 2;

/// The memory for texts that a record keeps for the next request.
const MAX_KEPT_BYTES: usize = 4096;

/// Up to how many headers are compared by name. Hashing is faster for more.
const FEW_HEADERS: usize = 6;

/// Up to how many wanted headers are found in one pass.
const FEW_NAMES: usize = 4;

/// Texts one after the other, in memory that is used again. A missing text is an empty one.
#[derive(Debug, Default)]
struct TextList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl TextList {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, text: &[u8]) {
        if !text.is_empty() {
            self.bytes.extend_from_slice(text);
        }
        self.end_text();
    }

    /// Makes a text of what was added to `bytes`.
    fn end_text(&mut self) {
        self.ends.push(self.bytes.len());
    }

    fn push_headers(&mut self, names: &[HeaderName], headers: &HeaderMap) {
        let mut found = [&b""[..]; FEW_NAMES];
        match found.get_mut(..names.len()) {
            // Comparing a few names is faster than hashing them.
            Some(found) if headers.len() <= FEW_HEADERS => {
                for (known, value) in headers {
                    for (name, found) in names.iter().zip(&mut *found) {
                        // The first one of a name, of those with a value.
                        if found.is_empty() && known == name {
                            *found = value.as_bytes();
                        }
                    }
                }
                found.iter().for_each(|text| self.push(text));
            }
            _ => {
                let value = |name| headers.get(name).map_or(&[][..], HeaderValue::as_bytes);
                names.iter().for_each(|name| self.push(value(name)));
            }
        }
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = match index {
            0 => 0,
            _ => self.ends.get(index - 1).copied().unwrap_or_default(),
        };
        self.ends.get(index).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
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
    /// Starts the record of `request`, in place of that of an earlier one.
    pub(crate) fn start<B>(&mut self, request: &Request<B>, captures: &Captures, started_ns: u64) {
        let headers = request.headers();
        self.started_ns = started_ns;
        self.version = request.version();
        self.is_head = request.method() == Method::HEAD;
        self.is_connect = request.method() == Method::CONNECT;
        self.queue_wait = None;
        self.forwarded = None;
        let may_have_user = captures.user
            && (headers.len() > FEW_HEADERS || headers.keys().any(|name| name == AUTHORIZATION));
        self.user = if may_have_user { basic_auth_user(headers) } else { None };
        self.request_id =
            if captures.request_id { request.extensions().get().cloned() } else { None };
        self.trace_id = match captures.trace_id {
            true => TraceParent::of_headers(headers).map(|parent| parent.trace_id),
            false => None,
        };
        self.status = None;
        self.body = BodyProgress::default();
        self.texts.clear();
        self.push_request_line(request);
        let authority = request.uri().authority();
        self.texts.push(authority.map_or(&[], |authority| authority.as_str().as_bytes()));
        self.texts.push_headers(&captures.request_headers, headers);
        self.request_headers = captures.request_headers.len();
    }

    /// Copies the request line, with the target as the client has sent it: path and query, a whole URI, or an authority.
    fn push_request_line<B>(&mut self, request: &Request<B>) {
        let line = &mut self.texts.bytes;
        line.extend_from_slice(request.method().as_str().as_bytes());
        line.push(b' ');
        let (target, uri) = (line.len(), request.uri());
        let mut path = target;
        match (uri.path_and_query(), uri.authority()) {
            (Some(path), None) => line.extend_from_slice(path.as_str().as_bytes()),
            (Some(path), Some(_)) if self.version >= Version::HTTP_2 => {
                line.extend_from_slice(path.as_str().as_bytes());
            }
            _ => {
                line.extend_from_slice(uri.to_string().as_bytes());
                let query = uri.query().map_or(0, |query| query.len() + 1);
                path = line.len() - uri.path().len() - query;
            }
        }
        self.parts = RequestLineParts { target, path, target_end: line.len() };
        match self.version {
            Version::HTTP_09 => line.extend_from_slice(b" HTTP/0.9"),
            Version::HTTP_10 => line.extend_from_slice(b" HTTP/1.0"),
            Version::HTTP_2 => line.extend_from_slice(b" HTTP/2.0"),
            Version::HTTP_3 => line.extend_from_slice(b" HTTP/3.0"),
            _ => line.extend_from_slice(b" HTTP/1.1"),
        }
        self.texts.end_text();
    }

    /// Forgets the request, and keeps memory for the next one.
    pub(crate) fn clear(&mut self) {
        if self.texts.bytes.capacity() > MAX_KEPT_BYTES {
            self.texts.bytes = Vec::new();
        }
        self.forwarded = None;
        self.user = None;
        self.request_id = None;
    }

    /// Returns method, target and protocol, with a space between them.
    pub(crate) fn request_line(&self) -> &[u8] {
        self.texts.get(REQUEST_LINE)
    }

    /// Returns the method, which is a token.
    pub(crate) fn method(&self) -> &[u8] {
        let line = self.request_line();
        line.get(..self.parts.target.saturating_sub(1)).unwrap_or_default()
    }

    /// Returns the target as the client has sent it.
    pub(crate) fn target(&self) -> &[u8] {
        let RequestLineParts { target, target_end, .. } = self.parts;
        self.request_line().get(target..target_end).unwrap_or_default()
    }

    /// Returns the path of the target, and its query, which is empty if there is none.
    pub(crate) fn path_and_query(&self) -> (&[u8], &[u8]) {
        let RequestLineParts { path, target_end, .. } = self.parts;
        let text = self.request_line().get(path..target_end).unwrap_or_default();
        match memchr::memchr(b'?', text) {
            Some(end) => (&text[..end], &text[end + 1..]),
            None => (text, &[]),
        }
    }

    /// Returns the protocol, such as `HTTP/1.1`.
    pub(crate) fn protocol(&self) -> &[u8] {
        self.request_line().get(self.parts.target_end + 1..).unwrap_or_default()
    }

    /// Returns the authority of the target; empty if it has none.
    pub(crate) fn authority(&self) -> &[u8] {
        self.texts.get(AUTHORITY)
    }

    /// Returns the wanted header of the request with this index in `Captures`; empty if it has none.
    pub(crate) fn request_header(&self, index: usize) -> &[u8] {
        self.texts.get(HEADERS + index)
    }

    /// Returns the wanted header of the response with this index in `Captures`; empty if it has none.
    pub(crate) fn response_header(&self, index: usize) -> &[u8] {
        self.texts.get(HEADERS + self.request_headers + index)
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
        let has_no_body = self.is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || response.body().is_end_stream();
        self.status = Some(status);
        let expected = response.body().size_hint().exact();
        self.body = BodyProgress { bytes: 0, expected, has_ended: has_no_body };
        if !captures.response_headers.is_empty() {
            self.texts.push_headers(&captures.response_headers, response.headers());
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
        let is_tunnel = self.is_connect && self.status.is_some_and(|s| s.is_success());
        let is_upgrade = self.status == Some(StatusCode::SWITCHING_PROTOCOLS) || is_tunnel;
        is_upgrade && self.version < Version::HTTP_2
    }
}

/// Returns the user name of HTTP Basic authentication.
fn basic_auth_user(headers: &HeaderMap) -> Option<Box<[u8]>> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(6)?;
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
        new_record(&request.expect("a request"), &Captures::default())
    }

    fn new_record(request: &Request<()>, captures: &Captures) -> RequestRecord {
        let mut record = RequestRecord::default();
        record.start(request, captures, 0);
        record
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
        let record = new_record(&request.expect("a request"), &captures);
        assert_eq!([0, 1, 2, 3].map(|n| record.request_header(n)), [&b"1"[..], b"", b"3", b""]);
    }

    #[test]
    fn a_record_that_is_used_again_has_nothing_of_the_request_before() {
        let names = ["a", "b"].map(|name| name.parse().expect("a name"));
        let captures = Captures {
            request_headers: names.to_vec(),
            response_headers: names.to_vec(),
            user: true,
            ..Captures::default()
        };
        let first = Request::builder()
            .method(Method::HEAD)
            .uri("http://example.org/first?query")
            .header("authorization", "Basic YTpi")
            .header("b", "of the request");
        let mut record = new_record(&first.body(()).expect("a request"), &captures);
        let response =
            Response::builder().header("a", "of the response").body(Empty::<Bytes>::new());
        record.response_started(&response.expect("a response"), &captures);
        assert_eq!(record.request_line(), b"HEAD http://example.org/first?query HTTP/1.1");
        assert_eq!(record.path_and_query(), (&b"/first"[..], &b"query"[..]));
        assert_eq!(
            (record.authority(), record.user.as_deref()),
            (&b"example.org"[..], Some(&b"a"[..]))
        );
        assert_eq!([0, 1].map(|n| record.response_header(n)), [&b"of the response"[..], b""]);
        record.clear();
        let second = Request::builder().uri("/").body(()).expect("a request");
        record.start(&second, &captures, 0);
        assert_eq!(record.response_end(), ResponseEnd::Missing);
        assert_eq!(
            (record.method(), record.target(), record.protocol()),
            (&b"GET"[..], &b"/"[..], &b"HTTP/1.1"[..])
        );
        assert_eq!((record.authority(), record.user.as_deref()), (&b""[..], None));
        for n in [0, 1] {
            assert_eq!((record.request_header(n), record.response_header(n)), (&b""[..], &b""[..]));
        }
    }

    #[test]
    fn a_failed_handler_counts_as_status_500() {
        let mut record = record_of(Method::GET);
        record.handler_failed();
        let end = ResponseEnd::Partial(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(record.response_end(), end);
    }
}
