//! Orphans of foreign programs: what a program has started and what outlives its guard, because it changed its process group.
//!
//! As long as a guard lives, it kills all descendants of its program. If it is killed itself, its process group is killed with it.
//! Processes that have left the group become children of the primary, which is a subreaper for that, and are killed here.

use super::Primary;
use crate::error::{Error, Result};
use crate::program::WORKER_VARIABLE;
use prefork_os::child::signal_child;
use prefork_os::process::{child_pids, has_environment_variable};
use prefork_os::signal::Signal;

impl Primary {
    /// Makes the orphans of programs children of this process, if workers run a program.
    pub(super) fn adopt_program_orphans(&self) -> Result<()> {
        if !self.runs_program() {
            return Ok(());
        }
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|e| Error::system("become the reaper of programs without a guard", e))
    }

    /// Kills the children that are orphans of a program. Other children, as a hook of the application may have started, have not
    /// the variable of a worker.
    pub(super) fn kill_program_orphans(&self) {
        if !self.runs_program() {
            return;
        }
        for pid in child_pids(std::process::id()) {
            if !self.is_own_child(pid) && has_environment_variable(pid, WORKER_VARIABLE) {
                // Not reaped yet, as only this thread reaps.
                let _ = signal_child(pid, Signal::SIGKILL);
            }
        }
    }

    fn runs_program(&self) -> bool {
        self.current_config().is_some_and(|config| config.program().is_some())
    }
}
