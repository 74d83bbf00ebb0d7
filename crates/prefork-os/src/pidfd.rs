//! One process, whatever becomes of its number: a descriptor that no later process with the same pid can be mistaken for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{cvt, libc};
use crate::signal::Signal;

/// A process of anybody.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has `pid` now.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        let fd = cvt(fd as libc::c_int)?;
        // SAFETY: the kernel has just made this descriptor for us, close-on-exec; nobody else knows it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends `signal` to it; fails if it has been reaped.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo the call reads no memory of ours; the descriptor is open.
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, no_info, 0)
        };
        cvt(done as libc::c_int).map(|_| ())
    }

    /// A duplicate of its descriptor `number`, close-on-exec. Needs the right to trace it.
    pub fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = cvt(fd as libc::c_int)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
