//! The end of a program: asks it to stop, waits, and kills what is left.

use super::super::node_shim::NodeShim;
use super::super::process;
use super::{Guard, GuardExit};
use crate::error::{Result, exit};
use prefork_os::signal::Signal;

impl Guard {
    /// Asks the program to stop, and kills what is left at the drain deadline.
    pub(super) async fn stop(&self) -> Result<GuardExit> {
        let process = self.process.borrow().clone();
        let Some(process) = process else { return Ok(GuardExit::Status(exit::OK)) };
        if let Some(shim) = self.shim.get() {
            shim.begin_drain();
        }
        if !self.shim.get().is_some_and(NodeShim::ask_to_stop) {
            process.signal(self.program.stop_signal_number());
        }
        // A stopped process handles its signal only when it continues.
        process.signal(Signal::SIGCONT);
        tokio::select! {
            status = self.wait_for_exit() => {
                self.stop_rest().await;
                Ok(match status.code() {
                    Some(code) if code != 0 => GuardExit::Like(status),
                    // Also if the stop signal has ended it, as it does without a handler.
                    Some(_) | None => GuardExit::Status(exit::OK),
                })
            }
            () = self.state.drain.wait_for_deadline() => {
                log::warn!(
                    "{} {} has not stopped within the graceful timeout, killing it; program_pid={}",
                    self.state.tag, self.program.name(), process.pid()
                );
                self.kill_rest().await;
                Ok(GuardExit::Status(exit::OK))
            }
        }
    }

    /// Asks the descendants that the program has left to stop, waits for them, and kills them at the drain deadline.
    pub(super) async fn stop_rest(&self) {
        let signal = self.program.stop_signal_number();
        process::signal_children(signal);
        process::signal_children(Signal::SIGCONT);
        tokio::select! {
            () = process::wait_for_children() => {}
            () = self.state.drain.wait_for_deadline() => self.kill_rest().await,
        }
    }

    /// Kills the program and all its descendants.
    pub(super) async fn kill_rest(&self) {
        // Reaped below, so nothing may be sent to its pid any more.
        self.process.take();
        if !process::kill_all_children().await {
            log::error!(
                "{} some processes of {} do not die: they wait for a device; the primary kills their group",
                self.state.tag,
                self.program.name()
            );
        }
    }
}
