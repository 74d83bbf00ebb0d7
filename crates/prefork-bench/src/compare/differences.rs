//! Which differences between servers are larger than the noise, as sentences.
//!
//! Two servers differ if their rounds do not overlap: the worst round of one is better than the best of the
//! other. With few rounds this also happens by chance, and the report says how often.

use serde::Serialize;

use super::Workload;
use super::report::{ServerWorkloadReport, WorkloadReport};
use crate::load::MedianRange;

/// How often the rounds of two equal servers would not overlap by chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FalseDifferenceRate {
    /// Number of rounds of the server with the fewest.
    pub rounds: usize,
    /// One pair in this many; `None` with fewer than two rounds.
    pub one_in: Option<f64>,
}

impl FalseDifferenceRate {
    pub(crate) fn from_workloads(workloads: &[WorkloadReport]) -> FalseDifferenceRate {
        let cells = workloads.iter().flat_map(|workload| &workload.contestants);
        let rounds = cells.map(|cell| cell.samples.len()).filter(|n| *n > 0).min().unwrap_or(0);
        // Of all orders of two times n rounds, two put all rounds of one server first.
        let orders = (1..=rounds).fold(1.0, |all, n| all * (rounds + n) as f64 / n as f64);
        FalseDifferenceRate { rounds, one_in: (rounds > 1).then_some(orders / 2.0) }
    }

    /// Describes the rate in a sentence.
    pub(crate) fn description(&self) -> String {
        match self.one_in {
            Some(one_in) => format!(
                "A difference is larger than the noise if the rounds of two servers do not overlap. With {} rounds \
                 each, one pair of equal servers in {one_in:.0} differs by chance.",
                self.rounds
            ),
            None => {
                "One round does not show the noise, so no differences are reported.".to_string()
            }
        }
    }
}

/// How the rounds of one server compare with those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    More,
    Less,
    Noise,
}

fn compare_ranges(own: MedianRange, other: MedianRange) -> Difference {
    match () {
        () if own.min > other.max => Difference::More,
        () if own.max < other.min => Difference::Less,
        () => Difference::Noise,
    }
}

/// A metric to compare, and its words.
struct ComparedMetric {
    name: &'static str,
    more: &'static str,
    less: &'static str,
    value: fn(&ServerWorkloadReport, Workload) -> Option<MedianRange>,
}

const WORKLOAD_METRICS: [ComparedMetric; 3] = [
    ComparedMetric {
        name: "requests/s",
        more: "more",
        less: "fewer",
        value: |cell, workload| (!workload.is_latency_workload()).then_some(cell.per_second),
    },
    ComparedMetric {
        name: "p99 latency of the measured requests",
        more: "longer",
        less: "shorter",
        value: |cell, workload| workload.is_latency_workload().then_some(cell.p99),
    },
    ComparedMetric {
        name: "CPU per request",
        more: "more",
        less: "less",
        value: |cell, _| cell.cpu_us,
    },
];

/// Memory hardly depends on the workload: reported once.
const MEMORY_METRIC: ComparedMetric =
    ComparedMetric { name: "memory", more: "more", less: "less", value: |cell, _| cell.memory_mib };

/// Returns one sentence for each metric under each workload.
pub(crate) fn describe_differences(workloads: &[WorkloadReport], reference: &str) -> Vec<String> {
    let mut all = Vec::new();
    for workload in workloads {
        all.extend(
            WORKLOAD_METRICS
                .iter()
                .filter_map(|figure| describe_metric(workload, figure, reference)),
        );
    }
    all.extend(
        workloads.first().and_then(|first| describe_metric(first, &MEMORY_METRIC, reference)),
    );
    all
}

/// Describes one metric; `None` if no server can be compared.
fn describe_metric(
    report: &WorkloadReport,
    figure: &ComparedMetric,
    reference: &str,
) -> Option<String> {
    let (enough, workload) =
        (|cell: &ServerWorkloadReport| cell.samples.len() > 1, report.workload);
    let base = report.server_report(reference).filter(|cell| enough(cell))?;
    let base = (figure.value)(base, workload)?;
    let (mut more, mut less, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    let others =
        report.contestants.iter().filter(|cell| cell.contestant != reference && enough(cell));
    for cell in others {
        let Some(own) = (figure.value)(cell, workload) else { continue };
        let text = match base.median > 0.0 {
            true => format!("{} ({:.2}x)", cell.contestant, own.median / base.median),
            false => cell.contestant.clone(),
        };
        match compare_ranges(own, base) {
            Difference::More => more.push(text),
            Difference::Less => less.push(text),
            Difference::Noise => noise.push(text),
        }
    }
    let group = |what: String, who: Vec<String>| {
        (!who.is_empty()).then(|| format!("{what}: {}", who.join(", ")))
    };
    let groups = [
        group(format!("{} than {reference}", figure.more), more),
        group(format!("{} than {reference}", figure.less), less),
        group("no difference larger than the noise".to_string(), noise),
    ];
    let groups: Vec<String> = groups.into_iter().flatten().collect();
    (!groups.is_empty())
        .then(|| format!("{}, {}: {}.", workload.name(), figure.name, groups.join("; ")))
}
