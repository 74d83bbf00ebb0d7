//! The report of a comparison, as the plain data that `--json` prints.

use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub(crate) mod html;
mod parts;
pub(crate) mod plots;
mod request_outcomes;
pub(crate) mod text;

use super::baseline::{BaselineReport, SavedReport};
use super::comparisons::{Comparison, compare_control, compare_servers};
use super::confidence::Confidence;
use super::measurement::{MeasurementOutcome, MeasurementSample};
use super::paired_ratio::PairedRatio;
use super::plan::ComparePlan;
use super::rounds::{RoundsEnd, RoundsRun};
use super::run_settings::RunSettings;
use super::server_configuration::ServerConfiguration;
use super::verdict::Verdict;
use super::{ComparedMetric, Workload};
use crate::load::MedianRange;
use crate::run_environment::RunEnvironment;
use tokio_prefork::{Error, Result, exit};

/// Name of the format of the JSON report.
pub(crate) const REPORT_FORMAT: &str = "prefork-compare";
/// Version of the format: grows when a report of an older version can no longer be a baseline.
pub(crate) const REPORT_FORMAT_VERSION: u32 = 1;

/// Report of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct CompareReport {
    /// The verdict in at most four lines.
    pub verdict: Verdict,
    /// What changed since an earlier run; `None` without `--baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineReport>,
    /// `prefork-compare`.
    pub format: &'static str,
    /// Version of the format of this report.
    pub format_version: u32,
    /// How sure it is.
    pub confidence: Confidence,
    /// Fewest rounds from which a difference can be stated.
    pub rounds_needed: usize,
    /// Server that the others are compared with; `None` if it was not measured.
    pub reference: Option<String>,
    /// Why it is incomplete; `None` if complete.
    pub partial: Option<String>,
    /// Servers that could not be measured, and why.
    pub broken: Vec<String>,
    /// Why peers were left out.
    pub left_out: Vec<String>,
    /// How each server was started.
    pub servers: Vec<ServerConfiguration>,
    /// Machine, kernel, versions, command and date.
    pub environment: RunEnvironment,
    /// Command line that repeats the comparison, in the same order of the measurements.
    pub repeat_command: String,
    /// Protocol, workers, rounds and lengths.
    #[serde(flatten)]
    pub settings: RunSettings,
    /// Length of the whole comparison in seconds.
    pub took_s: f64,
    /// Number of completed measurements.
    pub measured: usize,
    /// Seed of the random order of the measurements.
    pub seed: u64,
    /// Results by workload.
    pub workloads: Vec<WorkloadReport>,
}

/// All servers under one workload.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadReport {
    /// The workload; its name in JSON.
    #[serde(serialize_with = "write_name")]
    pub workload: Arc<Workload>,
    /// Description of the workload.
    pub about: String,
    /// What servers are compared by first.
    pub metric: ComparedMetric,
    /// Why there were no further rounds.
    pub ended: Option<RoundsEnd>,
    /// Error rate of each interval.
    #[serde(skip)]
    pub(crate) error_rate_of_interval: f64,
    /// Results by server; the control is the last one.
    pub servers: Vec<ServerWorkloadReport>,
    /// Comparisons of the servers.
    pub comparisons: Vec<Comparison>,
    /// Comparisons of the control with the reference, which is the same server.
    pub control: Vec<Comparison>,
    /// The scenario in the keys of its file.
    #[serde(serialize_with = "write_scenario")]
    pub scenario: Arc<Workload>,
}

/// One server under one workload; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct ServerWorkloadReport {
    /// Name of the server.
    pub server: String,
    /// Whether it is the reference, measured once more.
    pub is_control: bool,
    /// Whether the server lacks the path of the workload.
    pub unable: bool,
    /// Why it cannot be measured under the workload; `None` if it can.
    pub unable_reason: Option<String>,
    /// Responses per second.
    pub per_second: MedianRange,
    /// Median latency.
    pub p50: MedianRange,
    /// 99th percentile of the latency.
    pub p99: MedianRange,
    /// Highest latency.
    pub max: MedianRange,
    /// CPU time of the server per request; `None` if further loads ran.
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
    /// Ratio to the reference by the metric of the workload.
    pub ratio: Option<PairedRatio>,
    /// The measurements, in the order of rounds.
    pub samples: Vec<MeasurementSample>,
}

impl ServerWorkloadReport {
    fn from_samples(
        server: &str,
        is_control: bool,
        unable_reason: Option<String>,
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
            server: server.to_string(),
            is_control,
            unable: unable_reason.is_some(),
            unable_reason,
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

    /// Returns the values of a metric over the rounds; `None` if it was not measured.
    pub(crate) fn measured_figure(&self, metric: ComparedMetric) -> Option<MedianRange> {
        let values = self.samples.iter().filter_map(|sample| sample.value(metric));
        let values: Vec<f64> = values.collect();
        (!values.is_empty()).then(|| MedianRange::from_values(&values))
    }

    /// Returns the values of a metric over the rounds; zeros if it was not measured.
    pub(crate) fn figure(&self, metric: ComparedMetric) -> MedianRange {
        self.measured_figure(metric).unwrap_or_default()
    }
}

impl CompareReport {
    pub(crate) fn from_run(
        plan: &ComparePlan,
        run: &RoundsRun<'_>,
        took: Duration,
    ) -> CompareReport {
        let confidence = plan.confidence();
        let mut workloads: Vec<WorkloadReport> =
            (0..plan.workloads.len()).map(|at| workload_report(plan, run, at)).collect();
        let reference = plan.servers.get(plan.reference()).map(|one| one.name.clone());
        let is_measured = |name: &String| {
            workloads.iter().any(|w| w.server_report(name).is_some_and(|s| !s.samples.is_empty()))
        };
        let reference = reference.filter(is_measured);
        if let Some(reference) = &reference {
            let error_rate = confidence.error_rate_of_interval;
            for (at, workload) in workloads.iter_mut().enumerate() {
                workload.compare(reference, at == 0, error_rate);
            }
        }
        let rounds_needed = confidence.rounds_needed();
        let environment = RunEnvironment::read();
        CompareReport {
            verdict: Verdict::of_workloads(&workloads, reference.as_deref(), rounds_needed),
            baseline: None,
            format: REPORT_FORMAT,
            format_version: REPORT_FORMAT_VERSION,
            confidence,
            rounds_needed,
            partial: describe_partial(plan, run, &workloads),
            broken: run.outcomes.iter().filter_map(|(_, o)| o.server_failure_reason()).collect(),
            reference,
            left_out: plan.left_out.clone(),
            servers: Vec::new(),
            repeat_command: match plan.seed {
                Some(_) => environment.command.clone(),
                None => format!("{} --seed {}", environment.command, run.seed),
            },
            settings: RunSettings::of_plan(plan),
            environment,
            took_s: took.as_secs_f64(),
            measured: run.measured(),
            seed: run.seed,
            workloads,
        }
    }

    /// Adds what changed since an earlier run, whose report was read from `file`.
    ///
    /// # Errors
    /// Nothing was measured.
    pub fn compare_with_baseline(&mut self, before: &SavedReport, file: &str) -> Result<()> {
        let now = SavedReport::parse(self.to_json().as_bytes()).map_err(|why| {
            Error::config(format!("cannot compare with {file}: this report {why}"))
        })?;
        self.baseline = Some(BaselineReport::compare(&now, before, file));
        Ok(())
    }

    /// Returns the exit status: 2 if anything got worse since the baseline; else 0 if every server was measured under every
    /// workload, no signal ended the run, and the machine was not too noisy to be compared with the baseline; else 1.
    pub fn exit_status(&self) -> u8 {
        let since = self.baseline.as_ref().map_or(exit::OK, BaselineReport::exit_status);
        let is_missing =
            |server: &ServerWorkloadReport| server.samples.is_empty() && !server.unable;
        let has_signal = self.workloads.iter().any(|w| w.ended == Some(RoundsEnd::Signal));
        let has_all = !self.workloads.iter().flat_map(|w| &w.servers).any(is_missing);
        match has_all && !has_signal && self.broken.is_empty() {
            true => since,
            false => since.max(exit::FAILURE),
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

/// Says what is missing: after a signal, or if the time was up before the rounds that were asked for.
fn describe_partial(
    plan: &ComparePlan,
    run: &RoundsRun<'_>,
    workloads: &[WorkloadReport],
) -> Option<String> {
    let ended = |why| workloads.iter().any(|workload| workload.ended == Some(why));
    let why = match () {
        () if ended(RoundsEnd::Signal) => "a signal ended the run",
        () if plan.rounds.is_some() && ended(RoundsEnd::TimeLimit) => "the time was up",
        () => return None,
    };
    let of = match plan.rounds {
        Some(rounds) => {
            let all = rounds * plan.workloads.len() * plan.measured_servers().len();
            format!(" of {all}")
        }
        None => String::new(),
    };
    Some(format!("{}{of} measurements were made, then {why}", run.measured()))
}

impl WorkloadReport {
    /// Returns the report of one server.
    pub(crate) fn server_report(&self, server: &str) -> Option<&ServerWorkloadReport> {
        self.servers.iter().find(|one| one.server == server)
    }

    /// Returns the number of rounds in which all servers were measured that can be.
    pub(crate) fn complete_rounds(&self) -> usize {
        let measured = self.servers.iter().map(|one| one.samples.len()).filter(|n| *n > 0);
        measured.min().unwrap_or(0)
    }

    fn compare(&mut self, reference: &str, is_first: bool, error_rate: f64) {
        self.comparisons = compare_servers(self, reference, is_first, error_rate);
        self.control = compare_control(self, reference, error_rate);
        let all = self.comparisons.iter().chain(&self.control);
        let main: Vec<(String, PairedRatio)> = all
            .filter(|one| one.metric == self.metric && one.other == reference)
            .map(|one| (one.server.clone(), one.ratio))
            .collect();
        for server in &mut self.servers {
            let own = main.iter().find(|(name, _)| *name == server.server);
            server.ratio = own.map(|(_, ratio)| *ratio);
        }
    }
}

fn write_name<S: Serializer>(workload: &Workload, serializer: S) -> Result<S::Ok, S::Error> {
    workload.name().serialize(serializer)
}

fn write_scenario<S: Serializer>(
    workload: &Arc<Workload>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    workload.as_ref().serialize(serializer)
}

/// Formats a latency: in tables, sentences and plots alike.
pub(crate) fn format_latency(micros: f64) -> String {
    ComparedMetric::P99Latency.format_value(micros)
}

/// Groups the measurements of a workload by server, without comparing them.
pub(crate) fn workload_report(
    plan: &ComparePlan,
    run: &RoundsRun<'_>,
    workload: usize,
) -> WorkloadReport {
    let servers = plan.measured_servers();
    let report = |(at, server): (usize, &super::ComparedServer)| {
        let own = run.outcomes.iter().filter(|(id, _)| (id.workload, id.server) == (workload, at));
        let (mut samples, mut unable_reason) = (Vec::new(), None);
        for (_, outcome) in own {
            match outcome {
                MeasurementOutcome::Measured(sample) => samples.push((**sample).clone()),
                MeasurementOutcome::Unable(why) => unable_reason = Some(why.clone()),
                MeasurementOutcome::ServerFailed(_) | MeasurementOutcome::Interrupted => {}
            }
        }
        let is_control = at == plan.servers.len();
        ServerWorkloadReport::from_samples(&server.name, is_control, unable_reason, samples)
    };
    let kind = &plan.workloads[workload];
    WorkloadReport {
        workload: Arc::clone(kind),
        about: kind.description.clone(),
        metric: kind.metric,
        ended: run.ends[workload],
        error_rate_of_interval: plan.confidence().error_rate_of_interval,
        servers: servers.iter().enumerate().map(report).collect(),
        comparisons: Vec::new(),
        control: Vec::new(),
        scenario: Arc::clone(kind),
    }
}

#[cfg(test)]
pub(crate) mod tests;
