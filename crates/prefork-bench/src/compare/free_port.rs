//! A free port for a server that must be told its port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Keeps a loopback port from being chosen by other processes while it lives.
///
/// It is bound and never listens, so that a server that sets SO_REUSEADDR or SO_REUSEPORT, as servers do, can bind it too.
#[derive(Debug)]
pub(crate) struct ReservedPort {
    port: u16,
    _socket: Socket,
}

impl ReservedPort {
    /// Reserves a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port or no descriptor is free.
    pub(crate) fn new() -> io::Result<ReservedPort> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = socket.local_addr()?.as_socket();
        let port = address.map(|address| address.port()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(ReservedPort { port, _socket: socket })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_reserved_port_can_be_listened_on_by_a_server_that_sets_reuseaddr() {
        let reserved = ReservedPort::new().expect("a port");
        // The standard library sets SO_REUSEADDR.
        let server = TcpListener::bind(("127.0.0.1", reserved.port())).expect("bind");
        assert_eq!(server.local_addr().expect("address").port(), reserved.port());
        let other = ReservedPort::new().expect("a port");
        assert_ne!(other.port(), reserved.port());
    }
}
