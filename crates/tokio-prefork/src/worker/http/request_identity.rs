//! What identifies a request in the log, in the status and to the client: its id and its client.
//!
//! Exists only with `request-id`; without, a request costs one look at a pointer.

use std::fmt;

use hyper::http::HeaderMap;
use hyper::{Request, Response};

use crate::client::{ClientInfo, ConnectionInfo, RequestId, RequestIds, X_REQUEST_ID};

/// What identifies a request.
pub(crate) struct RequestIdentity {
    pub(crate) id: RequestId,
    /// The client; empty if the connection is not described.
    pub(crate) client: String,
}

impl RequestIdentity {
    /// Identifies `request`, and puts its id into its extensions and its headers.
    pub(crate) fn assign<B>(
        ids: &RequestIds,
        request: &mut Request<B>,
        connection: Option<&ConnectionInfo>,
    ) -> Box<RequestIdentity> {
        let id = ids.identify(request.headers(), connection);
        let client = connection.map_or_else(String::new, |connection| {
            ClientInfo::client_of(connection, request.headers()).to_string()
        });
        // Also if it was received: a client could have sent another one in a second header.
        request.headers_mut().insert(X_REQUEST_ID, id.as_header_value().clone());
        request.extensions_mut().insert(id.clone());
        Box::new(RequestIdentity { id, client })
    }

    /// Adds the id to the response, unless the application has set one.
    pub(crate) fn add_to_response<B>(&self, response: &mut Response<B>) {
        let headers: &mut HeaderMap = response.headers_mut();
        if !headers.contains_key(X_REQUEST_ID) {
            headers.insert(X_REQUEST_ID, self.id.as_header_value().clone());
        }
    }

    /// Runs part of the handler. Meanwhile, log lines of this thread have the id of the request.
    pub(crate) fn run<T>(&self, run: impl FnOnce() -> T) -> T {
        self.id.run_as_current(run)
    }
}

/// Displays ` client=... request_id=...` after the request that a log line is about.
pub(crate) struct IdentityFields<'a>(pub(crate) Option<&'a RequestIdentity>);

impl fmt::Display for IdentityFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(RequestIdentity { id, client }) = self.0 else { return Ok(()) };
        if !client.is_empty() {
            write!(f, " client={client}")?;
        }
        write!(f, " request_id={id}")
    }
}
