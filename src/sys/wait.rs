//! Collecting the exits of children.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{cvt, libc};

/// A child that has ended and was not reaped yet, whoever made it; it stays so. Never blocks.
pub(crate) fn ended() -> Option<u32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(status) => status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()),
        Err(_) => None,
    }
}

/// The exit status of child `pid`, if it has ended; it is a zombie no longer then, and its pid is free.
/// `None` while it lives. Never blocks.
pub(crate) fn reap(pid: u32) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the kernel to write one int.
        match cvt(unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, libc::WNOHANG) }) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(ExitStatus::from_raw(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
