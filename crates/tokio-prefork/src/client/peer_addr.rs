//! The address of a client.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use prefork_os::socket_name::{PeerCredentials, SocketName, peer_credentials};

/// The address of the client of a connection. Displays as `192.0.2.7:51000` or `unix:pid=812,uid=33`.
///
/// It is the other end of the socket: behind a load balancer that of the load balancer, whatever a header says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerAddr {
    /// An IP address and a port. A client that reaches a dual-stack listener over IPv4 has its IPv4 address, not
    /// `::ffff:192.0.2.7`.
    ///
    /// `0.0.0.0:0` if the client had reset the connection before a worker could ask for its address.
    Tcp(SocketAddr),
    /// A process that is connected to a Unix socket.
    Unix(UnixPeer),
}

/// The client of a Unix socket: a process on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UnixPeer {
    /// A path, or a NUL byte and an abstract name.
    name: Option<Arc<[u8]>>,
    /// Process, user and group.
    credentials: Option<(u32, u32, u32)>,
}

impl PeerAddr {
    /// Returns the address and port; `None` for the client of a Unix socket.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            PeerAddr::Tcp(addr) => Some(*addr),
            PeerAddr::Unix(_) => None,
        }
    }

    /// Returns the IP address; `None` for the client of a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.socket_addr().map(|addr| addr.ip())
    }

    /// Returns the process at the other end of a Unix socket; `None` for TCP.
    pub fn unix(&self) -> Option<&UnixPeer> {
        match self {
            PeerAddr::Tcp(_) => None,
            PeerAddr::Unix(peer) => Some(peer),
        }
    }

    /// The address of a TCP client that has reset its connection, so that the kernel no longer has it.
    pub(super) const UNKNOWN: PeerAddr =
        PeerAddr::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));

    /// Converts the name of the other end of `connection`.
    pub(super) fn new(name: SocketName, connection: impl AsFd) -> PeerAddr {
        match name {
            SocketName::Tcp(addr) => PeerAddr::Tcp(canonical(addr)),
            SocketName::Unix(name) => {
                // The kernel has had the credentials since connect(2); an error would mean another kind of socket.
                let credentials = peer_credentials(connection).ok();
                let credentials =
                    credentials.map(|PeerCredentials { pid, uid, gid }| (pid, uid, gid));
                PeerAddr::Unix(UnixPeer { name: name.map(Arc::from), credentials })
            }
        }
    }
}

/// Converts an IPv4 address that is written as an IPv6 address, as those of dual-stack sockets are.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => addr,
        },
    }
}

impl UnixPeer {
    /// Returns the process id, as it was when the connection was made; 0 in another pid namespace.
    pub fn pid(&self) -> Option<u32> {
        self.credentials.map(|(pid, _, _)| pid)
    }

    /// Returns the effective user id of the process, as it was when the connection was made.
    pub fn uid(&self) -> Option<u32> {
        self.credentials.map(|(_, uid, _)| uid)
    }

    /// Returns the effective group id of the process, as it was when the connection was made.
    pub fn gid(&self) -> Option<u32> {
        self.credentials.map(|(_, _, gid)| gid)
    }

    /// Returns the path that the client has bound its own socket to. Most clients have none.
    pub fn path(&self) -> Option<&Path> {
        match self.name.as_deref() {
            None | Some([0, ..]) => None,
            Some(path) => Some(Path::new(OsStr::from_bytes(path))),
        }
    }

    /// Returns the abstract name that the client has bound its own socket to. Most clients have none.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match self.name.as_deref() {
            Some([0, name @ ..]) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddr::Tcp(addr) => addr.fmt(f),
            PeerAddr::Unix(peer) => peer.fmt(f),
        }
    }
}

impl fmt::Display for UnixPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.credentials {
            Some((pid, uid, _)) => write!(f, "unix:pid={pid},uid={uid}"),
            None => f.write_str("unix:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_has_its_ipv4_address() {
        for (given, shown) in [
            ("[::ffff:192.0.2.7]:80", "192.0.2.7:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("192.0.2.7:80", "192.0.2.7:80"),
        ] {
            let addr: SocketAddr = given.parse().expect("an address");
            assert_eq!(canonical(addr).to_string(), shown);
        }
    }

    #[test]
    fn a_unix_client_is_known_by_its_process() {
        let (near, _far) = UnixStream::pair().expect("pair");
        let peer = PeerAddr::new(SocketName::Unix(None), &near);
        let unix = peer.unix().expect("a Unix socket");
        assert_eq!(unix.pid(), Some(std::process::id()));
        assert_eq!((unix.path(), unix.abstract_name(), peer.ip()), (None, None, None));
        let uid = unix.uid().expect("credentials");
        assert_eq!(peer.to_string(), format!("unix:pid={},uid={uid}", std::process::id()));
    }

    #[test]
    fn a_bound_unix_client_has_a_path_or_an_abstract_name() {
        let (near, _far) = UnixStream::pair().expect("pair");
        let peer = |name: &[u8]| match PeerAddr::new(SocketName::Unix(Some(name.into())), &near) {
            PeerAddr::Unix(peer) => peer,
            PeerAddr::Tcp(_) => panic!("a Unix name"),
        };
        assert_eq!(peer(b"/run/client").path(), Some(Path::new("/run/client")));
        assert_eq!(peer(b"/run/client").abstract_name(), None);
        assert_eq!(peer(b"\0client").abstract_name(), Some(&b"client"[..]));
        assert_eq!(peer(b"\0client").path(), None);
    }
}
