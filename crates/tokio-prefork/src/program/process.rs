//! The processes below a guard: the program, and whatever it has started.

use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use prefork_os::async_fd::register_readable;
use prefork_os::child::{PidFd, find_exited_child, reap_child, signal_child};
use prefork_os::process::child_pids;
use prefork_os::signal::Signal;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How often to look whether children have exited.
const CHILD_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How long to wait for killed processes to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How many orphans are reaped at a time.
const MAX_ORPHANS_PER_REAP: usize = 256;

/// The running program of a guard. Cheap to clone.
#[derive(Clone)]
pub(super) struct ProgramProcess(Rc<Process>);

struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    /// Set once it has been reaped: then its pid may belong to another process.
    status: Cell<Option<ExitStatus>>,
}

impl ProgramProcess {
    /// Registers the child `pid` with the current runtime.
    pub(super) fn new(pid: u32, pidfd: PidFd) -> io::Result<ProgramProcess> {
        let pidfd = register_readable(pidfd.as_fd().try_clone_to_owned()?)?;
        Ok(ProgramProcess(Rc::new(Process { pid, pidfd, status: Cell::new(None) })))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Waits until it has exited, reaps it, and returns its status.
    pub(super) async fn wait_for_exit(&self) -> ExitStatus {
        loop {
            if let Some(status) = self.0.status.get() {
                return status;
            }
            match reap_child(self.0.pid) {
                Ok(Some(status)) => self.0.status.set(Some(status)),
                Ok(None) => {
                    if let Ok(mut exited) = self.0.pidfd.readable().await {
                        exited.clear_ready();
                    }
                }
                // Somebody else has reaped it, which nobody does.
                Err(_) => self.0.status.set(Some(ExitStatus::default())),
            }
        }
    }

    /// Sends a signal to it, unless it has been reaped.
    pub(super) fn signal(&self, signal: Signal) {
        if self.0.status.get().is_none() {
            // A set-user-ID program may refuse it; it is killed with the group.
            let _ = signal_child(self.0.pid, signal);
        }
    }
}

/// Sends a signal to all children of this process: the program, and its descendants whose parents have exited.
pub(super) fn signal_children(signal: Signal) {
    for pid in child_pids(std::process::id()) {
        // Not reaped, as only this thread reaps, so the pid is its own.
        let _ = signal_child(pid, signal);
    }
}

/// Waits until this process has no children.
pub(super) async fn wait_for_children() {
    while !reap_all_exited() {
        tokio::time::sleep(CHILD_CHECK_INTERVAL).await;
    }
}

/// Kills all descendants. The children of a killed process become children of this one, and are killed next. Returns whether all
/// have ended in time.
pub(super) async fn kill_all_children() -> bool {
    let kill_until_none = async {
        while !reap_all_exited() {
            signal_children(Signal::SIGKILL);
            tokio::time::sleep(CHILD_CHECK_INTERVAL / 5).await;
        }
    };
    tokio::time::timeout(KILL_TIMEOUT, kill_until_none).await.is_ok()
}

/// Reaps the children that have exited, and returns whether none is left.
fn reap_all_exited() -> bool {
    let own = child_pids(std::process::id());
    // All of them, not only up to the first that runs.
    own.into_iter().filter(|pid| matches!(reap_child(*pid), Ok(None))).count() == 0
}

/// Reaps orphans that have exited, but not the program.
pub(super) fn reap_orphans(program: Option<u32>) {
    for _ in 0..MAX_ORPHANS_PER_REAP {
        match find_exited_child() {
            Some(pid) if Some(pid) != program => drop(reap_child(pid)),
            Some(_) | None => return,
        }
    }
}
