//! Assigns each affected request to the fault that caused it, or to the kinds of fault that may have.
//!
//! Pure functions; times are nanoseconds since the start of the round.
//!
//! A connection that was in a process when it was killed or frozen is known by the client's port. Otherwise the
//! process that answered last on the connection says what is possible; after a reload it may have handed the
//! connection over to another process, which the client cannot see.

use super::{FaultKind, InjectedFault, InjectedFaults};

/// How long after its end a fault still counts as a cause: 1 s.
const FAULT_AFTERMATH_NANOS: u64 = 1_000_000_000;
/// How long after a kill a client may still send on a connection of the killed process: 300 ms on a busy machine.
const KILL_NOTICE_NANOS: u64 = 300_000_000;
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
    /// The process that answered last on its connection, if any has.
    pub(crate) pid: Option<u32>,
    /// The client's port of its connection; `None` for Unix sockets.
    pub(crate) port: Option<u16>,
}

/// The kinds of fault that may have caused an effect: a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FaultCauses(u8);

impl FaultCauses {
    /// Number of different sets.
    pub(crate) const COUNT: usize = 1 << FaultKind::ALL.len();

    /// Returns all sets, first those of one kind, then those of several; the empty one is last.
    pub(crate) fn all() -> Vec<FaultCauses> {
        let mut all: Vec<FaultCauses> =
            (1..FaultCauses::COUNT as u8).chain([0]).map(FaultCauses).collect();
        all.sort_by_key(|causes| match causes.0.count_ones() {
            0 => u32::MAX,
            kinds => kinds,
        });
        all
    }

    fn insert(&mut self, kind: FaultKind) {
        self.0 |= 1 << kind as u8;
    }

    /// Returns the kind, if there is only one.
    pub(crate) fn single(self) -> Option<FaultKind> {
        FaultKind::ALL.into_iter().find(|kind| self.0 == 1 << *kind as u8)
    }

    /// Returns the name in reports: `kill`, `kill or reload`, and `none` for the empty set.
    pub(crate) fn name(self) -> String {
        let kinds = FaultKind::ALL.into_iter().filter(|kind| self.0 & (1 << *kind as u8) != 0);
        let names: Vec<&str> = kinds.map(FaultKind::name).collect();
        if names.is_empty() { "none".to_string() } else { names.join(" or ") }
    }
}

/// How many requests the same causes affected.
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

/// Affected requests by causes.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultCosts([FaultCost; FaultCauses::COUNT]);

impl FaultCosts {
    /// Counts the affected requests of a round.
    pub(crate) fn of_round(injected: &InjectedFaults, affected: &[AffectedRequest]) -> FaultCosts {
        let mut costs = FaultCosts::default();
        for request in affected {
            let causes = find_causes(&injected.faults, request);
            costs.0[usize::from(causes.0)].count_effect(request.effect);
        }
        costs
    }

    /// Returns the requests with these causes.
    pub(crate) fn of_causes(&self, causes: FaultCauses) -> FaultCost {
        self.0[usize::from(causes.0)]
    }

    pub(crate) fn combine(&self, other: &FaultCosts) -> FaultCosts {
        FaultCosts(std::array::from_fn(|at| self.0[at].combine(other.0[at])))
    }
}

/// Returns the fault that held the connection of the request; without one, all kinds that are possible.
fn find_causes(faults: &[InjectedFault], request: &AffectedRequest) -> FaultCauses {
    let begun = faults.partition_point(|fault| fault.from <= request.until);
    let near = || {
        let near = faults[..begun].iter().rev().take(MAX_RECENT_FAULTS);
        near.filter(|fault| request.from <= fault.until.saturating_add(aftermath(fault, request)))
    };
    let mut causes = FaultCauses::default();
    let held = |fault: &&InjectedFault| {
        let ports = fault.client_ports.as_deref().unwrap_or_default();
        request.port.is_some_and(|port| ports.contains(&port))
    };
    // A late response names the process that gave it.
    let answered = |fault: &&InjectedFault| {
        let is_late = (fault.kind, request.effect) == (FaultKind::Freeze, FaultEffect::Late);
        is_late && request.pid.is_some_and(|pid| fault.pids.contains(&pid))
    };
    if let Some(exact) = near().find(|fault| held(fault) || answered(fault)) {
        causes.insert(exact.kind);
        return causes;
    }
    let is_moved = |pid: u32| {
        let is_reload =
            |fault: &InjectedFault| fault.kind == FaultKind::Reload && fault.pids.contains(&pid);
        faults[..begun].iter().any(is_reload)
    };
    for fault in near() {
        let is_possible = match request.pid {
            None => true,
            // The others serve what the killed process would have, and its successor what has waited for it.
            _ if (fault.kind, request.effect) == (FaultKind::Kill, FaultEffect::Late) => true,
            // A reload does nothing to the processes that it starts.
            Some(pid) if fault.pids.contains(&pid) => true,
            Some(pid) => fault.kind != FaultKind::Reload && is_moved(pid),
        };
        if is_possible {
            causes.insert(fault.kind);
        }
    }
    causes
}

/// Returns how long after its end the fault may affect a further request in this way.
fn aftermath(fault: &InjectedFault, request: &AffectedRequest) -> u64 {
    match (fault.kind, request.effect) {
        // The kernel closes the connections of a killed process at once.
        (FaultKind::Kill, FaultEffect::Lost) => KILL_NOTICE_NANOS,
        _ => FAULT_AFTERMATH_NANOS,
    }
}
