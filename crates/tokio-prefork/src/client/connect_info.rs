//! What the extractors of axum find in a request: `ConnectInfo` of the client, and [`ConnectionInfo`] itself.

use std::any::type_name;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::http::{Extensions, HeaderMap};
use hyper::{StatusCode, body::SizeHint};

use super::{ClientInfo, ConnectionInfo, PeerAddr};
use prefork_supervisor::WorkerTag;

/// Answers a handler that asks for `ConnectInfo<SocketAddr>` on a Unix socket.
pub(crate) const NO_SOCKET_ADDR: &str = "the client of a Unix socket has no IP address, so there is no \
    ConnectInfo<SocketAddr>: extract ConnectInfo<tokio_prefork::PeerAddr> or tokio_prefork::ConnectionInfo instead, or \
    serve this route on a TCP listener";

/// Puts `ConnectInfo<PeerAddr>` into the extensions of a request and, if it came over TCP, `ConnectInfo<SocketAddr>`.
pub(super) fn insert_connect_info(peer: &PeerAddr, extensions: &mut Extensions) {
    if let PeerAddr::Tcp(addr) = peer {
        extensions.insert(ConnectInfo(*addr));
    }
    extensions.insert(ConnectInfo(peer.clone()));
}

/// Returns whether a response over a Unix socket is axum's answer to a missing `ConnectInfo<SocketAddr>`.
///
/// axum has no hook for this, and answers in its own words, which name neither the socket nor what to do. They are
/// recognized by their exact length.
pub(crate) fn is_missing_socket_addr(
    status: StatusCode,
    headers: &HeaderMap,
    body: &SizeHint,
) -> bool {
    if status != StatusCode::INTERNAL_SERVER_ERROR {
        return false;
    }
    let missing = type_name::<ConnectInfo<SocketAddr>>();
    let length = "Missing request extension: Extension of type `` was not found. Perhaps you forgot to add it? See \
                  `axum::Extension`."
        .len()
        + missing.len();
    let is_text =
        headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/plain"));
    is_text && body.exact() == Some(length as u64)
}

/// Logs, once in the life of a worker, that a handler asks for an address that there is none of.
pub(crate) fn log_missing_socket_addr(worker: WorkerTag) {
    static IS_LOGGED: AtomicBool = AtomicBool::new(false);
    if !IS_LOGGED.swap(true, Ordering::Relaxed) {
        log::warn!("{worker} answered 500 to a request: {NO_SOCKET_ADDR}");
    }
}

/// Why a request has no [`ConnectionInfo`].
const NO_CONNECTION_INFO: &str = "this request has no ConnectionInfo: it does not come from tokio-prefork, or the \
    configuration has connection_info = false";

impl<S: Sync> FromRequestParts<S> for ConnectionInfo {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let info = parts.extensions.get::<ConnectionInfo>().cloned();
        info.ok_or((StatusCode::INTERNAL_SERVER_ERROR, NO_CONNECTION_INFO))
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for ConnectionInfo {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<ConnectionInfo>().cloned())
    }
}

impl<S: Sync> FromRequestParts<S> for ClientInfo {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(ClientInfo::of_parts(parts))
    }
}
