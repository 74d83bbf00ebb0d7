//! What the kernel tells of a TCP socket (`TCP_INFO`): how full a listening socket's queue is, and how long an
//! accepted connection waited in it. Unix sockets have nothing of the kind.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::{cvt, libc};

/// The accept queue of a listening socket at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Connections that are made and wait to be accepted.
    pub depth: u32,
    /// How many may wait: the backlog as the kernel has capped it. The last one in may exceed it by one.
    pub limit: u32,
}

/// The accept queue of `listener`; an error if it is no TCP socket.
pub fn queue(listener: impl AsFd) -> io::Result<Queue> {
    let info = read(listener)?;
    // Of a listening socket these two fields say something else than their names (`tcp_get_info`).
    Ok(Queue { depth: info.tcpi_unacked, limit: info.tcpi_sacked })
}

/// How long ago the handshake of `connection` ended: right after accept, the time it waited in the queue. An
/// error if it is no TCP socket. Meaningless once something was sent on it.
///
/// The kernel has no clock for this, but starts "data sent last" when it makes the socket at the client's last
/// ACK of the handshake (`newtp->lsndtime = tcp_jiffies32` in `tcp_create_openreq_child`), and nobody can send
/// before accept. What the client sends meanwhile moves `tcpi_last_data_recv` and `tcpi_last_ack_recv`, so
/// those do not tell. The step is a tick of the kernel: 1 to 10 ms.
pub fn age(connection: impl AsFd) -> io::Result<Duration> {
    read(connection).map(|info| Duration::from_millis(info.tcpi_last_data_sent.into()))
}

fn read(socket: impl AsFd) -> io::Result<libc::tcp_info> {
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
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    #[test]
    fn a_queue_tells_its_depth_and_its_limit() {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.expect("socket");
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).expect("bind");
        listener.listen(16).expect("listen");
        assert_eq!(queue(&listener).expect("empty"), Queue { depth: 0, limit: 16 });
        let addr = listener.local_addr().expect("address").as_socket().expect("IPv4");
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).expect("connect")).collect();
        assert_eq!(queue(&listener).expect("three"), Queue { depth: 3, limit: 16 });
        for _ in &clients {
            listener.accept().expect("accept");
        }
        assert_eq!(queue(&listener).expect("empty again").depth, 0);
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
            let told = age(&connection).expect("TCP");
            let most = begun.elapsed();
            assert!(told + tick >= least && told <= most + tick, "{who}: {told:?} of {least:?}");
        }
    }

    #[test]
    fn unix_sockets_tell_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("bind");
        assert!(queue(&listener).is_err());
    }
}
