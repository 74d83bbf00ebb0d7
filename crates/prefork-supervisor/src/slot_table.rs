//! The table of slots: which worker holds each slot, and what the next one is forked as.

use std::ops::{Index, IndexMut};

use crate::command::WorkerEnvironment;
use crate::worker_identity::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
use crate::worker_table::WorkerTable;

/// One slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotEntry {
    pub(crate) slot: Slot,
    /// The kind of its workers.
    pub(crate) kind: &'static str,
    /// The worker that serves the slot, or boots to serve it.
    pub(crate) holder: Option<WorkerId>,
    /// The worker that takes over from the holder when it is ready.
    pub(crate) successor: Option<WorkerId>,
    /// The generation of the slot's next worker.
    pub(crate) generation: Generation,
    pub(crate) restart: RestartPolicy,
    /// The last worker that was ready here and is to be replaced when it ends.
    pub(crate) last_ready: Option<WorkerId>,
    /// The reserved id of the slot's first worker.
    pub(crate) reserved_id: Option<WorkerId>,
    /// Additional environment variables of its workers.
    pub(crate) environment: WorkerEnvironment,
}

/// Whether an empty slot gets another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// A worker is forked as soon as the crash back-off allows it.
    Restart,
    /// The application was asked whether to replace this worker.
    AwaitDecision(WorkerTag),
    /// The slot stays empty until a reload or a scale command.
    LeaveEmpty,
}

impl SlotEntry {
    fn new(slot: Slot, kind: &'static str, generation: Generation) -> SlotEntry {
        SlotEntry {
            slot,
            kind,
            holder: None,
            successor: None,
            generation,
            restart: RestartPolicy::Restart,
            last_ready: None,
            reserved_id: None,
            environment: WorkerEnvironment::new(),
        }
    }

    /// Returns whether the slot stays empty until a reload or a scale command.
    pub(crate) fn is_kept_empty(&self) -> bool {
        self.restart == RestartPolicy::LeaveEmpty && self.holder.is_none()
    }

    pub(crate) fn is_served(&self, workers: &WorkerTable) -> bool {
        self.holder.is_some_and(|holder| workers.is_serving(holder))
    }
}

/// All slots in the order of their numbers: first those of `web`, where entry `i` is slot `i`, then those of other
/// kinds.
#[derive(Debug)]
pub(crate) struct SlotTable(Vec<SlotEntry>);

impl SlotTable {
    /// Creates the slots of the kind `web`.
    pub(crate) fn new_web_slots(count: u32, generation: Generation) -> SlotTable {
        let mut table = SlotTable(Vec::new());
        table.add_slots(Slot(0), 0..count, WEB_KIND, generation);
        table
    }

    /// Adds the slots `first + range` for workers of one kind.
    pub(crate) fn add_slots(
        &mut self,
        first: Slot,
        range: std::ops::Range<u32>,
        kind: &'static str,
        generation: Generation,
    ) {
        let slots = range.map(|n| SlotEntry::new(Slot(first.0 + n), kind, generation));
        self.0.extend(slots);
        self.0.sort_by_key(|entry| entry.slot);
    }

    /// Removes the entries for which `is_surplus` is true.
    pub(crate) fn remove_slots_if(&mut self, is_surplus: impl Fn(&SlotEntry) -> bool) {
        self.0.retain(|entry| !is_surplus(entry));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, SlotEntry> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, SlotEntry> {
        self.0.iter_mut()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut SlotEntry> {
        self.iter_mut().find(|entry| entry.slot == slot)
    }

    /// Returns the index of the slot that the worker holds.
    pub(crate) fn index_of_holder(&self, worker: WorkerId) -> Option<usize> {
        self.iter().position(|entry| entry.holder == Some(worker))
    }

    /// Returns the index of the slot in which the worker is to take over.
    pub(crate) fn index_of_successor(&self, worker: WorkerId) -> Option<usize> {
        self.iter().position(|entry| entry.successor == Some(worker))
    }

    pub(crate) fn is_successor(&self, worker: WorkerId) -> bool {
        self.index_of_successor(worker).is_some()
    }

    /// Returns whether the worker holds a slot or is to take one over.
    pub(crate) fn holds_or_awaits_slot(&self, worker: WorkerId) -> bool {
        self.index_of_holder(worker).is_some() || self.is_successor(worker)
    }

    /// Empties the slot that the worker holds, and returns whether it held one.
    pub(crate) fn release_holder(&mut self, worker: WorkerId) -> bool {
        let Some(index) = self.index_of_holder(worker) else { return false };
        self.0[index].holder = None;
        true
    }

    pub(crate) fn release_successor(&mut self, worker: WorkerId) {
        if let Some(index) = self.index_of_successor(worker) {
            self.0[index].successor = None;
        }
    }

    /// Removes and returns all successors.
    pub(crate) fn take_successors(&mut self) -> Vec<WorkerId> {
        self.iter_mut().filter_map(|entry| entry.successor.take()).collect()
    }

    /// Returns whether every slot that should have a worker is served.
    pub(crate) fn are_all_slots_served(&self, workers: &WorkerTable) -> bool {
        self.iter()
            .all(|entry| entry.is_served(workers) || entry.restart == RestartPolicy::LeaveEmpty)
    }

    pub(crate) fn served_slot_count(&self, workers: &WorkerTable) -> u32 {
        self.iter().filter(|entry| entry.is_served(workers)).count() as u32
    }

    /// Allows forks for the empty slots of this kind again.
    pub(crate) fn refill_slots(&mut self, kind: &str) {
        for entry in self.iter_mut().filter(|entry| entry.kind == kind) {
            if entry.restart == RestartPolicy::LeaveEmpty {
                entry.restart = RestartPolicy::Restart;
            }
        }
    }

    pub(crate) fn slots_left_empty(&self) -> Vec<Slot> {
        self.iter().filter(|entry| entry.is_kept_empty()).map(|entry| entry.slot).collect()
    }

    pub(crate) fn environment_of(&self, slot: Slot) -> &[(String, String)] {
        self.iter().find(|entry| entry.slot == slot).map_or(&[], |entry| &entry.environment)
    }

    /// Returns the slots with environment variables of their own.
    pub(crate) fn environments(&self) -> Vec<(Slot, WorkerEnvironment)> {
        let own = self.iter().filter(|entry| !entry.environment.is_empty());
        own.map(|entry| (entry.slot, entry.environment.clone())).collect()
    }
}

impl Index<usize> for SlotTable {
    type Output = SlotEntry;

    fn index(&self, index: usize) -> &SlotEntry {
        &self.0[index]
    }
}

impl IndexMut<usize> for SlotTable {
    fn index_mut(&mut self, index: usize) -> &mut SlotEntry {
        &mut self.0[index]
    }
}
