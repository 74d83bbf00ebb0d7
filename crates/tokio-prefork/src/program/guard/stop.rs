//! The end of a program: asks it to stop, waits, and kills what is left.

use std::time::{Duration, Instant};

use super::super::drain::{DrainSettings, DrainStep, ProgramDrain};
use super::super::node_shim::NodeShim;
use super::super::observe::SignalHandling;
use super::super::process;
use super::{Guard, GuardExit};
use crate::error::{Result, exit};
use crate::listener::Listener;
use crate::text::HumanDuration;
use crate::worker::LocalWorkerState;
use prefork_os::signal::Signal;

/// How much of the graceful timeout is left to a program that its stop signal ends at once.
const MIN_STOP_TIME: Duration = Duration::from_millis(500);

impl Guard {
    /// Drains the program from outside, asks it to stop, and kills what is left at the drain deadline.
    pub(super) async fn stop(&self) -> Result<GuardExit> {
        let process = self.process.borrow().clone();
        let Some(process) = process else { return Ok(GuardExit::Status(exit::OK)) };
        if let Some(shim) = self.shim.get() {
            shim.begin_drain();
        }
        if self.is_ready.get() {
            tokio::select! {
                () = self.drain_connections() => {}
                // The select below handles both.
                _ = self.wait_for_exit() => {}
                () = self.state.drain.wait_for_deadline() => {}
            }
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
                    "{} {} has not stopped within the graceful timeout, killing it",
                    self.tag(), self.program.name()
                );
                self.kill_rest().await;
                Ok(GuardExit::Status(exit::OK))
            }
        }
    }

    /// Waits until the program has no connections left, as far as possible, and half-closes idle ones. New ones go elsewhere.
    async fn drain_connections(&self) {
        let settings = self.drain_settings();
        let started = Instant::now();
        let mut drain = ProgramDrain::new(settings, started, &self.observer.borrow());
        let reason = loop {
            let step = drain.step(Instant::now(), &mut self.observer.borrow_mut());
            match step {
                DrainStep::Wait(time) => tokio::time::sleep(time).await,
                DrainStep::SendStopSignal(reason) => break reason,
            }
        };
        log::info!(
            "{} sends SIG{} to {}: {reason}; after={} half_closed={} connections={}",
            self.tag(),
            self.program.stop_signal,
            self.program.name(),
            HumanDuration(started.elapsed()),
            drain.half_closed(),
            drain.connections()
        );
    }

    /// Decides how much of the graceful timeout is left to the program after its stop signal.
    fn drain_settings(&self) -> DrainSettings {
        let now = LocalWorkerState::monotonic_ms();
        let deadline = self.state.drain.current_order().map_or(now, |order| order.deadline_ms);
        let left = Duration::from_millis(deadline.saturating_sub(now));
        let handling = self.observer.borrow().signal_handling(self.program.stop_signal_number());
        let for_stop = match handling {
            SignalHandling::Ends => (left / 20).min(MIN_STOP_TIME),
            SignalHandling::Unknown | SignalHandling::Handled => left / 4,
        };
        DrainSettings {
            deadline: left.saturating_sub(for_stop),
            shares_listener: self.listeners.iter().any(Listener::is_shared_by_all_workers),
            handles_stop_signal: handling == SignalHandling::Handled || self.shim.get().is_some(),
            ends_connections: self.shim.get().is_some(),
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
                self.tag(),
                self.program.name()
            );
        }
    }
}
