//! What is known about the client of a request.

use hyper::Request;
use hyper::header::{HOST, HeaderMap};
use hyper::http::request::Parts;
use hyper::http::{Extensions, Uri};

use super::forwarded::{self, ForwardedFacts, parse_host_and_port};
use super::{ClientAddr, ConnectionInfo, PeerAddr, RequestId};
use crate::listener::ListenAddr;

/// Who has sent a request, and what they have asked for it: the answers of the connection, of its PROXY header, and of the
/// headers of trusted proxies.
///
/// Made from a request by [`ClientInfo::of`] when a handler asks for it; with the feature `axum` it is an extractor as
/// well. Everything that a client could make up is believed only if it comes from a proxy in
/// [`trusted_proxies`](crate::ConfigBuilder::trusted_proxies). Without that setting, the client is the other end of the
/// connection.
///
/// Each source replaces what the ones before it say:
///
/// 1. The connection: its two addresses, and the scheme, `https` over TLS and `http` otherwise.
/// 2. The header of the PROXY protocol, from a trusted peer: the addresses of the connection that the proxy has accepted, and that
///    it used TLS.
/// 3. If the client so far is trusted: `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`; for requests without
///    `X-Forwarded-For`, `Forwarded` (see [`ForwardedHeaders`](crate::ForwardedHeaders)). The addresses are followed from right to left, as long as they are those of trusted
///    proxies.
///
/// ```
/// use hyper::{Request, Response, body::Incoming};
/// use tokio_prefork::ClientInfo;
///
/// async fn greet(request: Request<Incoming>) -> Response<String> {
///     let info = ClientInfo::of(&request);
///     Response::new(format!("Hello {}, you came over {}\n", info.client(), info.scheme()))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct ClientInfo {
    connection: Option<ConnectionInfo>,
    client: ClientAddr,
    local: Option<ListenAddr>,
    is_https: bool,
    host: Option<String>,
    request_id: Option<RequestId>,
}

impl ClientInfo {
    /// Finds out who has sent `request`.
    pub fn of<B>(request: &Request<B>) -> ClientInfo {
        ClientInfo::from_extensions(request.extensions(), request.uri(), request.headers())
    }

    /// Finds out who has sent the request with this head.
    pub fn of_parts(parts: &Parts) -> ClientInfo {
        ClientInfo::from_extensions(&parts.extensions, &parts.uri, &parts.headers)
    }

    fn from_extensions(extensions: &Extensions, uri: &Uri, headers: &HeaderMap) -> ClientInfo {
        let request_id = extensions.get().cloned();
        ClientInfo { request_id, ..ClientInfo::new(extensions.get(), uri, headers) }
    }

    /// Finds out who has sent a request over `connection`.
    pub(crate) fn new(
        connection: Option<&ConnectionInfo>,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> ClientInfo {
        let facts = connection.map(|connection| read_facts(connection, headers));
        let facts = facts.unwrap_or_default();
        let client = || connection.map_or(ClientAddr::Unknown, ConnectionInfo::client);
        ClientInfo {
            client: facts.client.unwrap_or_else(client),
            local: connection.map(ConnectionInfo::client_local),
            is_https: facts
                .is_https
                .unwrap_or_else(|| connection.is_some_and(ConnectionInfo::is_tls)),
            host: facts.host.or_else(|| own_host(uri, headers)),
            connection: connection.cloned(),
            request_id: None,
        }
    }

    /// Returns only the client of a request that has come over `connection`.
    pub(crate) fn client_of(connection: &ConnectionInfo, headers: &HeaderMap) -> ClientAddr {
        read_facts(connection, headers).client.unwrap_or_else(|| connection.client())
    }

    /// Returns the client that the request comes from: the first one from the right that is not a trusted proxy.
    ///
    /// [`ClientAddr::rate_limit_key`] is the key for a limit per client.
    pub fn client(&self) -> &ClientAddr {
        &self.client
    }

    /// Returns the other end of the connection: the client or the proxy nearest to this server, whatever a header says.
    /// `None` without [`ConnectionInfo`].
    pub fn peer(&self) -> Option<&PeerAddr> {
        self.connection.as_ref().map(ConnectionInfo::peer)
    }

    /// Returns the address that the client has connected to: with a PROXY header, that of the proxy. `None` without
    /// [`ConnectionInfo`].
    pub fn local(&self) -> Option<&ListenAddr> {
        self.local.as_ref()
    }

    /// Returns `https` if the client has sent its request encrypted, as a trusted proxy says, and `http` otherwise.
    pub fn scheme(&self) -> &'static str {
        if self.is_https { "https" } else { "http" }
    }

    /// Returns whether the scheme is `https`.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Returns the host that the client has asked for, with its port if it has given one: as a trusted proxy says, or the
    /// request itself. `None` if that is no valid host.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Returns the id of the request. `None` without [`request_id`](crate::ConfigBuilder::request_id).
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    /// Returns the connection that the request has come over. `None` if the configuration has `connection_info = false`.
    pub fn connection(&self) -> Option<&ConnectionInfo> {
        self.connection.as_ref()
    }
}

/// Returns what trusted proxies say about a request over `connection`.
fn read_facts(connection: &ConnectionInfo, headers: &HeaderMap) -> ForwardedFacts {
    let trusted = connection.trusted_for_headers();
    trusted.map_or_else(ForwardedFacts::default, |trusted| {
        forwarded::read_forwarded_headers(headers, trusted, connection.forwarded_headers())
    })
}

/// Returns the host that the request itself names.
fn own_host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let of_uri = uri.authority().map(|authority| authority.as_str());
    let host = of_uri.or_else(|| headers.get(HOST)?.to_str().ok())?;
    parse_host_and_port(host).map(str::to_string)
}
