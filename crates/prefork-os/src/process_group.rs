//! Process groups of workers: a worker and the programs that it starts, which are killed together.
//!
//! A process joins the group of its parent, unless it changes its group (`setpgid`, `setsid`); one that does leaves the
//! group for good and is not killed with it.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, kill, sigaction};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getppid, setpgid};

use crate::signal::Signal;

/// Makes this process the leader of a process group of its own.
///
/// Call it in a forked child before any other code, and [`set_group_of_child`] in the parent: whichever runs first, the
/// group exists before the parent may kill it and before the child starts a program.
///
/// The group is never the foreground group of a terminal, so Ctrl-C does not signal it. SIGTTIN and SIGTTOU, whose
/// default action would stop the process for ever, are ignored, also in the programs that it starts: reading from the
/// terminal fails with EIO.
pub fn become_group_leader() -> io::Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTTIN, Signal::SIGTTOU] {
        // SAFETY: an ignored signal runs no code.
        unsafe { sigaction(signal, &ignored) }?;
    }
    Ok(())
}

/// Makes the child `pid` the leader of its own process group, unless it is already or has exited.
pub fn set_group_of_child(pid: u32) -> io::Result<()> {
    let pid = validate_leader(pid)?;
    match setpgid(pid, pid) {
        // ESRCH: the child has exited. EACCES: it has executed a program, so it has made the call itself.
        Ok(()) | Err(Errno::ESRCH | Errno::EACCES) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Returns whether process `pid` leads a process group. `false` if it does not exist.
pub fn is_group_leader(pid: u32) -> bool {
    validate_leader(pid).is_ok_and(|pid| getpgid(Some(pid)) == Ok(pid))
}

/// Sends SIGKILL to every process of the group whose leader is the child `pid`. A group without processes is no error.
///
/// The child must not have been reaped: until then its pid is not used again, neither for a process nor for a group.
pub fn kill_group_of_child(pid: u32) -> io::Result<()> {
    let leader = validate_leader(pid)?;
    match kill(Pid::from_raw(-leader.as_raw()), Signal::SIGKILL) {
        // EPERM: no process of the group may be signalled, such as a set-user-ID program.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Kills the rest of the group of the child `pid` if the child has exited. Leaves the child to be reaped.
pub fn kill_group_if_child_exited(pid: u32) -> io::Result<()> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(validate_leader(pid)?), flags) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => Ok(()),
        Ok(_) => kill_group_of_child(pid),
        Err(e) => Err(e.into()),
    }
}

/// Kills all other processes of the group that this process leads, as its last act before it exits. `parent` is the process that has
/// forked it.
///
/// Leaves the group first, for that of the parent, so that the exit status of this process stays its own. If that group
/// does not exist any more, because the parent is dead, this process dies of SIGKILL with the others. Does nothing if
/// this process leads no group.
pub fn kill_rest_of_own_group(parent: u32) {
    let own = getpid();
    if own.as_raw() <= 1 || getpgrp() != own {
        return;
    }
    // While this process lives, no other process or group can get its number.
    let _ = getpgid(Some(getppid())).and_then(|group| setpgid(own, group));
    let is_orphan = u32::try_from(getppid().as_raw()) != Ok(parent);
    if getpgrp() == own && !is_orphan {
        // The parent is process 1 of a PID namespace and its group is from outside, which has no number here. It kills the rest when
        // it reaps this process.
        return;
    }
    let _ = kill(Pid::from_raw(-own.as_raw()), Signal::SIGKILL);
}

/// Converts the pid of a group leader. For kill(2), 0 and 1 as a group would mean this group and all processes.
fn validate_leader(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1);
    pid.map(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::process_state;

    /// Starts a shell that leads a group, and returns it with the pid of a `sleep` that it has started.
    fn start_group(then: &str) -> (Child, u32) {
        let script = format!("sleep 600 & echo $!; {then}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).process_group(0).stdout(Stdio::piped());
        let mut shell = shell.spawn().expect("sh");
        let mut line = String::new();
        let output = shell.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("a line");
        (shell, line.trim().parse().expect("a pid"))
    }

    #[track_caller]
    fn wait_until(what: &str, is_true: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_true() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    fn has_ended(pid: u32) -> bool {
        matches!(process_state(pid), None | Some('Z' | 'X'))
    }

    #[test]
    fn a_killed_group_takes_its_programs_along() {
        let (mut shell, sleep) = start_group("wait");
        kill_group_if_child_exited(shell.id()).expect("it lives");
        assert!(!has_ended(sleep), "the group of a living leader stays");
        kill_group_of_child(shell.id()).expect("killed");
        assert_eq!(shell.wait().expect("reaped").signal(), Some(9));
        wait_until("sleep has ended", || has_ended(sleep));
    }

    #[test]
    fn the_programs_of_a_leader_that_has_exited_are_killed_and_its_status_stays() {
        let (mut shell, sleep) = start_group("exit 7");
        wait_until("the shell has exited", || process_state(shell.id()) == Some('Z'));
        assert!(!has_ended(sleep));
        kill_group_if_child_exited(shell.id()).expect("killed");
        wait_until("sleep has ended", || has_ended(sleep));
        assert_eq!(shell.wait().expect("reaped").code(), Some(7));
        kill_group_of_child(shell.id()).expect("an empty group is no error");
    }

    #[test]
    fn numbers_that_mean_other_groups_are_refused() {
        for pid in [0, 1, u32::MAX] {
            assert!(kill_group_of_child(pid).is_err() && set_group_of_child(pid).is_err());
            assert!(kill_group_if_child_exited(pid).is_err());
        }
        // The test runner leads no group that this may kill, or else this test would end it.
        if getpgrp() != getpid() {
            kill_rest_of_own_group(std::os::unix::process::parent_id());
        }
    }
}
