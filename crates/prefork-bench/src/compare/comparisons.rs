//! The comparisons of a report: each pair of servers, the control, and which differences are shown.

use serde::Serialize;

use super::compared_metric::ComparedMetric;
use super::paired_ratio::PairedRatio;
use super::report::{ServerWorkloadReport, WorkloadReport};

/// Whether two servers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComparisonResult {
    /// The interval excludes a ratio of 1.
    Differs,
    /// The interval contains a ratio of 1.
    NotShown,
    /// There are too few rounds for an interval.
    TooFewRounds,
}

/// Comparison of two servers under a workload by one metric.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What they are compared by.
    pub metric: ComparedMetric,
    /// Name of the first server.
    pub server: String,
    /// Name of the server that it is compared with.
    pub other: String,
    /// Ratio of the first server to the other, over the rounds.
    pub ratio: PairedRatio,
    /// Whether a difference is shown.
    pub result: ComparisonResult,
    /// The result as a sentence.
    pub text: String,
}

impl Comparison {
    /// Compares `own` with `other`; `None` if no round has values of both.
    pub(crate) fn of_servers(
        metric: ComparedMetric,
        own: &ServerWorkloadReport,
        other: &ServerWorkloadReport,
        error_rate: f64,
    ) -> Option<Comparison> {
        let pairs = own.samples.iter().filter_map(|sample| {
            let paired = other.samples.iter().find(|paired| paired.round == sample.round)?;
            Some(metric.paired_values(sample.value(metric)?, paired.value(metric)?))
        });
        let ratio = PairedRatio::from_pairs(pairs, error_rate)?;
        let result = match (ratio.interval(), ratio.shows_difference()) {
            (None, _) => ComparisonResult::TooFewRounds,
            (Some(_), true) => ComparisonResult::Differs,
            (Some(_), false) => ComparisonResult::NotShown,
        };
        let (server, other) = (own.server.clone(), other.server.clone());
        let text = describe(metric, &server, &other, &ratio);
        Some(Comparison { metric, server, other, ratio, result, text })
    }

    /// Returns whether a difference is shown.
    pub fn is_shown(&self) -> bool {
        self.result == ComparisonResult::Differs
    }

    /// Describes the size of a shown difference, such as `31 % more`, or why none is.
    pub(crate) fn describe_result(&self) -> String {
        let (metric, median) = (self.metric, self.ratio.median);
        match (self.result, self.ratio.interval()) {
            (ComparisonResult::Differs, Some(ends)) => metric.describe_stated_size(median, ends),
            (ComparisonResult::TooFewRounds, _) => "too few rounds".to_string(),
            _ => "no difference shown".to_string(),
        }
    }
}

fn describe(metric: ComparedMetric, server: &str, other: &str, ratio: &PairedRatio) -> String {
    let name = metric.name();
    match metric.describe_interval(ratio) {
        None => format!(
            "{server}: {} rounds are too few to state a difference in {name} (median: {})",
            ratio.rounds,
            metric.describe_difference(ratio.median, other)
        ),
        Some(interval) if ratio.shows_difference() => {
            format!("{server}: {} ({interval})", metric.describe_stated(ratio, other))
        }
        Some(interval) => {
            format!("{server}: no difference in {name} from {other} is shown ({interval})")
        }
    }
}

/// Returns all comparisons of a workload: every pair by the main metric, and each server with the reference by the
/// others; by memory only under the first workload, as it hardly depends on the workload.
pub(crate) fn compare_servers(
    report: &WorkloadReport,
    reference: &str,
    is_first: bool,
    error_rate: f64,
) -> Vec<Comparison> {
    let compare = |metric, own: &ServerWorkloadReport, other: &ServerWorkloadReport| {
        Comparison::of_servers(metric, own, other, error_rate)
    };
    let servers: Vec<&ServerWorkloadReport> =
        report.servers.iter().filter(|one| !one.is_control).collect();
    let base = servers.iter().find(|one| one.server == reference).copied();
    let others: Vec<&ServerWorkloadReport> =
        servers.iter().filter(|one| one.server != reference).copied().collect();
    let mut all = Vec::new();
    for metric in report.workload.compared_metrics() {
        if metric == ComparedMetric::Memory && metric != report.metric && !is_first {
            continue;
        }
        let with_base = others.iter().filter_map(|own| compare(metric, own, base?));
        all.extend(with_base);
    }
    for (at, own) in others.iter().enumerate() {
        let later = others[at + 1..].iter();
        all.extend(later.filter_map(|other| compare(report.metric, own, other)));
    }
    all
}

/// Compares the control with the reference by all metrics of a workload.
pub(crate) fn compare_control(
    report: &WorkloadReport,
    reference: &str,
    error_rate: f64,
) -> Vec<Comparison> {
    let control = report.servers.iter().find(|one| one.is_control);
    let Some((control, base)) = control.zip(report.server_report(reference)) else {
        return Vec::new();
    };
    let metrics = report.workload.compared_metrics().into_iter();
    metrics
        .filter(|metric| *metric != ComparedMetric::Memory || *metric == report.metric)
        .filter_map(|metric| Comparison::of_servers(metric, control, base, error_rate))
        .collect()
}
