//! Handlers of worker reports and worker exits.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::action::{Action, DrainReason, ExitCause, ExitReport, LogEvent, ShutdownReason};
use crate::command::{RefusedCommand, Requester};
use crate::crash_backoff::CrashOutcome;
use crate::event::RestartDecision;
use crate::slot_table::RestartPolicy;
use crate::supervisor::{CLOSED_CHANNEL_EXIT_TIMEOUT, DRAIN_KILL_MARGIN, Supervisor};
use crate::worker_identity::WorkerId;
use crate::worker_table::{WorkerRecord, WorkerState};

// These signal numbers are the same on every Linux.
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The longest delay of a replacement: a century. Longer ones may overflow the clock.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(100 * 365 * 86_400);

// From fork to READY.
impl Supervisor {
    pub(crate) fn on_forked(&mut self, now: Instant, worker: WorkerId, pid: u32) {
        let deadline = now + self.config.boot_timeout;
        let Some(record) = self.workers.get_mut(worker) else { return };
        if record.state != WorkerState::Forking {
            return;
        }
        record.tag.pid = Some(pid);
        record.state = WorkerState::Booting { deadline };
        self.actions.push(Action::Log(LogEvent::Forked { worker: record.tag }));
        // The fork may have been requested before a stop, or before its slot went to another worker.
        if self.is_stopping() {
            self.workers.kill(worker, ExitCause::KilledByStop, &mut self.actions);
        } else if !self.slots.holds_or_awaits_slot(worker) {
            self.workers.kill(worker, ExitCause::Superseded, &mut self.actions);
        }
    }

    pub(crate) fn on_program_started(&mut self, worker: WorkerId, pid: u32) {
        if let Some(record) = self.workers.get_mut(worker) {
            record.tag.pid = Some(pid);
        }
    }

    pub(crate) fn on_fork_failed(&mut self, now: Instant, worker: WorkerId, reason: String) {
        if self.workers.get(worker).is_none_or(|record| record.state != WorkerState::Forking) {
            return;
        }
        let Some(record) = self.workers.remove(worker) else { return };
        self.slots.release_holder(worker);
        self.log_event(LogEvent::ForkFailed { worker: record.tag, reason: reason.clone() });
        if self.is_stopping() {
            return;
        }
        if self.slots.is_successor(worker) {
            self.on_successor_lost(now, worker, &reason, false);
        } else {
            let attempts = self.config.boot_attempts;
            self.record_crash(now, worker, attempts, || {
                format!("{} could not be forked: {reason}", record.tag)
            });
        }
    }

    pub(crate) fn on_online(&mut self, worker: WorkerId) {
        if let Some(record) = self.workers.get_mut(worker)
            && record.state != WorkerState::Forking
            && !record.is_disconnect_logged
        {
            record.log_online(&mut self.actions);
        }
    }

    pub(crate) fn on_ready(&mut self, now: Instant, worker: WorkerId) {
        let Some(record) = self.workers.get_mut(worker) else { return };
        if !matches!(record.state, WorkerState::Booting { .. }) {
            return;
        }
        record.state = WorkerState::Serving;
        record.ready_at = Some(now);
        record.log_online(&mut self.actions);
        let after = now.duration_since(record.forked_at);
        self.actions.push(Action::Log(LogEvent::Ready { worker: record.tag, after }));
        self.backoff.record_ready(now, self.config.min_uptime);
        self.promote_successor(now, worker);
        self.log_replacement(worker);
    }

    /// Logs which worker this one replaces: now, or when that one is gone.
    fn log_replacement(&mut self, worker: WorkerId) {
        let Some(index) = self.slots.index_of_holder(worker) else { return };
        let Some(previous) = self.slots[index].last_ready.replace(worker) else { return };
        let Some(by) = self.workers.get(worker).map(|record| record.tag) else { return };
        match self.workers.get_mut(previous) {
            Some(leaving) => leaving.replaced_by = Some(by),
            None => self.log_event(LogEvent::Replaced { worker: previous, by }),
        }
    }

    /// Counts only for a worker that is ready: before that, its exit is a failed boot.
    pub(crate) fn on_risky_job_started(&mut self, worker: WorkerId) {
        if let Some(record) = self.workers.get_mut(worker) {
            record.ran_risky_job = record.ready_at.is_some();
        }
    }

    /// Logged once for each worker. From a worker that was ready it is a protocol error. If it `is_final`, no other attempt is made
    /// before any worker was ever ready.
    pub(crate) fn on_boot_failed(&mut self, worker: WorkerId, reason: String, is_final: bool) {
        let Some(record) = self.workers.get_mut(worker) else { return };
        if record.ready_at.is_some() {
            let reason = format!("it reports a failed boot after it was ready: {reason}");
            return self.on_protocol_error(worker, reason);
        }
        if record.error.is_none() {
            record.error = Some(reason.clone());
            record.has_reported_boot_error = is_final;
            let worker = record.tag;
            self.log_event(LogEvent::BootFailed { worker, reason });
        }
    }
}

// From READY to the exit.
impl Supervisor {
    /// The worker drains already; its slot is free for the replacement.
    pub(crate) fn on_retiring(&mut self, now: Instant, worker: WorkerId) {
        let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
        let Some(record) = self.workers.get_mut(worker) else { return };
        if !matches!(record.state, WorkerState::Booting { .. } | WorkerState::Serving) {
            return;
        }
        record.start_draining(deadline, DrainReason::Retire);
        let (was_ready, tag) = (record.ready_at.is_some(), record.tag);
        self.actions.push(Action::Log(LogEvent::Retiring { worker: tag }));
        self.slots.release_holder(worker);
        if self.slots.is_successor(worker) {
            let reason = format!("worker={worker} retired before it was ready");
            self.on_successor_lost(now, worker, &reason, false);
        } else if !was_ready {
            // The replacement may retire before READY too, so this counts as a crash.
            let attempts = self.config.boot_attempts;
            self.record_crash(now, worker, attempts, || {
                format!("{tag} retired before it was ready")
            });
        }
    }

    /// Counts the signal as the worker's own decision. If its event loop is blocked, it cannot report that, and only the
    /// deadline ends it.
    pub(crate) fn on_termination_sent(&mut self, now: Instant, worker: WorkerId) {
        if self.workers.is_serving(worker) {
            self.on_retiring(now, worker);
        }
    }

    /// Drains a worker by a command; its slot stays empty.
    pub(crate) fn on_disconnect(&mut self, now: Instant, worker: WorkerId, by: Requester) {
        let command = RefusedCommand::Disconnect(worker);
        if self.is_stopping() {
            let reason = "the cluster is stopping";
            return by.refuse_command_or_log(command, reason, &mut self.actions);
        }
        let Some(record) = self.workers.get(worker) else {
            let reason = format!("there is no worker {worker}");
            return by.refuse_command_or_log(command, reason, &mut self.actions);
        };
        let is_running = matches!(record.state, WorkerState::Booting { .. } | WorkerState::Serving);
        self.on_disconnecting(now, worker);
        if is_running {
            self.actions.push(Action::Drain(worker));
        }
        by.confirm_command(
            format!("worker {worker} drains and is not replaced"),
            &mut self.actions,
        );
    }

    /// Leaves the slot of a draining worker empty.
    pub(crate) fn on_disconnecting(&mut self, now: Instant, worker: WorkerId) {
        let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
        let Some(record) = self.workers.get_mut(worker) else { return };
        match record.state {
            WorkerState::Booting { .. } | WorkerState::Serving => {
                record.start_draining(deadline, DrainReason::Disconnect);
                let worker = record.tag;
                self.log_event(LogEvent::Disconnecting { worker });
            }
            // The worker loses its slot when the fork returns: see `on_forked`.
            WorkerState::Forking => {}
            // A worker that ends anyway keeps its slot, or has lost it already.
            WorkerState::Draining { .. } | WorkerState::Exiting { .. } => return,
            WorkerState::Aborted { .. } | WorkerState::Killed { .. } => return,
        }
        if self.slots.is_successor(worker) {
            let reason = format!("worker={worker} was disconnected before it was ready");
            return self.on_successor_lost(now, worker, &reason, false);
        }
        let Some(index) = self.slots.index_of_holder(worker) else { return };
        let entry = &mut self.slots[index];
        (entry.holder, entry.last_ready) = (None, None);
        entry.restart = RestartPolicy::LeaveEmpty;
        // A rollout goes on. The successor of a recycled worker is not wanted any more.
        if let Some(successor) = entry.successor.take_if(|_| !self.reload.is_reloading()) {
            self.workers.kill(successor, ExitCause::Superseded, &mut self.actions);
        }
    }

    /// Gives the worker time to exit before it is killed. Without its channel it cannot be controlled any more.
    pub(crate) fn on_channel_closed(&mut self, now: Instant, worker: WorkerId) {
        self.workers.log_disconnected(worker, &mut self.actions);
        let Some(record) = self.workers.get_mut(worker) else { return };
        if matches!(record.state, WorkerState::Booting { .. } | WorkerState::Serving) {
            record.state = WorkerState::Exiting { deadline: now + CLOSED_CHANNEL_EXIT_TIMEOUT };
        }
    }

    pub(crate) fn on_protocol_error(&mut self, worker: WorkerId, reason: String) {
        let Some(record) = self.workers.get_mut(worker) else { return };
        record.error.get_or_insert_with(|| reason.clone());
        self.actions.push(Action::Log(LogEvent::Misbehaved { worker: record.tag, reason }));
        self.workers.log_disconnected(worker, &mut self.actions);
        self.workers.kill(worker, ExitCause::Misbehaved, &mut self.actions);
    }

    /// The kernel reports a stop by a signal long before the heartbeat shows it.
    pub(crate) fn set_stopped_by_signal(&mut self, worker: WorkerId, is_stopped: bool) {
        if let Some(record) = self.workers.get_mut(worker) {
            record.heartbeat.is_stopped = is_stopped;
        }
    }

    /// Kills the workers whose deadline has passed.
    pub(crate) fn kill_overdue_workers(&mut self, now: Instant) {
        for id in self.workers.overdue_workers(now) {
            let Some(record) = self.workers.get_mut(id) else { continue };
            let worker = record.tag;
            let (event, cause) = match record.state {
                WorkerState::Booting { .. } => {
                    let limit = self.config.boot_timeout;
                    // An error that the worker itself reported is more precise.
                    record.error.get_or_insert_with(|| {
                        format!("was not ready within {limit:?} (boot-timeout)")
                    });
                    (Some(LogEvent::BootTimedOut { worker, limit }), ExitCause::BootTimeout)
                }
                WorkerState::Draining { .. } => {
                    let limit = self.config.graceful_timeout;
                    (Some(LogEvent::DrainTimedOut { worker, limit }), ExitCause::GracefulTimeout)
                }
                WorkerState::Exiting { .. } => {
                    let reason = "it closed its channel and did not exit".to_string();
                    (Some(LogEvent::Misbehaved { worker, reason }), ExitCause::Misbehaved)
                }
                WorkerState::Aborted { .. } => (None, ExitCause::Stalled),
                WorkerState::Forking | WorkerState::Serving | WorkerState::Killed { .. } => {
                    continue;
                }
            };
            self.actions.extend(event.map(Action::Log));
            self.workers.kill(id, cause, &mut self.actions);
        }
    }
}

// The exit and the replacement.
impl Supervisor {
    pub(crate) fn on_exited(
        &mut self,
        now: Instant,
        worker: WorkerId,
        status: ExitStatus,
        requests_served: u64,
    ) {
        if let Some(record) = self.workers.get_mut(worker)
            && record.state == WorkerState::Forking
        {
            // The exit was reported before the fork.
            record.state = WorkerState::Booting { deadline: now };
            self.actions.push(Action::Log(LogEvent::Forked { worker: record.tag }));
        }
        self.workers.log_disconnected(worker, &mut self.actions);
        let Some(record) = self.workers.remove(worker) else { return };
        let held_slot = self.slots.release_holder(worker);
        let report = exit_report(&record, now, status, requests_served);
        self.log_event(LogEvent::Exited(report.clone()));
        if let Some(by) = record.replaced_by {
            self.log_event(LogEvent::Replaced { worker, by });
        }
        if self.is_stopping() {
            return;
        }
        if self.slots.is_successor(worker) {
            return self.on_successor_exited(now, &report);
        }
        if !held_slot {
            // The worker was drained and replaced before.
            return self.backoff.end_probe(worker);
        }
        self.workers.restart_count += 1;
        self.classify_exit(now, &record, &report);
        self.confirm_restart(report);
    }

    fn on_successor_exited(&mut self, now: Instant, report: &ExitReport) {
        let error = report.error.clone().unwrap_or(report.status.to_string());
        let reason = format!("{}: {error}", report.worker);
        // A kill from outside proves nothing about the successor: another is forked.
        let retry = report.cause == ExitCause::BootFailed
            && is_killed_from_outside(report.status)
            && self.reload.forgive_successor_kill();
        self.on_successor_lost(now, report.worker.id, &reason, retry);
    }

    /// Decides whether the exit of a worker that held its slot is a crash, and fails the rollout or backs off.
    fn classify_exit(&mut self, now: Instant, record: &WorkerRecord, report: &ExitReport) {
        let worker = report.worker.id;
        let is_new = self.reload.is_new_generation(report.worker.generation);
        let is_killed = is_killed_from_outside(report.status);
        let is_early = record.is_early_exit(now, self.config.min_uptime);
        let mut is_crash = match report.cause {
            ExitCause::Drained | ExitCause::KilledByStop => false,
            ExitCause::GracefulTimeout | ExitCause::Superseded => false,
            ExitCause::BootTimeout => true,
            ExitCause::Misbehaved | ExitCause::Stalled | ExitCause::MemoryLimit => is_early,
            ExitCause::BootFailed => !is_killed || !self.backoff.forgive_boot_kill(),
            ExitCause::Unexpected => is_early && !is_killed,
        };
        if is_early && is_killed && is_new {
            is_crash |= !self.reload.forgive_successor_kill();
        }
        if is_crash && is_new {
            self.backoff.end_probe(worker);
            let reason = format!("{} crashed early: {}", report.worker, report.status);
            self.fail_rollout(&reason);
        } else if is_crash {
            // A crash may be gone at the next attempt. An error that the application itself returned is an answer.
            let attempts =
                if record.has_reported_boot_error { 1 } else { self.config.boot_attempts };
            self.record_crash(now, worker, attempts, || boot_failure_text(report));
        } else {
            self.backoff.end_probe(worker);
        }
    }

    /// Backs off after a crash, or gives up if no worker was ever ready and this was the last of `attempts` rounds.
    fn record_crash(
        &mut self,
        now: Instant,
        worker: WorkerId,
        attempts: u32,
        reason: impl FnOnce() -> String,
    ) {
        match self.backoff.record_crash(now, worker, attempts) {
            CrashOutcome::SameRound => {}
            CrashOutcome::BackOff { failures, delay } => {
                self.log_event(LogEvent::BackingOff { failures, delay });
            }
            CrashOutcome::GiveUp { failures } => {
                let reason = reason();
                self.boot_failure = Some(reason.clone());
                self.log_event(LogEvent::GivingUp { failures, reason });
                self.kill_all_and_exit(ShutdownReason::WorkersCannotBoot);
            }
        }
    }

    /// Asks the application whether to replace a slot holder that exited unexpectedly.
    fn confirm_restart(&mut self, report: ExitReport) {
        if !self.confirms_restarts || self.is_stopping() {
            return;
        }
        let entry = self.slots.get_mut(report.worker.slot);
        if let Some(entry) = entry.filter(|entry| entry.holder.is_none()) {
            entry.restart = RestartPolicy::AwaitDecision(report.worker);
            self.actions.push(Action::ConfirmRestart(report));
        }
    }

    pub(crate) fn on_restart_decided(
        &mut self,
        now: Instant,
        worker: WorkerId,
        decision: RestartDecision,
    ) {
        // The cluster may have given up because of this very exit.
        if self.is_done() {
            return;
        }
        for entry in self.slots.iter_mut() {
            let RestartPolicy::AwaitDecision(tag) = entry.restart else { continue };
            if tag.id != worker {
                continue;
            }
            match decision {
                RestartDecision::Restart => entry.restart = RestartPolicy::Restart,
                RestartDecision::After(delay) => {
                    let delay = delay.min(MAX_RESTART_DELAY);
                    entry.restart = RestartPolicy::RestartAt(now + delay);
                    self.actions.push(Action::Log(LogEvent::RestartDelayed { worker: tag, delay }));
                }
                RestartDecision::LeaveEmpty => {
                    entry.restart = RestartPolicy::LeaveEmpty;
                    entry.last_ready = None;
                    self.actions.push(Action::Log(LogEvent::NotRestarted { worker: tag }));
                }
            }
        }
    }
}

fn exit_report(
    record: &WorkerRecord,
    now: Instant,
    status: ExitStatus,
    requests_served: u64,
) -> ExitReport {
    ExitReport {
        worker: record.tag,
        status,
        cause: record.exit_cause(),
        drain_reason: record.drain_reason,
        error: record.error.clone(),
        uptime: now.duration_since(record.forked_at),
        requests_served,
    }
}

/// Returns why a worker that exited was not ready: its error if there is one.
fn boot_failure_text(report: &ExitReport) -> String {
    let ended = || format!("{} ended before it was ready: {}", report.worker, report.status);
    report.error.clone().unwrap_or_else(ended)
}

/// Returns whether the worker died of a signal that operators and the OOM killer send, and that programs do not raise
/// themselves.
fn is_killed_from_outside(status: ExitStatus) -> bool {
    matches!(status.signal(), Some(SIGKILL | SIGTERM | SIGINT | SIGHUP))
}
