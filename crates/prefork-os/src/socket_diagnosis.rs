//! The TCP connections of this network namespace as the kernel lists them (`sock_diag(7)`), without access to the processes
//! that have them open.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::libc;
use crate::tcp_activity::{TCP_INFO_BYTES, TcpActivity, TcpState};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_INFO` of linux/inet_diag.h: the attribute with a `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_HEADER_BYTES: usize = 16;
/// The size of `struct inet_diag_msg`.
const DIAG_MESSAGE_BYTES: usize = 72;
/// The kernel answers at once. The limit is for seccomp filters and kernels that swallow the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A TCP connection as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedConnection {
    /// The inode of the socket, as in `/proc/PID/fd`. 0 if no process has it open.
    pub inode: u64,
    /// The address of the other end.
    pub peer: SocketAddr,
    /// What has happened on it.
    pub activity: TcpActivity,
}

/// Lists the TCP connections whose local port is `port`, over IPv4 and IPv6, without listening sockets.
///
/// Reads the table of all connections of the machine: milliseconds if there are many.
///
/// # Errors
/// The kernel is built without `inet_diag`, or a seccomp filter refuses netlink sockets.
pub fn list_tcp_connections(port: u16) -> io::Result<Vec<ListedConnection>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink =
        socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    let timeout = TimeVal::milliseconds(ANSWER_TIMEOUT.as_millis() as i64);
    setsockopt(&netlink, sockopt::ReceiveTimeout, &timeout)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = dump_request(family as u8, port);
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        match read_answers(&netlink, &mut found) {
            // A kernel without IPv6.
            Err(e) if family == libc::AF_INET6 && e.raw_os_error() == Some(libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(found)
}

/// Returns a netlink message with a `struct inet_diag_req_v2`.
fn dump_request(family: u8, port: u16) -> Vec<u8> {
    const DUMP: u16 = 0x300;
    const REQUEST: u16 = 1;
    const LISTENING: u32 = 1 << 10;
    let mut message = Vec::with_capacity(72);
    message.extend(72u32.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend((REQUEST | DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0]);
    message.extend((0xfff & !LISTENING).to_ne_bytes());
    message.extend(port.to_be_bytes());
    message.resize(72, 0);
    message
}

/// Reads messages until the kernel says that there are no more.
fn read_answers(netlink: &OwnedFd, found: &mut Vec<ListedConnection>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(size) = read_u32(rest, 0).map(|size| size as usize) {
            let Some(message) = rest.get(..size).filter(|m| m.len() >= NETLINK_HEADER_BYTES) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let body = &message[NETLINK_HEADER_BYTES..];
            match u16::from_ne_bytes([message[4], message[5]]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = read_u32(body, 0).unwrap_or(0) as i32;
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => found.extend(parse_connection(body)),
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Parses a `struct inet_diag_msg` and the attributes behind it.
fn parse_connection(body: &[u8]) -> Option<ListedConnection> {
    let state = TcpState::from_kernel(*body.get(1)?);
    let peer = parse_peer(body)?;
    let unread = read_u32(body, 56)?;
    let inode = read_u32(body, 68)?;
    let mut attributes = body.get(DIAG_MESSAGE_BYTES..)?;
    let mut info = [0; TCP_INFO_BYTES];
    while let Some(header) = read_u32(attributes, 0) {
        // Two 16-bit numbers in the byte order of the machine: the length and the kind.
        let [a, b, c, d] = header.to_ne_bytes();
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        if length < 4 {
            break;
        }
        if kind == INET_DIAG_INFO {
            for (to, from) in info.iter_mut().zip(attributes.get(4..length)?) {
                *to = *from;
            }
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let activity = TcpActivity { state, ..TcpActivity::parse(&info, unread.into()) };
    Some(ListedConnection { inode: inode.into(), peer, activity })
}

/// Parses the destination of the `struct inet_diag_sockid` in a `struct inet_diag_msg`.
fn parse_peer(body: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(body.get(6..8)?.try_into().ok()?);
    let address: [u8; 16] = body.get(24..40)?.try_into().ok()?;
    let [a, b, c, d, ..] = address;
    Some(match libc::c_int::from(*body.first()?) {
        libc::AF_INET => SocketAddr::from((Ipv4Addr::new(a, b, c, d), port)),
        _ => SocketAddr::from((Ipv6Addr::from(address), port)),
    })
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_connections_of_a_port_are_listed_with_their_activity() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let addr = listener.local_addr().expect("address");
            let mut client = TcpStream::connect(addr).expect("connect");
            let (mut server, _) = listener.accept().expect("accept");
            client.write_all(b"request").expect("write");
            server.write_all(b"answer").expect("write");
            let found = list_tcp_connections(addr.port()).expect("sock_diag");
            let inode = nix::sys::stat::fstat(&server).expect("fstat").st_ino;
            let mine = found.iter().find(|one| one.inode == inode).expect("listed");
            assert_eq!(found.len(), 1, "neither the listener nor the client's end: {found:?}");
            assert_eq!(mine.peer, client.local_addr().expect("address"));
            assert_eq!(mine.activity.unread_bytes, 7);
            assert_eq!(mine.activity.received_bytes, 7);
            assert_eq!(mine.activity.sent_bytes, 6);
            assert_eq!(mine.activity.state, TcpState::Established);
        }
    }

    #[test]
    fn truncated_messages_are_no_connections() {
        assert_eq!(parse_connection(&[]), None);
        assert_eq!(parse_connection(&[0; 71]), None);
        let mut body = [0; DIAG_MESSAGE_BYTES + 6];
        body[DIAG_MESSAGE_BYTES] = 200;
        body[DIAG_MESSAGE_BYTES + 2] = INET_DIAG_INFO as u8;
        assert_eq!(parse_connection(&body), None, "the attribute is cut off");
    }
}
