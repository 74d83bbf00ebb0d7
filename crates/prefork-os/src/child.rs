//! Child processes: forking, ending, waiting for and signalling them.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{cvt, libc};
use crate::signal::Signal;
use crate::thread::require_single_thread;
use crate::{OsError, Result};

/// Which side of the fork this is.
pub enum ForkResult {
    /// The child, with its own copy of everything.
    Child,
    /// The parent, told the child's pid.
    Parent(u32),
}

/// Forks this process, if it has exactly one thread.
///
/// A child of a process with more threads would inherit locks (malloc's, stdio's, tokio's) that nobody is
/// left to unlock, so that is refused with an error that says what to do.
pub fn fork_process() -> Result<ForkResult> {
    require_single_thread()?;
    // A buffered line would otherwise be written by both processes. A closed stdout is not our trouble.
    let _ = io::stdout().flush();
    // SAFETY: the process has one thread (checked above), so the child's copy of every lock is unlocked or
    // owned by the child's only thread, and it may allocate and run any code.
    let pid = cvt(unsafe { libc::fork() }).map_err(|e| OsError::new("fork a worker", e))?;
    Ok(match u32::try_from(pid) {
        Ok(pid) if pid > 0 => ForkResult::Parent(pid),
        _ => ForkResult::Child,
    })
}

/// Ends this process at once: no destructors, no exit handlers. They belong to the parent, whose memory this
/// is a copy of; running them here would remove the parent's files.
pub fn exit_without_cleanup(status: u8) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// What has become of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildStateChange {
    /// It has ended and is a zombie no longer: its pid is free.
    Exited(ExitStatus),
    /// A signal has stopped all of it; a debugger that holds it does not count.
    Stopped,
    /// It goes on.
    Continued,
}

/// A child that has ended and was not reaped yet, whoever made it; it stays so. Never blocks.
pub fn find_exited_child() -> Option<u32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(status) => status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()),
        Err(_) => None,
    }
}

/// The exit status of child `pid`, if it has ended; it is a zombie no longer then, and its pid is free.
/// `None` while it lives. Never blocks.
pub fn reap_child(pid: u32) -> io::Result<Option<ExitStatus>> {
    waitpid(pid, libc::WNOHANG)
}

/// What has become of child `pid`, if anything has since this was last asked: each change is told once, and of several
/// the last. Never blocks.
pub fn poll_child_state(pid: u32) -> io::Result<Option<ChildStateChange>> {
    let status = waitpid(pid, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED)?;
    Ok(status.map(|status| match status {
        _ if status.stopped_signal().is_some() => ChildStateChange::Stopped,
        _ if status.continued() => ChildStateChange::Continued,
        _ => ChildStateChange::Exited(status),
    }))
}

fn waitpid(pid: u32, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
    let pid = checked_pid(pid)?;
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

/// Sends `signal` to a child that has not been reaped yet, so that its pid is its own.
pub fn signal_child(pid: u32, signal: Signal) -> io::Result<()> {
    Ok(nix::sys::signal::kill(Pid::from_raw(checked_pid(pid)?), signal)?)
}

/// `pid` as the kernel takes it. 0 and negative numbers would mean groups of processes, or all of them.
fn checked_pid(pid: u32) -> io::Result<i32> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput.into())
}

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
    pub fn send_signal(&self, signal: Signal) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo the call reads no memory of ours; the descriptor is open.
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, no_info, 0)
        };
        cvt(done as libc::c_int).map(|_| ())
    }

    /// A duplicate of its descriptor `number`, close-on-exec. Needs the right to trace it.
    pub fn duplicate_fd(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = cvt(fd as libc::c_int)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked_and_told_what_to_do() {
        // The test runner itself has more than one thread.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().name("busy".into()).spawn(move || held.recv());
        let error = fork_process().err().expect("refused").to_string();
        assert!(error.contains("threads (") && error.contains("busy"), "{error}");
        assert!(
            error.contains("start threads and async runtimes in the worker function"),
            "{error}"
        );
        drop(hold);
        let _ = other.expect("thread").join();
    }

    /// The next change, within ten seconds.
    fn wait_for_state_change(pid: u32) -> ChildStateChange {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match poll_child_state(pid).expect("a child of ours") {
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
        let send = |signal| signal_child(pid, signal);
        assert_eq!(poll_child_state(pid).expect("a child"), None);
        send(Signal::SIGSTOP).expect("stop");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Stopped);
        // It is told once, and who only asks for the end is not told.
        assert_eq!(
            (poll_child_state(pid).expect("a child"), reap_child(pid).expect("a child")),
            (None, None)
        );
        send(Signal::SIGCONT).expect("continue");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Continued);
        send(Signal::SIGKILL).expect("kill");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Exited(ExitStatus::from_raw(9)));
        assert!(child.wait().is_err(), "it is gone");
    }
}
