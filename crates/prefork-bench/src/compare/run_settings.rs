//! How servers were measured, as written to a report and read back from it by a later run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ComparePlan;

/// Longest duration in a report, in seconds: a year.
const MAX_SECONDS: f64 = 366.0 * 24.0 * 3600.0;

/// Protocol, workers, rounds and lengths of a comparison: fields of its report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// `http` or `https`.
    pub scheme: String,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: String,
    /// Workers of each server.
    pub workers: usize,
    /// Rounds of `--rounds`; `None` if precision or time ends them.
    pub rounds: Option<usize>,
    /// Precision that ends the rounds of a workload, such as 0.05; `None` without.
    pub precision: Option<f64>,
    /// Time limit in seconds; `None` without.
    pub time_limit_s: Option<f64>,
    /// Length of each measurement in seconds.
    pub duration_s: f64,
    /// Length of the load before each measurement in seconds.
    pub warm_up_s: f64,
}

impl RunSettings {
    pub(crate) fn of_plan(plan: &ComparePlan) -> RunSettings {
        RunSettings {
            scheme: if plan.https { "https" } else { "http" }.to_string(),
            protocol: if plan.http2 { "HTTP/2" } else { "HTTP/1.1" }.to_string(),
            workers: plan.workers,
            rounds: plan.rounds,
            precision: plan.precision.filter(|_| plan.rounds.is_none()),
            time_limit_s: plan.time_limit.map(|limit| limit.as_secs_f64()),
            duration_s: plan.duration.as_secs_f64(),
            warm_up_s: plan.warm_up.as_secs_f64(),
        }
    }

    /// Returns whether all lengths of a report that was read are possible.
    pub(crate) fn has_possible_lengths(&self) -> bool {
        let lengths = [Some(self.duration_s), Some(self.warm_up_s), self.time_limit_s];
        lengths.into_iter().flatten().all(|seconds| (0.0..=MAX_SECONDS).contains(&seconds))
    }

    /// Measures as these settings say: rounds, precision, time limit and lengths.
    pub fn apply_lengths(&self, plan: &mut ComparePlan) {
        (plan.rounds, plan.precision) = (self.rounds, self.precision);
        plan.time_limit = self.time_limit_s.map(Duration::from_secs_f64);
        plan.duration = Duration::from_secs_f64(self.duration_s);
        plan.warm_up = Duration::from_secs_f64(self.warm_up_s);
    }
}
