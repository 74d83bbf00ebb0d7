//! Connections as messages: one byte and one descriptor each, several in one system call.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use socket2::SockRef;

use super::{cvt, libc};

/// So many messages are sent by one system call.
pub const MOST: usize = 16;

/// Bytes for the control message that carries one descriptor.
// SAFETY: computes a number from a number.
const CONTROL: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Room for one control message, aligned as its header has to be.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

/// Sends up to [`MOST`] of `parcels` without waiting, each as a message of its own with a duplicate of its
/// descriptor. Returns how many were sent: fewer than given when there is no room for more.
pub fn send_each(to: impl AsFd, parcels: &[(u8, BorrowedFd<'_>)]) -> io::Result<usize> {
    let mut bytes = [0u8; MOST];
    let mut controls = [Control([0; CONTROL]); MOST];
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 }; MOST];
    // SAFETY: all zeroes is a valid mmsghdr: null pointers with lengths of zero.
    let mut headers: [libc::mmsghdr; MOST] = unsafe { std::mem::zeroed() };
    let parcels = &parcels[..parcels.len().min(MOST)];
    for (i, (byte, fd)) in parcels.iter().enumerate() {
        bytes[i] = *byte;
        slices[i].iov_base = (&raw mut bytes[i]).cast();
        let header = &mut headers[i].msg_hdr;
        header.msg_iov = &raw mut slices[i];
        header.msg_iovlen = 1;
        header.msg_control = controls[i].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
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
    // SAFETY: the first `parcels.len()` headers point to one slice and one control buffer each, all alive.
    let sent = unsafe {
        libc::sendmmsg(
            to.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            parcels.len() as u32,
            flags as _,
        )
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
pub fn unread(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes = MaybeUninit::<libc::c_int>::uninit();
    // SAFETY: FIONREAD writes one int to where the pointer leads.
    cvt(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, bytes.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it was written.
    Ok(usize::try_from(unsafe { bytes.assume_init() }).unwrap_or(0))
}

/// Lets the kernel hold so many bytes of what `socket` has sent and nobody has read, its bookkeeping included.
/// The socket counts as writable again when less than a quarter is used.
pub fn narrow(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    // The kernel doubles what it is given.
    SockRef::from(&socket).set_send_buffer_size(bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{Passed, Received, message_pair, receive_message};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn each_descriptor_comes_with_its_byte_in_order() {
        let (to, from) = message_pair().expect("pair");
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().expect("connection")).collect();
        let parcels: Vec<_> =
            (7..).zip(&pairs).map(|(byte, pair)| (byte, pair.0.as_fd())).collect();
        assert_eq!(send_each(&to, &parcels).expect("send"), 3);
        assert_eq!(unread(&from).expect("count"), 3);
        for (i, (_, far)) in pairs.iter().enumerate() {
            let mut buffer = [0; 2];
            let got = receive_message(&from, &mut buffer).expect("receive");
            let Received::Message(1, Passed::One(fd)) = got else { panic!("{got:?}") };
            assert_eq!(usize::from(buffer[0]), 7 + i);
            let (mut near, mut far) = (UnixStream::from(fd), far);
            near.write_all(b"x").expect("write");
            far.read_exact(&mut [0]).expect("read");
        }
        assert_eq!(unread(&from).expect("count"), 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_not_sent_and_no_reader_is_an_error() {
        let (to, from) = message_pair().expect("pair");
        narrow(&to, 8192).expect("narrow");
        let file = std::fs::File::open("/dev/null").expect("open");
        let parcels = [(0, file.as_fd()); MOST];
        let mut sent = 0;
        while let n @ 1.. = send_each(&to, &parcels).expect("send") {
            sent += n;
            assert!(sent < 1000, "a queue has an end");
        }
        assert_eq!(unread(&from).expect("count"), sent);
        drop(from);
        // Once for what was not read, then for ever.
        let errors = [0; 2].map(|_| send_each(&to, &parcels).expect_err("nobody reads").kind());
        assert_eq!(errors, [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe]);
    }
}
