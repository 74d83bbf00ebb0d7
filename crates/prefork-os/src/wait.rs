//! What becomes of children.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{cvt, libc};

/// What has become of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has ended and is a zombie no longer: its pid is free.
    Ended(ExitStatus),
    /// A signal has stopped all of it; a debugger that holds it does not count.
    Stopped,
    /// It goes on.
    Continued,
}

/// A child that has ended and was not reaped yet, whoever made it; it stays so. Never blocks.
pub fn ended() -> Option<u32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(status) => status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()),
        Err(_) => None,
    }
}

/// The exit status of child `pid`, if it has ended; it is a zombie no longer then, and its pid is free.
/// `None` while it lives. Never blocks.
pub fn reap(pid: u32) -> io::Result<Option<ExitStatus>> {
    wait(pid, libc::WNOHANG)
}

/// What has become of child `pid`, if anything has since this was last asked: each change is told once, and of several
/// the last. Never blocks.
pub fn change(pid: u32) -> io::Result<Option<Change>> {
    let status = wait(pid, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED)?;
    Ok(status.map(|status| match status {
        _ if status.stopped_signal().is_some() => Change::Stopped,
        _ if status.continued() => Change::Continued,
        _ => Change::Ended(status),
    }))
}

fn wait(pid: u32, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
    let pid = super::process::one_process(pid)?;
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the kernel to write one int.
        match cvt(unsafe { libc::waitpid(pid, &raw mut status, options) }) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(ExitStatus::from_raw(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// The next change, within ten seconds.
    fn next(pid: u32) -> Change {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match change(pid).expect("a child of ours") {
                Some(change) => return change,
                None if Instant::now() < deadline => std::thread::yield_now(),
                None => panic!("nothing has become of {pid}"),
            }
        }
    }

    #[test]
    fn a_child_is_seen_to_stop_to_go_on_and_to_end() {
        let mut child = Command::new("cat");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let pid = child.id();
        let send = |signal| kill(Pid::from_raw(pid as i32), signal);
        assert_eq!(change(pid).expect("a child"), None);
        send(Signal::SIGSTOP).expect("stop");
        assert_eq!(next(pid), Change::Stopped);
        // It is told once, and who only asks for the end is not told.
        assert_eq!((change(pid).expect("a child"), reap(pid).expect("a child")), (None, None));
        send(Signal::SIGCONT).expect("continue");
        assert_eq!(next(pid), Change::Continued);
        send(Signal::SIGKILL).expect("kill");
        assert_eq!(next(pid), Change::Ended(ExitStatus::from_raw(9)));
        assert!(child.wait().is_err(), "it is gone");
    }
}
