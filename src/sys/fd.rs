//! File descriptors by number: what the parent left open, and what must not stay so.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{cvt, libc};

/// Takes over descriptor `number`, which another program opened and left to us, and marks it close-on-exec.
///
/// Each number may be taken once, at the start of the program.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
    cvt(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open (checked above) and, by this function's contract, has no other owner
    // in this process: it was inherited.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Reads from `fd` never block from now on. For a descriptor whose other modes are the default.
pub(crate) fn nonblocking(fd: impl std::os::fd::AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens `/dev/null` in place of any of 0, 1 and 2 that is closed, so that no socket of ours ever lands
/// there and receives what somebody prints.
pub(crate) fn fill_standard_streams() -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
        if cvt(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_err() {
            // SAFETY: the path is a valid C string. The lowest free number is `number`, as those below are
            // open; it stays open for the life of the process.
            cvt(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        }
    }
    Ok(())
}

/// A duplicate of descriptor `number`, close-on-exec; EBADF if that is not open.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers and touches no memory; a number that is not open gives EBADF.
    let own = cvt(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Closes descriptor `number` in every program that is executed from now on.
pub(crate) fn close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers and touches no memory; a number that is not open gives EBADF.
    cvt(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Whether `fd` was opened for writing.
pub(crate) fn is_writable(fd: impl AsFd) -> io::Result<bool> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
}

/// Makes `fd` append what is written to it, and wait for room. For a description that nobody else has.
pub(crate) fn set_append_only(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(())
}

/// Makes `file` the standard error of this process: what anybody prints there goes into it from now on.
pub(crate) fn replace_stderr(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: dup2 replaces what descriptor 2 stands for in one step; nobody owns that number.
    cvt(unsafe { libc::dup2(file.as_raw_fd(), 2) })?;
    Ok(())
}

/// Closes every descriptor from 3 up except `keep`: what a shell or a service manager left open by accident
/// would otherwise live on in every worker.
///
/// Only for the start of a program, before anything in it owns a descriptor.
pub(crate) fn close_inherited_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for number in keep.into_iter().filter(|n| *n >= 3).chain([u32::MAX]) {
        if number > from {
            let last = if number == u32::MAX { u32::MAX } else { number - 1 };
            // Not every C library has a function for this call.
            // SAFETY: by this function's contract nothing in the process owns these descriptors yet.
            let result = unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
            cvt(result as libc::c_int)?;
        }
        from = number.saturating_add(1);
    }
    Ok(())
}
