//! How the number of connections that were chosen for a slot, but not accepted, is kept true. Pure.
//!
//! The program counts each SYN it chooses a slot for. Not every one becomes a connection: handshakes
//! fail, a flood of SYNs has none, and with SYN cookies the last packet chooses again, maybe another slot. So what is *selected* drifts
//! ahead of what is *accepted* plus what is queued. Nothing tells which of the surplus will never come, and which
//! are handshakes under way; but the former stay. So the primary looks once a second, and takes away what was
//! surplus at two looks in a row: the smaller of both. With long handshakes all the time, that takes away some of them
//! too; then a slot counts as less loaded by as many, and as all slots see the same clients, by the same number.
//!
//! The figures are read one after another, while others count on. In the order *accepted, queue, selected* any
//! connection that moves meanwhile looks like surplus, which one look alone does not take away. Hence a deficit
//! is real (somebody else emptied the queue before the count began, or a worker lies), and is made up at once.
//!
//! The correction is *added* to the counter, so that no count of the program is lost. Whatever the worker wrote, it
//! brings `selected` to what that worker says plus the queue: all it can bend is its own slot's load.

/// One look at a slot. In this order.
#[derive(Debug, Clone, Copy)]
pub(in crate::dispatch) struct Look {
    /// What the worker says it took out of the queue.
    pub(in crate::dispatch) accepted: u64,
    /// What waits there, by the kernel's word.
    pub(in crate::dispatch) queued: u64,
    /// What the program chose.
    pub(in crate::dispatch) selected: u64,
}

/// What to remember of a slot from look to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::dispatch) struct Drift {
    surplus: u64,
}

impl Drift {
    /// What to add to `selected`, wrapping around.
    pub(in crate::dispatch) fn correct(&mut self, look: Look) -> u64 {
        let known = look.accepted.wrapping_add(look.queued);
        let surplus = look.selected.wrapping_sub(known) as i64;
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

    fn look(accepted: u64, queued: u64, selected: u64) -> Look {
        Look { accepted, queued, selected }
    }

    #[test]
    fn handshakes_under_way_are_left_alone_and_those_that_never_come_are_not() {
        let mut drift = Drift::default();
        assert_eq!(drift.correct(look(10, 2, 17)), 0);
        // Two of the five came, and three others began.
        assert_eq!(drift.correct(look(10, 4, 20)), 5_u64.wrapping_neg());
        // It is now 15; what was new then, was one: only that may be taken away.
        assert_eq!(drift.correct(look(10, 4, 15)), 1_u64.wrapping_neg());
        assert_eq!(drift.correct(look(10, 4, 14)), 0);
    }

    #[test]
    fn a_deficit_is_made_up_at_once() {
        assert_eq!(Drift::default().correct(look(10, 2, 7)), 5);
    }

    proptest! {
        /// A flood, then calm, whatever the worker says: two looks later the figures fit.
        #[test]
        fn it_comes_true_when_nothing_is_under_way(
            accepted in any::<u64>(), queued in 0_u64..70_000, selected in any::<u64>(),
            before in any::<u64>(),
        ) {
            let (mut drift, mut selected) = (Drift { surplus: before }, selected);
            for _ in 0..2 {
                selected = selected.wrapping_add(drift.correct(look(accepted, queued, selected)));
            }
            prop_assert_eq!(selected, accepted.wrapping_add(queued));
        }

        /// No look takes away more than has been surplus since the one before.
        #[test]
        fn a_young_handshake_survives(leaked in 0_u64..1000, young in 0_u64..1000) {
            let mut drift = Drift::default();
            let first = drift.correct(look(0, 0, leaked));
            prop_assert_eq!(first, 0);
            let selected = leaked + young;
            let selected = selected.wrapping_add(drift.correct(look(0, 0, selected)));
            prop_assert_eq!(selected, young);
        }
    }
}
