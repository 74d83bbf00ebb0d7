//! The record of one request, for those that observe requests: the access log above all.
//!
//! A record exists only if the configuration of the worker asks for one: see `RequestObservers`. It is created when the
//! request reaches the worker, and handed to the observers when the request has ended, whatever ended it.

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::{Method, Request, Response, StatusCode, Version};

use crate::access_log::LineParts;

/// What is recorded of one request. An event loop uses its records again, so that a request needs no new memory for one.
#[derive(Debug, Default)]
pub(crate) struct RequestRecord {
    /// When it started, in nanoseconds on the monotonic clock; 0 if nothing wants to know how long the request took.
    pub(crate) started_ns: u64,
    version: Version,
    is_head: bool,
    is_connect: bool,
    /// What is written of its line in the access log so far.
    pub(crate) line: LineParts,
    status: Option<StatusCode>,
    body: BodyProgress,
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
    pub(crate) fn start<B>(&mut self, request: &Request<B>, started_ns: u64) {
        self.started_ns = started_ns;
        self.version = request.version();
        self.is_head = request.method() == Method::HEAD;
        self.is_connect = request.method() == Method::CONNECT;
        self.line.clear();
        self.status = None;
        self.body = BodyProgress::default();
    }

    /// Records the head of the response.
    pub(crate) fn response_started<B: Body>(&mut self, response: &Response<B>) {
        let status = response.status();
        let has_no_body = self.is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || response.body().is_end_stream();
        self.status = Some(status);
        let expected = response.body().size_hint().exact();
        self.body = BodyProgress { bytes: 0, expected, has_ended: has_no_body };
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    fn record_of(method: Method) -> RequestRecord {
        let request = Request::builder().method(method).uri("/path?query").body(());
        let mut record = RequestRecord::default();
        record.start(&request.expect("a request"), 0);
        record
    }

    fn start<B: Body>(record: &mut RequestRecord, response: &Response<B>) {
        record.response_started(response);
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
    fn a_record_that_is_used_again_has_nothing_of_the_request_before() {
        let mut record = record_of(Method::HEAD);
        start(&mut record, &response(200, "hello"));
        record.handler_failed();
        let second = Request::builder().uri("/").body(()).expect("a request");
        record.start(&second, 7);
        assert_eq!((record.started_ns, record.body_bytes()), (7, 0));
        assert_eq!(record.response_end(), ResponseEnd::Missing);
        start(&mut record, &response(200, "hello"));
        let end = ResponseEnd::Partial(StatusCode::OK);
        assert_eq!(record.response_end(), end, "not a response to HEAD any more");
    }

    #[test]
    fn a_failed_handler_counts_as_status_500() {
        let mut record = record_of(Method::GET);
        record.handler_failed();
        let end = ResponseEnd::Partial(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(record.response_end(), end);
    }
}
