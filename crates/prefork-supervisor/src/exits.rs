//! What the end of a worker means, and what happens to those that do not end in time.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use super::action::{Action, ExitCause, ExitReport, LogEvent, ShutdownReason};
use super::{ClusterPhase, Supervisor, WorkerRecord, WorkerState};
use crate::identity::WorkerId;

/// Signal numbers that are the same on every Linux.
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

impl Supervisor {
    pub(super) fn exited(
        &mut self,
        now: Instant,
        worker: WorkerId,
        status: ExitStatus,
        requests_served: u64,
        actions: &mut Vec<Action>,
    ) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.state == WorkerState::Forking
        {
            // It existed, then.
            member.state = WorkerState::Booting { deadline: now };
            actions.push(Action::Log(LogEvent::Forked { worker: member.tag }));
        }
        self.say_disconnected(worker, actions);
        let Some(member) = self.remove(worker) else { return };
        let held = self.let_go(worker);
        let cause = member.cause();
        let exit = ExitReport {
            worker: member.tag,
            status,
            cause,
            drain_reason: member.leave,
            error: member.complaint.clone(),
            uptime: now.duration_since(member.born),
            requests_served,
        };
        actions.push(Action::Log(LogEvent::Exited(exit.clone())));
        if let Some(by) = member.replaced_by {
            actions.push(Action::Log(LogEvent::Replaced { worker, by }));
        }
        let killed = by_somebody(status);
        if self.is_stopping() {
            return;
        }
        if self.is_successor(worker) {
            let reason =
                format!("{}: {}", member.tag, member.complaint.unwrap_or(status.to_string()));
            // A kill from outside says nothing about the successor: another is tried.
            let retry = cause == ExitCause::BootFailed && killed && self.forgive_successor();
            return self.successor_lost(now, worker, &reason, retry, actions);
        }
        if !held {
            // It retired or was dismissed, and was replaced long ago.
            return self.backoff.trial_over(worker);
        }
        self.restarts += 1;
        let young = member.is_young(now, self.policy.min_uptime);
        let mut at_fault = match cause {
            ExitCause::Drained
            | ExitCause::KilledByStop
            | ExitCause::GracefulTimeout
            | ExitCause::Superseded => false,
            ExitCause::BootTimeout => true,
            ExitCause::Misbehaved | ExitCause::Stalled | ExitCause::MemoryLimit => young,
            ExitCause::BootFailed if killed => !self.backoff.forgive_kill(),
            ExitCause::BootFailed => true,
            ExitCause::Unexpected => young && !killed,
        };
        if young && killed && self.is_new(member.tag.generation) {
            at_fault |= !self.forgive_successor();
        }
        if at_fault && self.is_new(member.tag.generation) {
            let reason = format!("{} died young: {status}", member.tag);
            self.backoff.trial_over(worker);
            self.fail_roll(&reason, actions);
        } else if at_fault {
            self.fault(now, worker, actions);
        } else {
            self.backoff.trial_over(worker);
        }
        self.ask_restart(exit, actions);
    }

    pub(super) fn fork_failed(
        &mut self,
        now: Instant,
        worker: WorkerId,
        reason: String,
        actions: &mut Vec<Action>,
    ) {
        if self.members.get(&worker).is_none_or(|member| member.state != WorkerState::Forking) {
            return;
        }
        let Some(member) = self.remove(worker) else { return };
        self.let_go(worker);
        actions
            .push(Action::Log(LogEvent::ForkFailed { worker: member.tag, reason: reason.clone() }));
        if self.is_stopping() {
            return;
        }
        if self.is_successor(worker) {
            self.successor_lost(now, worker, &reason, false, actions);
        } else {
            self.fault(now, worker, actions);
        }
    }

    /// Kills what has had its time.
    pub(super) fn overdue(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let late: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| member.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(member) = self.members.get(&id) else { continue };
            let worker = member.tag;
            let reason = match member.state {
                WorkerState::Booting { .. } => {
                    let limit = self.policy.boot_timeout;
                    actions.push(Action::Log(LogEvent::BootTimedOut { worker, limit }));
                    complain(
                        &mut self.members,
                        id,
                        format!("was not ready within {limit:?} (boot-timeout)"),
                    );
                    ExitCause::BootTimeout
                }
                WorkerState::Draining { .. } => {
                    let limit = self.policy.graceful_timeout;
                    actions.push(Action::Log(LogEvent::DrainTimedOut { worker, limit }));
                    ExitCause::GracefulTimeout
                }
                WorkerState::Exiting { .. } => {
                    let reason = "it closed its channel and lives on".to_string();
                    actions.push(Action::Log(LogEvent::Misbehaved { worker, reason }));
                    ExitCause::Misbehaved
                }
                WorkerState::Aborted { .. } => ExitCause::Stalled,
                WorkerState::Forking | WorkerState::Serving | WorkerState::Killed { .. } => {
                    continue;
                }
            };
            self.kill(id, reason, actions);
        }
    }

    pub(super) fn fault(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(delay) = self.backoff.fault(now, worker) else { return };
        let failures = self.backoff.failures();
        if !self.ever_ready && failures >= self.policy.boot_attempts {
            actions.push(Action::Log(LogEvent::GivingUp { failures }));
            self.end(ShutdownReason::WorkersCannotBoot, actions);
        } else {
            actions.push(Action::Log(LogEvent::BackingOff { failures, delay }));
        }
        debug_assert!(self.phase != ClusterPhase::Done);
    }
}

/// Our own reason to kill a worker says more than the signal; but not more than what the worker said.
fn complain(members: &mut BTreeMap<WorkerId, WorkerRecord>, worker: WorkerId, reason: String) {
    if let Some(member) = members.get_mut(&worker) {
        member.complaint.get_or_insert(reason);
    }
}

/// Whether a signal ended the worker that people and the OOM killer send, and programs do not send themselves.
fn by_somebody(status: ExitStatus) -> bool {
    matches!(status.signal(), Some(SIGKILL | SIGTERM | SIGINT | SIGHUP))
}
