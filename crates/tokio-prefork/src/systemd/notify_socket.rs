//! Sends messages to `NOTIFY_SOCKET`, each as one datagram, without blocking.
//!
//! The socket is opened for each message: a restarted manager is found again, and no worker can inherit the descriptor. (The
//! crate `sd-notify` does not support abstract sockets and can only block.)

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The address of the service manager's notification socket.
#[derive(Debug)]
pub(super) struct NotifySocket {
    /// The value of `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    address: OsString,
}

impl NotifySocket {
    /// Returns `None` for an empty address, which disables notifications.
    pub(super) fn new(address: OsString) -> Option<NotifySocket> {
        (!address.is_empty()).then_some(NotifySocket { address })
    }

    /// Sends one message, with a duplicate of `passed`.
    ///
    /// # Errors
    /// `WouldBlock` if the socket has no room now; the address is invalid; the system refuses.
    pub(super) fn send(&self, message: &str, passed: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = self.address.as_bytes();
        let to = match bytes.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            Some((b'/', _)) => SocketAddr::from_pathname(&self.address)?,
            _ => return Err(io::Error::other("the address is neither a path nor @NAME")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&to)?;
        prefork_os::fd_passing::send_message(&socket, message.as_bytes(), passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_to_paths_and_abstract_names() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        let name = format!("prefork-notify-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).expect("name");
        let by_name = UnixDatagram::bind_addr(&addr).expect("bind");
        for (address, socket) in [(path.into(), by_path), (format!("@{name}").into(), by_name)] {
            let notify_socket = NotifySocket::new(address).expect("an address");
            notify_socket.send("READY=1", None).expect("send");
            let mut buffer = [0; 16];
            let read = socket.recv(&mut buffer).expect("receive");
            assert_eq!(&buffer[..read], b"READY=1");
        }
    }

    #[test]
    fn does_not_block_if_the_manager_does_not_read() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("notify");
        let notify_socket = NotifySocket::new(path.clone().into()).expect("an address");
        assert!(notify_socket.send("READY=1", None).is_err(), "no socket at the path");
        let _socket = UnixDatagram::bind(&path).expect("bind");
        let full = (0..100_000).find_map(|_| notify_socket.send("STATUS=x", None).err());
        assert_eq!(full.expect("it fills up").kind(), io::ErrorKind::WouldBlock);
        assert!(NotifySocket::new("".into()).is_none());
        let odd = NotifySocket::new("vsock:2:1".into()).expect("an address");
        assert!(odd.send("READY=1", None).is_err());
    }
}
