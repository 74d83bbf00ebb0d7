//! Sockets of slots that nobody serves. Where each slot has a socket of its own, the kernel sends connections there
//! whether or not a worker is at it. While none is, a sibling accepts from it as well: its *adopter*. So nobody
//! waits for a respawn, for a loop that stands still, or for a slot that was given up and cannot be closed
//! without resetting whoever is in its queue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::action::Action;
use super::{Supervisor, WorkerRecord, WorkerState};
use crate::identity::{Generation, Slot, WorkerId};

/// Who could not be told something is left alone for so long.
const DEAF: Duration = Duration::from_millis(100);

/// Which slots have sockets, and who accepts from them in place of their own workers.
#[derive(Debug, Default)]
pub(super) struct Adoption {
    /// Slots 0 to this have sockets; 0 where all workers share one. It only grows.
    pub(super) sockets: u32,
    /// One for each slot at most.
    pub(super) adopters: BTreeMap<Slot, WorkerId>,
    /// Who is still to be told that it serves a slot no more: its channel was full.
    owed: BTreeSet<(WorkerId, Slot)>,
    /// The own worker of each slot that has one that accepts, as it was said last.
    steered: BTreeMap<Slot, WorkerId>,
    /// Whose channel was full, and until when they are not tried again.
    pub(super) deaf: BTreeMap<WorkerId, Instant>,
}

impl Adoption {
    fn load(&self, worker: WorkerId) -> usize {
        self.adopters.values().filter(|adopter| **adopter == worker).count()
    }
}

impl Supervisor {
    /// Sockets are open for this many slots, if slots have sockets now.
    pub(super) fn know_sockets(&mut self, slots: u32) {
        if self.policy.has_socket_per_slot {
            self.adoption.sockets = self.adoption.sockets.max(slots);
        }
    }

    /// Sockets of so many slots were left by a primary that was killed, whatever the policy is now: somebody has to
    /// serve them.
    pub fn add_inherited_sockets(&mut self, slots: u32) {
        self.adoption.sockets = self.adoption.sockets.max(slots);
    }

    /// Whether a worker of this generation is born with the sockets of its slot, and not with a shared one.
    pub(super) fn has_own_socket(&self, generation: Generation) -> bool {
        match &self.roll {
            Some(super::Roll::Rolling { target, before, .. }) if *target != generation => {
                before.policy.has_socket_per_slot
            }
            _ => self.policy.has_socket_per_slot,
        }
    }

    /// Whether slots have to be watched closely: somebody waits behind a loop that stands still.
    pub(super) fn watches_slots(&self) -> bool {
        self.adoption.sockets > 1 && !self.is_stopping()
    }

    /// Who accepts from which slot's sockets in place of their own worker.
    pub fn slot_adopters(&self) -> impl Iterator<Item = (Slot, WorkerId)> {
        self.adoption.adopters.iter().map(|(slot, worker)| (*slot, *worker))
    }

    /// Who takes the connections of each slot as its own worker; slots where nobody does are not named.
    pub fn dispatch_targets(&self) -> &BTreeMap<Slot, WorkerId> {
        &self.adoption.steered
    }

    /// The worker could not be told to serve the slot, or could not do it: another may.
    pub(super) fn adopt_failed(&mut self, now: Instant, worker: WorkerId, slot: Slot) {
        if self.adoption.adopters.get(&slot) == Some(&worker) {
            self.adoption.adopters.remove(&slot);
        }
        // Of several sockets some may have reached it.
        self.release_failed(now, worker, slot);
    }

    /// The worker does not know yet that it serves the slot no more.
    pub(super) fn release_failed(&mut self, now: Instant, worker: WorkerId, slot: Slot) {
        self.adoption.deaf.insert(worker, now + DEAF);
        self.adoption.owed.insert((worker, slot));
    }

    /// Sees to it that every slot with a socket is served by one worker, after whatever has happened. In a stop all
    /// stays as it is: each worker empties what it has.
    pub(super) fn tend_slots(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() || self.adoption.sockets == 0 {
            return;
        }
        let serves = |worker: &WorkerId| {
            self.members.get(worker).is_some_and(|member| member.state == WorkerState::Serving)
        };
        // Who leaves stops to accept by itself.
        self.adoption.adopters.retain(|_, worker| serves(worker));
        self.adoption.owed.retain(|(worker, _)| serves(worker));
        self.adoption.deaf.retain(|worker, until| now < *until && serves(worker));
        self.pay_releases(actions);
        let (served, able) = (self.served_slots(), self.able_workers());
        self.adoption.adopters.retain(|slot, worker| {
            let back = served.contains(slot);
            actions.extend(back.then_some(Action::ReleaseSlot { worker: *worker, slot: *slot }));
            !back
        });
        for slot in (0..self.adoption.sockets).map(Slot).filter(|slot| !served.contains(slot)) {
            let adopter = self.adoption.adopters.get(&slot).copied();
            if adopter.is_none_or(|adopter| !able.contains(&adopter)) {
                self.give(slot, &able, actions);
            }
        }
        self.even_out(&able, actions);
        self.steer(actions);
    }

    /// Says who takes the connections of a slot, where that is another than before. Of several it is the youngest.
    fn steer(&mut self, actions: &mut Vec<Action>) {
        let able = self.members.values().filter(|member| member.is_able());
        let own = able.map(|one| (one.own_slot(), one.tag.id));
        let now: BTreeMap<Slot, WorkerId> =
            own.filter(|(slot, _)| slot.0 < self.adoption.sockets).collect();
        for slot in (0..self.adoption.sockets).map(Slot) {
            let worker = now.get(&slot).copied();
            if self.adoption.steered.get(&slot).copied() != worker {
                actions.push(Action::SetDispatchTarget { slot, worker });
            }
        }
        self.adoption.steered = now;
    }

    /// Slots whose own worker accepts.
    pub(super) fn served_slots(&self) -> BTreeSet<Slot> {
        let able = self.members.values().filter(|member| member.is_able());
        able.map(WorkerRecord::own_slot).collect()
    }

    /// Workers that could serve another slot as well.
    fn able_workers(&self) -> BTreeSet<WorkerId> {
        let able = self.members.values().filter(|member| member.is_able());
        able.map(|member| member.tag.id).collect()
    }

    /// Gives the slot to the worker that has adopted the fewest. Whoever has it is told afterwards: for a moment both
    /// accept, but never nobody.
    fn give(&mut self, slot: Slot, able: &BTreeSet<WorkerId>, actions: &mut Vec<Action>) {
        let hears = able.iter().filter(|worker| !self.adoption.deaf.contains_key(worker));
        let best = hears.min_by_key(|worker| (self.adoption.load(**worker), worker.0));
        let Some(worker) = best.copied() else { return };
        self.adoption.owed.remove(&(worker, slot));
        actions.push(Action::AdoptSlot { worker, slot });
        if let Some(before) = self.adoption.adopters.insert(slot, worker) {
            actions.push(Action::ReleaseSlot { worker: before, slot });
        }
    }

    /// Spreads the slots that will not get a worker of their own; the others are given back soon anyway.
    fn even_out(&mut self, able: &BTreeSet<WorkerId>, actions: &mut Vec<Action>) {
        let first = if self.policy.has_socket_per_slot { self.policy.workers } else { 0 };
        for _ in first..self.adoption.sockets {
            let load = |worker: &&WorkerId| self.adoption.load(**worker);
            let hears = able.iter().filter(|worker| !self.adoption.deaf.contains_key(worker));
            let least = hears.map(|worker| load(&worker)).min();
            let moved = self.adoption.adopters.iter().find(|(slot, worker)| {
                slot.0 >= first && least.is_some_and(|least| load(worker) >= least + 2)
            });
            let Some((slot, _)) = moved else { return };
            self.give(*slot, able, actions);
        }
    }

    /// Tells those who could not be told before.
    fn pay_releases(&mut self, actions: &mut Vec<Action>) {
        let Adoption { owed, deaf, adopters, .. } = &mut self.adoption;
        owed.retain(|(worker, slot)| {
            let hears = !deaf.contains_key(worker);
            if hears && adopters.get(slot) != Some(worker) {
                actions.push(Action::ReleaseSlot { worker: *worker, slot: *slot });
            }
            !hears
        });
    }
}
