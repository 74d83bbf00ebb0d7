//! How sure a report is: the error rate of each interval, and when there are rounds enough.
//!
//! A report makes many comparisons, so each interval may miss only with a small share of the report's error rate
//! (Bonferroni's inequality: the chance that any misses is at most the sum). A run that ends when its intervals are
//! narrow looks at them several times, and each look is one more chance to be wrong: the share is divided by the
//! number of looks too. No rule for when to stop can then raise the error rate of the report.

use serde::{Deserialize, Serialize};

use super::paired_ratio::rounds_needed;
use super::{ComparePlan, ComparedMetric, Workload};

/// How often a report may be wrong in anything that it states: in one of 20.
const REPORT_ERROR_RATE: f64 = 0.05;
/// Number of looks at the intervals of a workload, of a run that ends when they are narrow.
const MAX_LOOKS: usize = 6;
/// Number of rounds at a look, divided by that at the look before.
const LOOK_SPACING: f64 = 1.5;

/// Confidence of a report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// How often all intervals of a report contain the true ratios, at least.
    pub level: f64,
    /// Number of comparisons in the report, by which the error rate of each interval is divided.
    pub comparisons: usize,
    /// How often the intervals may be looked at before the run ends, by which it is divided too.
    pub looks: usize,
    /// Error rate of each interval.
    pub error_rate_of_interval: f64,
}

impl Confidence {
    pub(crate) fn of_plan(plan: &ComparePlan) -> Confidence {
        let servers = plan.servers.len();
        let pairs = servers * servers.saturating_sub(1) / 2;
        let with_reference = servers.saturating_sub(1);
        // The control is compared with the reference by the same metrics.
        let of_metric = |workload: &Workload, is_first: bool, metric: ComparedMetric| match metric {
            main if main == workload.metric => pairs + 1,
            ComparedMetric::Memory => {
                if is_first {
                    with_reference
                } else {
                    0
                }
            }
            _ => with_reference + 1,
        };
        let all = plan.workloads.iter().enumerate().flat_map(|(at, one)| {
            one.compared_metrics().into_iter().map(move |metric| of_metric(one, at == 0, metric))
        });
        let comparisons = all.sum::<usize>().max(1);
        let looks = if plan.rounds.is_none() && plan.precision.is_some() { MAX_LOOKS } else { 1 };
        Confidence {
            level: 1.0 - REPORT_ERROR_RATE,
            comparisons,
            looks,
            error_rate_of_interval: REPORT_ERROR_RATE / (comparisons * looks) as f64,
        }
    }

    /// Returns the fewest rounds from which a difference can be stated.
    pub(crate) fn rounds_needed(&self) -> usize {
        rounds_needed(self.error_rate_of_interval)
    }

    /// Returns whether the intervals are looked at after this number of rounds. The last look is at the end.
    pub(crate) fn has_look_after(&self, rounds: usize) -> bool {
        let first = self.rounds_needed() as f64;
        let at = |look: usize| (first * LOOK_SPACING.powi(look as i32)).ceil() as usize;
        (0..self.looks.saturating_sub(1)).any(|look| at(look) == rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::ComparedServer;
    use tokio_prefork::ConcurrencyModel;

    const ALL: [&str; 8] = [
        "keep-alive",
        "new-connections",
        "bodies",
        "pipelined",
        "cpu-loop",
        "cpu-pool",
        "mixed",
        "noisy-neighbour",
    ];

    fn confidence(servers: usize, workloads: &[&str], rounds: Option<usize>) -> Confidence {
        let models = ConcurrencyModel::ALL.map(|model| ComparedServer::built_in(model, None, 2));
        let workloads =
            workloads.iter().map(|name| Workload::built_in(name).expect("built in")).collect();
        let plan = ComparePlan::new(models[..servers].to_vec(), workloads, 2);
        ComparePlan { rounds, ..plan }.confidence()
    }

    #[test]
    fn the_error_rate_is_divided_by_comparisons_and_looks() {
        // Six pairs and the control by requests/s; three and the control by p99 and by CPU; three by memory.
        let one = confidence(4, &["keep-alive"], Some(20));
        assert_eq!((one.comparisons, one.looks, one.rounds_needed()), (18, 1, 10));
        let latency = confidence(4, &["keep-alive", "mixed"], Some(20));
        assert_eq!(latency.comparisons, 18 + 7);
        let all = confidence(4, &ALL, None);
        assert_eq!((all.looks, all.rounds_needed()), (MAX_LOOKS, 15));
        let sum = all.error_rate_of_interval * (all.comparisons * all.looks) as f64;
        assert!((sum - REPORT_ERROR_RATE).abs() < 1e-12);
        assert_eq!(confidence(1, &["keep-alive"], Some(5)).comparisons, 3);
    }

    #[test]
    fn there_are_no_more_looks_than_the_error_rate_is_divided_by() {
        let all = confidence(4, &ALL, None);
        let looks: Vec<usize> = (1..1000).filter(|rounds| all.has_look_after(*rounds)).collect();
        assert_eq!(looks, [15, 23, 34, 51, 76]);
        let fixed = confidence(4, &ALL, Some(100));
        assert!(!(1..1000).any(|rounds| fixed.has_look_after(rounds)));
    }
}
