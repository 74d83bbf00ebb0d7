//! The names of stream sockets: TCP addresses, and the paths and abstract names of Unix sockets.

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{libc, syscall_result};

/// The name of one end of a connection, or of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketName {
    /// An IPv4 or IPv6 address and a port.
    Tcp(SocketAddr),
    /// A path, or a NUL byte and an abstract name; `None` for an unnamed socket, as that of most clients.
    Unix(Option<Box<[u8]>>),
}

/// The process at the other end of a Unix connection, as it was when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Room for the name of any socket, and how much of it the kernel has written.
struct NameBuffer {
    storage: MaybeUninit<libc::sockaddr_storage>,
    length: libc::socklen_t,
}

impl NameBuffer {
    fn new() -> NameBuffer {
        let length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        NameBuffer { storage: MaybeUninit::uninit(), length }
    }

    /// Calls `getsockname` or `getpeername`.
    fn query(
        fd: RawFd,
        call: unsafe extern "C" fn(
            libc::c_int,
            *mut libc::sockaddr,
            *mut libc::socklen_t,
        ) -> libc::c_int,
    ) -> io::Result<SocketName> {
        let mut name = NameBuffer::new();
        // SAFETY: both calls write at most `length` bytes to the storage, and set `length`.
        syscall_result(unsafe {
            call(fd, name.storage.as_mut_ptr().cast(), &raw mut name.length)
        })?;
        name.parse()
    }

    /// Returns the name that the kernel has written.
    fn parse(&self) -> io::Result<SocketName> {
        let start = self.storage.as_ptr();
        let length = self.length as usize;
        if length < size_of::<libc::sa_family_t>() {
            return Err(io::Error::other("the socket has no name"));
        }
        // SAFETY: the kernel has written at least the family, which is the first field of every sockaddr.
        let family = unsafe { (*start.cast::<libc::sockaddr>()).sa_family };
        match libc::c_int::from(family) {
            libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: the kernel has written a whole sockaddr_in, and the storage is aligned for it.
                let name = unsafe { &*start.cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketName::Tcp(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into()))
            }
            libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: the kernel has written a whole sockaddr_in6, and the storage is aligned for it.
                let name = unsafe { &*start.cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                let port = u16::from_be(name.sin6_port);
                let addr = SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id);
                Ok(SocketName::Tcp(addr.into()))
            }
            libc::AF_UNIX => Ok(SocketName::Unix(self.unix_name())),
            _ => Err(io::Error::other("the socket is neither TCP nor Unix")),
        }
    }

    /// Returns the name of a Unix socket.
    fn unix_name(&self) -> Option<Box<[u8]>> {
        let offset = offset_of!(libc::sockaddr_un, sun_path);
        // The kernel may count a final NUL that does not fit.
        let length = (self.length as usize).min(size_of::<libc::sockaddr_un>());
        let length = length.checked_sub(offset).filter(|length| *length > 0)?;
        // SAFETY: the kernel has written `self.length` bytes, and the slice ends within them and within the storage.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.storage.as_ptr().cast::<u8>().add(offset), length)
        };
        let bytes = match bytes {
            [0, ..] => bytes,
            path => path.split(|byte| *byte == 0).next().unwrap_or_default(),
        };
        Some(bytes.into())
    }
}

/// Accepts one connection, non-blocking and close-on-exec, and returns it with the name of the client.
///
/// Asking for the name with accept costs no system call of its own, and succeeds even if the client is gone already.
///
/// # Errors
/// As [`accept_connection`](crate::socket::accept_connection).
pub fn accept_named_connection(listener: impl AsFd) -> io::Result<(OwnedFd, SocketName)> {
    let mut name = NameBuffer::new();
    // SAFETY: accept4 writes at most `length` bytes to the storage, and sets `length`.
    let number = syscall_result(unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            name.storage.as_mut_ptr().cast(),
            &raw mut name.length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    // SAFETY: accept4 has just created this descriptor, so it has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    Ok((fd, name.parse()?))
}

/// Returns the name of the other end of a connection.
///
/// # Errors
/// `NotConnected` if the peer has reset the connection.
pub fn peer_name(connection: impl AsFd) -> io::Result<SocketName> {
    NameBuffer::query(connection.as_fd().as_raw_fd(), libc::getpeername)
}

/// Returns the name of this end of a connection, or of a listening socket.
pub fn local_name(socket: impl AsFd) -> io::Result<SocketName> {
    NameBuffer::query(socket.as_fd().as_raw_fd(), libc::getsockname)
}

/// Returns the process that made the connection over a Unix socket.
pub fn peer_credentials(connection: impl AsFd) -> io::Result<PeerCredentials> {
    let credentials = nix::sys::socket::getsockopt(
        &connection.as_fd(),
        nix::sys::socket::sockopt::PeerCredentials,
    )?;
    // A process in another pid namespace has pid 0 here.
    let pid = u32::try_from(credentials.pid()).unwrap_or(0);
    Ok(PeerCredentials { pid, uid: credentials.uid(), gid: credentials.gid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn assert_tcp_names(bind: &str) {
        let listener = TcpListener::bind(bind).expect("bind");
        let addr = listener.local_addr().expect("address");
        let client = TcpStream::connect(addr).expect("connect");
        let (fd, peer) = accept_named_connection(&listener).expect("accept");
        let client_addr = client.local_addr().expect("address");
        assert_eq!(peer, SocketName::Tcp(client_addr));
        assert_eq!(peer_name(&fd).expect("connected"), SocketName::Tcp(client_addr));
        assert_eq!(local_name(&fd).expect("a socket"), SocketName::Tcp(addr));
    }

    #[test]
    fn both_ends_of_a_tcp_connection_have_their_names() {
        assert_tcp_names("127.0.0.1:0");
        if TcpListener::bind("[::1]:0").is_ok() {
            assert_tcp_names("[::1]:0");
        }
    }

    #[test]
    fn an_accepted_client_that_has_reset_its_connection_has_a_name() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let addr = client.local_addr().expect("address");
        crate::socket::set_reset_on_close(&client).expect("option");
        drop(client);
        let (fd, peer) = accept_named_connection(&listener).expect("accept");
        assert_eq!(peer, SocketName::Tcp(addr));
        assert_eq!(peer_name(&fd).expect_err("reset").kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn unix_sockets_have_a_path_an_abstract_name_or_none() {
        use std::os::linux::net::SocketAddrExt;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bind");
        let _client = UnixStream::connect(&path).expect("connect");
        let (fd, peer) = accept_named_connection(&listener).expect("accept");
        assert_eq!(peer, SocketName::Unix(None));
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        assert_eq!(local_name(&fd).expect("a socket"), SocketName::Unix(Some(bytes.into())));
        let credentials = peer_credentials(&fd).expect("credentials");
        assert_eq!(credentials.pid, std::process::id());
        assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
        let name = format!("prefork-test-{}", std::process::id());
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bind");
        let expected = [b"\0", name.as_abstract_name().expect("abstract")].concat();
        let local = local_name(&listener).expect("a socket");
        assert_eq!(local, SocketName::Unix(Some(expected.into())));
    }
}
