//! Which fault a request suffered from. Pure; times are nanoseconds of a round.

use super::{FaultKind, InjectedFault, InjectedFaults};

/// How long after its end a fault may still be felt.
const FAULT_AFTERMATH_NANOS: u64 = 1_000_000_000;
/// Faults that are looked back at: more are not near.
const MAX_RECENT_FAULTS: usize = 64;

/// What became of a request that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultEffect {
    /// The connection was refused, or the answer was 503.
    Refused,
    /// It was sent, and no answer came.
    Lost,
    /// It was answered, but later than it should have been.
    Late,
}

/// A request that did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AffectedRequest {
    pub(crate) effect: FaultEffect,
    /// When it was due.
    pub(crate) from: u64,
    /// When its answer or its failure came.
    pub(crate) until: u64,
    /// The process behind its connection, if that is known.
    pub(crate) pid: Option<u32>,
}

/// What the faults of one kind have cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FaultCost {
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) late: u64,
}

impl FaultCost {
    fn add(&mut self, effect: FaultEffect) {
        match effect {
            FaultEffect::Refused => self.refused += 1,
            FaultEffect::Lost => self.lost += 1,
            FaultEffect::Late => self.late += 1,
        }
    }

    pub(crate) fn combine(self, other: FaultCost) -> FaultCost {
        FaultCost {
            refused: self.refused + other.refused,
            lost: self.lost + other.lost,
            late: self.late + other.late,
        }
    }
}

/// By [`FaultKind`], and last of all what no fault explains.
pub(crate) fn costs_by_fault(
    injected: &InjectedFaults,
    affected: &[AffectedRequest],
) -> [FaultCost; 4] {
    let mut costs_by_fault = [FaultCost::default(); 4];
    for request in affected {
        let kind = attribute_fault(&injected.faults, request);
        costs_by_fault[kind.map_or(FaultKind::ALL.len(), |kind| kind as usize)].add(request.effect);
    }
    costs_by_fault
}

/// The last fault done to the process that the request was at; if it was at none of them, the last one that was felt
/// while the request was on its way.
fn attribute_fault(faults: &[InjectedFault], request: &AffectedRequest) -> Option<FaultKind> {
    let begun = faults.partition_point(|fault| fault.from <= request.until);
    let near = || {
        let near = faults[..begun].iter().rev().take(MAX_RECENT_FAULTS);
        near.filter(|fault| request.from <= fault.until.saturating_add(FAULT_AFTERMATH_NANOS))
    };
    let own = near().find(|fault| request.pid.is_some_and(|pid| fault.pids.contains(&pid)));
    own.or_else(|| near().next()).map(|fault| fault.kind)
}
