//! Which differences are larger than the noise, in words. Pure.
//!
//! What a contestant differs from itself, round by round, is the noise. Two contestants differ by more if their rounds do
//! not overlap: the worst of the one is better than the best of the other. With few rounds this happens by chance, too, and
//! the report says how often.

use serde::Serialize;

use super::Workload;
use super::report::{ServerWorkloadReport, WorkloadReport};
use crate::load::MedianRange;

/// How often the rounds of two equal contestants do not overlap, though nothing but chance orders them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FalseDifferenceRate {
    /// Rounds of the contestant that has the fewest.
    pub rounds: usize,
    /// One in so many pairs; none if there are too few rounds for any pair to be compared.
    pub one_in: Option<f64>,
}

impl FalseDifferenceRate {
    pub(crate) fn from_workloads(workloads: &[WorkloadReport]) -> FalseDifferenceRate {
        let cells = workloads.iter().flat_map(|workload| &workload.contestants);
        let rounds = cells.map(|cell| cell.samples.len()).filter(|n| *n > 0).min().unwrap_or(0);
        // Of all orders in which two times n rounds may come, two have one contestant's first and the other's last.
        let orders = (1..=rounds).fold(1.0, |all, n| all * (rounds + n) as f64 / n as f64);
        FalseDifferenceRate { rounds, one_in: (rounds > 1).then_some(orders / 2.0) }
    }

    /// For people.
    pub(crate) fn description(&self) -> String {
        match self.one_in {
            Some(one_in) => format!(
                "A difference is called larger than the noise if the rounds of the two do not overlap. With {} rounds \
                 each that happens by chance to one pair of equals in {one_in:.0}.",
                self.rounds
            ),
            None => "One round does not tell what noise is: nothing is said about differences."
                .to_string(),
        }
    }
}

/// How the rounds of one contestant stand to those of another.
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

/// A figure that is looked at, and how it is called.
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
        name: "99th percentile of the light requests",
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

/// Memory hardly depends on the load: told once.
const MEMORY_METRIC: ComparedMetric =
    ComparedMetric { name: "memory", more: "more", less: "less", value: |cell, _| cell.memory_mib };

/// One sentence for each figure under each load.
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

/// `None` if there is nothing to say.
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
