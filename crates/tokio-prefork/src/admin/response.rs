//! Responses of the admin listener: their bodies, and the headers that all of them have.

use std::borrow::Cow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;

use super::connections::Connection;

pub(crate) const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// Headers of every response. No other site may embed a page, read it or be asked by it, and nothing is kept by caches.
const COMMON_HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// The body of a response.
pub(crate) struct AdminBody {
    content: Content,
    /// Told when the response is complete.
    connection: Option<Rc<Connection>>,
}

enum Content {
    Bytes(Option<Bytes>),
    /// A stream of events.
    Stream(mpsc::Receiver<Bytes>),
}

impl AdminBody {
    /// Creates a body that sends what arrives, until the sender is dropped.
    pub(crate) fn stream(frames: mpsc::Receiver<Bytes>) -> AdminBody {
        AdminBody { content: Content::Stream(frames), connection: None }
    }

    /// Tells `connection` when the response is complete.
    pub(crate) fn of_connection(mut self, connection: Rc<Connection>) -> AdminBody {
        self.connection = Some(connection);
        self
    }
}

impl Drop for AdminBody {
    fn drop(&mut self) {
        self.connection.iter().for_each(|connection| connection.response_ended());
    }
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.content {
            Content::Bytes(bytes) => Poll::Ready(bytes.take().map(|one| Ok(Frame::data(one)))),
            Content::Stream(frames) => {
                frames.poll_recv(cx).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Bytes(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// Returns a response with the headers that all responses have.
pub(crate) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Cow<'static, [u8]>>,
) -> Response<AdminBody> {
    let bytes = match body.into() {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => Bytes::from(bytes),
    };
    let content = Content::Bytes(Some(bytes).filter(|bytes| !bytes.is_empty()));
    with_common_headers(status, content_type, AdminBody { content, connection: None })
}

/// Returns a response with a plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Response<AdminBody> {
    response(status, PLAIN_TEXT, text.into().into_bytes())
}

/// Returns a response with this body and the headers that all responses have.
pub(crate) fn with_common_headers(
    status: StatusCode,
    content_type: &'static str,
    body: AdminBody,
) -> Response<AdminBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in COMMON_HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}
