//! Corrects how many connections count as selected for a slot but not yet accepted. Pure.
//!
//! The program counts each SYN for which it selects a slot. Not every one becomes a connection: handshakes fail, a SYN
//! flood has none, and with SYN cookies the last packet of a handshake is selected again, perhaps for another slot. So
//! *selected* gets ahead of *accepted* plus *queued*. The surplus consists of handshakes that are under way and of
//! those that will never finish; only the latter stay. So once a second the primary subtracts what was surplus at two
//! checks in a row: the smaller of both. Where handshakes are slow all the time, this subtracts some of them as well.
//! Such a slot counts as less loaded than it is; as all slots see the same clients, all do so by the same number.
//!
//! The counts are read one after another while they change. In the order *accepted, queued, selected*, a connection
//! that moves meanwhile looks like surplus, which one check alone does not subtract. Hence a deficit is real (another
//! worker emptied the queue before the count began, or a worker reports wrong counts), and is corrected at once.
//!
//! The correction is *added* to the counter, so that no count of the program is lost. Whatever the worker writes, the
//! correction brings *selected* to the worker's own count plus the queue, which changes the load of that slot only.

/// The counts of a slot, read in the order of the fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotCounts {
    /// Connections that the worker has accepted, as it reports.
    pub(super) accepted: u64,
    /// Connections in the accept queues, as the kernel reports.
    pub(super) queued: u64,
    /// SYNs for which the program has selected the slot.
    pub(super) selected: u64,
}

/// The surplus of a slot at the last check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CountReconciliation {
    surplus: u64,
}

impl CountReconciliation {
    /// Returns the wrapping correction to add to *selected*.
    pub(super) fn compute_correction(&mut self, counts: SlotCounts) -> u64 {
        let known = counts.accepted.wrapping_add(counts.queued);
        let surplus = counts.selected.wrapping_sub(known) as i64;
        if surplus <= 0 {
            self.surplus = 0;
            return surplus.unsigned_abs();
        }
        let surplus = surplus as u64;
        let stale = surplus.min(self.surplus);
        self.surplus = surplus - stale;
        stale.wrapping_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(accepted: u64, queued: u64, selected: u64) -> SlotCounts {
        SlotCounts { accepted, queued, selected }
    }

    #[test]
    fn only_handshakes_that_never_finish_are_subtracted() {
        let mut reconciliation = CountReconciliation::default();
        assert_eq!(reconciliation.compute_correction(counts(10, 2, 17)), 0);
        // Two of the five finished, and three others began.
        assert_eq!(reconciliation.compute_correction(counts(10, 4, 20)), 5_u64.wrapping_neg());
        // Of the surplus now, only one was there at the last check.
        assert_eq!(reconciliation.compute_correction(counts(10, 4, 15)), 1_u64.wrapping_neg());
        assert_eq!(reconciliation.compute_correction(counts(10, 4, 14)), 0);
    }

    #[test]
    fn a_deficit_is_corrected_at_once() {
        assert_eq!(CountReconciliation::default().compute_correction(counts(10, 2, 7)), 5);
    }

    proptest! {
        /// After a flood, and whatever the worker reports.
        #[test]
        fn counts_are_correct_after_two_checks_without_handshakes(
            accepted in any::<u64>(), queued in 0_u64..70_000, selected in any::<u64>(),
            before in any::<u64>(),
        ) {
            let (mut reconciliation, mut selected) = (CountReconciliation { surplus: before }, selected);
            for _ in 0..2 {
                selected = selected.wrapping_add(reconciliation.compute_correction(counts(accepted, queued, selected)));
            }
            prop_assert_eq!(selected, accepted.wrapping_add(queued));
        }

        /// No check subtracts more than the surplus of the one before.
        #[test]
        fn handshakes_since_the_last_check_stay_counted(leaked in 0_u64..1000, recent in 0_u64..1000) {
            let mut reconciliation = CountReconciliation::default();
            let first = reconciliation.compute_correction(counts(0, 0, leaked));
            prop_assert_eq!(first, 0);
            let selected = leaked + recent;
            let selected = selected.wrapping_add(reconciliation.compute_correction(counts(0, 0, selected)));
            prop_assert_eq!(selected, recent);
        }
    }
}
