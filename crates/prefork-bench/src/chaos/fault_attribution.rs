//! Which fault a request suffered from. Pure; times are nanoseconds of a round.

use super::{Done, Fault, Kind};

/// How long after its end a fault may still be felt.
const SETTLE: u64 = 1_000_000_000;
/// Faults that are looked back at: more are not near.
const NEAR: usize = 64;

/// What became of a request that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The connection was refused, or the answer was 503.
    Refused,
    /// It was sent, and no answer came.
    Lost,
    /// It was answered, but later than it should have been.
    Late,
}

/// A request that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Odd {
    pub(crate) what: What,
    /// When it was due.
    pub(crate) from: u64,
    /// When its answer or its failure came.
    pub(crate) until: u64,
    /// The process behind its connection, if that is known.
    pub(crate) pid: Option<u32>,
}

/// What the faults of one kind have cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) late: u64,
}

impl Cost {
    fn add(&mut self, what: What) {
        match what {
            What::Refused => self.refused += 1,
            What::Lost => self.lost += 1,
            What::Late => self.late += 1,
        }
    }

    pub(crate) fn and(self, other: Cost) -> Cost {
        Cost {
            refused: self.refused + other.refused,
            lost: self.lost + other.lost,
            late: self.late + other.late,
        }
    }
}

/// By [`Kind`], and last of all what no fault explains.
pub(crate) fn costs(done: &Done, odds: &[Odd]) -> [Cost; 4] {
    let mut costs = [Cost::default(); 4];
    for odd in odds {
        let kind = blame(&done.faults, odd);
        costs[kind.map_or(Kind::ALL.len(), |kind| kind as usize)].add(odd.what);
    }
    costs
}

/// The last fault done to the process that the request was at; if it was at none of them, the last one that was felt
/// while the request was on its way.
fn blame(faults: &[Fault], odd: &Odd) -> Option<Kind> {
    let begun = faults.partition_point(|fault| fault.from <= odd.until);
    let near = || {
        let near = faults[..begun].iter().rev().take(NEAR);
        near.filter(|fault| odd.from <= fault.until.saturating_add(SETTLE))
    };
    let own = near().find(|fault| odd.pid.is_some_and(|pid| fault.pids.contains(&pid)));
    own.or_else(|| near().next()).map(|fault| fault.kind)
}
