//! The record of one request, for those that observe requests: the access log above all.
//!
//! A record exists only if the configuration of the worker asks for one: see `RequestObservers`. It is created when the
//! request reaches the worker, and handed to the observers when the request has ended, whatever ended it.

use std::cell::Cell;
use std::time::Instant;

use hyper::body::{Body, Frame};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::client::ConnectionInfo;
use crate::config::Config;

/// What is recorded of one request.
#[allow(dead_code, reason = "the access log reads it")]
pub(crate) struct RequestRecord {
    pub(crate) started: Instant,
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    status: Cell<Option<StatusCode>>,
    body: Cell<BodyProgress>,
}

/// How much of a response body hyper has taken.
#[allow(dead_code, reason = "the access log reads it")]
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
#[allow(dead_code, reason = "the access log reads it")]
pub(crate) enum ResponseEnd {
    /// hyper got the whole response.
    Complete(StatusCode),
    /// The head was sent, but not all of the body: the client left, a timeout or the drain ended it, or the body failed.
    Partial(StatusCode),
    /// The request ended before there was a response: the client left, or the worker had to close the connection.
    Missing,
}

#[allow(dead_code, reason = "the access log reads it")]
impl RequestRecord {
    /// Starts the record of `request`.
    pub(crate) fn new<B>(request: &Request<B>) -> RequestRecord {
        RequestRecord {
            started: Instant::now(),
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            status: Cell::new(None),
            body: Cell::default(),
        }
    }

    /// Records the head of the response.
    pub(crate) fn response_started<B: Body>(&self, response: &Response<B>) {
        let status = response.status();
        let has_no_body = self.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || response.body().is_end_stream();
        self.status.set(Some(status));
        self.body.set(BodyProgress {
            bytes: 0,
            expected: response.body().size_hint().exact(),
            has_ended: has_no_body,
        });
    }

    /// Records that the handler failed, so that hyper closes the connection without a response. Counts as status 500.
    pub(crate) fn handler_failed(&self) {
        self.status.set(Some(StatusCode::INTERNAL_SERVER_ERROR));
    }

    /// Records what hyper got when it asked for more of the body.
    pub(crate) fn body_polled<E>(&self, polled: Option<Result<&Frame<bytes::Bytes>, E>>) {
        let mut body = self.body.get();
        match polled {
            None => body.has_ended = true,
            Some(Ok(frame)) => {
                body.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(_)) => {}
        }
        self.body.set(body);
    }

    /// Returns how the response ended. Call it when the request has ended.
    pub(crate) fn response_end(&self) -> ResponseEnd {
        let Some(status) = self.status.get() else { return ResponseEnd::Missing };
        let BodyProgress { bytes, expected, has_ended } = self.body.get();
        // hyper does not ask for the end of a body that has reached its length.
        match has_ended || expected.is_some_and(|expected| bytes >= expected) {
            true => ResponseEnd::Complete(status),
            false => ResponseEnd::Partial(status),
        }
    }

    /// Returns how many bytes of the response body hyper has taken.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body.get().bytes
    }
}

/// A request that has ended.
#[allow(dead_code, reason = "the access log reads it")]
pub(crate) struct EndedRequest<'a> {
    pub(crate) record: &'a RequestRecord,
    /// Where its connection comes from. `None` if the application does not use that.
    pub(crate) connection: Option<&'a ConnectionInfo>,
}

/// What a worker does with its requests beside serving them; decided once, from its configuration.
pub(crate) struct RequestObservers {}

impl RequestObservers {
    /// Returns the observers that `config` asks for; `None` if there are none.
    pub(crate) fn from_config(_config: &Config) -> Option<Box<RequestObservers>> {
        None
    }

    /// Starts to observe `request`, which may still be changed. Returns its record.
    pub(crate) fn request_started<B>(&self, request: &mut Request<B>) -> Box<RequestRecord> {
        Box::new(RequestRecord::new(request))
    }

    /// Takes the head of a response, which may still be changed.
    pub(crate) fn response_started<B: Body>(
        &self,
        record: &RequestRecord,
        response: &mut Response<B>,
    ) {
        record.response_started(response);
    }

    /// Takes a request that has ended.
    pub(crate) fn request_ended(&self, _ended: &EndedRequest<'_>) {}
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    fn record_of(method: Method) -> RequestRecord {
        let request = Request::builder().method(method).uri("/path?query").body(());
        RequestRecord::new(&request.expect("a request"))
    }

    fn response(status: u16, body: &'static str) -> Response<Full<Bytes>> {
        let body = Full::new(Bytes::from_static(body.as_bytes()));
        Response::builder().status(status).body(body).expect("a response")
    }

    fn take(record: &RequestRecord, data: &'static str) {
        let frame = Frame::data(Bytes::from_static(data.as_bytes()));
        record.body_polled::<()>(Some(Ok(&frame)));
    }

    #[test]
    fn a_response_is_complete_when_its_length_is_taken_or_its_body_has_ended() {
        let record = record_of(Method::GET);
        assert_eq!(record.response_end(), ResponseEnd::Missing);
        record.response_started(&response(200, "four"));
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        take(&record, "fo");
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        record.body_polled::<()>(Some(Err(())));
        assert_eq!(record.response_end(), ResponseEnd::Partial(StatusCode::OK));
        take(&record, "ur");
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
        assert_eq!(record.body_bytes(), 4);
        let record = record_of(Method::GET);
        record.response_started(&response(200, "four"));
        record.body_polled::<()>(None);
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
    }

    #[test]
    fn a_response_without_a_body_is_complete_at_once() {
        for (method, status) in [(Method::HEAD, 200), (Method::GET, 304), (Method::GET, 101)] {
            let record = record_of(method);
            record.response_started(&response(status, "not sent"));
            assert!(matches!(record.response_end(), ResponseEnd::Complete(_)), "{status}");
            assert_eq!(record.body_bytes(), 0);
        }
        let record = record_of(Method::GET);
        record.response_started(&Response::new(Empty::<Bytes>::new()));
        assert_eq!(record.response_end(), ResponseEnd::Complete(StatusCode::OK));
    }

    #[test]
    fn a_failed_handler_counts_as_status_500() {
        let record = record_of(Method::GET);
        record.handler_failed();
        let end = ResponseEnd::Partial(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(record.response_end(), end);
    }
}
