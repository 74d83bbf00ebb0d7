//! The PROXY protocol: a load balancer tells, before the first byte of the client, which connection it passes on.
//!
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

mod parse_header;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::config::impl_choice;
pub(crate) use parse_header::{HeaderProgress, is_proxy_header, parse_proxy_header};

/// Whether connections begin with a header of the PROXY protocol.
///
/// The header is accepted from [`trusted_proxies`](crate::ConfigBuilder::trusted_proxies) only, and required of them: their
/// connections without one are closed. Others are served without one; theirs are closed if they send one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ProxyProtocol {
    /// Without a header: one is a malformed request.
    #[default]
    Off,
    /// With a header of version 1: a line of text.
    V1,
    /// With a header of version 2: binary.
    V2,
    /// With a header of either version, or without one. Not for protocols in which the server speaks first, as it would wait
    /// for the client's first byte.
    Auto,
}

impl_choice!(ProxyProtocol, "a version of the PROXY protocol", {
    "off" => Off, "v1" => V1, "v2" => V2, "auto" => Auto
});

impl ProxyProtocol {
    /// Whether connections may begin with a header.
    pub(crate) fn is_on(self) -> bool {
        self != ProxyProtocol::Off
    }

    /// Whether a header of this version is accepted.
    fn accepts(self, version: ProxyProtocol) -> bool {
        self == version || self == ProxyProtocol::Auto
    }
}

/// What the PROXY header of a connection says: which connection the proxy has accepted and passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyHeader {
    source: SocketAddr,
    destination: SocketAddr,
    is_tls: bool,
}

impl ProxyHeader {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, is_tls: bool) -> ProxyHeader {
        let canonical = super::peer_addr::canonical;
        let (source, destination) = (canonical(source), canonical(destination));
        ProxyHeader { source, destination, is_tls }
    }

    /// Returns the address of the proxy's client.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Returns the address that the proxy's client has connected to.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Returns whether the proxy's client has connected over TLS. Known from version 2 with the field `SSL` only (HAProxy:
    /// `send-proxy-v2-ssl`).
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }
}

/// Whose connection a proxy passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProxiedClient {
    /// The proxy's own (`LOCAL`): a health check.
    Proxy,
    /// A client's whose address the proxy does not know or cannot express (`UNKNOWN`, `UNSPEC`, a Unix socket).
    Unknown,
    /// That of a client with an address.
    Known(ProxyHeader),
}

impl ProxiedClient {
    /// The most bytes of the encoded form.
    pub(crate) const MAX_BYTES: usize = 64;

    /// Encodes the value for another worker.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        // Fails for types that postcard cannot encode, of which there are none here.
        postcard::to_stdvec(&self).unwrap_or_default()
    }

    /// Decodes what [`ProxiedClient::to_bytes`] has encoded, perhaps another version of this program.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<ProxiedClient> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxied_client_is_decoded_as_it_was_encoded() {
        let addr = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let v6 = ProxyHeader::new(addr("[2001:db8::1]:65535"), addr("[2001:db8::2]:65535"), true);
        let v4 = ProxyHeader::new(addr("192.0.2.1:1"), addr("[::ffff:192.0.2.2]:2"), false);
        assert_eq!(v4.destination(), addr("192.0.2.2:2"));
        let known = [v6, v4].map(ProxiedClient::Known);
        for client in [ProxiedClient::Proxy, ProxiedClient::Unknown].into_iter().chain(known) {
            let bytes = client.to_bytes();
            assert!(bytes.len() <= ProxiedClient::MAX_BYTES, "{}", bytes.len());
            assert_eq!(ProxiedClient::from_bytes(&bytes), Some(client));
        }
        assert_eq!(ProxiedClient::from_bytes(&[]), None);
        assert_eq!(ProxiedClient::from_bytes(&[9]), None);
    }
}
