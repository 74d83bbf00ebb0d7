//! The models, the policies and the peers side by side: `prefork compare`.
//!
//! Each contestant is a real server in a process of its own, started for one measurement and stopped after it, so
//! that nothing else serves meanwhile. The load is that of [`crate::load`], in this process: what the generator costs
//! is known, and is not in the figures of the server. A round goes through all workloads, and in each of them through
//! all contestants, in another order than the round before ([`plan`]): a machine whose speed drifts is unfair to all alike.
//!
//! [`differences`] says which differences are larger than what one contestant differs from itself. What is measured
//! becomes a [`CompareReport`], which is printed as a table, as JSON, or as a page.
//!
//! Nothing outlives a run: contestants are stopped when they are dropped, and if this process is killed the kernel
//! tells them to stop.

mod compared_server;
mod concurrent_loads;
mod differences;
mod measurement;
mod plan;
mod report;
mod workload;

use std::time::{Duration, Instant};

pub use compared_server::{ComparedServer, RunningServer, ServerStartError};
pub use concurrent_loads::run_concurrent_loads;
pub use plan::ComparePlan;
pub use report::CompareReport;
pub use workload::Workload;

use crate::load::TargetUrl;
use measurement::{MeasurementOutcome, MeasurementSample};
use plan::PlannedMeasurement;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::{Error, Result};

/// How far a comparison is.
#[derive(Debug, Clone, Copy)]
pub struct CompareProgress<'a> {
    /// Measurements that are done, and all of them.
    pub done: usize,
    /// See `done`.
    pub total: usize,
    pub workload: &'a str,
    pub contestant: &'a str,
}

/// Why a comparison did not measure all it was to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStop {
    /// SIGINT or SIGTERM.
    Signal,
    /// The time that it may take was over.
    TimeLimit,
}

/// Measures all that the plan says, or as much of it as SIGINT, SIGTERM or its time leaves. `watch` is told before each
/// measurement.
///
/// # Errors
/// The plan makes no sense, or the system refuses what the load needs. A contestant that cannot be measured
/// is no error but is told in the report.
pub fn run_comparison(
    plan: &ComparePlan,
    mut watch: impl FnMut(CompareProgress<'_>),
) -> Result<CompareReport> {
    plan.validate().map_err(Error::config)?;
    let begun = Instant::now();
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let (measurements, mut outcomes, mut early_stop) = (plan.measurements(), Vec::new(), None);
    for (done, measurement) in measurements.iter().enumerate() {
        let workload = plan.workloads[measurement.workload];
        let contestant = &plan.servers[measurement.server];
        let given_up =
            outcomes.iter().any(|(earlier, outcome): &(PlannedMeasurement, MeasurementOutcome)| {
                earlier.server == measurement.server && outcome.rules_out(earlier, measurement)
            });
        if given_up {
            continue;
        }
        early_stop = early_stop
            .or(plan.limit.filter(|limit| begun.elapsed() > *limit).map(|_| EarlyStop::TimeLimit));
        if early_stop.is_some() {
            break;
        }
        watch(CompareProgress {
            done,
            total: measurements.len(),
            workload: workload.name(),
            contestant: &contestant.name,
        });
        let outcome = measure_server(plan, workload, contestant, &mut signals)?;
        // Our own signals come here, too: a load that failed is not a wish of anybody's to end.
        let failed = matches!(outcome, MeasurementOutcome::ServerFailed(_));
        if take_stop_signals(&mut signals)? && !failed {
            early_stop = Some(EarlyStop::Signal);
        }
        match outcome {
            // A measurement that was cut short is none.
            MeasurementOutcome::Interrupted => early_stop = Some(EarlyStop::Signal),
            outcome => outcomes.push((*measurement, outcome)),
        }
    }
    Ok(CompareReport::from_outcomes(plan, outcomes, early_stop, begun.elapsed()))
}

fn take_stop_signals(signals: &mut SignalPipe) -> Result<bool> {
    Ok(!signals.read_pending().map_err(|e| Error::system("read a signal", e))?.is_empty())
}

/// One contestant under one load.
fn measure_server(
    plan: &ComparePlan,
    workload: Workload,
    contestant: &ComparedServer,
    signals: &mut SignalPipe,
) -> Result<MeasurementOutcome> {
    let server = match RunningServer::start(contestant, signals) {
        Ok(server) => server,
        Err(ServerStartError::Interrupted) => return Ok(MeasurementOutcome::Interrupted),
        Err(ServerStartError::Failed(why)) => return Ok(MeasurementOutcome::ServerFailed(why)),
    };
    if contestant.is_peer()
        && !workload.required_paths().into_iter().all(|path| server.has_path(path))
    {
        return Ok(MeasurementOutcome::PathMissing);
    }
    let target = |path: &str| {
        let url = format!("{}{path}", server.url());
        TargetUrl::parse(&url).map_err(|why| Error::config(format!("{url}: {why}")))
    };
    let light =
        workload.measured_load(target(workload.measured_path())?, plan.warm_up, plan.duration);
    let heavy = match workload.background_path() {
        Some(path) => Some(workload.background_load(target(path)?, plan.warm_up + plan.duration)),
        None => None,
    };
    let (report, was_interrupted) = run_concurrent_loads(&light, heavy, signals);
    drop(server);
    if was_interrupted {
        return Ok(MeasurementOutcome::Interrupted);
    }
    Ok(match report {
        Ok(report) => MeasurementOutcome::Measured(Box::new(MeasurementSample::from_load_report(
            &report, workload,
        ))),
        // Nobody answers any more: it has died, which is its own failure and not that of the run.
        Err(why) if why.exit_status() == tokio_prefork::exit::UNAVAILABLE => {
            MeasurementOutcome::ServerFailed(why.to_string())
        }
        Err(why) => return Err(why),
    })
}

/// Between two looks at something that tells nobody.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Longer than any server that is well needs to start, and to stop.
const SERVER_START_TIMEOUT: Duration = Duration::from_secs(10);
