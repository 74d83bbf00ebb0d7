//! The comparison of concurrency models, dispatch policies and other servers: `prefork compare`.
//!
//! Each server runs in a process of its own, started for one measurement and stopped after it, so that
//! nothing else runs meanwhile. The load generator ([`crate::load`]) runs in this process; its CPU time is
//! reported apart from the servers'. Each round goes through all workloads and all servers, in an order that
//! differs from round to round (`plan`), so that a change in the speed of the machine affects all alike.
//!
//! `differences` says which differences are larger than the noise between rounds.
//!
//! No server outlives a run: each is stopped when dropped, and the kernel signals it if this process dies.

mod compare_certificate;
mod compared_server;
mod concurrent_loads;
mod differences;
mod measurement;
mod plan;
mod report;
mod workload;

use std::time::{Duration, Instant};

pub use compared_server::ComparedServer;
pub(crate) use compared_server::{RunningServer, ServerStartError};
pub(crate) use concurrent_loads::run_concurrent_loads;
pub use plan::ComparePlan;
pub use report::CompareReport;
pub use workload::Workload;

use compare_certificate::CompareCertificate;
use measurement::{MeasurementOutcome, MeasurementSample};
use plan::PlannedMeasurement;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::{Error, Result};

/// Progress of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct CompareProgress<'a> {
    /// Number of completed measurements.
    pub done: usize,
    /// Number of all measurements.
    pub total: usize,
    /// Name of the workload.
    pub workload: &'a str,
    /// Name of the server.
    pub server: &'a str,
}

/// Why a comparison ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EarlyStop {
    /// SIGINT or SIGTERM arrived.
    Signal,
    /// The time limit was reached.
    TimeLimit,
}

/// Runs all measurements of the plan, or as many as a signal or the time limit allows.
///
/// Calls `on_progress` before each measurement. A server that cannot be measured is not an error; the report
/// names it.
///
/// # Errors
/// The plan is invalid, or the system refuses what the load needs.
pub fn run_comparison(
    plan: &ComparePlan,
    mut on_progress: impl FnMut(CompareProgress<'_>),
) -> Result<CompareReport> {
    plan.validate().map_err(Error::config)?;
    let begun = Instant::now();
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let certificate = plan.https.then(CompareCertificate::generate).transpose()?;
    let (measurements, mut outcomes, mut early_stop) = (plan.list_measurements(), Vec::new(), None);
    for (done, measurement) in measurements.iter().enumerate() {
        let workload = plan.workloads[measurement.workload];
        let server = &plan.servers[measurement.server];
        let given_up =
            outcomes.iter().any(|(earlier, outcome): &(PlannedMeasurement, MeasurementOutcome)| {
                earlier.server == measurement.server
                    && outcome.rules_out_later(earlier, measurement)
            });
        if given_up {
            continue;
        }
        early_stop = early_stop
            .or(plan.limit.filter(|limit| begun.elapsed() > *limit).map(|_| EarlyStop::TimeLimit));
        if early_stop.is_some() {
            break;
        }
        on_progress(CompareProgress {
            done,
            total: measurements.len(),
            workload: workload.name(),
            server: &server.name,
        });
        let outcome = measure_server(plan, workload, server, certificate.as_ref(), &mut signals)?;
        // The failed load was interrupted with SIGINT by this process: that is not a request to stop.
        let failed = matches!(outcome, MeasurementOutcome::ServerFailed(_));
        if take_stop_signals(&mut signals)? && !failed {
            early_stop = Some(EarlyStop::Signal);
        }
        match outcome {
            // An interrupted measurement does not count.
            MeasurementOutcome::Interrupted => early_stop = Some(EarlyStop::Signal),
            outcome => outcomes.push((*measurement, outcome)),
        }
    }
    Ok(CompareReport::from_outcomes(plan, outcomes, early_stop, begun.elapsed()))
}

fn take_stop_signals(signals: &mut SignalPipe) -> Result<bool> {
    Ok(!signals.read_pending().map_err(|e| Error::system("read pending signals", e))?.is_empty())
}

/// Measures one server under one workload.
fn measure_server(
    plan: &ComparePlan,
    workload: Workload,
    compared: &ComparedServer,
    certificate: Option<&CompareCertificate>,
    signals: &mut SignalPipe,
) -> Result<MeasurementOutcome> {
    let server = match RunningServer::start_server(compared, certificate, signals) {
        Ok(server) => server,
        Err(ServerStartError::Interrupted) => return Ok(MeasurementOutcome::Interrupted),
        Err(ServerStartError::Failed(why)) => return Ok(MeasurementOutcome::ServerFailed(why)),
    };
    let base = |path: &str| server.load_plan(path).map_err(Error::config);
    let (warm_up, duration) = (plan.warm_up, plan.duration);
    let measured = workload.measured_load(base(workload.measured_path())?, warm_up, duration);
    let measured = if plan.http2 { measured.with_http2() } else { measured };
    let has_path = |path| server.has_path(path, measured.http2_streams);
    if compared.is_peer() && !workload.required_paths().into_iter().all(has_path) {
        return Ok(MeasurementOutcome::PathMissing);
    }
    let background = match workload.background_path() {
        Some(path) => Some(workload.background_load(base(path)?, warm_up + duration)),
        None => None,
    };
    let (report, was_interrupted) = run_concurrent_loads(&measured, background, signals);
    drop(server);
    if was_interrupted {
        return Ok(MeasurementOutcome::Interrupted);
    }
    Ok(match report {
        Ok(report) => MeasurementOutcome::Measured(Box::new(MeasurementSample::from_load_report(
            &report, workload,
        ))),
        // The server died, which is its failure and not that of the run.
        Err(why) if why.kind() == tokio_prefork::ErrorKind::TargetUnreachable => {
            MeasurementOutcome::ServerFailed(why.to_string())
        }
        Err(why) => return Err(why),
    })
}

/// Interval for polling a child process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a server may take to start: 10 s.
const SERVER_START_TIMEOUT: Duration = Duration::from_secs(10);
