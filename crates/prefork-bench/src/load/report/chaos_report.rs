//! Injected faults, and what they cost.

use serde::Serialize;

use crate::chaos::{FaultCauses, FaultCosts, FaultKind};
use crate::load::{LoadPlan, RoundResult};

/// Injected faults, and the requests they affected.
#[derive(Debug, Clone, Serialize)]
pub struct ChaosReport {
    /// Responses slower than this count as late, in milliseconds.
    pub late_after_ms: f64,
    /// One element for each kind of fault, then those for requests that may be due to several kinds.
    pub faults: Vec<FaultImpact>,
    /// Affected requests that no fault explains.
    pub unexplained: FaultImpact,
    /// Affected requests beyond those kept individually.
    pub unnoted: u64,
    /// Every injected fault, in the time of the timeline.
    pub injected: Vec<FaultEvent>,
}

/// Requests affected by one kind of fault.
#[derive(Debug, Clone, Serialize)]
pub struct FaultImpact {
    /// Name of the fault; `kill or reload` and the like if it cannot be known, `none` if no fault explains it.
    pub fault: String,
    /// Number of injected faults; 0 for several kinds.
    pub count: u64,
    /// Number of faults skipped because there was no process to hit.
    pub skipped: u64,
    /// Requests that were refused, or answered with 503.
    pub refused: u64,
    /// Requests without a response for another reason.
    pub lost: u64,
    /// Requests answered late.
    pub late: u64,
}

/// A fault that was injected; times are seconds of the measured time, round after round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FaultEvent {
    /// Name of the fault.
    pub fault: &'static str,
    /// When it began.
    pub at_s: f64,
    /// When it ended: only a freeze takes time.
    pub until_s: f64,
    /// The processes it hit.
    pub pids: Vec<u32>,
}

impl ChaosReport {
    pub(crate) fn from_rounds(rounds: &[RoundResult], plan: &LoadPlan) -> ChaosReport {
        let mut costs = FaultCosts::default();
        let (mut counts, mut skipped) = ([0; 3], [0; 3]);
        for round in rounds {
            costs = costs.combine(&FaultCosts::of_round(&round.injected, &round.counters.affected));
            for fault in &round.injected.faults {
                counts[fault.kind as usize] += 1;
            }
            for (sum, more) in skipped.iter_mut().zip(round.injected.skipped) {
                *sum += more;
            }
        }
        let impact = |causes: FaultCauses| {
            let cost = costs.of_causes(causes);
            let of_kind =
                |counts: [u64; 3]| causes.single().map_or(0, |kind| counts[kind as usize]);
            FaultImpact {
                fault: causes.name(),
                count: of_kind(counts),
                skipped: of_kind(skipped),
                refused: cost.refused,
                lost: cost.lost,
                late: cost.late,
            }
        };
        let is_shown = |impact: &FaultImpact| {
            impact.count + impact.skipped + impact.refused + impact.lost + impact.late > 0
        };
        let explained = FaultCauses::all().into_iter().filter(|c| *c != FaultCauses::default());
        ChaosReport {
            late_after_ms: plan.late_threshold.as_secs_f64() * 1e3,
            faults: explained.map(impact).filter(is_shown).collect(),
            unexplained: impact(FaultCauses::default()),
            unnoted: rounds.iter().map(|round| round.counters.unlisted_affected).sum(),
            injected: list_events(rounds, plan.warm_up.as_secs_f64()),
        }
    }

    /// Returns the element of each fault, then the unexplained one.
    pub(crate) fn impacts_with_unexplained(&self) -> impl Iterator<Item = &FaultImpact> {
        self.faults.iter().chain([&self.unexplained])
    }
}

impl FaultImpact {
    /// Returns whether it is about one kind of fault, which was injected a number of times.
    pub(crate) fn is_of_one_kind(&self) -> bool {
        FaultKind::ALL.iter().any(|kind| kind.name() == self.fault)
    }
}

fn list_events(rounds: &[RoundResult], warm_up_s: f64) -> Vec<FaultEvent> {
    let mut all = Vec::new();
    let mut begun_s = 0.0;
    for round in rounds {
        let at = |nanos: u64| begun_s + (nanos as f64 / 1e9 - warm_up_s).max(0.0);
        all.extend(round.injected.faults.iter().map(|fault| FaultEvent {
            fault: fault.kind.name(),
            at_s: at(fault.from),
            until_s: at(fault.until),
            pids: fault.pids.clone(),
        }));
        begun_s += round.measured.as_secs_f64();
    }
    all
}
