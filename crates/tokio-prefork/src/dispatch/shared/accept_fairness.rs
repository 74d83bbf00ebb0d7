//! Compares the connection counts of workers that share a listening socket. Pure.
//!
//! A worker that has two connections more than another one lets that one accept first. If it does not accept, as it is
//! frozen, stopped or busy, the worker skips it for ever more connections (see `SkipBackoff`), until it accepts again.

use crate::scoreboard::OtherWorkerLoad;
use crate::skip_backoff::SkipBackoff;

/// Difference in connections from which a worker lets another one accept first, or is woken for every connection itself.
///
/// With a difference of one, the order of the exclusive wake-ups decides.
pub(crate) const MIN_CONNECTION_DIFFERENCE: u64 = 2;

/// Maximum number of workers that are woken for every connection.
const MAX_ALWAYS_WOKEN: usize = 2;

/// Workers that recently did not accept although they were given precedence.
#[derive(Debug, Default)]
pub(crate) struct AcceptFairness {
    /// Missed chances by worker page, with the count of accepted connections at the last miss.
    missed: Vec<(OtherWorkerLoad, SkipBackoff)>,
}

impl AcceptFairness {
    /// Returns the worker to let accept first: the one with the fewest connections that has at least `min_difference`
    /// fewer than `own` and is expected to accept.
    pub(crate) fn choose_idler_worker(
        &mut self,
        own: u64,
        min_difference: u64,
        others: impl Iterator<Item = OtherWorkerLoad>,
    ) -> Option<OtherWorkerLoad> {
        if own < min_difference {
            return None;
        }
        let mut idlest: Option<OtherWorkerLoad> = None;
        for other in others.filter(|other| other.open_connections + min_difference <= own) {
            let is_idler =
                idlest.is_none_or(|idlest| other.open_connections < idlest.open_connections);
            if self.is_expected_to_accept(&other) && is_idler {
                idlest = Some(other);
            }
        }
        idlest
    }

    fn is_expected_to_accept(&mut self, other: &OtherWorkerLoad) -> bool {
        let Some(at) =
            self.missed.iter().position(|(known, _)| known.page_number == other.page_number)
        else {
            return true;
        };
        let (known, backoff) = &mut self.missed[at];
        if known.accepted != other.accepted {
            // It accepts again, or is another worker with the same worker page.
            self.missed.swap_remove(at);
            return true;
        }
        backoff.should_try()
    }

    /// Records whether `preferred` has accepted: `accepted` is its count now, `None` if it is gone.
    pub(crate) fn record_outcome(&mut self, preferred: OtherWorkerLoad, accepted: Option<u64>) {
        let at =
            self.missed.iter().position(|(known, _)| known.page_number == preferred.page_number);
        if accepted != Some(preferred.accepted) {
            at.map(|at| self.missed.swap_remove(at));
            return;
        }
        let at = at.unwrap_or_else(|| {
            self.missed.push((preferred, SkipBackoff::default()));
            self.missed.len() - 1
        });
        self.missed[at].1.record_miss();
    }
}

/// Whether to wake the worker with page number `worker_page`, which has `own` connections, for every connection: it has far fewer than
/// another one, and hardly any worker has fewer. Also returns the connection count of the busiest other worker.
pub(crate) fn should_always_wake(
    own: u64,
    worker_page: usize,
    others: impl Iterator<Item = OtherWorkerLoad>,
) -> (bool, u64) {
    let (mut most, mut idler) = (0, 0);
    for other in others {
        most = most.max(other.open_connections);
        idler += usize::from((other.open_connections, other.page_number) < (own, worker_page));
    }
    (own + MIN_CONNECTION_DIFFERENCE <= most && idler < MAX_ALWAYS_WOKEN, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(page_number: usize, open_connections: u64) -> OtherWorkerLoad {
        OtherWorkerLoad { page_number, open_connections, accepted: 100 }
    }

    #[test]
    fn a_worker_with_two_connections_more_lets_the_idlest_one_accept_first() {
        let mut fairness = AcceptFairness::default();
        let mut chosen = |own, opens: [u64; 3]| {
            let others =
                opens.into_iter().enumerate().map(|(worker_page, open)| other(worker_page, open));
            fairness
                .choose_idler_worker(own, MIN_CONNECTION_DIFFERENCE, others)
                .map(|other| other.page_number)
        };
        assert_eq!(chosen(0, [0, 0, 0]), None);
        assert_eq!(chosen(1, [0, 0, 0]), None);
        assert_eq!(chosen(2, [1, 0, 2]), Some(1));
        assert_eq!(chosen(9, [8, 9, 10]), None);
        assert_eq!(chosen(9, [7, 9, 10]), Some(0));
    }

    #[test]
    fn a_worker_that_never_accepts_is_skipped_ever_more_often() {
        let mut fairness = AcceptFairness::default();
        let frozen = other(3, 0);
        let mut waits = 0;
        for _ in 0..1000 {
            if let Some(first) = fairness.choose_idler_worker(
                10,
                MIN_CONNECTION_DIFFERENCE,
                [frozen, other(4, 9)].into_iter(),
            ) {
                waits += 1;
                fairness.record_outcome(first, Some(frozen.accepted));
            }
        }
        assert_eq!(waits, 20, "of 1000 connections: 6 while the back-off grows, then each 63rd");
    }

    #[test]
    fn a_worker_that_never_accepts_does_not_hide_one_that_would() {
        let mut fairness = AcceptFairness::default();
        let frozen = other(3, 0);
        for _ in 0..2 {
            fairness.record_outcome(frozen, Some(frozen.accepted));
        }
        let first = fairness.choose_idler_worker(
            10,
            MIN_CONNECTION_DIFFERENCE,
            [frozen, other(4, 5)].into_iter(),
        );
        assert_eq!(first, Some(other(4, 5)));
    }

    #[test]
    fn a_worker_that_accepts_again_is_preferred_again() {
        let mut fairness = AcceptFairness::default();
        let slow = other(3, 0);
        for _ in 0..10 {
            fairness.record_outcome(slow, Some(slow.accepted));
        }
        assert_eq!(
            fairness.choose_idler_worker(10, MIN_CONNECTION_DIFFERENCE, [slow].into_iter()),
            None
        );
        let awake = OtherWorkerLoad { accepted: 101, ..slow };
        assert_eq!(
            fairness.choose_idler_worker(10, MIN_CONNECTION_DIFFERENCE, [awake].into_iter()),
            Some(awake)
        );
        fairness.record_outcome(awake, Some(102));
        assert_eq!(
            fairness.choose_idler_worker(10, MIN_CONNECTION_DIFFERENCE, [awake].into_iter()),
            Some(awake)
        );
        // Gone from the scoreboard: nothing is left to remember.
        fairness.record_outcome(awake, None);
        assert!(fairness.missed.is_empty());
    }

    #[test]
    fn only_the_idlest_workers_are_always_woken_and_only_if_others_have_far_more() {
        let is_woken = |own, worker_page, opens: &[u64]| {
            let others =
                opens.iter().enumerate().map(|(worker_page, open)| other(worker_page, *open));
            should_always_wake(
                own,
                worker_page,
                others.filter(|other| other.page_number != worker_page),
            )
            .0
        };
        assert!(!is_woken(0, 0, &[0; 16]), "all are alike");
        assert!(!is_woken(0, 0, &[0, 1, 1]), "nearly alike");
        assert!(is_woken(0, 0, &[0, 2]));
        let opens = [0, 0, 0, 0, 9];
        let woken = (0..4).filter(|worker_page| is_woken(0, *worker_page, &opens)).count();
        assert_eq!(woken, MAX_ALWAYS_WOKEN, "of four that are free");
    }
}
