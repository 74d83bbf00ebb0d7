//! Passing file descriptors between processes (SCM_RIGHTS), with messages over SOCK_SEQPACKET socket pairs.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use socket2::SockRef;

use super::{libc, syscall_result};

/// Size of the control message that carries one descriptor. Its padding has room for a second one, so the receiver looks
/// for every descriptor that arrives and closes the surplus.
const CONTROL_MESSAGE_BYTES: usize =
    // SAFETY: computes a number from a number.
    unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Buffer for one control message, aligned as `cmsghdr` requires.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_MESSAGE_BYTES]);

/// Creates a connected, non-blocking, close-on-exec SOCK_SEQPACKET socket pair.
///
/// Each send arrives as one receive, and each end notices when the other one closes.
pub fn create_seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message and, atomically with it, a duplicate of `passed`. Never blocks.
///
/// # Errors
/// `WouldBlock` if the queue of the socket is full, or too many passed descriptors have not been received yet. Other errors
/// mean that the peer is gone.
pub fn send_message(
    fd: impl AsFd,
    message: &[u8],
    passed: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let number = passed.map(|fd| [fd.as_raw_fd()]);
    let control = number.as_ref().map(|number| [ControlMessage::ScmRights(number)]);
    let control = control.as_ref().map_or(&[][..], |control| &control[..]);
    match sendmsg::<()>(fd.as_fd().as_raw_fd(), &[IoSlice::new(message)], control, flags, None) {
        Ok(_) => Ok(()),
        Err(Errno::ETOOMANYREFS) => Err(io::ErrorKind::WouldBlock.into()),
        Err(e) => Err(e.into()),
    }
}

/// The result of one receive.
#[derive(Debug)]
pub enum ReceivedMessage {
    /// A message of this many bytes, and the descriptor that came with it.
    Message(usize, PassedFd),
    /// A message longer than the buffer. Its remainder and its descriptors are discarded.
    Truncated,
    /// The peer closed its end or exited.
    Closed,
}

/// The descriptor that came with a message.
#[derive(Debug)]
pub enum PassedFd {
    /// The sender passed no descriptor.
    None,
    /// The first descriptor of the message. Any others were closed.
    One(OwnedFd),
    /// The sender passed a descriptor, but this process or the system is out of descriptors.
    Lost,
}

/// Receives one message into `buffer` from a peer that is not trusted. Never blocks.
///
/// Clears SO_LINGER of a received socket, with which closing it could block this process.
///
/// # Errors
/// `WouldBlock` if no message is queued.
pub fn receive_message(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedMessage> {
    receive_retrying(fd.as_fd(), buffer, true)
}

/// Receives one message into `buffer` from a peer that sends only sockets it accepted itself. Never blocks.
///
/// Saves the system call per descriptor with which [`receive_message`] clears SO_LINGER.
///
/// # Errors
/// `WouldBlock` if no message is queued.
pub fn receive_trusted_message(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedMessage> {
    receive_retrying(fd.as_fd(), buffer, false)
}

/// Discards all messages queued on `fd` and makes further sends to it fail.
///
/// Use it before closing a socket with an untrusted peer: the kernel would close queued descriptors with their SO_LINGER
/// setting, which can block.
pub fn discard_messages(fd: impl AsFd) {
    let _ = SockRef::from(&fd).shutdown(std::net::Shutdown::Read);
    let mut buffer = [0; 1];
    while let Ok(ReceivedMessage::Message(..) | ReceivedMessage::Truncated) =
        receive_message(&fd, &mut buffer)
    {}
}

fn receive_retrying(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    resets_linger: bool,
) -> io::Result<ReceivedMessage> {
    let mut reset = false;
    loop {
        return match call_recvmsg(fd, buffer, resets_linger) {
            Ok((_, flags, _)) if flags & libc::MSG_TRUNC != 0 => Ok(ReceivedMessage::Truncated),
            // No sender here sends an empty message, so a length of 0 means that the peer closed.
            Ok((0, _, _)) => Ok(ReceivedMessage::Closed),
            Ok((length, flags, first)) => Ok(ReceivedMessage::Message(
                length,
                match first {
                    Some(first) => PassedFd::One(first),
                    None if flags & libc::MSG_CTRUNC != 0 => PassedFd::Lost,
                    None => PassedFd::None,
                },
            )),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // The peer closed without reading all messages. The kernel reports this once, ahead of the peer's last messages.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !reset => {
                reset = true;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(ReceivedMessage::Closed),
            Err(e) => Err(e),
        };
    }
}

/// Calls `recvmsg` once and returns the length, the flags and the first descriptor received.
///
/// Not by nix, which hides the control messages if they were truncated: descriptors received in them would leak.
fn call_recvmsg(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    resets_linger: bool,
) -> io::Result<(usize, libc::c_int, Option<OwnedFd>)> {
    let mut control = ControlBuffer([0; CONTROL_MESSAGE_BYTES]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MESSAGE_BYTES as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to one slice and one control buffer, which are exclusively borrowed, alive and of the
    // lengths given.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let mut first = None;
    // SAFETY: the kernel has filled the control buffer and set its length in the header.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only headers that lie within the filled, aligned buffer.
        let message = unsafe { &*at };
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes a number from a number.
            let head = unsafe { libc::CMSG_LEN(0) };
            // The type of this length differs between glibc and musl.
            let length = u64::try_from(message.cmsg_len).unwrap_or(0);
            let bytes = length.saturating_sub(head.into()) as usize;
            for i in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `bytes` bytes of descriptors after this header and has just opened
                // them for this process; each is read, and so owned, once.
                let one = unsafe {
                    let numbers = libc::CMSG_DATA(at).cast::<RawFd>();
                    OwnedFd::from_raw_fd(numbers.add(i).read_unaligned())
                };
                if resets_linger {
                    // With SO_LINGER set, close(2) blocks even on a non-blocking socket. Fails if `one` is not a socket.
                    let _ = SockRef::from(&one).set_linger(None);
                }
                first.get_or_insert(one);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    Ok((length, header.msg_flags, first))
}

/// Maximum number of messages, each with one descriptor, that [`send_fds`] sends with one system call.
pub const MAX_FDS_PER_SEND: usize = 16;

/// Sends the first [`MAX_FDS_PER_SEND`] of `fds`, each as a message of one byte with a duplicate of its descriptor.
///
/// Never blocks. Returns the number of messages sent, which is smaller than given if the queue of the socket is full.
///
/// # Errors
/// The peer is gone: `ConnectionReset` once if it left messages unread, then `BrokenPipe`.
pub fn send_fds(to: impl AsFd, fds: &[(u8, BorrowedFd<'_>)]) -> io::Result<usize> {
    let mut bytes = [0u8; MAX_FDS_PER_SEND];
    let mut controls = [ControlBuffer([0; CONTROL_MESSAGE_BYTES]); MAX_FDS_PER_SEND];
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 }; MAX_FDS_PER_SEND];
    // SAFETY: all zeroes is a valid mmsghdr: null pointers with lengths of zero.
    let mut headers: [libc::mmsghdr; MAX_FDS_PER_SEND] = unsafe { std::mem::zeroed() };
    let fds = &fds[..fds.len().min(MAX_FDS_PER_SEND)];
    for (i, (byte, fd)) in fds.iter().enumerate() {
        bytes[i] = *byte;
        slices[i].iov_base = (&raw mut bytes[i]).cast();
        let header = &mut headers[i].msg_hdr;
        header.msg_iov = &raw mut slices[i];
        header.msg_iovlen = 1;
        header.msg_control = controls[i].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_MESSAGE_BYTES as _;
        // SAFETY: the control buffer is aligned, zeroed, exclusively borrowed and has room for one header with one
        // descriptor, so CMSG_FIRSTHDR and CMSG_DATA point into it.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    // The types of lengths and flags differ between glibc and musl.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the first `fds.len()` headers point to one slice and one control buffer each, all alive.
    let sent = unsafe {
        libc::sendmmsg(to.as_fd().as_raw_fd(), headers.as_mut_ptr(), fds.len() as u32, flags as _)
    };
    match syscall_result(sent) {
        Ok(sent) => Ok(sent as usize),
        // A full queue, too many descriptors in flight or too little memory: the caller tries again later.
        Err(e) => match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Ok(0),
            _ => Err(e),
        },
    }
}

/// Limits how many bytes sent by `socket` may be unread, including the kernel's overhead per message.
///
/// The socket becomes writable again when less than a quarter of the limit is in use.
pub fn limit_send_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    // The kernel doubles the given size.
    SockRef::from(&socket).set_send_buffer_size(bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::unread_bytes;
    use crate::socket::is_unix_stream;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_keep_their_boundaries_and_a_closed_peer_is_reported() {
        let (a, b) = create_seqpacket_pair().expect("pair");
        send_message(&a, b"one", None).expect("send");
        send_message(&a, b"three", None).expect("send");
        let mut buffer = [0; 4];
        let got = receive_message(&b, &mut buffer).expect("first");
        assert!(matches!(got, ReceivedMessage::Message(3, PassedFd::None)), "{got:?}");
        let got = receive_message(&b, &mut buffer).expect("too long");
        assert!(matches!(got, ReceivedMessage::Truncated), "{got:?}");
        let none = receive_message(&b, &mut buffer).expect_err("empty");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        let got = receive_message(&b, &mut buffer).expect("end");
        assert!(matches!(got, ReceivedMessage::Closed), "{got:?}");
    }

    #[test]
    fn a_received_descriptor_is_close_on_exec() {
        let (a, b) = create_seqpacket_pair().expect("pair");
        let (near, mut far) = UnixStream::pair().expect("connection");
        send_message(&a, b"take", Some(near.as_fd())).expect("send");
        drop(near);
        let mut buffer = [0; 8];
        let got = receive_message(&b, &mut buffer).expect("receive");
        let ReceivedMessage::Message(4, PassedFd::One(fd)) = got else { panic!("{got:?}") };
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
        assert_eq!(flags, nix::fcntl::FdFlag::FD_CLOEXEC.bits());
        assert!(is_unix_stream(&fd).expect("kind"));
        drop(fd);
        // Would block if a duplicate of the descriptor had leaked.
        assert_eq!(far.read(&mut buffer).expect("the end"), 0);
    }

    #[test]
    fn surplus_descriptors_of_a_message_are_closed() {
        for count in [2, 3, 40] {
            let (a, b) = create_seqpacket_pair().expect("pair");
            let (near, mut far) = UnixStream::pair().expect("connection");
            let numbers = vec![near.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&numbers)];
            let slice = [IoSlice::new(b"take")];
            sendmsg::<()>(a.as_raw_fd(), &slice, &control, MsgFlags::empty(), None).expect("send");
            drop(near);
            let mut buffer = [0; 8];
            let got = receive_message(&b, &mut buffer).expect("receive");
            let ReceivedMessage::Message(4, PassedFd::One(fd)) = got else { panic!("{got:?}") };
            drop(fd);
            assert_eq!(far.read(&mut buffer).expect("the end"), 0);
        }
    }

    #[test]
    fn so_linger_of_received_sockets_is_cleared() {
        let (a, b) = create_seqpacket_pair().expect("pair");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let sockets: Vec<_> = (0..2)
            .map(|_| {
                std::net::TcpStream::connect(listener.local_addr().expect("name")).expect("connect")
            })
            .collect();
        let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        for socket in &sockets {
            let long = Some(std::time::Duration::from_secs(600));
            SockRef::from(socket).set_linger(long).expect("option");
        }
        let control = [ControlMessage::ScmRights(&numbers)];
        let slice = [IoSlice::new(b"take")];
        sendmsg::<()>(a.as_raw_fd(), &slice, &control, MsgFlags::empty(), None).expect("send");
        let got = receive_message(&b, &mut [0; 8]).expect("receive");
        assert!(matches!(got, ReceivedMessage::Message(4, PassedFd::One(_))), "{got:?}");
        for socket in &sockets {
            assert_eq!(SockRef::from(socket).linger().expect("option"), None);
        }
    }

    #[test]
    fn discarded_messages_close_their_descriptors_and_no_more_can_be_sent() {
        let (a, b) = create_seqpacket_pair().expect("pair");
        let (near, mut far) = UnixStream::pair().expect("connection");
        for _ in 0..3 {
            send_message(&a, b"take", Some(near.as_fd())).expect("send");
        }
        drop(near);
        discard_messages(&b);
        assert_eq!(far.read(&mut [0]).expect("the end"), 0);
        assert!(send_message(&a, b"more", None).is_err());
    }

    #[test]
    fn messages_sent_before_a_reset_are_received() {
        let (a, b) = create_seqpacket_pair().expect("pair");
        send_message(&a, b"unread", None).expect("send");
        send_message(&b, b"last", None).expect("send");
        drop(b);
        let mut buffer = [0; 8];
        let got = receive_message(&a, &mut buffer).expect("receive");
        assert!(matches!(got, ReceivedMessage::Message(4, PassedFd::None)), "{got:?}");
        let got = receive_message(&a, &mut buffer).expect("end");
        assert!(matches!(got, ReceivedMessage::Closed), "{got:?}");
    }

    #[test]
    fn descriptors_arrive_in_order_each_with_its_byte() {
        let (to, from) = create_seqpacket_pair().expect("pair");
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().expect("connection")).collect();
        let fds: Vec<_> = (7..).zip(&pairs).map(|(byte, pair)| (byte, pair.0.as_fd())).collect();
        assert_eq!(send_fds(&to, &fds).expect("send"), 3);
        assert_eq!(unread_bytes(&from).expect("count"), 3);
        for (i, (_, far)) in pairs.iter().enumerate() {
            let mut buffer = [0; 2];
            let got = receive_message(&from, &mut buffer).expect("receive");
            let ReceivedMessage::Message(1, PassedFd::One(fd)) = got else { panic!("{got:?}") };
            assert_eq!(usize::from(buffer[0]), 7 + i);
            let (mut near, mut far) = (UnixStream::from(fd), far);
            near.write_all(b"x").expect("write");
            far.read_exact(&mut [0]).expect("read");
        }
        assert_eq!(unread_bytes(&from).expect("count"), 0);
    }

    #[test]
    fn a_full_queue_sends_fewer_and_a_closed_peer_is_an_error() {
        let (to, from) = create_seqpacket_pair().expect("pair");
        limit_send_buffer(&to, 8192).expect("limit");
        let file = std::fs::File::open("/dev/null").expect("open");
        let fds = [(0, file.as_fd()); MAX_FDS_PER_SEND];
        let mut sent = 0;
        while let n @ 1.. = send_fds(&to, &fds).expect("send") {
            sent += n;
            assert!(sent < 1000, "a queue has an end");
        }
        assert_eq!(unread_bytes(&from).expect("count"), sent);
        drop(from);
        // The reset for unread messages is reported once.
        let errors = [0; 2].map(|_| send_fds(&to, &fds).expect_err("nobody reads").kind());
        assert_eq!(errors, [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe]);
    }
}
