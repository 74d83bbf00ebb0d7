//! Assigns each affected request to the fault that caused it.
//!
//! Pure functions; times are nanoseconds since the start of the round.

use super::{FaultKind, InjectedFault, InjectedFaults};

/// How long after its end a fault still counts as a cause: 1 s.
const FAULT_AFTERMATH_NANOS: u64 = 1_000_000_000;
/// Number of latest faults to search for a cause.
const MAX_RECENT_FAULTS: usize = 64;

/// How a request was affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultEffect {
    /// The connection was refused, or the response was 503.
    Refused,
    /// It was sent and got no response.
    Lost,
    /// It was answered too late.
    Late,
}

/// A request that was refused, lost or answered late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AffectedRequest {
    pub(crate) effect: FaultEffect,
    /// When it was due.
    pub(crate) from: u64,
    /// When its response or failure came.
    pub(crate) until: u64,
    /// The process behind its connection, if known.
    pub(crate) pid: Option<u32>,
}

/// How many requests the faults of one kind affected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FaultCost {
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) late: u64,
}

impl FaultCost {
    fn count_effect(&mut self, effect: FaultEffect) {
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

/// Counts affected requests by [`FaultKind`]; the last element counts those without a cause.
pub(crate) fn costs_by_fault(
    injected: &InjectedFaults,
    affected: &[AffectedRequest],
) -> [FaultCost; 4] {
    let mut costs_by_fault = [FaultCost::default(); 4];
    for request in affected {
        let kind = attribute_fault(&injected.faults, request);
        costs_by_fault[kind.map_or(FaultKind::ALL.len(), |kind| kind as usize)]
            .count_effect(request.effect);
    }
    costs_by_fault
}

/// Returns the latest fault on the process of the request; without one, the latest fault that was active
/// while the request was in flight.
fn attribute_fault(faults: &[InjectedFault], request: &AffectedRequest) -> Option<FaultKind> {
    let begun = faults.partition_point(|fault| fault.from <= request.until);
    let near = || {
        let near = faults[..begun].iter().rev().take(MAX_RECENT_FAULTS);
        near.filter(|fault| request.from <= fault.until.saturating_add(FAULT_AFTERMATH_NANOS))
    };
    let own = near().find(|fault| request.pid.is_some_and(|pid| fault.pids.contains(&pid)));
    own.or_else(|| near().next()).map(|fault| fault.kind)
}
