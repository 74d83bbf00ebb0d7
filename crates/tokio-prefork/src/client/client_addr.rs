//! The address of the client that a request comes from, perhaps through proxies.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{PeerAddr, UnixPeer};

/// The address of the client that a request comes from. Displays as `192.0.2.7:51000`, as `192.0.2.7` if the port is unknown, or
/// as `unix:pid=812,uid=33`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientAddr {
    /// An IP address.
    Ip {
        /// The address; that of an IPv4 client is never written as an IPv6 address.
        ip: IpAddr,
        /// The port. `None` if it comes from a header that names none, as `X-Forwarded-For` usually does.
        port: Option<u16>,
    },
    /// A process that is connected to a Unix socket.
    Unix(UnixPeer),
    /// Nothing is known: the request does not come from this server, or the configuration has `connection_info = false`.
    Unknown,
}

impl ClientAddr {
    /// Returns the IP address; `None` for the client of a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            ClientAddr::Ip { ip, .. } => Some(*ip),
            ClientAddr::Unix(_) | ClientAddr::Unknown => None,
        }
    }

    /// Returns the port, if it is known.
    pub fn port(&self) -> Option<u16> {
        match self {
            ClientAddr::Ip { port, .. } => *port,
            ClientAddr::Unix(_) | ClientAddr::Unknown => None,
        }
    }

    /// Returns the process at the other end of a Unix socket; `None` for a client with an IP address.
    pub fn unix(&self) -> Option<&UnixPeer> {
        match self {
            ClientAddr::Unix(peer) => Some(peer),
            ClientAddr::Ip { .. } | ClientAddr::Unknown => None,
        }
    }

    /// Returns the address by which to limit what one client may do, as the key of a
    /// [`KeyedRateLimiter`](crate::KeyedRateLimiter).
    ///
    /// It has no port, as a client has as many as it likes. Of an IPv6 address it is the /64 network, as one host can choose any
    /// of its addresses. All clients of Unix sockets, and all unknown ones, have the unspecified address `::`.
    ///
    /// ```
    /// use hyper::Request;
    /// use tokio_prefork::ClientInfo;
    ///
    /// let client = ClientInfo::of(&Request::new(()));
    /// assert_eq!(client.client().rate_limit_key().to_string(), "::");
    /// ```
    pub fn rate_limit_key(&self) -> IpAddr {
        match self.ip() {
            Some(IpAddr::V4(ip)) => ip.into(),
            Some(IpAddr::V6(ip)) => {
                const NETWORK: u128 = !(u64::MAX as u128);
                Ipv6Addr::from_bits(ip.to_bits() & NETWORK).into()
            }
            None => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl From<SocketAddr> for ClientAddr {
    fn from(addr: SocketAddr) -> ClientAddr {
        ClientAddr::Ip { ip: addr.ip().to_canonical(), port: Some(addr.port()) }
    }
}

impl From<&PeerAddr> for ClientAddr {
    fn from(peer: &PeerAddr) -> ClientAddr {
        match peer {
            PeerAddr::Tcp(addr) => (*addr).into(),
            PeerAddr::Unix(peer) => ClientAddr::Unix(peer.clone()),
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientAddr::Ip { ip, port: Some(port) } => SocketAddr::new(*ip, *port).fmt(f),
            ClientAddr::Ip { ip, port: None } => ip.fmt(f),
            ClientAddr::Unix(peer) => peer.fmt(f),
            ClientAddr::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_with_its_port_if_that_is_known() {
        let with_port = ClientAddr::from("[2001:db8::1]:80".parse::<SocketAddr>().expect("addr"));
        assert_eq!(with_port.to_string(), "[2001:db8::1]:80");
        let ip = "2001:db8::1".parse().expect("address");
        assert_eq!(ClientAddr::Ip { ip, port: None }.to_string(), "2001:db8::1");
        let mapped = ClientAddr::from("[::ffff:192.0.2.1]:9".parse::<SocketAddr>().expect("addr"));
        assert_eq!(mapped.to_string(), "192.0.2.1:9");
    }

    #[test]
    fn the_rate_limit_key_is_the_network_of_an_ipv6_client() {
        for (ip, key) in [
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
        ] {
            let ip = ip.parse().expect("address");
            assert_eq!(ClientAddr::Ip { ip, port: Some(1) }.rate_limit_key().to_string(), key);
        }
        assert_eq!(ClientAddr::Unknown.rate_limit_key(), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
}
