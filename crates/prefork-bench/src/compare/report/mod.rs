//! The report of a comparison, as the plain data that `--json` prints.

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

/// Report of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct CompareReport {
    /// Version of this program.
    pub version: &'static str,
    /// CPU cores of this machine, which the load generator shares.
    pub cores: usize,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Workers of each server.
    pub workers: usize,
    /// Planned rounds.
    pub rounds: usize,
    /// Length of each measurement in seconds.
    pub duration_s: f64,
    /// Length of the whole comparison in seconds.
    pub took_s: f64,
    /// Why it is incomplete; `None` if complete.
    pub partial: Option<String>,
    #[serde(skip)]
    early_stop: Option<EarlyStop>,
    /// Number of planned measurements.
    pub planned: usize,
    /// Number of completed measurements.
    pub measured: usize,
    /// Server that the others are compared with; `None` if it was not measured.
    pub reference: Option<String>,
    /// How often two equal servers would seem to differ.
    pub chance: FalseDifferenceRate,
    /// Results by workload.
    pub workloads: Vec<WorkloadReport>,
    /// Servers that could not be measured, and why.
    pub broken: Vec<String>,
    /// Which servers differ, in sentences.
    pub findings: Vec<String>,
}

/// All servers under one workload.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadReport {
    /// The workload.
    pub workload: Workload,
    /// Description of the workload.
    pub about: &'static str,
    /// Results by server.
    pub contestants: Vec<ServerWorkloadReport>,
}

/// One server under one workload; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct ServerWorkloadReport {
    /// Name of the server.
    pub contestant: String,
    /// Whether the server lacks the path of the workload.
    pub unable: bool,
    /// Responses per second.
    pub per_second: MedianRange,
    /// Median latency.
    pub p50: MedianRange,
    /// 99th percentile of the latency.
    pub p99: MedianRange,
    /// Highest latency.
    pub max: MedianRange,
    /// CPU time of the server per request; `None` under latency workloads.
    pub cpu_us: Option<MedianRange>,
    /// Memory (PSS) of all its processes under load, in MiB.
    pub memory_mib: Option<MedianRange>,
    /// Share of the responses that came from the busiest process, from 0 to 1.
    pub busiest: Option<MedianRange>,
    /// Share of the TLS handshakes that resumed a session, from 0 to 1; `None` without handshakes.
    pub resumed: Option<MedianRange>,
    /// Median duration of a TLS handshake; `None` without handshakes.
    pub handshake_p50: Option<MedianRange>,
    /// 99th percentile of the duration of a TLS handshake; `None` without handshakes.
    pub handshake_p99: Option<MedianRange>,
    /// Requests without a response, or with a status of 400 or more, in all rounds.
    pub errors: u64,
    /// CPU time of the load generator per request; not part of `cpu_us`.
    pub generator_us: MedianRange,
    /// Ratio to the reference, round by round: of requests per second, or of p99 under latency workloads.
    pub ratio: Option<MedianRange>,
    /// The measurements, in the order of rounds.
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
            resumed: some(|s| s.resumed),
            handshake_p50: some(|s| s.handshake_p50),
            handshake_p99: some(|s| s.handshake_p99),
            errors: samples.iter().map(|s| s.errors).sum(),
            generator_us: spread(|s| s.generator_us),
            ratio: None,
            samples,
        }
    }

    /// Returns the value by which servers are compared under `workload`.
    pub(crate) fn main_metric(&self, workload: Workload) -> MedianRange {
        if workload.is_latency_workload() { self.p99 } else { self.per_second }
    }

    /// Sets the ratio to the reference. Rounds are paired, as they were measured one after the other.
    fn set_ratio_to_reference(&mut self, reference: &ServerWorkloadReport, workload: Workload) {
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
        let planned = plan.list_measurements().len();
        let measured =
            outcomes.iter().filter(|(_, o)| matches!(o, MeasurementOutcome::Measured(_))).count();
        let broken: Vec<String> =
            outcomes.iter().filter_map(|(_, o)| o.server_failure_reason()).collect();
        let reference = plan.servers.iter().find(|one| one.is_single_process());
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
                EarlyStop::TimeLimit => "the time limit was reached",
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
            scheme: if plan.https { "https" } else { "http" },
            protocol: if plan.http2 { "HTTP/2" } else { "HTTP/1.1" },
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

    /// Returns the exit status: 0 if every server ran and every measurement was made, or at least one round
    /// within the time limit; else 1.
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

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        text::render_text(self)
    }

    /// Formats the report as one self-contained HTML page.
    pub fn to_html(&self) -> String {
        html::render_html(self)
    }
}

impl WorkloadReport {
    /// Returns the report of one server.
    pub(crate) fn server_report(&self, contestant: &str) -> Option<&ServerWorkloadReport> {
        self.contestants.iter().find(|cell| cell.contestant == contestant)
    }
}

/// Groups the measurements by workload and server.
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
            contestants.iter_mut().for_each(|cell| cell.set_ratio_to_reference(&base, *workload));
        }
        WorkloadReport { workload: *workload, about: workload.description(), contestants }
    };
    plan.workloads.iter().zip(samples).map(report).collect()
}

#[cfg(test)]
pub(crate) mod tests;
