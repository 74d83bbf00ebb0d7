//! Stream sockets: accept, non-blocking reads and writes, and the kernel's information about connections and accept queues.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, accept4, recv, send};
use socket2::{Domain, SockRef, Type};

use super::{libc, syscall_result};
use crate::poll::{PollInterest, WatchedFd, poll_fds};

/// Returns true if `fd` is a Unix stream socket, false if it is a TCP socket.
///
/// # Errors
/// `fd` is neither.
pub fn is_unix_stream(fd: impl AsFd) -> io::Result<bool> {
    let socket = SockRef::from(&fd);
    match (socket.domain()?, socket.r#type()?) {
        (Domain::UNIX, Type::STREAM) => Ok(true),
        (Domain::IPV4 | Domain::IPV6, Type::STREAM) => Ok(false),
        _ => Err(io::Error::other("not a stream socket")),
    }
}

/// Accepts one connection, already non-blocking and close-on-exec.
///
/// # Errors
/// `WouldBlock` if `listener` is non-blocking and its queue is empty. See also [`is_resource_exhaustion`] and
/// [`is_accepted_connection_error`].
pub fn accept_connection(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: accept4 has just created this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads from a socket without blocking. Returns 0 at the end of the stream, and `WouldBlock` if there is no data.
pub fn read_nonblocking(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Reads from a socket like [`read_nonblocking`], and leaves the data there.
pub fn peek_nonblocking(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    Ok(recv(fd.as_fd().as_raw_fd(), buffer, flags)?)
}

/// Writes to a socket from several buffers, like [`write_nonblocking`].
pub fn write_vectored_nonblocking(fd: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(&fd).send_vectored_with_flags(slices, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
}

/// Shuts down the sending direction of a socket: the peer reads the end of the stream after all written data.
pub fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    SockRef::from(&fd).shutdown(std::net::Shutdown::Write)
}

/// Writes to a socket without blocking and without SIGPIPE. Returns the number of bytes written.
///
/// # Errors
/// `WouldBlock` if the send buffer is full.
pub fn write_nonblocking(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(send(fd.as_fd().as_raw_fd(), bytes, flags)?)
}

/// Writes to a TCP socket like [`write_vectored_nonblocking`], but leaves the last bytes to [`shutdown_write`], which sends them and the
/// end of the stream in one segment. Without it, the kernel sends them after 200 ms.
///
/// # Errors
/// `WouldBlock` if the send buffer is full.
pub fn write_before_shutdown(fd: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_MORE;
    match slices {
        // One buffer costs the kernel less than a list of one.
        [bytes] => SockRef::from(&fd).send_with_flags(bytes, flags),
        slices => SockRef::from(&fd).send_vectored_with_flags(slices, flags),
    }
}

/// Returns whether accept failed for lack of descriptors or memory, so that it will fail again at once.
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// Returns whether accept failed because of the accepted connection itself, so that the next accept may succeed.
///
/// Besides EINTR these are the pending network errors that `accept(2)` passes on.
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

/// Returns how many written bytes the peer has not received: not acknowledged by TCP, or not read from a Unix socket.
pub fn unsent_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int to the address, which is valid for it.
    syscall_result(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes)
    })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Returns whether the connection is gone: reset by the peer, or a Unix socket that the peer closed. A FIN does not count.
pub fn is_hung_up(socket: impl AsFd) -> bool {
    let watched = [WatchedFd::new(socket.as_fd(), PollInterest::HangUp)];
    poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| ready == [true])
}

/// Makes closing the socket discard unsent data and reset the connection (SO_LINGER with 0 seconds).
pub fn set_reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// How full the accept queue of a listening socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Number of established connections that wait to be accepted.
    pub depth: u32,
    /// Maximum length: the backlog as capped by `net.core.somaxconn`. `depth` may exceed it by one.
    pub limit: u32,
}

/// Returns the length and the limit of the accept queue of `listener`.
///
/// # Errors
/// `listener` is not a TCP socket.
pub fn accept_queue(listener: impl AsFd) -> io::Result<AcceptQueue> {
    let info = read_tcp_info(listener)?;
    // For a listening socket the kernel reports the queue in these two fields (`tcp_get_info`).
    Ok(AcceptQueue { depth: info.tcpi_unacked, limit: info.tcpi_sacked })
}

/// Returns the time since the TCP handshake of `connection`: right after accept, how long it waited in the queue.
///
/// Valid only until the first write. The precision is a kernel tick, 1 to 10 ms.
///
/// The value is `tcpi_last_data_sent`, which the kernel starts when the handshake completes (`tcp_create_openreq_child`)
/// and which only writes reset. `tcpi_last_data_recv` and `tcpi_last_ack_recv` do not serve: early data of the client
/// resets them.
///
/// # Errors
/// `connection` is not a TCP socket.
pub fn connection_age(connection: impl AsFd) -> io::Result<Duration> {
    read_tcp_info(connection).map(|info| Duration::from_millis(info.tcpi_last_data_sent.into()))
}

fn read_tcp_info(socket: impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: tcp_info has only integer fields, for which all zeroes is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long. A shorter answer leaves zeroes.
    syscall_result(unsafe {
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
    fn a_file_or_a_udp_socket_is_not_a_stream_socket() {
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(is_unix_stream(&file).is_err());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert!(is_unix_stream(&udp).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        assert!(!is_unix_stream(&tcp).expect("a stream"));
        let (unix, _peer) = UnixStream::pair().expect("pair");
        assert!(is_unix_stream(&unix).expect("a stream"));
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    #[test]
    fn bytes_are_unsent_until_the_peer_reads_them() {
        let (mut near, mut far) = UnixStream::pair().expect("pair");
        assert_eq!(unsent_bytes(&near).expect("ioctl"), 0);
        near.write_all(&[0; 1000]).expect("write");
        assert!(unsent_bytes(&near).expect("ioctl") >= 1000);
        far.read_exact(&mut [0; 1000]).expect("read");
        assert_eq!(unsent_bytes(&near).expect("ioctl"), 0);
    }

    #[test]
    fn a_reset_is_a_hang_up_and_a_fin_is_not() {
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
        assert!(is_hung_up(&near), "loopback delivers a reset at once");
    }

    #[test]
    fn the_accept_queue_reports_depth_and_limit() {
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

    /// Guards against kernels where the field that `connection_age` reads behaves otherwise.
    #[test]
    fn connection_age_counts_from_the_handshake_whatever_the_client_sends() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let begun = Instant::now();
        let connect = || TcpStream::connect(addr).expect("connect");
        let (_silent, mut early, mut late, gone) = (connect(), connect(), connect(), connect());
        early.write_all(b"at once").expect("write");
        let connected = Instant::now();
        let wait_until = |span| {
            while connected.elapsed() < span {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        };
        wait_until(Duration::from_millis(200));
        late.write_all(b"later").expect("write");
        drop(gone);
        wait_until(Duration::from_millis(300));
        // Two ticks of the slowest kernel.
        let tick = Duration::from_millis(20);
        for client in ["silent", "early", "late", "gone"] {
            let min = connected.elapsed();
            let (connection, _) = listener.accept().expect("accept");
            let age = connection_age(&connection).expect("TCP");
            let max = begun.elapsed();
            assert!(age + tick >= min && age <= max + tick, "{client}: {age:?} of {min:?}");
        }
    }

    #[test]
    fn the_accept_queue_of_a_unix_socket_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("bind");
        assert!(accept_queue(&listener).is_err());
    }
}
