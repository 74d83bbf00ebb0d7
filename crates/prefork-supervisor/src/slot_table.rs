//! The table of slots: which worker holds each slot, and what the next one is forked as.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::time::Instant;

use crate::command::WorkerEnvironment;
use crate::saved_state::SavedForkedSlot;
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
    /// Whether the program added the slot with `ScaleChange::AddWorker`, besides the configured number.
    pub(crate) is_forked: bool,
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
    /// The slot stays empty until this time, a reload or a scale command.
    RestartAt(Instant),
    /// The slot stays empty until a reload or a scale command.
    LeaveEmpty,
}

impl RestartPolicy {
    /// Returns whether the slot stays empty on purpose, for a time or for good.
    pub(crate) fn leaves_empty(self) -> bool {
        matches!(self, RestartPolicy::RestartAt(_) | RestartPolicy::LeaveEmpty)
    }
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
            is_forked: false,
            reserved_id: None,
            environment: WorkerEnvironment::new(),
        }
    }

    /// Returns whether the slot stays empty on purpose, for a time or for good.
    pub(crate) fn is_kept_empty(&self) -> bool {
        self.restart.leaves_empty() && self.holder.is_none()
    }

    /// Returns what an upgrade keeps of the slot, if the program added it.
    pub(crate) fn saved(&self) -> Option<SavedForkedSlot> {
        self.is_forked.then(|| SavedForkedSlot {
            slot: self.slot,
            reserved_id: self.reserved_id,
            environment: self.environment.clone(),
        })
    }

    pub(crate) fn is_served(&self, workers: &WorkerTable) -> bool {
        self.holder.is_some_and(|holder| workers.is_serving(holder))
    }
}

/// All slots in the order of their numbers: first those of `web`, where entry `i` is slot `i`, then those of other
/// kinds.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    entries: Vec<SlotEntry>,
    /// The variables of slots that the program declared before the start, whether the slots exist or not.
    declared_environments: BTreeMap<Slot, WorkerEnvironment>,
}

impl SlotTable {
    /// Creates the slots of the kind `web`.
    pub(crate) fn new_web_slots(count: u32, generation: Generation) -> SlotTable {
        let mut table = SlotTable::default();
        table.add_slots(Slot(0), 0..count, WEB_KIND, generation);
        table
    }

    /// Sets the variables of slots, now and when they are added later.
    pub(crate) fn declare_environments(&mut self, declared: BTreeMap<Slot, WorkerEnvironment>) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.is_forked) {
            entry.environment = declared.get(&entry.slot).cloned().unwrap_or_default();
        }
        self.declared_environments = declared;
    }

    /// Returns the variables that the program declared for the slot before the start.
    pub(crate) fn declared_environment(&self, slot: Slot) -> &[(String, String)] {
        self.declared_environments.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Adds the slots `first + range` for workers of one kind.
    pub(crate) fn add_slots(
        &mut self,
        first: Slot,
        range: std::ops::Range<u32>,
        kind: &'static str,
        generation: Generation,
    ) {
        for slot in range.map(|n| Slot(first.0 + n)) {
            let environment = self.declared_environment(slot).to_vec();
            let entry = SlotEntry::new(slot, kind, generation);
            self.entries.push(SlotEntry { environment, ..entry });
        }
        self.entries.sort_by_key(|entry| entry.slot);
    }

    /// Removes and returns the entries for which `is_surplus` is true.
    pub(crate) fn remove_slots_if(
        &mut self,
        is_surplus: impl Fn(&SlotEntry) -> bool,
    ) -> Vec<SlotEntry> {
        self.entries.extract_if(.., |entry| is_surplus(entry)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, SlotEntry> {
        self.entries.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, SlotEntry> {
        self.entries.iter_mut()
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
        self.entries[index].holder = None;
        true
    }

    pub(crate) fn release_successor(&mut self, worker: WorkerId) {
        if let Some(index) = self.index_of_successor(worker) {
            self.entries[index].successor = None;
        }
    }

    /// Removes and returns all successors.
    pub(crate) fn take_successors(&mut self) -> Vec<WorkerId> {
        self.iter_mut().filter_map(|entry| entry.successor.take()).collect()
    }

    /// Returns whether every slot that should have a worker, now or after a delay, is served.
    pub(crate) fn are_all_slots_served(&self, workers: &WorkerTable) -> bool {
        self.iter()
            .all(|entry| entry.is_served(workers) || entry.restart == RestartPolicy::LeaveEmpty)
    }

    /// Returns whether every slot that should have a worker now is served.
    pub(crate) fn are_open_slots_served(&self, workers: &WorkerTable) -> bool {
        self.iter().all(|entry| entry.is_served(workers) || entry.restart.leaves_empty())
    }

    /// Returns when the first delayed restart is due.
    pub(crate) fn restart_deadline(&self) -> Option<Instant> {
        let delays = self.iter().filter_map(|entry| match entry.restart {
            RestartPolicy::RestartAt(at) => Some(at),
            RestartPolicy::Restart
            | RestartPolicy::AwaitDecision(_)
            | RestartPolicy::LeaveEmpty => None,
        });
        delays.min()
    }

    /// Allows the forks whose delay has passed.
    pub(crate) fn end_restart_delays(&mut self, now: Instant) {
        for entry in self.iter_mut() {
            if matches!(entry.restart, RestartPolicy::RestartAt(at) if at <= now) {
                entry.restart = RestartPolicy::Restart;
            }
        }
    }

    pub(crate) fn served_slot_count(&self, workers: &WorkerTable) -> u32 {
        self.iter().filter(|entry| entry.is_served(workers)).count() as u32
    }

    /// Allows forks for the empty slots of this kind again.
    pub(crate) fn refill_slots(&mut self, kind: &str) {
        for entry in self.iter_mut().filter(|entry| entry.kind == kind) {
            if entry.restart.leaves_empty() {
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

    /// Returns how many slots of this kind the program added besides the configured number.
    pub(crate) fn forked_slot_count(&self, kind: &str) -> u32 {
        self.iter().filter(|entry| entry.is_forked && entry.kind == kind).count() as u32
    }

    /// Takes the ids that were reserved for workers which have not been forked yet.
    pub(crate) fn take_reserved_ids(&mut self) -> Vec<WorkerId> {
        self.iter_mut().filter_map(|entry| entry.reserved_id.take()).collect()
    }
}

impl Index<usize> for SlotTable {
    type Output = SlotEntry;

    fn index(&self, index: usize) -> &SlotEntry {
        &self.entries[index]
    }
}

impl IndexMut<usize> for SlotTable {
    fn index_mut(&mut self, index: usize) -> &mut SlotEntry {
        &mut self.entries[index]
    }
}
