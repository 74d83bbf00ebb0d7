//! What the end of a worker means, and what happens to those that do not end in time.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use super::action::{Action, Cause, Exit, Notice, Outcome};
use super::{Member, Phase, State, Supervisor};
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
        served: u64,
        actions: &mut Vec<Action>,
    ) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.state == State::Forking
        {
            // It existed, then.
            member.state = State::Booting { deadline: now };
            actions.push(Action::Report(Notice::Forked { worker: member.tag }));
        }
        self.say_disconnected(worker, actions);
        let Some(member) = self.remove(worker) else { return };
        let held = self.let_go(worker);
        let cause = member.cause();
        let exit = Exit {
            worker: member.tag,
            status,
            cause,
            leave: member.leave,
            complaint: member.complaint.clone(),
            uptime: now.duration_since(member.born),
            served,
        };
        actions.push(Action::Report(Notice::Exited(exit.clone())));
        if let Some(by) = member.replaced_by {
            actions.push(Action::Report(Notice::Replaced { worker, by }));
        }
        let killed = by_somebody(status);
        if self.stopping() {
            return;
        }
        if self.is_successor(worker) {
            let why = format!("{}: {}", member.tag, member.complaint.unwrap_or(status.to_string()));
            // A kill from outside says nothing about the successor: another is tried.
            let retry = cause == Cause::BeforeReady && killed && self.forgive_successor();
            return self.successor_lost(now, worker, &why, retry, actions);
        }
        if !held {
            // It retired or was dismissed, and was replaced long ago.
            return self.backoff.trial_over(worker);
        }
        self.restarts += 1;
        let young = member.is_young(now, self.policy.min_uptime);
        let mut at_fault = match cause {
            Cause::Asked | Cause::Stopped | Cause::GraceOver | Cause::Superseded => false,
            Cause::BootTimeout => true,
            Cause::Condemned | Cause::Frozen | Cause::Memory => young,
            Cause::BeforeReady if killed => !self.backoff.forgive_kill(),
            Cause::BeforeReady => true,
            Cause::Unexpected => young && !killed,
        };
        if young && killed && self.is_new(member.tag.generation) {
            at_fault |= !self.forgive_successor();
        }
        if at_fault && self.is_new(member.tag.generation) {
            let why = format!("{} died young: {status}", member.tag);
            self.backoff.trial_over(worker);
            self.fail_roll(&why, actions);
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
        why: String,
        actions: &mut Vec<Action>,
    ) {
        if self.members.get(&worker).is_none_or(|member| member.state != State::Forking) {
            return;
        }
        let Some(member) = self.remove(worker) else { return };
        self.let_go(worker);
        actions.push(Action::Report(Notice::ForkFailed { worker: member.tag, why: why.clone() }));
        if self.stopping() {
            return;
        }
        if self.is_successor(worker) {
            self.successor_lost(now, worker, &why, false, actions);
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
            let why = match member.state {
                State::Booting { .. } => {
                    let limit = self.policy.boot_timeout;
                    actions.push(Action::Report(Notice::BootTimedOut { worker, limit }));
                    complain(
                        &mut self.members,
                        id,
                        format!("was not ready within {limit:?} (boot-timeout)"),
                    );
                    Cause::BootTimeout
                }
                State::Draining { .. } => {
                    let limit = self.policy.graceful_timeout;
                    actions.push(Action::Report(Notice::GraceOver { worker, limit }));
                    Cause::GraceOver
                }
                State::Leaving { .. } => {
                    let why = "it closed its channel and lives on".to_string();
                    actions.push(Action::Report(Notice::Condemned { worker, why }));
                    Cause::Condemned
                }
                State::Aborted { .. } => Cause::Frozen,
                State::Forking | State::Serving | State::Killed { .. } => continue,
            };
            self.kill(id, why, actions);
        }
    }

    pub(super) fn fault(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(delay) = self.backoff.fault(now, worker) else { return };
        let failures = self.backoff.failures();
        if !self.ever_ready && failures >= self.policy.boot_attempts {
            actions.push(Action::Report(Notice::GivingUp { failures }));
            self.end(Outcome::WorkersCannotBoot, actions);
        } else {
            actions.push(Action::Report(Notice::CoolingDown { failures, delay }));
        }
        debug_assert!(self.phase != Phase::Done);
    }
}

/// Our own reason to kill a worker says more than the signal; but not more than what the worker said.
fn complain(members: &mut BTreeMap<WorkerId, Member>, worker: WorkerId, why: String) {
    if let Some(member) = members.get_mut(&worker) {
        member.complaint.get_or_insert(why);
    }
}

/// Whether a signal ended the worker that people and the OOM killer send, and programs do not send themselves.
fn by_somebody(status: ExitStatus) -> bool {
    matches!(status.signal(), Some(SIGKILL | SIGTERM | SIGINT | SIGHUP))
}
