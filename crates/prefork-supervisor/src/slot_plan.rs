//! The plan for the slots of a rollout: how many there are afterwards, and which of them keep a role.
//!
//! A program can add workers to the configured number, each with variables of its own (`ScaleChange::AddWorker`). They
//! are part of the cluster and outlive reloads and upgrades. Where fewer slots remain than before, the variables of such
//! a worker move to a slot that stays.

use crate::MAX_WORKERS;
use crate::command::WorkerEnvironment;
use crate::saved_state::SavedKind;
use crate::slot_table::{SlotEntry, SlotTable};
use crate::supervisor::Supervisor;
use crate::worker_identity::{Slot, WEB_KIND, WorkerTag};

/// The slots after a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotPlan {
    /// The number of `web` workers that the configuration names.
    pub(crate) configured_workers: u32,
    /// The number of slots of each kind.
    pub(crate) sizes: Vec<(&'static str, u32)>,
    /// Slots that the program added and that are removed, each with the slot that gets its variables.
    moves: Vec<(Slot, Slot)>,
}

impl SlotPlan {
    /// Plans the slots of several kinds: their names, first slots and sizes.
    pub(crate) fn new(
        configured_workers: u32,
        kinds: &[(&'static str, Slot, u32)],
        slots: &SlotTable,
    ) -> SlotPlan {
        let moves = kinds.iter().flat_map(|(_, first, size)| plan_moves(slots, *first, *size));
        let sizes = kinds.iter().map(|(kind, _, size)| (*kind, *size));
        SlotPlan { configured_workers, sizes: sizes.collect(), moves: moves.collect() }
    }

    /// Returns the variables that a worker of the new generation has in this slot.
    fn environment_of<'a>(&self, slot: Slot, slots: &'a SlotTable) -> &'a [(String, String)] {
        if let Some((from, _)) = self.moves.iter().find(|(_, to)| *to == slot) {
            slots.environment_of(*from)
        } else if self.moves.iter().any(|(from, _)| *from == slot) {
            slots.declared_environment(slot)
        } else {
            slots.environment_of(slot)
        }
    }

    /// Moves the variables to the slots that stay.
    pub(crate) fn apply_moves(&self, slots: &mut SlotTable) {
        for (from, to) in &self.moves {
            let declared = slots.declared_environment(*from).to_vec();
            let Some(entry) = slots.get_mut(*from) else { continue };
            entry.is_forked = false;
            let environment: WorkerEnvironment =
                std::mem::replace(&mut entry.environment, declared);
            if let Some(entry) = slots.get_mut(*to) {
                (entry.environment, entry.is_forked) = (environment, true);
            }
        }
    }
}

/// Pairs each slot that the program added at or beyond `first + size` with a configured slot below, the highest first.
fn plan_moves(slots: &SlotTable, first: Slot, size: u32) -> Vec<(Slot, Slot)> {
    let is_of_kind = |entry: &&SlotEntry| entry.slot.first_slot_of_kind() == first;
    let (stay, surplus): (Vec<&SlotEntry>, Vec<&SlotEntry>) =
        slots.iter().filter(is_of_kind).partition(|entry| entry.slot.0 < first.0 + size);
    let moved = surplus.iter().filter(|entry| entry.is_forked).map(|entry| entry.slot);
    let free = stay.iter().rev().filter(|entry| !entry.is_forked).map(|entry| entry.slot);
    moved.zip(free).collect()
}

impl Supervisor {
    /// Returns how many `web` workers there are after a reload whose configuration names `configured`.
    ///
    /// A number that has not changed since the last reload keeps what was scaled and forked since. Another one replaces
    /// it, and the workers that the program forked come on top.
    pub fn web_workers_after_reload(&self, configured: u32) -> u32 {
        if self.config.max_workers == 1 {
            return configured;
        }
        workers_after_rollout(
            self.config.workers,
            (self.configured_workers, configured),
            self.slots.forked_slot_count(WEB_KIND),
        )
    }

    /// Plans the slots of all kinds after an upgrade. `before` is the configured number of `web` workers that the old
    /// binary passed on, `configured` that of the new one.
    pub(crate) fn plan_all_slots(
        &self,
        before: Option<u32>,
        configured: u32,
        saved: &[SavedKind],
    ) -> SlotPlan {
        let forked = |kind: &str| self.slots.forked_slot_count(kind);
        let web = match self.config.max_workers {
            1 => configured,
            _ => workers_after_upgrade(self.config.workers, before, configured, forked(WEB_KIND)),
        };
        let mut sizes = vec![(WEB_KIND, Slot(0), web)];
        sizes.extend(self.kinds.iter().map(|kind| {
            let (name, now) = (kind.config.name, kind.declared_workers);
            let before = saved.iter().find(|one| one.name == name);
            let before = before.map_or(now, |one| one.declared_workers);
            let size = match kind.config.demand_range {
                Some(range) => range.nearest(kind.config.workers),
                None => workers_after_rollout(kind.config.workers, (before, now), forked(name)),
            };
            (name, kind.first_slot, size)
        }));
        SlotPlan::new(configured, &sizes, &self.slots)
    }

    pub(crate) fn plan_web_slots(&self, configured: u32) -> SlotPlan {
        let size = self.web_workers_after_reload(configured);
        SlotPlan::new(configured, &[(WEB_KIND, Slot(0), size)], &self.slots)
    }

    /// Returns the additional environment variables of a worker that is being forked.
    pub fn worker_environment(&self, tag: WorkerTag) -> &[(String, String)] {
        match self.reload.plan_for(tag.generation) {
            Some(plan) => plan.environment_of(tag.slot, &self.slots),
            None => self.slots.environment_of(tag.slot),
        }
    }
}

/// Returns the number of `web` workers after an upgrade.
///
/// The old binary had `current` workers, of which its program added `forked`. Its configuration named `before`, which an
/// older binary does not pass on; that of the new binary names `now`.
pub fn workers_after_upgrade(current: u32, before: Option<u32>, now: u32, forked: u32) -> u32 {
    // Without the earlier number, only the workers of the program are known to be added.
    let before = before.or(now.checked_add(1)).unwrap_or_default();
    workers_after_rollout(current, (before, now), forked)
}

/// Returns the number of workers of one kind after a rollout, given the current number, the number that was declared
/// `before` and is declared `now`, and how many of the current workers the program forked.
pub(crate) fn workers_after_rollout(current: u32, (before, now): (u32, u32), forked: u32) -> u32 {
    if before == now { current } else { now.saturating_add(forked).min(MAX_WORKERS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker_identity::Generation;

    /// Returns six `web` slots, of which the program added those in `forked`.
    fn table_with_forked_slots(forked: &[u32]) -> SlotTable {
        let mut slots = SlotTable::new_web_slots(6, Generation(1));
        for slot in forked {
            let entry = slots.get_mut(Slot(*slot)).expect("one of six");
            entry.is_forked = true;
            entry.environment = vec![("ROLE".to_string(), slot.to_string())];
        }
        slots
    }

    fn roles_after(forked: &[u32], size: u32) -> Vec<String> {
        let mut slots = table_with_forked_slots(forked);
        let plan = SlotPlan::new(1, &[(WEB_KIND, Slot(0), size)], &slots);
        let role = |environment: &[(String, String)]| {
            environment.first().map_or(String::new(), |(_, value)| value.clone())
        };
        let planned: Vec<String> =
            (0..size).map(|slot| role(plan.environment_of(Slot(slot), &slots))).collect();
        plan.apply_moves(&mut slots);
        let applied: Vec<String> =
            (0..size).map(|slot| role(slots.environment_of(Slot(slot)))).collect();
        assert_eq!(planned, applied);
        let kept = slots.iter().filter(|entry| entry.is_forked && entry.slot.0 < size).count();
        assert_eq!(kept, forked.len(), "every forked slot stays");
        applied
    }

    #[test]
    fn a_forked_worker_of_a_removed_slot_moves_to_one_that_stays() {
        assert_eq!(roles_after(&[4, 5], 6), ["", "", "", "", "4", "5"]);
        assert_eq!(roles_after(&[4, 5], 3), ["", "5", "4"]);
        assert_eq!(roles_after(&[1, 5], 3), ["", "1", "5"]);
    }

    #[test]
    fn a_changed_number_of_workers_replaces_the_scaled_one_and_keeps_forked_workers() {
        assert_eq!(workers_after_rollout(3, (1, 1), 2), 3);
        assert_eq!(workers_after_rollout(3, (1, 2), 2), 4);
        assert_eq!(workers_after_rollout(9, (4, 2), 0), 2);
        assert_eq!(workers_after_rollout(3, (1, MAX_WORKERS), 2), MAX_WORKERS);
    }
}
