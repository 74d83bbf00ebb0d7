//! Socket pairs whose messages keep their boundaries and carry descriptors.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use socket2::SockRef;

use super::{cvt, libc};

/// Bytes for the control message that carries one descriptor. The padding at its end has room for a second
/// one: so every descriptor that comes is looked for, and what is too many is closed.
// SAFETY: computes a number from a number.
const CONTROL_MESSAGE_BYTES: usize =
    unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Two connected ends of a non-blocking, close-on-exec SOCK_SEQPACKET pair: one send is one receive, and the
/// end of one side is seen by the other.
pub fn create_seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message, and with it a duplicate of `passed`: both or nothing. `WouldBlock` when the peer does not
/// read, or when too many descriptors are under way.
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

/// What one receive brought.
#[derive(Debug)]
pub enum ReceivedMessage {
    /// A message of this many bytes, and what came with it.
    Message(usize, PassedFd),
    /// A message longer than the buffer; its rest is lost.
    Truncated,
    /// The peer has closed its end, or died.
    Closed,
}

/// The descriptor that came with a message.
#[derive(Debug)]
pub enum PassedFd {
    /// None was sent.
    None,
    /// The first one; any others were closed.
    One(OwnedFd),
    /// There was one, but this process or the system has no room for it.
    Lost,
}

/// Receives one message into `buffer`. `WouldBlock` when there is none.
///
/// The sender is not trusted: closing a descriptor that came does not wait for its peer, whatever SO_LINGER said.
pub fn receive_message(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedMessage> {
    receive_with(fd.as_fd(), buffer, true)
}

/// The same from a process that sends only what it accepted itself: saves a system call for each descriptor.
pub fn receive_trusted_message(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedMessage> {
    receive_with(fd.as_fd(), buffer, false)
}

/// Takes and drops all that waits on `fd`, and lets nobody send more: what the kernel would otherwise close with the
/// socket may have SO_LINGER set.
pub fn discard_messages(fd: impl AsFd) {
    let _ = SockRef::from(&fd).shutdown(std::net::Shutdown::Read);
    let mut buffer = [0; 1];
    while let Ok(ReceivedMessage::Message(..) | ReceivedMessage::Truncated) =
        receive_message(&fd, &mut buffer)
    {}
}

fn receive_with(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    resets_linger: bool,
) -> io::Result<ReceivedMessage> {
    let mut reset = false;
    loop {
        return match receive_once(fd, buffer, resets_linger) {
            Ok((_, flags, _)) if flags & libc::MSG_TRUNC != 0 => Ok(ReceivedMessage::Truncated),
            // SOCK_SEQPACKET has empty messages too, but we never send one: empty is the end.
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
            // The peer died with something of ours unread. That is told once, before what it said last.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !reset => {
                reset = true;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(ReceivedMessage::Closed),
            Err(e) => Err(e),
        };
    }
}

/// One `recvmsg`: the length, the flags, and the first descriptor that came.
///
/// By hand, as nix does not let one look at the control messages when there was no room for all of them, and
/// what arrived before the room was used up would stay open for ever.
fn receive_once(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    resets_linger: bool,
) -> io::Result<(usize, libc::c_int, Option<OwnedFd>)> {
    #[repr(align(8))]
    struct ControlBuffer([MaybeUninit<u8>; CONTROL_MESSAGE_BYTES]);
    let mut control = ControlBuffer([MaybeUninit::uninit(); CONTROL_MESSAGE_BYTES]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MESSAGE_BYTES as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to one slice and one control buffer, both exclusively ours, alive, and of the
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
            // The type of this length differs between C libraries.
            let length = u64::try_from(message.cmsg_len).unwrap_or(0);
            let bytes = length.saturating_sub(head.into()) as usize;
            for i in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `bytes` bytes of descriptors after this header and has just opened
                // them for us; each is read, and so owned, once.
                let one = unsafe {
                    let numbers = libc::CMSG_DATA(at).cast::<RawFd>();
                    OwnedFd::from_raw_fd(numbers.add(i).read_unaligned())
                };
                if resets_linger {
                    // With it set, close(2) waits for the peer, on a non-blocking socket, too. Fails if it is no socket.
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

/// So many messages are sent by one system call.
pub const MAX_FDS_PER_SEND: usize = 16;

/// Room for one control message, aligned as its header has to be.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_MESSAGE_BYTES]);

/// Sends up to [`MAX_FDS_PER_SEND`] of `fds` without waiting, each as a message of its own with a duplicate of its
/// descriptor. Returns how many were sent: fewer than given when there is no room for more.
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
        // SAFETY: the control buffer is aligned, zeroed, exclusively ours and has room for one header with one
        // descriptor, so CMSG_FIRSTHDR and CMSG_DATA point into it.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    // The types of lengths and flags differ between C libraries.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the first `fds.len()` headers point to one slice and one control buffer each, all alive.
    let sent = unsafe {
        libc::sendmmsg(to.as_fd().as_raw_fd(), headers.as_mut_ptr(), fds.len() as u32, flags as _)
    };
    match cvt(sent) {
        Ok(sent) => Ok(sent as usize),
        // No room; too many descriptors under way; no memory: later.
        Err(e) => match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Ok(0),
            _ => Err(e),
        },
    }
}

/// How many bytes wait to be read from `socket`, over all messages.
pub fn unread_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: FIONREAD writes one int to where the pointer leads.
    cvt(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, bytes.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it was written.
    Ok(usize::try_from(unsafe { bytes.assume_init() }).unwrap_or(0))
}

/// Lets the kernel hold so many bytes of what `socket` has sent and nobody has read, its bookkeeping included.
/// The socket counts as writable again when less than a quarter is used.
pub fn limit_send_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    // The kernel doubles what it is given.
    SockRef::from(&socket).set_send_buffer_size(bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::is_unix_stream;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_keep_their_boundaries_and_the_end_is_seen() {
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
    fn a_descriptor_arrives_with_its_message_and_close_on_exec() {
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
        // No duplicate is left anywhere, or this would wait for ever.
        assert_eq!(far.read(&mut buffer).expect("the end"), 0);
    }

    #[test]
    fn descriptors_that_are_too_many_are_closed() {
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
    fn a_descriptor_that_came_does_not_linger_and_neither_does_one_that_was_too_many() {
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
    fn what_is_discarded_does_not_linger_and_nothing_more_can_be_sent() {
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
    fn the_last_words_of_the_dead_are_heard() {
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
    fn each_descriptor_comes_with_its_byte_in_order() {
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
    fn what_there_is_no_room_for_is_not_sent_and_no_reader_is_an_error() {
        let (to, from) = create_seqpacket_pair().expect("pair");
        limit_send_buffer(&to, 8192).expect("narrow");
        let file = std::fs::File::open("/dev/null").expect("open");
        let fds = [(0, file.as_fd()); MAX_FDS_PER_SEND];
        let mut sent = 0;
        while let n @ 1.. = send_fds(&to, &fds).expect("send") {
            sent += n;
            assert!(sent < 1000, "a queue has an end");
        }
        assert_eq!(unread_bytes(&from).expect("count"), sent);
        drop(from);
        // Once for what was not read, then for ever.
        let errors = [0; 2].map(|_| send_fds(&to, &fds).expect_err("nobody reads").kind());
        assert_eq!(errors, [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe]);
    }
}
