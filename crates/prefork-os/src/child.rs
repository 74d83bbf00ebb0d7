//! Child processes: fork, exit, signals and state changes; and pidfds.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{libc, syscall_result};
use crate::signal::Signal;
use crate::thread::require_single_thread;
use crate::{OsError, Result};

/// Which process returns from [`fork_process`].
pub enum ForkResult {
    /// The child, with its own copy of the memory.
    Child,
    /// The parent, with the pid of the child.
    Parent(u32),
}

/// Forks this process, which must have exactly one thread.
///
/// With more threads the child would inherit locks (of malloc, stdio, tokio) whose holders do not exist in it.
///
/// # Errors
/// The process has more than one thread, `/proc` is not readable, or fork(2) fails.
pub fn fork_process() -> Result<ForkResult> {
    require_single_thread()?;
    // Otherwise both processes would write the buffered output. A closed stdout is no reason not to fork.
    let _ = io::stdout().flush();
    crate::shared_segment::record_fork();
    // SAFETY: the process has one thread (checked above), so in the child every lock is free or held by its only
    // thread: it may allocate and run any code.
    let pid = syscall_result(unsafe { libc::fork() }).map_err(|e| OsError::new("fork", e))?;
    Ok(match u32::try_from(pid) {
        Ok(pid) if pid > 0 => ForkResult::Parent(pid),
        _ => ForkResult::Child,
    })
}

/// Exits this forked process at once with `status`, without destructors and exit handlers. Only flushes stdout.
///
/// Destructors copied from the parent would, for instance, remove its PID file and sockets.
pub fn exit_without_cleanup(status: u8) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// Exits this forked process as a child of it has exited, without destructors: with its exit code, or by the same signal.
///
/// Leaves no core dump of its own.
pub fn exit_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal().and_then(|number| Signal::try_from(number).ok()) {
        let _ = crate::resource_limits::disable_core_dumps();
        let _ = crate::signal::reset_handlers_and_unblock();
        let _ = nix::sys::signal::raise(signal);
    }
    exit_without_cleanup(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// A state change of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildStateChange {
    /// The child exited and was reaped, so its pid may be used again.
    Exited(ExitStatus),
    /// A signal stopped the whole child. Stops by a debugger are not reported.
    Stopped,
    /// The child was continued after a stop.
    Continued,
}

/// Returns the pid of a child that has exited and was not reaped yet, without reaping it. Never blocks.
///
/// Also finds children that this program did not fork: orphans, and children from before an exec.
pub fn find_exited_child() -> Option<u32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(status) => status.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()),
        Err(_) => None,
    }
}

/// Reaps child `pid` if it has exited, which frees its pid, and returns its exit status. Never blocks.
///
/// Returns `None` while the child runs.
///
/// # Errors
/// `pid` is not a child of this process.
pub fn reap_child(pid: u32) -> io::Result<Option<ExitStatus>> {
    waitpid(pid, libc::WNOHANG)
}

/// Returns the latest state change of child `pid` since the last call, and reaps the child if it has exited. Never
/// blocks.
///
/// Reports each change once, and only the last of several.
///
/// # Errors
/// `pid` is not a child of this process.
pub fn poll_child_state(pid: u32) -> io::Result<Option<ChildStateChange>> {
    let status = waitpid(pid, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED)?;
    Ok(status.map(|status| match status {
        _ if status.stopped_signal().is_some() => ChildStateChange::Stopped,
        _ if status.continued() => ChildStateChange::Continued,
        _ => ChildStateChange::Exited(status),
    }))
}

/// Waits until child `pid` has exited, reaps it, and returns its exit status.
///
/// # Errors
/// `pid` is not a child of this process.
pub fn wait_for_child(pid: u32) -> io::Result<ExitStatus> {
    waitpid(pid, 0)?.ok_or(io::ErrorKind::WouldBlock.into())
}

fn waitpid(pid: u32, options: libc::c_int) -> io::Result<Option<ExitStatus>> {
    let pid = validate_pid(pid)?;
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int to `status`.
        match syscall_result(unsafe { libc::waitpid(pid, &raw mut status, options) }) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(ExitStatus::from_raw(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends `signal` to a child that has not been reaped yet, so that no other process can have its pid.
pub fn signal_child(pid: u32, signal: Signal) -> io::Result<()> {
    Ok(nix::sys::signal::kill(Pid::from_raw(validate_pid(pid)?), signal)?)
}

/// Converts `pid` for kill(2) and waitpid(2), for which 0 and negative numbers mean groups of processes.
fn validate_pid(pid: u32) -> io::Result<i32> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput.into())
}

/// A descriptor of one process, which never refers to a later process with the same pid.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

/// Readable once the process has exited.
impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// Opens the process that has `pid` now. It need not be a child.
    ///
    /// # Errors
    /// No process has this pid.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        let fd = syscall_result(fd as libc::c_int)?;
        // SAFETY: the kernel has just created this close-on-exec descriptor, so it has no other owner.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends `signal` to the process.
    ///
    /// # Errors
    /// ESRCH if the process has been reaped, EPERM if it belongs to another user.
    pub fn send_signal(&self, signal: Signal) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: with a null siginfo the call reads no memory; the descriptor is open.
        let done = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, no_info, 0)
        };
        syscall_result(done as libc::c_int).map(|_| ())
    }

    /// Duplicates descriptor `number` of the process into this one, close-on-exec.
    ///
    /// # Errors
    /// EPERM without the right to trace the process (ptrace), EBADF if `number` is not open in it.
    pub fn duplicate_fd(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = syscall_result(fd as libc::c_int)?;
        // SAFETY: the kernel has just created this descriptor, so it has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn fork_of_a_process_with_threads_fails_and_names_them() {
        // The test runner itself has more than one thread.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().name("busy".into()).spawn(move || held.recv());
        let error = fork_process().err().expect("refused").to_string();
        assert!(error.contains("threads, and") && error.contains("busy"), "{error}");
        assert!(
            error.contains("start threads and async runtimes in the function given to serve"),
            "{error}"
        );
        drop(hold);
        let _ = other.expect("thread").join();
    }

    /// Returns the next state change of `pid`, within ten seconds.
    fn wait_for_state_change(pid: u32) -> ChildStateChange {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match poll_child_state(pid).expect("a child") {
                Some(change) => return change,
                None if Instant::now() < deadline => std::thread::yield_now(),
                None => panic!("no state change of {pid}"),
            }
        }
    }

    #[test]
    fn stop_continue_and_exit_of_a_child_are_reported() {
        let mut child = Command::new("cat");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let pid = child.id();
        let send = |signal| signal_child(pid, signal);
        assert_eq!(poll_child_state(pid).expect("a child"), None);
        send(Signal::SIGSTOP).expect("stop");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Stopped);
        // Each change is reported once, and `reap_child` reports exits only.
        assert_eq!(
            (poll_child_state(pid).expect("a child"), reap_child(pid).expect("a child")),
            (None, None)
        );
        send(Signal::SIGCONT).expect("continue");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Continued);
        send(Signal::SIGKILL).expect("kill");
        assert_eq!(wait_for_state_change(pid), ChildStateChange::Exited(ExitStatus::from_raw(9)));
        assert!(child.wait().is_err(), "the child was reaped");
    }
}
