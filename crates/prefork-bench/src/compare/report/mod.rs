//! What a comparison has found, as plain data: this is what `--json` prints.

use std::time::Duration;

use serde::Serialize;

pub(crate) mod html;
pub(crate) mod text;

use super::differences::{self, FalseDifferenceRate};
use super::measurement::{MeasurementOutcome, MeasurementSample};
use super::plan::{ComparePlan, PlannedMeasurement};
use super::{EarlyStop, Workload};
use crate::load::MedianRange;
use tokio_prefork::exit;

/// Everything a comparison has found.
#[derive(Debug, Clone, Serialize)]
pub struct CompareReport {
    /// The version of this program.
    pub version: &'static str,
    /// Processors of this machine, which the generator uses, too.
    pub cores: usize,
    /// Workers of each contestant.
    pub workers: usize,
    /// Rounds that were planned.
    pub rounds: usize,
    /// Seconds that each measurement lasts.
    pub duration_s: f64,
    /// Seconds that all of it took.
    pub took_s: f64,
    /// Why it is not complete; none if it is.
    pub partial: Option<String>,
    #[serde(skip)]
    early_stop: Option<EarlyStop>,
    /// Measurements that were planned, and that were made.
    pub planned: usize,
    /// See `planned`.
    pub measured: usize,
    /// Whom the others are compared with; none if it was not measured.
    pub reference: Option<String>,
    /// How often two equal contestants would seem to differ.
    pub chance: FalseDifferenceRate,
    pub workloads: Vec<WorkloadReport>,
    /// What could not be measured, and why.
    pub broken: Vec<String>,
    /// What differs and what does not, in words.
    pub findings: Vec<String>,
}

/// All contestants under one load.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadReport {
    pub workload: Workload,
    pub about: &'static str,
    pub contestants: Vec<ServerWorkloadReport>,
}

/// One contestant under one load. Times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct ServerWorkloadReport {
    pub contestant: String,
    /// It does not have the path that is asked for.
    pub unable: bool,
    pub per_second: MedianRange,
    pub p50: MedianRange,
    pub p99: MedianRange,
    pub max: MedianRange,
    /// Processor time of the server for each request; none beside heavy requests, which use most of it.
    pub cpu_us: Option<MedianRange>,
    /// Memory of all its processes (PSS) under load, in MiB.
    pub memory_mib: Option<MedianRange>,
    /// The part of all requests that the busiest process answered.
    pub busiest: Option<MedianRange>,
    /// Requests of all rounds without an answer, or with a status of 400 or more.
    pub errors: u64,
    /// Processor time of the generator for each request: in none of the figures above.
    pub generator_us: MedianRange,
    /// By what the reference has, round by round: requests per second, or the 99th percentile beside heavy requests.
    pub ratio: Option<MedianRange>,
    pub samples: Vec<MeasurementSample>,
}

impl ServerWorkloadReport {
    fn from_samples(
        contestant: &str,
        unable: bool,
        samples: Vec<MeasurementSample>,
    ) -> ServerWorkloadReport {
        let spread = |figure: fn(&MeasurementSample) -> f64| {
            MedianRange::from_values(&samples.iter().map(figure).collect::<Vec<_>>())
        };
        let some = |figure: fn(&MeasurementSample) -> Option<f64>| {
            let values: Vec<f64> = samples.iter().filter_map(figure).collect();
            (!values.is_empty()).then(|| MedianRange::from_values(&values))
        };
        ServerWorkloadReport {
            contestant: contestant.to_string(),
            unable,
            per_second: spread(|s| s.per_second),
            p50: spread(|s| s.p50),
            p99: spread(|s| s.p99),
            max: spread(|s| s.max),
            cpu_us: some(|s| s.cpu_us),
            memory_mib: some(|s| s.memory_mib),
            busiest: some(|s| s.busiest),
            errors: samples.iter().map(|s| s.errors).sum(),
            generator_us: spread(|s| s.generator_us),
            ratio: None,
            samples,
        }
    }

    /// What the contestants are compared by.
    pub(crate) fn main_metric(&self, workload: Workload) -> MedianRange {
        if workload.is_latency_workload() { self.p99 } else { self.per_second }
    }

    /// Round by round, as both were measured one after the other.
    fn set_ratio_to(&mut self, reference: &ServerWorkloadReport, workload: Workload) {
        let ratios = self.samples.iter().filter_map(|own| {
            let other = reference.samples.iter().find(|other| other.round == own.round)?;
            let ratio = own.main_metric(workload) / other.main_metric(workload);
            ratio.is_finite().then_some(ratio)
        });
        let ratios: Vec<f64> = ratios.collect();
        self.ratio = (!ratios.is_empty()).then(|| MedianRange::from_values(&ratios));
    }
}

impl CompareReport {
    pub(crate) fn from_outcomes(
        plan: &ComparePlan,
        outcomes: Vec<(PlannedMeasurement, MeasurementOutcome)>,
        early_stop: Option<EarlyStop>,
        took: Duration,
    ) -> CompareReport {
        let planned = plan.measurements().len();
        let measured =
            outcomes.iter().filter(|(_, o)| matches!(o, MeasurementOutcome::Measured(_))).count();
        let broken: Vec<String> = outcomes.iter().filter_map(|(_, o)| o.server_error()).collect();
        let reference = plan.servers.iter().find(|one| one.is_single());
        let reference = reference.or(plan.servers.first()).map(|one| one.name.clone());
        let workloads = group_by_workload(plan, outcomes, reference.as_deref());
        let known = |name: &String| {
            workloads
                .iter()
                .any(|w| w.server_report(name).is_some_and(|cell| !cell.samples.is_empty()))
        };
        let reference = reference.filter(known);
        let partial = early_stop.map(|early_stop| {
            let why = match early_stop {
                EarlyStop::Signal => "a signal ended it",
                EarlyStop::TimeLimit => "its time was over",
            };
            format!("{measured} of {planned} measurements were made, then {why}")
        });
        let findings = match &reference {
            Some(reference) => differences::describe_differences(&workloads, reference),
            None => Vec::new(),
        };
        CompareReport {
            version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            workers: plan.workers,
            rounds: plan.rounds,
            duration_s: plan.duration.as_secs_f64(),
            took_s: took.as_secs_f64(),
            partial,
            early_stop,
            planned,
            measured,
            reference,
            chance: FalseDifferenceRate::from_workloads(&workloads),
            workloads,
            broken,
            findings,
        }
    }

    /// The status to exit with: did every contestant serve, and was everything measured; a time that was given is as
    /// good as the whole if it was enough for a round.
    pub fn exit_status(&self) -> u8 {
        let enough = match self.early_stop {
            None => true,
            Some(EarlyStop::Signal) => false,
            Some(EarlyStop::TimeLimit) => self.measured * self.rounds >= self.planned,
        };
        match enough && self.broken.is_empty() {
            true => exit::OK,
            false => exit::FAILURE,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        text::render_text(self)
    }

    /// For browsers: one page that needs nothing else.
    pub fn to_html(&self) -> String {
        html::render_html(self)
    }
}

impl WorkloadReport {
    /// The figures of one contestant.
    pub(crate) fn server_report(&self, contestant: &str) -> Option<&ServerWorkloadReport> {
        self.contestants.iter().find(|cell| cell.contestant == contestant)
    }
}

fn group_by_workload(
    plan: &ComparePlan,
    outcomes: Vec<(PlannedMeasurement, MeasurementOutcome)>,
    reference: Option<&str>,
) -> Vec<WorkloadReport> {
    let (workloads, contestants) = (plan.workloads.len(), plan.servers.len());
    let mut samples: Vec<Vec<(bool, Vec<MeasurementSample>)>> =
        vec![vec![(false, Vec::new()); contestants]; workloads];
    for (measurement, outcome) in outcomes {
        let place = &mut samples[measurement.workload][measurement.server];
        match outcome {
            MeasurementOutcome::Measured(mut sample) => {
                sample.round = measurement.round + 1;
                place.1.push(*sample);
            }
            MeasurementOutcome::PathMissing => place.0 = true,
            MeasurementOutcome::ServerFailed(_) | MeasurementOutcome::Interrupted => {}
        }
    }
    let report = |(workload, cells): (&Workload, Vec<(bool, Vec<MeasurementSample>)>)| {
        let cells = plan.servers.iter().zip(cells);
        let cells = cells.map(|(one, (unable, samples))| {
            ServerWorkloadReport::from_samples(&one.name, unable, samples)
        });
        let mut contestants: Vec<ServerWorkloadReport> = cells.collect();
        let base = contestants.iter().find(|cell| Some(cell.contestant.as_str()) == reference);
        if let Some(base) = base.cloned() {
            contestants.iter_mut().for_each(|cell| cell.set_ratio_to(&base, *workload));
        }
        WorkloadReport { workload: *workload, about: workload.description(), contestants }
    };
    plan.workloads.iter().zip(samples).map(report).collect()
}

#[cfg(test)]
pub(crate) mod tests;
