//! Invariants of slots' sockets: no connection waits where a worker could accept it, and no slot has two adopters.

use std::collections::{BTreeMap, BTreeSet};

use super::InvariantViolation;
use crate::supervisor::Supervisor;
use crate::worker_identity::{Slot, WorkerId};
use crate::worker_table::WorkerRecord;
use crate::{Action, Event, SavedState};

#[derive(Debug, Default)]
pub(super) struct SlotSocketChecker {
    /// The workers that were sent `AdoptSlot` for each slot, without a later `ReleaseSlot`.
    adopters: BTreeMap<Slot, BTreeSet<WorkerId>>,
    /// The announced dispatch target of each slot.
    dispatch_targets: BTreeMap<Slot, WorkerId>,
}

impl SlotSocketChecker {
    pub(super) fn check_slot_socket_invariants(
        &mut self,
        supervisor: &Supervisor,
        event: &Event,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        if let Event::AdoptSlotFailed { worker, slot } = event {
            self.adopters.entry(*slot).or_default().remove(worker);
        }
        for action in actions {
            self.check_slot_socket_action(action, supervisor, violation);
        }
        let after_drain = actions.iter().skip_while(|one| !matches!(one, Action::Drain(_)));
        let is_late = |one: &Action| matches!(one, Action::SetDispatchTarget { .. });
        assert!(!after_drain.into_iter().any(is_late), "a drain comes last: {violation}");
        if !supervisor.is_stopping() {
            self.check_all_slots_served(supervisor, violation);
            self.check_dispatch_targets(supervisor, violation);
        }
    }

    fn check_slot_socket_action(
        &mut self,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        let has_socket = |slot: Slot| slot.0 < supervisor.orphan_sockets.socket_slots();
        match action {
            Action::AdoptSlot { worker, slot } => {
                assert!(supervisor.is_serving(*worker), "an adopter serves: {violation}");
                assert!(has_socket(*slot), "an adopted slot has a socket: {violation}");
                assert!(supervisor.config.can_adopt_sockets, "it can adopt: {violation}");
                let is_new = self.adopters.entry(*slot).or_default().insert(*worker);
                assert!(is_new, "a slot is adopted once: {violation}");
            }
            Action::ReleaseSlot { worker, slot } => {
                self.adopters.entry(*slot).or_default().remove(worker);
            }
            Action::SetDispatchTarget { slot, worker } => {
                assert!(has_socket(*slot), "a dispatch target has a socket: {violation}");
                let before = match worker {
                    Some(worker) => self.dispatch_targets.insert(*slot, *worker),
                    None => self.dispatch_targets.remove(slot),
                };
                assert!(before != *worker, "an announced target is new: {violation}");
            }
            Action::OpenSockets { slots } => {
                let is_per_slot = supervisor.config.has_socket_per_slot;
                assert!(is_per_slot, "a shared socket is opened once: {violation}");
                assert!(*slots > supervisor.wanted_workers(), "sockets are missing: {violation}");
            }
            Action::Fork(tag) if tag.slot.is_web() => {
                let (reload, config) = (&supervisor.reload, &supervisor.config);
                let has_own = reload.has_own_socket(tag.generation, config);
                assert!(!has_own || has_socket(tag.slot), "a fork has its socket: {violation}");
            }
            _ => {}
        }
    }

    fn check_all_slots_served(
        &mut self,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        for (slot, adopters) in &mut self.adopters {
            adopters.retain(|worker| supervisor.is_serving(*worker));
            assert!(adopters.len() <= 1, "slot {slot} has one adopter: {adopters:?}, {violation}");
            let of_slot = supervisor.slot_adopters().filter(|(adopted, _)| adopted == slot);
            let known: BTreeSet<WorkerId> = of_slot.map(|(_, worker)| worker).collect();
            assert_eq!(*adopters, known, "adopters are known: {violation}");
        }
        let orphan_sockets = &supervisor.orphan_sockets;
        let can_accept = |worker: &WorkerId| {
            supervisor.workers.get(*worker).is_some_and(|record| record.can_accept())
        };
        let can_adopt =
            |worker: &WorkerId| can_accept(worker) && orphan_sockets.is_reachable(*worker);
        let can_adopt_any = supervisor.config.can_adopt_sockets;
        if !can_adopt_any || !supervisor.workers.ids().iter().any(can_adopt) {
            return;
        }
        for slot in (0..orphan_sockets.socket_slots()).map(Slot) {
            let mut workers = supervisor.workers.iter();
            let own = workers.any(|one| one.socket_slot() == slot && one.can_accept());
            let adopters = self.adopters.get(&slot);
            let is_adopted = adopters.is_some_and(|adopters| adopters.iter().any(can_accept));
            assert!(own || is_adopted, "connections to slot {slot} are accepted: {violation}");
            assert!(!(own && is_adopted), "a served slot is released: {violation}");
        }
    }

    /// Checks that connections are dispatched to exactly the slots whose own worker accepts.
    fn check_dispatch_targets(&self, supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
        let slot_of = |record: &WorkerRecord| match supervisor.config.can_adopt_sockets {
            true => record.socket_slot(),
            false => record.tag.slot,
        };
        for slot in (0..supervisor.orphan_sockets.socket_slots()).map(Slot) {
            let accepts = |worker: &WorkerId| {
                let record = supervisor.workers.get(*worker);
                record.is_some_and(|one| one.can_accept() && slot_of(one) == slot)
            };
            let is_served = supervisor.workers.ids().iter().any(accepts);
            let target = self.dispatch_targets.get(&slot);
            assert_eq!(target.is_some(), is_served, "slot {slot} has its target: {violation}");
            assert!(target.is_none_or(accepts), "a target accepts: {violation}");
        }
        assert_eq!(self.dispatch_targets, *supervisor.dispatch_targets(), "targets: {violation}");
    }

    /// The new binary continues with the adopters of the old one.
    pub(super) fn continue_after_upgrade(&mut self, saved: &SavedState) {
        self.adopters.clear();
        self.dispatch_targets.clear();
        for worker in saved.workers.iter().filter(|worker| worker.is_serving) {
            for slot in &worker.adopted_slots {
                self.adopters.entry(*slot).or_default().insert(worker.tag.id);
            }
        }
    }
}
