//! Orphan sockets: listening sockets of slots whose own worker does not accept.
//!
//! Where each slot has sockets of its own, the kernel sends connections to all of them, whether or not a worker
//! accepts there. While a slot's worker is missing, stalled or full, a sibling accepts from its sockets as well: its
//! *adopter*. So no connection waits for a respawn or a stalled event loop. A slot that was scaled away stays adopted,
//! because closing its sockets would reset the connections in their queues.
//!
//! Workers that cannot adopt sockets (`SupervisorConfig::can_adopt_sockets`) have sockets of their own, not those of their
//! slot. New connections are then dispatched to the sockets of workers that accept, and no slot is adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::action::Action;
use crate::worker_identity::{Slot, WorkerId};
use crate::worker_table::{WorkerRecord, WorkerTable};

/// How long to wait before a worker whose channel was full is asked again.
const FULL_CHANNEL_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Which slots have sockets, and which workers accept from them.
#[derive(Debug, Default)]
pub(crate) struct OrphanSockets {
    /// The slots `0..socket_slots` have sockets of their own; 0 where all workers share one. It only grows.
    socket_slots: u32,
    adopters: BTreeMap<Slot, WorkerId>,
    /// Releases that could not be sent yet, because the adopter's channel was full.
    pending_releases: BTreeSet<(WorkerId, Slot)>,
    /// The dispatch target of each slot, as last announced by `Action::SetDispatchTarget`.
    dispatch_targets: BTreeMap<Slot, WorkerId>,
    /// Workers whose channel was full, with the time when they are asked again.
    full_channels: BTreeMap<WorkerId, Instant>,
}

impl OrphanSockets {
    pub(crate) fn socket_slots(&self) -> u32 {
        self.socket_slots
    }

    /// Records that the slots `0..slots` have sockets.
    pub(crate) fn add_sockets(&mut self, slots: u32) {
        self.socket_slots = self.socket_slots.max(slots);
    }

    /// Records that a worker adopted these slots before an upgrade.
    pub(crate) fn record_adopted_slots(&mut self, worker: WorkerId, slots: &[Slot]) {
        self.adopters.extend(slots.iter().map(|slot| (*slot, worker)));
    }

    pub(crate) fn adopters(&self) -> impl Iterator<Item = (Slot, WorkerId)> {
        self.adopters.iter().map(|(slot, worker)| (*slot, *worker))
    }

    /// Returns the slots that a worker has adopted.
    pub(crate) fn slots_adopted_by(&self, worker: WorkerId) -> Vec<Slot> {
        self.adopters().filter(|(_, adopter)| *adopter == worker).map(|(slot, _)| slot).collect()
    }

    pub(crate) fn dispatch_targets(&self) -> &BTreeMap<Slot, WorkerId> {
        &self.dispatch_targets
    }

    /// Records that the worker could not adopt the slot. Another one may.
    pub(crate) fn adoption_failed(&mut self, now: Instant, worker: WorkerId, slot: Slot) {
        if self.adopters.get(&slot) == Some(&worker) {
            self.adopters.remove(&slot);
        }
        // If the slot has several sockets, some may have reached the worker.
        self.release_failed(now, worker, slot);
    }

    /// Records that the release could not be sent. It is retried.
    pub(crate) fn release_failed(&mut self, now: Instant, worker: WorkerId, slot: Slot) {
        self.full_channels.insert(worker, now + FULL_CHANNEL_RETRY_DELAY);
        self.pending_releases.insert((worker, slot));
    }

    /// Gives every slot with sockets exactly one accepting worker. The slots from `surplus_from` on have no worker of
    /// their own any more.
    pub(crate) fn assign_adopters(
        &mut self,
        now: Instant,
        workers: &WorkerTable,
        surplus_from: u32,
        actions: &mut Vec<Action>,
    ) {
        if self.socket_slots == 0 {
            return;
        }
        // A worker that drains stops accepting by itself.
        self.adopters.retain(|_, worker| workers.is_serving(*worker));
        self.pending_releases.retain(|(worker, _)| workers.is_serving(*worker));
        self.full_channels.retain(|worker, until| now < *until && workers.is_serving(*worker));
        self.retry_releases(actions);
        let accepting = || workers.iter().filter(|record| record.can_accept());
        let served: BTreeSet<Slot> = accepting().map(WorkerRecord::socket_slot).collect();
        let candidates: BTreeSet<WorkerId> = accepting().map(|record| record.tag.id).collect();
        self.adopters.retain(|slot, worker| {
            let is_served = served.contains(slot);
            let (worker, slot) = (*worker, *slot);
            actions.extend(is_served.then_some(Action::ReleaseSlot { worker, slot }));
            !is_served
        });
        for slot in (0..self.socket_slots).map(Slot).filter(|slot| !served.contains(slot)) {
            let adopter = self.adopters.get(&slot);
            if adopter.is_none_or(|adopter| !candidates.contains(adopter)) {
                self.assign_adopter(slot, &candidates, actions);
            }
        }
        self.balance_adopters(&candidates, surplus_from, actions);
    }

    /// Announces the worker of each slot where it differs from the last announcement. Of several it is the youngest.
    ///
    /// `slot_of` returns the slot whose connections a worker gets. The announcements come before the first drain: a worker
    /// that drains may rely on getting no new connections.
    pub(crate) fn announce_dispatch_targets(
        &mut self,
        workers: &WorkerTable,
        slot_of: fn(&WorkerRecord) -> Slot,
        actions: &mut Vec<Action>,
    ) {
        if self.socket_slots == 0 && self.dispatch_targets.is_empty() {
            return;
        }
        let accepting = workers.iter().filter(|record| record.can_accept());
        let own = accepting.map(|record| (slot_of(record), record.tag.id));
        let targets: BTreeMap<Slot, WorkerId> =
            own.filter(|(slot, _)| slot.0 < self.socket_slots).collect();
        let changed = (0..self.socket_slots).map(Slot).filter_map(|slot| {
            let worker = targets.get(&slot).copied();
            (self.dispatch_targets.get(&slot).copied() != worker)
                .then_some(Action::SetDispatchTarget { slot, worker })
        });
        let first_drain = actions.iter().position(|action| matches!(action, Action::Drain(_)));
        let first_drain = first_drain.unwrap_or(actions.len());
        let changed: Vec<Action> = changed.collect();
        actions.splice(first_drain..first_drain, changed);
        self.dispatch_targets = targets;
    }

    /// Gives the slot to the candidate with the fewest adopted slots. The former adopter releases it afterwards:
    /// for a moment both accept, but never none.
    fn assign_adopter(
        &mut self,
        slot: Slot,
        candidates: &BTreeSet<WorkerId>,
        actions: &mut Vec<Action>,
    ) {
        let best = self
            .reachable_candidates(candidates)
            .min_by_key(|worker| (self.adopted_count(*worker), worker.0));
        let Some(worker) = best else { return };
        self.pending_releases.remove(&(worker, slot));
        actions.push(Action::AdoptSlot { worker, slot });
        if let Some(former) = self.adopters.insert(slot, worker) {
            actions.push(Action::ReleaseSlot { worker: former, slot });
        }
    }

    /// Balances the slots without a worker of their own over the adopters. The others are released soon anyway.
    fn balance_adopters(
        &mut self,
        candidates: &BTreeSet<WorkerId>,
        surplus_from: u32,
        actions: &mut Vec<Action>,
    ) {
        for _ in surplus_from..self.socket_slots {
            let least = self
                .reachable_candidates(candidates)
                .map(|worker| self.adopted_count(worker))
                .min();
            let overloaded = self.adopters().find(|(slot, worker)| {
                slot.0 >= surplus_from
                    && least.is_some_and(|least| self.adopted_count(*worker) >= least + 2)
            });
            let Some((slot, _)) = overloaded else { return };
            self.assign_adopter(slot, candidates, actions);
        }
    }

    /// Retries the releases that failed because the adopter's channel was full.
    fn retry_releases(&mut self, actions: &mut Vec<Action>) {
        let OrphanSockets { pending_releases, full_channels, adopters, .. } = self;
        pending_releases.retain(|(worker, slot)| {
            let is_reachable = !full_channels.contains_key(worker);
            if is_reachable && adopters.get(slot) != Some(worker) {
                actions.push(Action::ReleaseSlot { worker: *worker, slot: *slot });
            }
            !is_reachable
        });
    }

    /// Returns the candidates whose channel was not full recently.
    fn reachable_candidates(
        &self,
        candidates: &BTreeSet<WorkerId>,
    ) -> impl Iterator<Item = WorkerId> {
        candidates.iter().copied().filter(|worker| self.is_reachable(*worker))
    }

    pub(crate) fn is_reachable(&self, worker: WorkerId) -> bool {
        !self.full_channels.contains_key(&worker)
    }

    fn adopted_count(&self, worker: WorkerId) -> usize {
        self.adopters.values().filter(|adopter| **adopter == worker).count()
    }
}
