//! Socket pairs whose messages keep their boundaries.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, accept4, getsockopt, recv, recvmsg, send,
    socketpair, sockopt,
};

/// Two connected ends of a non-blocking, close-on-exec SOCK_SEQPACKET pair: one send is one receive, and the
/// end of one side is seen by the other.
pub(crate) fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message, whole or not at all. `WouldBlock` when the peer does not read.
pub(crate) fn send_message(fd: impl AsFd, message: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(fd.as_fd().as_raw_fd(), message, flags)?;
    Ok(())
}

/// What one receive brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message of this many bytes.
    Message(usize),
    /// A message longer than the buffer; its rest is lost.
    Truncated,
    /// The peer has closed its end, or died.
    End,
}

/// Receives one message into `buffer`. `WouldBlock` when there is none.
pub(crate) fn receive_message(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut slices = [IoSliceMut::new(buffer)];
    loop {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        return match recvmsg::<()>(fd.as_fd().as_raw_fd(), &mut slices, None, flags) {
            Ok(got) if got.flags.contains(MsgFlags::MSG_TRUNC) => Ok(Received::Truncated),
            // SOCK_SEQPACKET has empty messages too, but we never send one: empty is the end.
            Ok(got) if got.bytes == 0 => Ok(Received::End),
            Ok(got) => Ok(Received::Message(got.bytes)),
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) => Ok(Received::End),
            Err(e) => Err(e.into()),
        };
    }
}

/// Takes one connection out of the queue: non-blocking and close-on-exec from the start, in one system call.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads what is there, without waiting. 0 is the end.
pub(crate) fn read_now(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Writes what there is room for, without waiting and without SIGPIPE.
pub(crate) fn write_now(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(send(fd.as_fd().as_raw_fd(), bytes, flags)?)
}

/// Who is at the other end of a Unix socket, by the kernel's word: whoever connected it, or made it listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// 0 if the process is not visible from here (another pid namespace).
    pub(crate) pid: u32,
    pub(crate) uid: u32,
}

/// Who is at the other end of `socket`.
pub(crate) fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Peer { pid: u32::try_from(credentials.pid()).unwrap_or(0), uid: credentials.uid() })
}

impl Peer {
    /// `pid 812, nginx`, if it still exists.
    pub(crate) fn process(self) -> Option<String> {
        super::process::describe(self.pid)
    }
}

/// Whether an accept failed because the process or the system has run out of something, and will fail again.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_boundaries_and_the_end_is_seen() {
        let (a, b) = message_pair().expect("pair");
        send_message(&a, b"one").expect("send");
        send_message(&a, b"three").expect("send");
        let mut buffer = [0; 4];
        assert_eq!(receive_message(&b, &mut buffer).expect("first"), Received::Message(3));
        assert_eq!(receive_message(&b, &mut buffer).expect("too long"), Received::Truncated);
        let none = receive_message(&b, &mut buffer).expect_err("empty");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive_message(&b, &mut buffer).expect("end"), Received::End);
    }
}
