//! What workers say, and what it means that they say nothing any more.

use std::time::Instant;

use super::action::{Action, Cause, Notice};
use super::{LAST_MOMENT, LEAVING, State, Supervisor};
use crate::identity::WorkerId;

impl Supervisor {
    pub(super) fn boot_failed(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker) {
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
    pub(super) fn channel_closed(&mut self, now: Instant, worker: WorkerId) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, State::Booting { .. } | State::Serving) {
            member.state = State::Leaving { deadline: now + LEAVING };
        }
    }

    pub(super) fn garbled(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.complaint.get_or_insert_with(|| why.clone());
        actions.push(Action::Report(Notice::Condemned { worker: member.tag, why }));
        self.kill(worker, Cause::Condemned, actions);
    }
}
