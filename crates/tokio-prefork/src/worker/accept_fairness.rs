//! How workers that share a listening socket behave to each other: pure decisions from what the scoreboard says.
//!
//! Who has two connections more than another worker lets that one go first, for a moment. Who did not come when it
//! was let go first is not waited for at the next connections, ever more of them, until it has accepted
//! something: so a worker that is frozen, stopped or busy costs the others next to nothing.

use crate::scoreboard::Other;
use crate::skip_backoff::Trust;

/// Who has so many connections more than another one waits for it, and who has so many fewer stands in the front.
/// In line those with one more are behind those with one less already.
pub(crate) const APART: u64 = 2;

/// So many workers stand in the front at most.
const FRONT: usize = 2;

/// What a worker remembers of those it waited for in vain.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    /// By row; what had been accepted when it was let go first.
    doubts: Vec<(Other, Trust)>,
}

impl Manners {
    /// Whom to let go first, with `own` connections: the freest one that has at least `apart` fewer and can be
    /// expected to come.
    pub(crate) fn let_first(
        &mut self,
        own: u64,
        apart: u64,
        others: impl Iterator<Item = Other>,
    ) -> Option<Other> {
        if own < apart {
            return None;
        }
        let mut freest: Option<Other> = None;
        for other in others.filter(|other| other.open + apart <= own) {
            let is_freer = freest.is_none_or(|freest| other.open < freest.open);
            if self.is_trusted(&other) && is_freer {
                freest = Some(other);
            }
        }
        freest
    }

    fn is_trusted(&mut self, other: &Other) -> bool {
        let Some(at) = self.doubts.iter().position(|(known, _)| known.row == other.row) else {
            return true;
        };
        let (known, trust) = &mut self.doubts[at];
        if known.accepted != other.accepted {
            // It works, or is another worker in the same row.
            self.doubts.swap_remove(at);
            return true;
        }
        trust.is_given()
    }

    /// `waited_for` was let go first, and has accepted so many now.
    pub(crate) fn learn(&mut self, waited_for: Other, accepted: Option<u64>) {
        let at = self.doubts.iter().position(|(known, _)| known.row == waited_for.row);
        if accepted != Some(waited_for.accepted) {
            at.map(|at| self.doubts.swap_remove(at));
            return;
        }
        let at = at.unwrap_or_else(|| {
            self.doubts.push((waited_for, Trust::default()));
            self.doubts.len() - 1
        });
        self.doubts[at].1.lose();
    }
}

/// Whether a worker with `own` connections in row `row` is to be woken for each connection, as it has far fewer than
/// another one, and hardly anybody has fewer still; and the most connections that another one has.
pub(crate) fn stands_in_front(
    own: u64,
    row: usize,
    others: impl Iterator<Item = Other>,
) -> (bool, u64) {
    let (mut most, mut freer) = (0, 0);
    for other in others {
        most = most.max(other.open);
        freer += usize::from((other.open, other.row) < (own, row));
    }
    (own + APART <= most && freer < FRONT, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(row: usize, open: u64) -> Other {
        Other { row, open, accepted: 100 }
    }

    #[test]
    fn a_worker_lets_the_freest_go_first_if_it_has_two_connections_more() {
        let mut manners = Manners::default();
        let mut first = |own, opens: [u64; 3]| {
            let others = opens.into_iter().enumerate().map(|(row, open)| other(row, open));
            manners.let_first(own, APART, others).map(|other| other.row)
        };
        assert_eq!(first(0, [0, 0, 0]), None);
        assert_eq!(first(1, [0, 0, 0]), None);
        assert_eq!(first(2, [1, 0, 2]), Some(1));
        assert_eq!(first(9, [8, 9, 10]), None);
        assert_eq!(first(9, [7, 9, 10]), Some(0));
    }

    #[test]
    fn who_never_comes_is_waited_for_less_and_less() {
        let mut manners = Manners::default();
        let frozen = other(3, 0);
        let mut waits = 0;
        for _ in 0..1000 {
            if let Some(first) = manners.let_first(10, APART, [frozen, other(4, 9)].into_iter()) {
                waits += 1;
                manners.learn(first, Some(frozen.accepted));
            }
        }
        assert_eq!(waits, 20, "of 1000 connections: 6 while trust falls, then each 63rd");
    }

    #[test]
    fn who_never_comes_does_not_stand_for_those_who_would() {
        let mut manners = Manners::default();
        let frozen = other(3, 0);
        for _ in 0..2 {
            manners.learn(frozen, Some(frozen.accepted));
        }
        let first = manners.let_first(10, APART, [frozen, other(4, 5)].into_iter());
        assert_eq!(first, Some(other(4, 5)));
    }

    #[test]
    fn who_accepts_again_is_trusted_again() {
        let mut manners = Manners::default();
        let slow = other(3, 0);
        for _ in 0..10 {
            manners.learn(slow, Some(slow.accepted));
        }
        assert_eq!(manners.let_first(10, APART, [slow].into_iter()), None);
        let awake = Other { accepted: 101, ..slow };
        assert_eq!(manners.let_first(10, APART, [awake].into_iter()), Some(awake));
        manners.learn(awake, Some(102));
        assert_eq!(manners.let_first(10, APART, [awake].into_iter()), Some(awake));
        // Gone from the board: there is nothing to remember.
        manners.learn(awake, None);
        assert!(manners.doubts.is_empty());
    }

    #[test]
    fn in_the_front_stand_only_the_freest_and_only_when_others_have_far_more() {
        let front = |own, row, opens: &[u64]| {
            let others = opens.iter().enumerate().map(|(row, open)| other(row, *open));
            stands_in_front(own, row, others.filter(|other| other.row != row)).0
        };
        assert!(!front(0, 0, &[0; 16]), "all are alike");
        assert!(!front(0, 0, &[0, 1, 1]), "nearly alike");
        assert!(front(0, 0, &[0, 2]));
        let opens = [0, 0, 0, 0, 9];
        let fronts = (0..4).filter(|row| front(0, *row, &opens)).count();
        assert_eq!(fronts, FRONT, "of four that are free");
    }
}
