//! What the kernel tells of an established connection.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::{cvt, libc};

/// How many written bytes the other end has not yet taken: those that TCP has not seen acknowledged, or that nobody has
/// read from a Unix socket.
pub fn unsent(socket: impl AsFd) -> io::Result<u64> {
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
pub fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    #[test]
    fn what_is_not_read_is_unsent() {
        let (mut near, mut far) = UnixStream::pair().expect("pair");
        assert_eq!(unsent(&near).expect("ioctl"), 0);
        near.write_all(&[0; 1000]).expect("write");
        assert!(unsent(&near).expect("ioctl") >= 1000);
        far.read_exact(&mut [0; 1000]).expect("read");
        assert_eq!(unsent(&near).expect("ioctl"), 0);
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
        reset_on_close(&far).expect("option");
        drop(far);
        assert!(is_hung_up(&near), "a reset on loopback is there at once");
    }
}
