//! How many workers a reload may replace at a time: `surge` and `max_unavailable`.

use crate::config::SupervisorConfig;
use crate::slot_table::SlotTable;
use crate::worker_table::WorkerTable;

/// Whether and when the successor of a slot may be forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplacementTiming {
    /// At once, while the holder keeps serving.
    BesideHolder,
    /// At once, if the holder drains first.
    AfterHolder,
    /// Not at present.
    Later,
}

/// How much of `surge` and `max_unavailable` is in use. Counted once for all slots, then kept up to date.
#[derive(Debug)]
pub(crate) struct ReplacementBudget {
    surge: usize,
    max_unavailable: usize,
    /// Successors that are being forked or booted.
    successors: usize,
    /// Successors that boot beside a holder.
    beside_holder: usize,
    /// Slots without a serving holder.
    unserved: usize,
}

impl ReplacementBudget {
    /// Counts the current use.
    pub(crate) fn new(
        config: &SupervisorConfig,
        slots: &SlotTable,
        workers: &WorkerTable,
    ) -> ReplacementBudget {
        let (surge, max_unavailable) = replacement_limits(config);
        let (successors, beside_holder, unserved) = (0, 0, 0);
        let mut budget =
            ReplacementBudget { surge, max_unavailable, successors, beside_holder, unserved };
        for entry in slots.iter() {
            if entry.successor.is_some() {
                budget.count_successor_beside_holder(entry.holder.is_some());
            }
            budget.unserved += usize::from(!entry.is_served(workers));
        }
        budget
    }

    /// Returns whether no slot at all may get a successor now.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.successors >= self.surge + self.max_unavailable
    }

    /// Returns when the successor of a slot may be forked.
    pub(crate) fn replacement_timing(&self, is_held: bool, is_served: bool) -> ReplacementTiming {
        // The slot itself does not count: it is about to be replaced.
        let unserved = self.unserved - usize::from(!is_served);
        if self.is_exhausted() {
            ReplacementTiming::Later
        } else if !is_held || self.beside_holder < self.surge {
            ReplacementTiming::BesideHolder
        } else if unserved < self.max_unavailable {
            ReplacementTiming::AfterHolder
        } else {
            ReplacementTiming::Later
        }
    }

    /// Counts a successor that is forked beside the holder, or for a slot without one.
    pub(crate) fn count_successor_beside_holder(&mut self, is_held: bool) {
        self.successors += 1;
        self.beside_holder += usize::from(is_held);
    }

    /// Counts a successor whose slot's holder drains first.
    pub(crate) fn count_successor_after_holder(&mut self, is_served: bool) {
        self.successors += 1;
        self.unserved += usize::from(is_served);
    }
}

/// Returns whether the maximum number of simultaneous successors is reached.
///
/// A reload asks this after each event, most of which change nothing, so the answer looks at no worker.
pub(crate) fn is_replacement_limit_reached(config: &SupervisorConfig, slots: &SlotTable) -> bool {
    let (surge, max_unavailable) = replacement_limits(config);
    let limit = surge + max_unavailable;
    slots.iter().filter(|entry| entry.successor.is_some()).take(limit).count() == limit
}

fn replacement_limits(config: &SupervisorConfig) -> (usize, usize) {
    let max_unavailable = config.max_unavailable as usize;
    // With both at 0 a reload could not make progress.
    ((config.surge as usize).max(usize::from(max_unavailable == 0)), max_unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_budget(surge: usize, max_unavailable: usize, unserved: usize) -> ReplacementBudget {
        let (successors, beside_holder) = (0, 0);
        ReplacementBudget { surge, max_unavailable, successors, beside_holder, unserved }
    }

    #[test]
    fn surge_is_used_before_workers_are_missing() {
        let mut budget = test_budget(1, 1, 0);
        assert_eq!(budget.replacement_timing(true, true), ReplacementTiming::BesideHolder);
        budget.count_successor_beside_holder(true);
        assert_eq!(budget.replacement_timing(true, true), ReplacementTiming::AfterHolder);
        budget.count_successor_after_holder(true);
        assert!(budget.is_exhausted());
        assert_eq!(budget.replacement_timing(true, true), ReplacementTiming::Later);
    }

    #[test]
    fn an_empty_slot_needs_no_surge() {
        let mut budget = test_budget(1, 1, 1);
        budget.count_successor_beside_holder(true);
        assert_eq!(budget.replacement_timing(true, true), ReplacementTiming::Later);
        assert_eq!(budget.replacement_timing(false, false), ReplacementTiming::BesideHolder);
    }
}
