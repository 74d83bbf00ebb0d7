//! The places of the cluster, one for each slot: who holds which, and who is forked for one that is empty.

use std::time::Instant;

use super::action::Action;
use super::backoff::Allowance;
use super::{Supervisor, WorkerRecord, WorkerState};
use crate::command::WorkerEnvironment;
use crate::identity::{Generation, Slot, WorkerId, WorkerTag};

/// One slot.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) slot: Slot,
    /// The kind of its workers.
    pub(super) kind: &'static str,
    /// Who serves it, or is about to.
    pub(super) holder: Option<WorkerId>,
    /// Who takes over when it is ready, if a replacement is under way.
    pub(super) successor: Option<WorkerId>,
    /// What the next worker of this slot is forked as.
    pub(super) generation: Generation,
    /// Whether it stays empty for now.
    pub(super) vacancy: Vacancy,
    /// The last worker that was ready here and is to be replaced when it ends.
    pub(super) last: Option<WorkerId>,
    /// The number that its first worker gets, if it was drawn before.
    pub(super) first: Option<WorkerId>,
    /// What its workers have in their environment besides.
    pub(super) environment: WorkerEnvironment,
}

/// Whether an empty slot is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// It is.
    None,
    /// The application was asked whether this worker is to be replaced.
    Asked(WorkerTag),
    /// Its worker left for good. A reload or somebody who scales fills it again.
    Closed,
}

impl Place {
    pub(super) fn new(slot: Slot, kind: &'static str, generation: Generation) -> Place {
        Place {
            slot,
            kind,
            holder: None,
            successor: None,
            generation,
            vacancy: Vacancy::None,
            last: None,
            first: None,
            environment: WorkerEnvironment::new(),
        }
    }
}

impl Supervisor {
    pub(super) fn is_wanted(&self, worker: WorkerId) -> bool {
        self.places.iter().any(|p| p.holder == Some(worker) || p.successor == Some(worker))
    }

    pub fn is_serving(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|m| m.state == WorkerState::Serving)
    }

    /// Whether a signal has stopped all of it.
    pub fn is_stopped_by_signal(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|member| member.pulse.stopped)
    }

    /// Empties the slot that the worker holds; whether it held one.
    pub(super) fn let_go(&mut self, worker: WorkerId) -> bool {
        let Some(place) = self.places.iter_mut().find(|place| place.holder == Some(worker)) else {
            return false;
        };
        place.holder = None;
        true
    }

    /// Whether every place is served that is to be.
    pub(super) fn is_whole(&self) -> bool {
        let served = |place: &Place| place.holder.is_some_and(|id| self.is_serving(id));
        self.places.iter().all(|place| served(place) || place.vacancy == Vacancy::Closed)
    }

    /// Forks a worker for each empty slot, as far as the crash-loop rule allows.
    pub(super) fn fill_slots(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        self.backoff.tick(now);
        if self.is_whole() {
            return self.backoff.whole(now, self.policy.min_uptime);
        }
        for slot in 0..self.places.len() {
            let place = &self.places[slot];
            let (taken, generation) =
                (place.holder.or(place.successor).is_some(), place.generation);
            if taken || place.vacancy != Vacancy::None || self.is_crowded(slot) {
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
    pub(super) fn is_crowded(&self, place: usize) -> bool {
        self.workers_per_slot.get(&self.places[place].slot).is_some_and(|count| *count >= 2)
    }

    /// Adds a worker to those that exist.
    pub(super) fn enter(&mut self, member: WorkerRecord) {
        *self.workers_per_slot.entry(member.tag.slot).or_default() += 1;
        self.members.insert(member.tag.id, member);
    }

    /// Removes a worker that exists no more.
    pub(super) fn remove(&mut self, worker: WorkerId) -> Option<WorkerRecord> {
        let member = self.members.remove(&worker)?;
        if let Some(count) = self.workers_per_slot.get_mut(&member.tag.slot) {
            *count -= 1;
            if *count == 0 {
                self.workers_per_slot.remove(&member.tag.slot);
            }
        }
        Some(member)
    }

    /// A number that no worker has had.
    pub fn reserve_worker_id(&mut self) -> WorkerId {
        let id = WorkerId(self.next_id);
        self.next_id += 1;
        id
    }

    /// What workers of this slot have in their environment besides.
    pub fn slot_environment(&self, slot: Slot) -> &[(String, String)] {
        self.places.iter().find(|one| one.slot == slot).map_or(&[], |place| &place.environment)
    }

    pub(super) fn fork(
        &mut self,
        now: Instant,
        place: usize,
        generation: Generation,
        actions: &mut Vec<Action>,
    ) -> WorkerId {
        let id = self.places[place].first.take().unwrap_or_else(|| self.reserve_worker_id());
        let Place { slot, kind, .. } = self.places[place];
        let tag = WorkerTag { id, slot, generation, pid: None, kind };
        let mut member = WorkerRecord::new(tag, now, self.watch.spread());
        member.own_socket = slot.is_web() && self.has_own_socket(generation);
        self.enter(member);
        actions.push(Action::Fork(tag));
        id
    }
}
