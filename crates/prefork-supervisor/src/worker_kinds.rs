//! Worker kinds besides `web`: each has slots, a number of workers and recycling limits of its own.
//!
//! The slots of a kind begin at a multiple of `Slot::MAX_SLOTS_PER_KIND` and keep their numbers when anything is
//! scaled. After an upgrade a kind keeps the slots of its running workers, in whatever order the new binary declares
//! its kinds.

use std::collections::BTreeSet;

use crate::config::{RecycleLimits, SupervisorConfig, WorkerKindConfig};
use crate::saved_state::SavedKind;
use crate::worker_identity::{Slot, WorkerTag};

/// The kinds besides `web`, in the order of their declaration.
#[derive(Debug, Default)]
pub(crate) struct WorkerKinds(Vec<WorkerKind>);

/// One kind, and where its slots begin.
#[derive(Debug, Clone)]
pub(crate) struct WorkerKind {
    /// The declaration. `workers` changes with each scale command.
    pub(crate) config: WorkerKindConfig,
    /// How many workers the program declared.
    pub(crate) declared_workers: u32,
    pub(crate) first_slot: Slot,
}

impl WorkerKind {
    /// Returns what an upgrade keeps of the kind.
    pub(crate) fn saved(&self) -> SavedKind {
        // A new binary that declares a fixed number gets that number, not what the demand was.
        let is_ranged = self.config.demand_range.is_some();
        SavedKind {
            name: self.config.name.to_string(),
            wanted_workers: self.config.workers,
            declared_workers: if is_ranged { self.config.workers } else { self.declared_workers },
        }
    }
}

impl WorkerKinds {
    /// Assigns slots to the declared kinds. A kind that occurs among `running` workers keeps their slots.
    pub(crate) fn assign_slots(
        declared: Vec<WorkerKindConfig>,
        running: &[WorkerTag],
    ) -> WorkerKinds {
        let of_running = running.iter().map(|tag| tag.slot.first_slot_of_kind());
        let mut taken: BTreeSet<Slot> = of_running.chain([Slot(0)]).collect();
        let mut kinds = Vec::new();
        for config in declared {
            let known = running.iter().find(|tag| tag.kind == config.name);
            let mut free =
                (1..).map(|n| Slot(n * Slot::MAX_SLOTS_PER_KIND)).filter(|s| !taken.contains(s));
            let first = known.map(|tag| tag.slot.first_slot_of_kind()).or_else(|| free.next());
            let Some(first_slot) = first else { continue };
            taken.insert(first_slot);
            let declared_workers = config.workers;
            kinds.push(WorkerKind { config, declared_workers, first_slot });
        }
        WorkerKinds(kinds)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, WorkerKind> {
        self.0.iter()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&WorkerKind> {
        self.iter().find(|kind| kind.config.name == name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut WorkerKind> {
        self.0.iter_mut().find(|kind| kind.config.name == name)
    }

    /// Continues with the numbers of workers before an upgrade, as far as all kinds together stay within `max`.
    pub(crate) fn restore_worker_counts(&mut self, saved: &[SavedKind], max: u32) {
        for kind in &mut self.0 {
            let known = saved.iter().find(|one| one.name == kind.config.name);
            kind.config.workers = known.map_or(kind.config.workers, |one| one.wanted_workers);
        }
        if self.worker_count() > max {
            self.0.iter_mut().for_each(|kind| kind.config.workers = kind.declared_workers);
        }
    }

    /// Returns the number of workers over all kinds besides `web`.
    pub(crate) fn worker_count(&self) -> u32 {
        self.iter().map(|kind| kind.config.workers).fold(0, u32::saturating_add)
    }

    /// Returns the limits of workers of this kind, which may be `web`.
    pub(crate) fn recycle_limits_of(&self, name: &str, config: &SupervisorConfig) -> RecycleLimits {
        self.get(name).map_or_else(|| config.web_recycle_limits(), |kind| kind.config.limits)
    }

    /// Returns the limits of all kinds, `web` first.
    pub(crate) fn all_recycle_limits(
        &self,
        config: &SupervisorConfig,
    ) -> impl Iterator<Item = RecycleLimits> {
        [config.web_recycle_limits()].into_iter().chain(self.iter().map(|kind| kind.config.limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker_identity::{Generation, WorkerId};

    fn declare_kinds(names: &[&'static str]) -> Vec<WorkerKindConfig> {
        let config = |name| WorkerKindConfig {
            name,
            workers: 1,
            demand_range: None,
            limits: RecycleLimits::default(),
            is_kept_by_reload: false,
        };
        names.iter().copied().map(config).collect()
    }

    #[test]
    fn kinds_get_consecutive_ranges_of_slots() {
        let kinds = WorkerKinds::assign_slots(declare_kinds(&["a", "b"]), &[]);
        let first: Vec<u32> = kinds.iter().map(|kind| kind.first_slot.0).collect();
        assert_eq!(first, [1024, 2048]);
    }

    #[test]
    fn a_kind_keeps_the_slots_of_its_running_workers() {
        let (slot, generation) = (Slot(2050), Generation(1));
        let tag = WorkerTag { id: WorkerId(1), slot, generation, pid: None, kind: "b" };
        let gone = WorkerTag { slot: Slot(1024), kind: "old", ..tag };
        let kinds = WorkerKinds::assign_slots(declare_kinds(&["new", "b"]), &[tag, gone]);
        let first: Vec<u32> = kinds.iter().map(|kind| kind.first_slot.0).collect();
        assert_eq!(first, [3072, 2048]);
    }
}
