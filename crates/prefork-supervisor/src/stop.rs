//! Stops: graceful, delayed (`drain-delay`) and immediate.
//!
//! During the drain delay load balancers learn from `/readyz` that the server goes away. Connections are still served
//! and workers that crash are replaced, but no reload, upgrade or scaling begins.

use std::time::{Duration, Instant};

use crate::action::{Action, DrainReason, ExitCause, LogEvent, ShutdownReason};
use crate::command::{RefusedCommand, Requester};
use crate::supervisor::{ClusterPhase, DRAIN_KILL_MARGIN, Supervisor};
use crate::worker_identity::WorkerId;
use crate::worker_table::WorkerState;

/// Time within which a second stop command counts as a duplicate of the first. `timeout` and some shells and init
/// programs signal a process and then its group.
const DUPLICATE_STOP_WINDOW: Duration = Duration::from_millis(100);

/// The stop command, if one was received.
#[derive(Debug, Default)]
pub(crate) struct StopRequest {
    /// When the last stop command arrived.
    requested_at: Option<Instant>,
    delayed: Option<DelayedStop>,
}

/// A stop that begins after the drain delay.
#[derive(Debug)]
struct DelayedStop {
    /// The requester's name, for the log.
    by: String,
    until: Instant,
}

impl StopRequest {
    pub(crate) fn is_delayed(&self) -> bool {
        self.delayed.is_some()
    }

    /// Returns when the drain delay is over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.delayed.as_ref().map(|delayed| delayed.until)
    }

    fn is_duplicate(&self, now: Instant) -> bool {
        self.requested_at.is_some_and(|at| now.duration_since(at) < DUPLICATE_STOP_WINDOW)
    }
}

impl Supervisor {
    pub(crate) fn on_stop(&mut self, now: Instant, by: Requester) {
        if self.stop.is_duplicate(now) {
            by.confirm_command("stopping already", &mut self.actions);
        } else if self.is_stopping() {
            let name = format!("{}, the second request", by.name);
            self.begin_stop_now(by, name);
        } else if self.stop.is_delayed() {
            // A second stop command skips the rest of the delay.
            self.begin_stop(now, by);
        } else {
            self.stop_after_delay(now, by);
        }
    }

    pub(crate) fn on_stop_now(&mut self, by: Requester) {
        let name = by.name.clone();
        self.begin_stop_now(by, name);
    }

    /// Begins the drain delay. Where no worker serves, the stop begins at once.
    fn stop_after_delay(&mut self, now: Instant, by: Requester) {
        let delay = self.config.drain_delay;
        if delay.is_zero() || self.slots.served_slot_count(&self.workers) == 0 {
            return self.begin_stop(now, by);
        }
        self.stop.requested_at = Some(now);
        self.stop.delayed = Some(DelayedStop { by: by.name.clone(), until: now + delay });
        self.log_event(LogEvent::StopDelayed { by: by.name.clone(), delay });
        let seconds = delay.as_secs_f64();
        let reply = format!("stopping: accepting for {seconds:.1} s more (drain-delay)");
        by.confirm_command(reply, &mut self.actions);
    }

    /// Begins the stop when the drain delay is over.
    pub(crate) fn begin_delayed_stop(&mut self, now: Instant) {
        if let Some(delayed) = self.stop.delayed.take_if(|delayed| delayed.until <= now) {
            self.begin_stop(now, Requester::without_reply(delayed.by));
        }
    }

    /// Drains the workers that serve. A worker that is booting has nothing to finish and is killed.
    pub(crate) fn begin_stop(&mut self, now: Instant, by: Requester) {
        self.phase = ClusterPhase::Stopping;
        self.stop = StopRequest { requested_at: Some(now), delayed: None };
        let workers = self.workers.len();
        self.log_event(LogEvent::Stopping { by: by.name.clone(), workers });
        self.actions.push(Action::CloseListeners);
        by.confirm_command(format!("stopping: {workers} workers drain"), &mut self.actions);
        self.refuse_reserved_forks();
        let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
        for id in self.workers.ids() {
            let Some(record) = self.workers.get_mut(id) else { continue };
            match record.state {
                WorkerState::Serving => {
                    record.start_draining(deadline, DrainReason::Stop);
                    self.actions.push(Action::Drain(id));
                }
                WorkerState::Booting { .. } => {
                    self.workers.kill(id, ExitCause::KilledByStop, &mut self.actions);
                }
                // A worker whose fork returns later is killed then: see `on_forked`.
                WorkerState::Forking | WorkerState::Draining { .. } => {}
                WorkerState::Exiting { .. } => {}
                WorkerState::Aborted { .. } | WorkerState::Killed { .. } => {}
            }
        }
    }

    fn begin_stop_now(&mut self, by: Requester, name: String) {
        if matches!(self.phase, ClusterPhase::Killing(_) | ClusterPhase::Done) {
            return by.confirm_command("stopping already", &mut self.actions);
        }
        let workers = self.workers.len();
        self.log_event(LogEvent::StoppingNow { by: name, workers });
        by.confirm_command(
            format!("stopping now: {workers} workers are killed"),
            &mut self.actions,
        );
        self.kill_all_and_exit(ShutdownReason::StopRequested);
    }

    /// Kills all workers. The primary exits when the last one is reaped.
    pub(crate) fn kill_all_and_exit(&mut self, reason: ShutdownReason) {
        self.phase = ClusterPhase::Killing(reason);
        self.stop.delayed = None;
        self.refuse_reserved_forks();
        self.workers.kill_all(ExitCause::KilledByStop, &mut self.actions);
    }

    /// Reports the workers that the program has an id for and that will not be forked any more.
    fn refuse_reserved_forks(&mut self) {
        for worker in self.slots.take_reserved_ids() {
            self.refuse_reserved_fork(worker, "the cluster is stopping");
        }
    }

    /// Reports that a worker for which the program has an id will not be forked.
    pub(crate) fn refuse_reserved_fork(&mut self, worker: WorkerId, reason: &str) {
        let (by, command) = ("fork_with".to_string(), RefusedCommand::Fork(worker));
        self.log_event(LogEvent::CommandRefused { by, command, reason: reason.to_string() });
    }

    /// Exits once a stop was requested and no worker is left.
    pub(crate) fn exit_if_stopped(&mut self) {
        let reason = match self.phase {
            ClusterPhase::Stopping => ShutdownReason::StopRequested,
            ClusterPhase::Killing(reason) => reason,
            ClusterPhase::Booting | ClusterPhase::Running | ClusterPhase::Done => return,
        };
        if self.workers.is_empty() {
            self.phase = ClusterPhase::Done;
            self.log_event(LogEvent::Stopped);
            self.actions.push(Action::Exit(reason));
        }
    }
}
