//! The places of the cluster, one for each slot: who holds which, and who is forked for one that is empty.

use std::time::Instant;

use super::action::Action;
use super::backoff::Allowance;
use super::{Member, State, Supervisor};
use crate::identity::{Generation, Slot, WorkerId, WorkerTag};

/// One slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Who serves it, or is about to.
    pub(super) holder: Option<WorkerId>,
    /// Who takes over when it is ready, if a replacement is under way.
    pub(super) successor: Option<WorkerId>,
    /// What the next worker of this slot is forked as.
    pub(super) generation: Generation,
}

impl Place {
    pub(super) fn new(generation: Generation) -> Place {
        Place { holder: None, successor: None, generation }
    }
}

impl Supervisor {
    pub(super) fn is_wanted(&self, worker: WorkerId) -> bool {
        self.places.iter().any(|p| p.holder == Some(worker) || p.successor == Some(worker))
    }

    pub(crate) fn serves(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|m| m.state == State::Serving)
    }

    /// Empties the slot that the worker holds; whether it held one.
    pub(super) fn let_go(&mut self, worker: WorkerId) -> bool {
        let Some(place) = self.places.iter_mut().find(|place| place.holder == Some(worker)) else {
            return false;
        };
        place.holder = None;
        true
    }

    /// Whether every place is served.
    pub(super) fn is_whole(&self) -> bool {
        self.places.iter().filter_map(|p| p.holder).filter(|id| self.serves(*id)).count()
            == self.places.len()
    }

    /// Forks a worker for each empty slot, as far as the crash-loop rule allows.
    pub(super) fn fill_slots(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping() {
            return;
        }
        self.backoff.tick(now);
        if self.is_whole() {
            return self.backoff.whole(now, self.policy.min_uptime);
        }
        for slot in 0..self.places.len() {
            let Place { holder, successor, generation } = self.places[slot];
            if holder.is_some() || successor.is_some() || self.is_crowded(slot) {
                continue;
            }
            if self.backoff.allowance() == Allowance::None {
                return;
            }
            let id = self.fork(now, slot, generation, actions);
            self.places[slot].holder = Some(id);
            self.backoff.forked(id);
        }
    }

    /// Two workers of a slot at a time: one that still finishes, and its replacement. A worker that retires as
    /// soon as it is ready would otherwise pile up predecessors.
    pub(super) fn is_crowded(&self, slot: usize) -> bool {
        self.members.values().filter(|member| member.tag.slot.0 as usize == slot).count() >= 2
    }

    pub(super) fn fork(
        &mut self,
        now: Instant,
        slot: usize,
        generation: Generation,
        actions: &mut Vec<Action>,
    ) -> WorkerId {
        let id = WorkerId(self.next_id);
        self.next_id += 1;
        let tag = WorkerTag { id, slot: Slot(slot as u32), generation, pid: None };
        let mut member = Member::new(tag, now, self.watch.spread());
        member.own_socket = self.has_own_socket(generation);
        self.members.insert(id, member);
        actions.push(Action::Fork(tag));
        id
    }
}
