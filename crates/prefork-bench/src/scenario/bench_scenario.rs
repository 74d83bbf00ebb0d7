//! Runs a scenario against a server that is up: `prefork bench --scenario`.

use std::fmt::Write;

use serde::Serialize;

use super::{
    BackgroundResult, BenchReport, CapacityResult, MeasuredReport, ScenarioKindReport,
    ScenarioOutcome, Workload, format_percent, run_scenario,
};
use crate::load::{LoadPlan, LoadProgress};
use crate::report_format::text_table::{format_count, format_micros};
use crate::run_environment::RunEnvironment;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::{Error, Result};

/// The scenario of a load report, and what else it has measured.
#[derive(Debug, Clone, Serialize)]
pub struct ScenarioSummary {
    /// Name of the workload.
    pub name: String,
    /// What the server answered in a closed loop before; `None` unless a rate is a part of it.
    pub capacity: Option<CapacityResult>,
    /// The loads that ran beside the measured one.
    pub background: Vec<BackgroundResult>,
    /// The scenario in the keys of its file.
    pub scenario: Workload,
}

impl ScenarioSummary {
    /// Writes the lines of a text report.
    pub(crate) fn write_lines(&self, text: &mut String) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "scenario    {}: {}", self.name, self.scenario.description);
        if let Some(capacity) = &self.capacity {
            let due = match (capacity.part, capacity.rate) {
                (Some(part), Some(rate)) => {
                    format!(
                        "; {} of it, {} requests/s, were due",
                        format_percent(part),
                        format_count(f64::from(rate))
                    )
                }
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "capacity    {} requests/s in a closed loop{due}",
                format_count(capacity.per_second)
            );
        }
        for load in &self.background {
            let _ = writeln!(
                text,
                "beside      {}: {} requests/s, {} errors, p99 {}",
                load.name,
                format_count(load.per_second),
                format_count(load.errors as f64),
                format_micros(load.p99)
            );
        }
    }
}

/// Checks that a scenario can run against the server of `base`.
///
/// # Errors
/// Names what is wrong with the URL, the duration or the scenario.
pub fn check_bench_scenario(workload: &Workload, base: &LoadPlan) -> Result<(), String> {
    if base.target.request_target != "/" {
        return Err(format!(
            "{}: a scenario has the paths, so give a URL without one",
            base.target
        ));
    }
    if workload.https && !base.target.is_https() {
        return Err(format!("the workload {} needs an https:// URL", workload.name()));
    }
    workload.check_duration(base.duration)
}

/// Runs a scenario against the server of `base`, with its TLS options and times. Returns `None` if a signal came before
/// there was anything to report.
///
/// # Errors
/// The scenario is invalid together with `base`, the server does not answer, or the system refuses what the load needs.
pub fn run_bench_scenario(
    workload: &Workload,
    base: &LoadPlan,
    on_progress: impl FnMut(LoadProgress),
) -> Result<Option<BenchReport>> {
    check_bench_scenario(workload, base).map_err(Error::config)?;
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let result = match run_scenario(workload, base, false, &mut signals, on_progress)? {
        ScenarioOutcome::Complete(result) | ScenarioOutcome::Interrupted(Some(result)) => *result,
        ScenarioOutcome::Interrupted(None) => return Ok(None),
    };
    let scenario = ScenarioSummary {
        name: workload.name().to_string(),
        capacity: result.capacity,
        background: result.background,
        scenario: workload.clone(),
    };
    Ok(Some(match result.report {
        MeasuredReport::Requests(mut report) => {
            report.scenario = Some(scenario);
            BenchReport::Requests(report)
        }
        MeasuredReport::Kind(report) => BenchReport::Kind(Box::new(ScenarioKindReport {
            environment: RunEnvironment::read(),
            target: base.target.to_string(),
            scenario,
            report: *report,
        })),
    }))
}
