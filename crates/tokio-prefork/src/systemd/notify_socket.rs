//! The wire: one datagram a message, sent without waiting.
//!
//! Nothing is kept open between two messages: a manager that was replaced meanwhile is found again, and there is no
//! descriptor that a worker could inherit. (The crate `sd-notify` would do for this, but knows no abstract sockets and can
//! only send in a way that blocks.)

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where messages go.
#[derive(Debug)]
pub(super) struct Notifier {
    /// As the environment said it: a path, or `@` and a name.
    address: OsString,
}

impl Notifier {
    /// `None` if the text is empty, which says that nobody wants to know.
    pub(super) fn new(address: OsString) -> Option<Notifier> {
        (!address.is_empty()).then_some(Notifier { address })
    }

    /// Sends one message, with a duplicate of `passed`. `WouldBlock` when there is no room now.
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
    fn messages_arrive_at_paths_and_at_abstract_names() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        let name = format!("prefork-notify-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).expect("name");
        let by_name = UnixDatagram::bind_addr(&addr).expect("bind");
        for (address, socket) in [(path.into(), by_path), (format!("@{name}").into(), by_name)] {
            let notifier = Notifier::new(address).expect("an address");
            notifier.send("READY=1", None).expect("send");
            let mut buffer = [0; 16];
            let read = socket.recv(&mut buffer).expect("receive");
            assert_eq!(&buffer[..read], b"READY=1");
        }
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("notify");
        let notifier = Notifier::new(path.clone().into()).expect("an address");
        assert!(notifier.send("READY=1", None).is_err(), "nobody is there");
        let _socket = UnixDatagram::bind(&path).expect("bind");
        let full = (0..100_000).find_map(|_| notifier.send("STATUS=x", None).err());
        assert_eq!(full.expect("it fills up").kind(), io::ErrorKind::WouldBlock);
        assert!(Notifier::new("".into()).is_none());
        let odd = Notifier::new("vsock:2:1".into()).expect("an address");
        assert!(odd.send("READY=1", None).is_err());
    }
}
