//! What workers say, and what it means that they say nothing any more.

use std::time::Instant;

use super::action::{Action, Cause, Leave, Notice};
use super::{LAST_MOMENT, LEAVING, Member, State, Supervisor};
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
        if member.state != State::Forking {
            return;
        }
        member.tag.pid = Some(pid);
        member.state = State::Booting { deadline };
        actions.push(Action::Report(Notice::Forked { worker: member.tag }));
        // Decided before a stop, or before its slot was given to another; forked after it.
        if self.stopping() {
            self.kill(worker, Cause::Stopped, actions);
        } else if !self.is_wanted(worker) {
            self.kill(worker, Cause::Superseded, actions);
        }
    }

    pub(super) fn ready(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if !matches!(member.state, State::Booting { .. }) {
            return;
        }
        member.state = State::Serving;
        say_online(member, actions);
        member.ready = Some(now);
        self.ever_ready = true;
        let after = now.duration_since(member.born);
        actions.push(Action::Report(Notice::Ready { worker: member.tag, after }));
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
            && member.state != State::Forking
            && !member.disconnected
        {
            say_online(member, actions);
        }
    }

    /// Reported once for each worker. From one that has been ready it is no word of ours: it writes garbage.
    pub(super) fn boot_failed(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if member.ready.is_some() {
            let why = format!("it says that it cannot boot, after it was ready: {why}");
            return self.garbled(worker, why, actions);
        }
        if member.complaint.is_none() {
            member.complaint = Some(why.clone());
            actions.push(Action::Report(Notice::BootFailed { worker: member.tag, why }));
        }
    }

    /// The worker is draining already; its slot is free for the replacement.
    pub(super) fn retiring(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, State::Booting { .. } | State::Serving) {
            member.state =
                State::Draining { deadline: now + self.policy.graceful_timeout + LAST_MOMENT };
            member.leave = Some(Leave::Retire);
            let never_ready = member.ready.is_none();
            actions.push(Action::Report(Notice::Retiring { worker: member.tag }));
            self.let_go(worker);
            // If it never was ready its replacement may well do the same.
            if self.is_successor(worker) {
                let why = format!("worker={worker} retired before it was ready");
                self.successor_lost(now, worker, &why, false, actions);
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
        if matches!(member.state, State::Booting { .. } | State::Serving) {
            member.state = State::Leaving { deadline: now + LEAVING };
        }
    }

    pub(super) fn garbled(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.complaint.get_or_insert_with(|| why.clone());
        actions.push(Action::Report(Notice::Condemned { worker: member.tag, why }));
        self.say_disconnected(worker, actions);
        self.kill(worker, Cause::Condemned, actions);
    }
}

fn say_online(member: &mut Member, actions: &mut Vec<Action>) {
    if !std::mem::replace(&mut member.online, true) {
        actions.push(Action::Report(Notice::Online { worker: member.tag }));
    }
}
