//! Runs the loads of a workload against a server that is up.

use serde::Serialize;

use std::cell::RefCell;

use super::load_plans::ScenarioPlans;
use super::{LoadKind, Workload};
use crate::compare::run_concurrent_loads;
use crate::load::{LoadPlan, LoadProgress, LoadReport};
use crate::load_kinds::KindReport;
use crate::load_kinds::slow_readers::{SlowReadersReport, run_beside_readers};
use prefork_os::signal::SignalPipe;
use tokio_prefork::{Error, Result};

/// What a workload has shown.
#[derive(Debug)]
pub(crate) enum ScenarioOutcome {
    /// It ran to its end.
    Complete(Box<ScenarioResult>),
    /// A signal ended it early; holds what was measured until then.
    Interrupted(Option<Box<ScenarioResult>>),
}

/// Figures of a workload.
#[derive(Debug)]
pub(crate) struct ScenarioResult {
    /// Report of the measured load.
    pub(crate) report: MeasuredReport,
    /// What the server answered in a closed loop before; `None` unless the rate is a part of it.
    pub(crate) capacity: Option<CapacityResult>,
    /// The loads that ran beside it.
    pub(crate) background: Vec<BackgroundResult>,
}

/// Report of the measured load.
#[derive(Debug, Clone)]
pub enum MeasuredReport {
    /// It sent requests.
    Requests(Box<LoadReport>),
    /// It is of another kind, or ran beside slow readers.
    Kind(Box<KindReport>),
}

impl MeasuredReport {
    /// Returns the report of the requests, if there were any.
    pub fn load(&self) -> Option<&LoadReport> {
        match self {
            MeasuredReport::Requests(report) => Some(report),
            MeasuredReport::Kind(report) => report.load(),
        }
    }
}

/// What a server answered in a closed loop of the measured load, and the rate that follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CapacityResult {
    /// Responses per second in the closed loop.
    pub per_second: f64,
    /// The part of it that is due in the measured load, such as 0.8; `None` if its rate does not depend on it.
    pub part: Option<f64>,
    /// Requests due per second in the measured load; `None` in a closed loop.
    pub rate: Option<u32>,
}

/// Figures of a load that ran beside the measured one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackgroundResult {
    /// Name of the load.
    pub name: String,
    /// Responses per second.
    pub per_second: f64,
    /// Responses.
    pub responses: u64,
    /// Requests without a response, or with a status of 400 or more.
    pub errors: u64,
    /// 99th percentile of the latency in microseconds.
    pub p99: f64,
}

/// Runs the loads of `workload` at the same time, with the server, TLS options and times of `base`.
///
/// # Errors
/// A plan is invalid, the server does not answer, or the system refuses what the load needs.
pub(crate) fn run_scenario(
    workload: &Workload,
    base: &LoadPlan,
    http2: bool,
    signals: &mut SignalPipe,
    mut on_progress: impl FnMut(LoadProgress),
) -> Result<ScenarioOutcome> {
    let kind = &workload.measured_load().kind;
    if !matches!(kind, LoadKind::Requests(_)) {
        let measured = kind.measure(base, http2, &mut || has_signal(signals))?;
        return Ok(measured.map_or(ScenarioOutcome::Interrupted(None), |report| {
            let ended_early = report.ended_early();
            let report = MeasuredReport::Kind(Box::new(report));
            ScenarioOutcome::new(
                ScenarioResult { report, capacity: None, background: Vec::new() },
                ended_early,
            )
        }));
    }
    let mut plans = ScenarioPlans::new(workload, base, http2).map_err(Error::config)?;
    let mut capacity = None;
    if plans.all().any(|planned| planned.needs_capacity()) {
        // Without the loads beside it: the capacity is that of the server.
        let plan = plans.measured.capacity_plan();
        let (report, _, was_interrupted) =
            run_concurrent_loads(&plan, &[], signals, &mut on_progress);
        let report = report?;
        if was_interrupted {
            return Ok(ScenarioOutcome::Interrupted(None));
        }
        let per_second = report.per_second.median;
        plans.all().for_each(|planned| planned.set_capacity(per_second));
        let measured = &plans.measured;
        capacity = Some(CapacityResult {
            per_second,
            part: measured.part_of_capacity,
            rate: measured.plan.rate,
        });
    }
    let background: Vec<LoadPlan> =
        plans.background.iter().map(|planned| planned.plan.clone()).collect();
    let signals = RefCell::new(signals);
    let mut run_loads = || {
        let mut signals = signals.borrow_mut();
        let measured = &plans.measured.plan;
        let (report, reports, was_interrupted) =
            run_concurrent_loads(measured, &background, &mut signals, &mut on_progress);
        report.map(|report| (report, reports, was_interrupted))
    };
    let (alone, alone_reports, was_interrupted) = run_loads()?;
    let (report, reports, was_interrupted) = match &plans.readers {
        None => (MeasuredReport::Requests(Box::new(alone)), alone_reports, was_interrupted),
        // The figures alone are not those of the scenario.
        Some(_) if was_interrupted => return Ok(ScenarioOutcome::Interrupted(None)),
        Some(readers) => {
            let mut is_stopped = || has_signal(&mut signals.borrow_mut());
            let beside = run_beside_readers(readers, &mut is_stopped, |_| run_loads())?;
            let Some(((beside, reports, was_interrupted), readers)) = beside else {
                return Ok(ScenarioOutcome::Interrupted(None));
            };
            let report = KindReport::SlowReaders(SlowReadersReport::new(alone, beside, readers));
            (MeasuredReport::Kind(Box::new(report)), reports, was_interrupted)
        }
    };
    let background = plans.background.iter().zip(reports);
    let result = ScenarioResult {
        report,
        capacity,
        background: background
            .map(|(planned, report)| BackgroundResult::from_report(&planned.name, &report))
            .collect(),
    };
    Ok(ScenarioOutcome::new(result, was_interrupted))
}

impl ScenarioOutcome {
    fn new(result: ScenarioResult, was_interrupted: bool) -> ScenarioOutcome {
        match was_interrupted {
            true => ScenarioOutcome::Interrupted(Some(Box::new(result))),
            false => ScenarioOutcome::Complete(Box::new(result)),
        }
    }
}

/// Returns whether a signal has asked this program to stop.
fn has_signal(signals: &mut SignalPipe) -> bool {
    signals.read_pending().is_ok_and(|came| !came.is_empty())
}

impl BackgroundResult {
    fn from_report(name: &str, report: &LoadReport) -> BackgroundResult {
        BackgroundResult {
            name: name.to_string(),
            per_second: report.per_second.median,
            responses: report.responses,
            errors: report.error_count(),
            p99: report.latency.p99,
        }
    }
}
