//! TLS of accepted connections: the handshake, and the encrypted stream that HTTP is served on after it.
//!
//! The handshake is a part of serving a connection: it runs in the connection's task, after the dispatch and the PROXY header.
//! The client speaks first in TLS as in HTTP, so the just-in-time accept works on it as well.
//!
//! The signature with the private key is computed on the event loop: there is no other thread that it could wait for.

mod accept;
mod plain_http;
mod tls_socket;

pub(crate) use accept::{TlsConnection, accept};
use tls_socket::TlsSocket;

/// A TLS connection after its handshake.
pub(crate) type ServerTlsStream = tokio_rustls::server::TlsStream<TlsSocket>;
