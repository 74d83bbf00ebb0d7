//! Which measurements are still to be made: rounds of each workload until it has enough.

use std::time::Duration;

use serde::Serialize;

use super::comparisons::{compare_control, compare_servers};
use super::measurement::MeasurementOutcome;
use super::paired_ratio::MAX_ROUNDS;
use super::plan::{ComparePlan, MeasurementId};
use super::report::{WorkloadReport, workload_report};

/// Why the rounds of a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundsEnd {
    /// All rounds of `--rounds` were made.
    AllRounds,
    /// Every interval is as narrow as `--precision` asks for.
    Precise,
    /// The time limit was reached.
    TimeLimit,
    /// SIGINT or SIGTERM arrived.
    Signal,
    /// No server could be measured.
    NothingMeasured,
}

impl RoundsEnd {
    /// Describes the end in a phrase.
    pub(crate) fn description(self, precision: Option<f64>) -> String {
        match self {
            RoundsEnd::AllRounds => "all rounds that were asked for".to_string(),
            RoundsEnd::Precise => {
                let percent = precision.unwrap_or_default() * 100.0;
                format!("its intervals are narrow enough (--precision {percent}%)")
            }
            RoundsEnd::TimeLimit => "the time was up (--time-limit)".to_string(),
            RoundsEnd::Signal => "a signal ended the run".to_string(),
            RoundsEnd::NothingMeasured => "no server could be measured".to_string(),
        }
    }
}

/// Holds the measurements of a run that have been made.
#[derive(Debug)]
pub(crate) struct RoundsRun<'a> {
    plan: &'a ComparePlan,
    /// Seed of the order of the measurements.
    pub(crate) seed: u64,
    /// Outcomes in the order of the measurements.
    pub(crate) outcomes: Vec<(MeasurementId, MeasurementOutcome)>,
    /// Why each workload ended; `None` while it goes on.
    pub(crate) ends: Vec<Option<RoundsEnd>>,
    next_round: usize,
}

impl<'a> RoundsRun<'a> {
    pub(crate) fn new(plan: &'a ComparePlan, seed: u64) -> RoundsRun<'a> {
        let ends = vec![None; plan.workloads.len()];
        RoundsRun { plan, seed, outcomes: Vec::new(), ends, next_round: 0 }
    }

    /// Returns the number of the next round, from 0; `None` if there is none.
    pub(crate) fn begin_round(&mut self) -> Option<usize> {
        let is_open = self.ends.iter().any(Option::is_none);
        let round = self.next_round;
        self.next_round += 1;
        is_open.then_some(round)
    }

    /// Returns the measurement of a server under a workload, unless it is pointless.
    pub(crate) fn next_measurement(
        &self,
        round: usize,
        workload: usize,
        server: usize,
    ) -> Option<MeasurementId> {
        let id = MeasurementId { round, workload, server };
        let is_given_up = self.outcomes.iter().any(|(earlier, outcome)| {
            earlier.server == server && outcome.rules_out_later(earlier, &id)
        });
        (self.ends[workload].is_none() && !is_given_up).then_some(id)
    }

    /// Adds what a measurement has shown, `elapsed` after the start of the run.
    pub(crate) fn add(
        &mut self,
        id: MeasurementId,
        mut outcome: MeasurementOutcome,
        elapsed: Duration,
    ) {
        if let MeasurementOutcome::Measured(sample) = &mut outcome {
            (sample.round, sample.at_s) = (id.round + 1, elapsed.as_secs_f64());
        }
        self.outcomes.push((id, outcome));
    }

    /// Ends all workloads that still go on.
    pub(crate) fn stop(&mut self, why: RoundsEnd) {
        self.ends.iter_mut().filter(|end| end.is_none()).for_each(|end| *end = Some(why));
    }

    /// Ends a workload after a round if it has enough of them.
    pub(crate) fn end_workload_round(&mut self, round: usize, workload: usize) {
        if self.ends[workload].is_some() {
            return;
        }
        let rounds = round + 1;
        let has_sample = self.outcomes.iter().any(|(id, outcome)| {
            id.workload == workload && matches!(outcome, MeasurementOutcome::Measured(_))
        });
        self.ends[workload] = match self.plan.rounds {
            _ if !has_sample => Some(RoundsEnd::NothingMeasured),
            Some(all) => (rounds >= all).then_some(RoundsEnd::AllRounds),
            None if rounds >= MAX_ROUNDS => Some(RoundsEnd::AllRounds),
            None if self.is_precise(rounds, workload) => Some(RoundsEnd::Precise),
            None => None,
        };
    }

    /// Looks at the intervals, if there is a look after this round.
    fn is_precise(&self, rounds: usize, workload: usize) -> bool {
        let confidence = self.plan.confidence();
        let Some(precision) = self.plan.precision else { return false };
        if !confidence.has_look_after(rounds) {
            return false;
        }
        let report = workload_report(self.plan, self, workload);
        is_precise(&report, &self.plan.servers[self.plan.reference()].name, precision)
    }

    /// Returns the number of measurements that were made.
    pub(crate) fn measured(&self) -> usize {
        let made =
            |outcome: &MeasurementOutcome| matches!(outcome, MeasurementOutcome::Measured(_));
        self.outcomes.iter().filter(|(_, outcome)| made(outcome)).count()
    }

    /// Returns the number of workloads that need no further rounds.
    pub(crate) fn ended_workloads(&self) -> usize {
        self.ends.iter().flatten().count()
    }
}

/// Returns whether all intervals of comparisons with the reference by the main metric are narrow enough.
fn is_precise(report: &WorkloadReport, reference: &str, precision: f64) -> bool {
    let error_rate = report.error_rate_of_interval;
    let servers = compare_servers(report, reference, false, error_rate);
    let control = compare_control(report, reference, error_rate);
    let metric = report.metric;
    let mut main = servers
        .iter()
        .chain(&control)
        .filter(|one| one.metric == metric && one.other == reference)
        .peekable();
    main.peek().is_some() && main.all(|one| one.ratio.is_precise(precision))
}
