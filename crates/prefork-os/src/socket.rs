//! Stream sockets: accepting, reading and writing without waiting, and what the kernel tells of a connection.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockFlag, accept4, recv, send};
use socket2::{Domain, SockRef, Type};

use super::{cvt, libc};

/// Whether `fd`, which another process sent, is a Unix socket and not a TCP one; an error if it is neither. Asks
/// the kernel rather than the sender. Makes sure that it does not block.
pub fn is_unix_stream(fd: impl AsFd) -> io::Result<bool> {
    let socket = SockRef::from(&fd);
    let known = match socket.domain()? {
        Domain::UNIX => Some(true),
        Domain::IPV4 | Domain::IPV6 => Some(false),
        _ => None,
    };
    match known {
        Some(unix) if socket.r#type()? == Type::STREAM => {
            socket.set_nonblocking(true)?;
            Ok(unix)
        }
        _ => Err(io::Error::other("not a stream socket")),
    }
}

/// Takes one connection out of the queue: non-blocking and close-on-exec from the start, in one system call.
pub fn accept_connection(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads what is there, without waiting. 0 is the end.
pub fn read_nonblocking(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Writes what there is room for of all the slices, without waiting and without SIGPIPE.
pub fn write_vectored_nonblocking(fd: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(&fd).send_vectored_with_flags(slices, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
}

/// Ends what we send: the peer sees the end after all that was written.
pub fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    SockRef::from(&fd).shutdown(std::net::Shutdown::Write)
}

/// Writes what there is room for, without waiting and without SIGPIPE.
pub fn write_nonblocking(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(send(fd.as_fd().as_raw_fd(), bytes, flags)?)
}

/// Whether an accept failed because the process or the system has run out of something, and will fail again.
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// Whether an accept failed because of the one connection that it would have brought: accept(2) reports errors of the
/// network that are already pending on it.
pub fn is_accepted_connection_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNABORTED
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
        )
    )
}

/// How many written bytes the other end has not yet taken: those that TCP has not seen acknowledged, or that nobody has
/// read from a Unix socket.
pub fn unsent_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut bytes = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: the kernel writes one int to the address, which is valid for one.
    cvt(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, bytes.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the value was written.
    Ok(u64::try_from(unsafe { bytes.assume_init() }).unwrap_or(0))
}

/// Whether the other end is gone: it sent a reset, or has closed a Unix socket in both directions. A FIN alone is
/// neither.
pub fn is_hung_up(socket: impl AsFd) -> bool {
    // POLLHUP and POLLERR are reported whatever is asked for.
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(_) => polled[0].revents().is_some_and(|found| found.intersects(gone)),
        Err(_) => false,
    }
}

/// Has the kernel throw away what was not sent when the socket is closed, and reset the connection.
pub fn set_reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// The accept queue of a listening socket at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that are made and wait to be accepted.
    pub depth: u32,
    /// How many may wait: the backlog as the kernel has capped it. The last one in may exceed it by one.
    pub limit: u32,
}

/// The accept queue of `listener`; an error if it is no TCP socket.
pub fn accept_queue(listener: impl AsFd) -> io::Result<AcceptQueue> {
    let info = read_tcp_info(listener)?;
    // Of a listening socket these two fields say something else than their names (`tcp_get_info`).
    Ok(AcceptQueue { depth: info.tcpi_unacked, limit: info.tcpi_sacked })
}

/// How long ago the handshake of `connection` ended: right after accept, the time it waited in the queue. An
/// error if it is no TCP socket. Meaningless once something was sent on it.
///
/// The kernel has no clock for this, but starts "data sent last" when it makes the socket at the client's last
/// ACK of the handshake (`newtp->lsndtime = tcp_jiffies32` in `tcp_create_openreq_child`), and nobody can send
/// before accept. What the client sends meanwhile moves `tcpi_last_data_recv` and `tcpi_last_ack_recv`, so
/// those do not tell. The step is a tick of the kernel: 1 to 10 ms.
pub fn connection_age(connection: impl AsFd) -> io::Result<Duration> {
    read_tcp_info(connection).map(|info| Duration::from_millis(info.tcpi_last_data_sent.into()))
}

fn read_tcp_info(socket: impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: tcp_info is made of integers only, for which all zeroes is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long and exclusively ours, and
    // the descriptor is open for as long as `socket` lives. A shorter answer leaves zeroes.
    cvt(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    })?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Instant;

    #[test]
    fn what_is_no_connection_is_known() {
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(is_unix_stream(&file).is_err());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert!(is_unix_stream(&udp).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        assert!(!is_unix_stream(&tcp).expect("a stream"));
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    #[test]
    fn what_is_not_read_is_unsent() {
        let (mut near, mut far) = UnixStream::pair().expect("pair");
        assert_eq!(unsent_bytes(&near).expect("ioctl"), 0);
        near.write_all(&[0; 1000]).expect("write");
        assert!(unsent_bytes(&near).expect("ioctl") >= 1000);
        far.read_exact(&mut [0; 1000]).expect("read");
        assert_eq!(unsent_bytes(&near).expect("ioctl"), 0);
    }

    #[test]
    fn a_fin_alone_is_no_hang_up() {
        let (near, far) = UnixStream::pair().expect("pair");
        far.shutdown(Shutdown::Write).expect("shut down");
        assert!(!is_hung_up(&near));
        drop(far);
        assert!(is_hung_up(&near));
        let (mut near, far) = tcp_pair();
        far.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(near.read(&mut [0; 1]).expect("the end"), 0);
        assert!(!is_hung_up(&near));
        set_reset_on_close(&far).expect("option");
        drop(far);
        assert!(is_hung_up(&near), "a reset on loopback is there at once");
    }

    #[test]
    fn a_queue_tells_its_depth_and_its_limit() {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.expect("socket");
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).expect("bind");
        listener.listen(16).expect("listen");
        assert_eq!(accept_queue(&listener).expect("empty"), AcceptQueue { depth: 0, limit: 16 });
        let addr = listener.local_addr().expect("address").as_socket().expect("IPv4");
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).expect("connect")).collect();
        assert_eq!(accept_queue(&listener).expect("three"), AcceptQueue { depth: 3, limit: 16 });
        for _ in &clients {
            listener.accept().expect("accept");
        }
        assert_eq!(accept_queue(&listener).expect("empty again").depth, 0);
    }

    /// The kernel's own word is what this relies on, so it is put to the test: whatever a client does while it
    /// waits, its time counts from the handshake.
    #[test]
    fn the_age_counts_from_the_handshake_whatever_the_client_does() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let begun = Instant::now();
        let connect = || TcpStream::connect(addr).expect("connect");
        let (_silent, mut early, mut late, gone) = (connect(), connect(), connect(), connect());
        early.write_all(b"at once").expect("write");
        let connected = Instant::now();
        let pass = |span| {
            while connected.elapsed() < span {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        };
        pass(Duration::from_millis(200));
        late.write_all(b"later").expect("write");
        drop(gone);
        pass(Duration::from_millis(300));
        // A tick of the slowest kernel, at either end.
        let tick = Duration::from_millis(20);
        for who in ["silent", "early", "late", "gone"] {
            let least = connected.elapsed();
            let (connection, _) = listener.accept().expect("accept");
            let told = connection_age(&connection).expect("TCP");
            let most = begun.elapsed();
            assert!(told + tick >= least && told <= most + tick, "{who}: {told:?} of {least:?}");
        }
    }

    #[test]
    fn unix_sockets_tell_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("bind");
        assert!(accept_queue(&listener).is_err());
    }
}
