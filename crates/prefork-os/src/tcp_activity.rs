//! What the kernel knows about the activity of one TCP connection: when data came and went, and how much.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::{libc, syscall_result};
use crate::fd::unread_bytes;

/// How many bytes of `struct tcp_info` are read. Later fields are not used.
pub(crate) const TCP_INFO_BYTES: usize = 208;

/// Offsets in `struct tcp_info` of linux/tcp.h, which only grows at its end.
mod offset {
    pub(super) const STATE: usize = 0;
    pub(super) const LAST_DATA_SENT: usize = 44;
    pub(super) const LAST_DATA_RECEIVED: usize = 52;
    pub(super) const LAST_ACK_RECEIVED: usize = 56;
    pub(super) const RECEIVED_BYTES: usize = 128;
    pub(super) const NOT_SENT_BYTES: usize = 144;
    pub(super) const MIN_ROUND_TRIP_TIME: usize = 148;
    pub(super) const RECEIVED_SEGMENTS: usize = 152;
    pub(super) const SENT_SEGMENTS: usize = 156;
    pub(super) const SENT_BYTES: usize = 200;
}

/// The shortest round-trip time before any was measured.
const NEVER_MEASURED: u32 = u32::MAX;

/// The state of a TCP connection, as far as it matters for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// The handshake is not complete.
    Handshake,
    /// Both directions are open.
    Established,
    /// The peer has closed its direction, this side has not.
    PeerClosed,
    /// This side has closed its direction, or both have.
    Closing,
    /// A listening socket.
    Listening,
}

impl TcpState {
    /// Converts the number of the kernel (`TCP_ESTABLISHED` is 1, and so on).
    pub(crate) fn from_kernel(state: u8) -> TcpState {
        match state {
            1 => TcpState::Established,
            3 => TcpState::Handshake,
            8 => TcpState::PeerClosed,
            10 => TcpState::Listening,
            _ => TcpState::Closing,
        }
    }
}

/// The activity of a TCP connection up to now. All ages are counted in kernel ticks of 1 to 10 ms, from the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpActivity {
    /// The state of the connection.
    pub state: TcpState,
    /// Bytes that have arrived and that no process has read.
    pub unread_bytes: u64,
    /// Bytes that were written and not sent yet, for instance because the peer does not read.
    pub unsent_bytes: u64,
    /// Time since data arrived last. The time since the handshake if none ever did.
    pub since_received: Duration,
    /// Time since data was sent last. The time since the handshake if none ever was.
    pub since_sent: Duration,
    /// Time since an acknowledgement arrived last, with data or without.
    pub since_acknowledged: Duration,
    /// The shortest round-trip time of the last minutes. The average counts that clients delay acknowledgements.
    pub min_round_trip_time: Duration,
    /// How many bytes have arrived.
    pub received_bytes: u64,
    /// How many bytes were sent, repeated ones included.
    pub sent_bytes: u64,
    /// How many segments with data have arrived.
    pub received_segments: u32,
    /// How many segments with data were sent.
    pub sent_segments: u32,
}

impl TcpActivity {
    /// Parses a `struct tcp_info`; fields that an older kernel does not have are zero. `unread_bytes` is not part of it.
    pub(crate) fn parse(info: &[u8; TCP_INFO_BYTES], unread_bytes: u64) -> TcpActivity {
        let word = |offset: usize| u32::from_ne_bytes(std::array::from_fn(|at| info[offset + at]));
        let long = |offset: usize| u64::from_ne_bytes(std::array::from_fn(|at| info[offset + at]));
        let age = |offset| Duration::from_millis(word(offset).into());
        TcpActivity {
            state: TcpState::from_kernel(info[offset::STATE]),
            unread_bytes,
            unsent_bytes: word(offset::NOT_SENT_BYTES).into(),
            since_received: age(offset::LAST_DATA_RECEIVED),
            since_sent: age(offset::LAST_DATA_SENT),
            since_acknowledged: age(offset::LAST_ACK_RECEIVED),
            min_round_trip_time: match word(offset::MIN_ROUND_TRIP_TIME) {
                NEVER_MEASURED => Duration::ZERO,
                micros => Duration::from_micros(micros.into()),
            },
            received_bytes: long(offset::RECEIVED_BYTES),
            sent_bytes: long(offset::SENT_BYTES),
            received_segments: word(offset::RECEIVED_SEGMENTS),
            sent_segments: word(offset::SENT_SEGMENTS),
        }
    }
}

/// Reads the activity of `connection`.
///
/// # Errors
/// `connection` is not a TCP socket.
pub fn tcp_activity(connection: impl AsFd) -> io::Result<TcpActivity> {
    let mut info = [0u8; TCP_INFO_BYTES];
    let mut length = TCP_INFO_BYTES as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long.
    syscall_result(unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    // After the times: data that arrives in between makes the connection look busy, never idle. A listening socket has none.
    let unread = unread_bytes(&connection).unwrap_or(0);
    Ok(TcpActivity::parse(&info, unread as u64))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    fn let_pass(span: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < span {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Guards against kernels whose fields behave otherwise.
    #[test]
    fn the_order_of_request_and_response_can_be_read() {
        let (mut server, mut client) = tcp_pair();
        let fresh = tcp_activity(&server).expect("TCP");
        assert_eq!((fresh.received_bytes, fresh.sent_bytes), (0, 0));
        assert_eq!((fresh.received_segments, fresh.sent_segments), (0, 0));
        assert_eq!(fresh.state, TcpState::Established);
        assert!(fresh.min_round_trip_time < Duration::from_secs(1));
        client.write_all(b"request").expect("write");
        assert_eq!(tcp_activity(&server).expect("TCP").unread_bytes, 7);
        server.read_exact(&mut [0; 7]).expect("read");
        let_pass(Duration::from_millis(50));
        let busy = tcp_activity(&server).expect("TCP");
        assert_eq!((busy.unread_bytes, busy.received_bytes, busy.received_segments), (0, 7, 1));
        assert!(busy.since_received <= busy.since_sent);
        server.write_all(b"response").expect("write");
        let answered = tcp_activity(&server).expect("TCP");
        assert_eq!((answered.sent_bytes, answered.sent_segments), (8, 1));
        assert!(answered.since_sent < answered.since_received, "{answered:?}");
        client.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(tcp_activity(&server).expect("TCP").state, TcpState::PeerClosed);
    }

    #[test]
    fn what_the_peer_does_not_read_is_unsent() {
        let (mut server, client) = tcp_pair();
        server.set_nonblocking(true).expect("non-blocking");
        let block = vec![0; 1 << 20];
        while server.write(&block).is_ok() {}
        assert!(tcp_activity(&server).expect("TCP").unsent_bytes > 0);
        drop(client);
    }

    #[test]
    fn states_are_told_apart() {
        let (server, _client) = tcp_pair();
        server.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(tcp_activity(&server).expect("TCP").state, TcpState::Closing);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        assert_eq!(tcp_activity(&listener).expect("TCP").state, TcpState::Listening);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert!(tcp_activity(&udp).is_err());
    }
}
