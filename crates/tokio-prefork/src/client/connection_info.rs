//! Where a connection comes from, and by which listener.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use hyper::http::Extensions;
use prefork_os::socket_name::{SocketName, local_name, peer_name};

use super::listener_names::local_listen_addr;
use super::{
    ClientAddr, ForwardedHeaders, ListenerName, ListenerNames, PeerAddr, ProxiedClient,
    ProxyHeader, ProxyProtocol, TlsInfo, TrustedProxies,
};
use crate::https_redirect::HttpsRedirect;
use crate::listener::ListenAddr;

/// Where a connection comes from, and by which listener it came. Cheap to clone.
///
/// Says what is known of the connection itself. Behind a proxy that is the proxy: see [`ClientInfo`](crate::ClientInfo) for
/// the client of a request.
///
/// Every request has one in its extensions, in every concurrency model, under HTTP/1 and HTTP/2. Raw connections have it
/// as [`AcceptedStream::connection_info`](crate::AcceptedStream::connection_info). With the feature `axum` it is an
/// extractor as well.
///
/// ```
/// use hyper::Request;
/// use tokio_prefork::ConnectionInfo;
///
/// fn client_of<B>(request: &Request<B>) -> String {
///     match request.extensions().get::<ConnectionInfo>() {
///         Some(connection) => format!("{} by {}", connection.peer(), connection.listener()),
///         None => "a request that this server has not received".to_string(),
///     }
/// }
/// # assert!(client_of(&Request::new(())).starts_with("a request"));
/// ```
///
/// A connection that one worker hands over to another keeps its client and its local address. If the listener is none
/// of the new worker's, because a reload has removed it, [`ConnectionInfo::listener`] returns the local address.
#[derive(Clone)]
pub struct ConnectionInfo(Arc<ConnectionAddrs>);

#[derive(Clone)]
struct ConnectionAddrs {
    peer: PeerAddr,
    /// `None` if it is that of the listener.
    local: Option<Box<ListenAddr>>,
    listener: Arc<ListenerName>,
    /// The proxies that are trusted, if the client of this connection is one of them.
    trusted: Option<TrustedProxies>,
    /// What the PROXY header says, if there was one.
    proxied: Option<ProxiedClient>,
    /// What the TLS handshake with this server has agreed on, if there was one.
    tls: Option<TlsInfo>,
}

/// What is expected at the start of a connection to a listener with the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpectedProxyHeader {
    /// What the listener accepts.
    pub(crate) protocol: ProxyProtocol,
    /// Whether the sender is a trusted proxy.
    pub(crate) is_trusted: bool,
}

impl ExpectedProxyHeader {
    /// Whether the connection must begin with a header.
    pub(crate) fn is_required(self) -> bool {
        self.is_trusted && self.protocol != ProxyProtocol::Auto
    }

    /// Returns which versions to look for: of others than proxies, all, in order to refuse them.
    pub(crate) fn accepted_versions(self) -> ProxyProtocol {
        if self.is_trusted { self.protocol } else { ProxyProtocol::Auto }
    }
}

impl ConnectionInfo {
    /// Returns the address of the client: the other end of this connection.
    pub fn peer(&self) -> &PeerAddr {
        &self.0.peer
    }

    /// Returns the address of the client of a TCP connection; `None` for a Unix socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.peer.socket_addr()
    }

    /// Returns the address that the client has connected to. With a listener on all addresses (`0.0.0.0`, `[::]`), it
    /// is one of those.
    pub fn local(&self) -> &ListenAddr {
        self.0.local.as_deref().unwrap_or(&self.0.listener.addr)
    }

    /// Returns the address and port that the client has connected to; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self.local() {
            ListenAddr::Tcp(addr) => Some(*addr),
            _ => None,
        }
    }

    /// Returns the listener that the connection came by, as
    /// [`Worker::addresses`](crate::Worker::addresses) names it: with its real port.
    pub fn listener(&self) -> &ListenAddr {
        &self.0.listener.addr
    }

    /// Returns the addresses of its PROXY header. `None` if it had no header, or one without addresses.
    pub fn proxy_header(&self) -> Option<&ProxyHeader> {
        match &self.0.proxied {
            Some(ProxiedClient::Known(header)) => Some(header),
            Some(ProxiedClient::Proxy | ProxiedClient::Unknown) | None => None,
        }
    }

    /// Puts this, and what extractors of axum look for, into the extensions of a request.
    pub(crate) fn insert_into(&self, extensions: &mut Extensions) {
        extensions.insert(self.clone());
        #[cfg(feature = "axum")]
        super::connect_info::insert_connect_info(self.peer(), extensions);
    }

    /// Returns the proxies that are trusted, if the headers of this connection's requests are to be believed.
    pub(crate) fn trusted_for_headers(&self) -> Option<&TrustedProxies> {
        self.0.trusted.as_ref()
    }

    /// Returns which headers of trusted proxies are believed.
    pub(super) fn forwarded_headers(&self) -> ForwardedHeaders {
        self.0.listener.settings.forwarded_headers
    }

    /// Returns the client as the connection knows it.
    pub(crate) fn client(&self) -> ClientAddr {
        self.proxy_header().map_or_else(|| self.peer().into(), |header| header.source().into())
    }

    /// Returns the IP address of the client as the connection knows it; `None` for the client of a Unix socket.
    pub(crate) fn client_ip(&self) -> Option<IpAddr> {
        self.proxy_header()
            .map_or_else(|| self.peer().ip(), |header| Some(header.source().ip().to_canonical()))
    }

    /// Returns the address that the client has connected to.
    pub(super) fn client_local(&self) -> ListenAddr {
        let proxied = self.proxy_header().map(|header| ListenAddr::Tcp(header.destination()));
        proxied.unwrap_or_else(|| self.local().clone())
    }

    /// Returns what the TLS handshake of this connection has agreed on. `None` for a connection without TLS, and for one whose
    /// TLS ends at a proxy; see [`ClientInfo::is_https`](crate::ClientInfo::is_https).
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.0.tls.as_ref()
    }

    /// Whether the client has encrypted the connection.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.tls.is_some() || self.proxy_header().is_some_and(ProxyHeader::is_tls)
    }

    /// Adds what the TLS handshake has agreed on.
    #[cfg(feature = "tls")]
    pub(crate) fn with_tls(mut self, tls: TlsInfo) -> ConnectionInfo {
        Arc::make_mut(&mut self.0).tls = Some(tls);
        self
    }

    /// Returns what to expect at the start of the connection, if its listener accepts PROXY headers.
    pub(crate) fn expected_proxy_header(&self) -> Option<ExpectedProxyHeader> {
        let protocol = self.0.listener.settings.proxy_protocol;
        let is_trusted = self.0.trusted.is_some();
        protocol.is_on().then_some(ExpectedProxyHeader { protocol, is_trusted })
    }

    /// Returns what answers the requests of this connection in place of the application, if its listener only redirects to https.
    pub(crate) fn https_redirect(&self) -> Option<&Arc<HttpsRedirect>> {
        self.0.listener.settings.https_redirect.as_ref()
    }

    /// Returns what the PROXY header says, for another worker.
    pub(crate) fn proxied_client(&self) -> Option<ProxiedClient> {
        self.0.proxied
    }

    /// Adds what the PROXY header says. From then on the headers of requests are believed if its client is trusted.
    pub(crate) fn with_proxied_client(mut self, client: ProxiedClient) -> ConnectionInfo {
        let addrs = Arc::make_mut(&mut self.0);
        addrs.proxied = Some(client);
        addrs.trusted = addrs.trusted.take().filter(|trusted| match client {
            ProxiedClient::Proxy => true,
            ProxiedClient::Unknown => false,
            ProxiedClient::Known(header) => trusted.contains(header.source().ip()),
        });
        self
    }

    /// Describes a connection that was accepted from `listener`.
    pub(crate) fn accepted(
        connection: impl AsFd,
        peer: SocketName,
        listener: &Arc<ListenerName>,
        trusted: &TrustedProxies,
    ) -> ConnectionInfo {
        let local = match listener.is_wildcard() {
            true => local_name(&connection).ok().map(|name| Box::new(local_listen_addr(name))),
            false => None,
        };
        let peer = PeerAddr::new(peer, connection);
        ConnectionInfo::new(peer, local, Arc::clone(listener), trusted)
    }

    /// Returns the listener that the connection came by.
    pub(crate) fn listener_name(&self) -> &Arc<ListenerName> {
        &self.0.listener
    }

    fn new(
        peer: PeerAddr,
        local: Option<Box<ListenAddr>>,
        listener: Arc<ListenerName>,
        trusted: &TrustedProxies,
    ) -> ConnectionInfo {
        let trusted = trusted.contains_peer(&peer).then(|| trusted.clone());
        let (proxied, tls) = (None, None);
        ConnectionInfo(Arc::new(ConnectionAddrs { peer, local, listener, trusted, proxied, tls }))
    }

    /// Describes a connection that another process has accepted, perhaps from one of `listeners`.
    pub(crate) fn of_socket(
        connection: impl AsFd,
        listeners: &ListenerNames,
        trusted: &TrustedProxies,
    ) -> ConnectionInfo {
        let peer = peer_name(&connection);
        let peer = peer.map_or(PeerAddr::UNKNOWN, |name| PeerAddr::new(name, &connection));
        let local = local_name(&connection).unwrap_or(SocketName::Unix(None));
        let found = listeners.find(&local).map(Arc::clone);
        let listener = found.unwrap_or_else(|| listeners.name_of_connection(&local));
        let local = listener.is_wildcard().then(|| Box::new(local_listen_addr(local)));
        ConnectionInfo::new(peer, local, listener, trusted)
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("peer", self.peer())
            .field("local", self.local())
            .field("listener", self.listener())
            .field("proxy_header", &self.proxy_header())
            .field("tls", &self.tls())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn describe(connection: &TcpStream) -> ConnectionInfo {
        let (listeners, trusted) = (ListenerNames::default(), TrustedProxies::default());
        ConnectionInfo::of_socket(connection, &listeners, &trusted)
    }

    #[test]
    fn a_connection_of_no_known_listener_has_its_own_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let client = TcpStream::connect(addr).expect("connect");
        let (connection, _) = listener.accept().expect("accept");
        let info = describe(&connection);
        assert_eq!(info.peer_addr(), client.local_addr().ok());
        assert_eq!((info.local_addr(), info.listener()), (Some(addr), &ListenAddr::Tcp(addr)));
    }

    #[test]
    fn a_client_that_has_reset_its_connection_has_no_address() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (connection, _) = listener.accept().expect("accept");
        prefork_os::socket::set_reset_on_close(&client).expect("option");
        drop(client);
        let info = describe(&connection);
        assert_eq!(info.peer(), &PeerAddr::UNKNOWN);
    }
}
