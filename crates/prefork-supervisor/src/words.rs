//! What workers say, and what it means that they say nothing any more.

use std::time::Instant;

use super::action::{Action, DrainReason, ExitCause, LogEvent};
use super::{LAST_MOMENT, LEAVING, Supervisor, WorkerRecord, WorkerState};
use crate::identity::WorkerId;

impl Supervisor {
    pub(super) fn forked(
        &mut self,
        now: Instant,
        worker: WorkerId,
        pid: u32,
        actions: &mut Vec<Action>,
    ) {
        let deadline = now + self.policy.boot_timeout;
        let Some(member) = self.members.get_mut(&worker) else { return };
        if member.state != WorkerState::Forking {
            return;
        }
        member.tag.pid = Some(pid);
        member.state = WorkerState::Booting { deadline };
        actions.push(Action::Log(LogEvent::Forked { worker: member.tag }));
        // Decided before a stop, or before its slot was given to another; forked after it.
        if self.is_stopping() {
            self.kill(worker, ExitCause::KilledByStop, actions);
        } else if !self.is_wanted(worker) {
            self.kill(worker, ExitCause::Superseded, actions);
        }
    }

    pub(super) fn ready(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if !matches!(member.state, WorkerState::Booting { .. }) {
            return;
        }
        member.state = WorkerState::Serving;
        say_online(member, actions);
        member.ready = Some(now);
        self.ever_ready = true;
        let after = now.duration_since(member.born);
        actions.push(Action::Log(LogEvent::Ready { worker: member.tag, after }));
        self.backoff.ready(now, self.policy.min_uptime);
        self.succeed(now, worker, actions);
        self.note_successor(worker, actions);
    }

    /// Only of one that is ready: before that, its end is a boot that failed.
    pub(super) fn proven(&mut self, worker: WorkerId) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.proven = member.ready.is_some();
        }
    }

    /// Once, whatever it says.
    pub(super) fn online(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.state != WorkerState::Forking
            && !member.disconnected
        {
            say_online(member, actions);
        }
    }

    /// Reported once for each worker. From one that has been ready it is no word of ours: it writes garbage.
    pub(super) fn boot_failed(
        &mut self,
        worker: WorkerId,
        reason: String,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if member.ready.is_some() {
            let reason = format!("it says that it cannot boot, after it was ready: {reason}");
            return self.garbled(worker, reason, actions);
        }
        if member.complaint.is_none() {
            member.complaint = Some(reason.clone());
            actions.push(Action::Log(LogEvent::BootFailed { worker: member.tag, reason }));
        }
    }

    /// The worker is draining already; its slot is free for the replacement.
    pub(super) fn retiring(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, WorkerState::Booting { .. } | WorkerState::Serving) {
            member.state = WorkerState::Draining {
                deadline: now + self.policy.graceful_timeout + LAST_MOMENT,
            };
            member.leave = Some(DrainReason::Retire);
            let never_ready = member.ready.is_none();
            actions.push(Action::Log(LogEvent::Retiring { worker: member.tag }));
            self.let_go(worker);
            // If it never was ready its replacement may well do the same.
            if self.is_successor(worker) {
                let reason = format!("worker={worker} retired before it was ready");
                self.successor_lost(now, worker, &reason, false, actions);
            } else if never_ready {
                self.fault(now, worker, actions);
            }
        }
    }

    /// Normal when a worker ends: its exit is on the way. One that lives on can not be led any more.
    pub(super) fn channel_closed(
        &mut self,
        now: Instant,
        worker: WorkerId,
        actions: &mut Vec<Action>,
    ) {
        self.say_disconnected(worker, actions);
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, WorkerState::Booting { .. } | WorkerState::Serving) {
            member.state = WorkerState::Exiting { deadline: now + LEAVING };
        }
    }

    pub(super) fn garbled(&mut self, worker: WorkerId, reason: String, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.complaint.get_or_insert_with(|| reason.clone());
        actions.push(Action::Log(LogEvent::Misbehaved { worker: member.tag, reason }));
        self.say_disconnected(worker, actions);
        self.kill(worker, ExitCause::Misbehaved, actions);
    }
}

fn say_online(member: &mut WorkerRecord, actions: &mut Vec<Action>) {
    if !std::mem::replace(&mut member.online, true) {
        actions.push(Action::Log(LogEvent::Online { worker: member.tag }));
    }
}
