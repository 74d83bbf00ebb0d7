//! The comparison of concurrency models, dispatch policies and other servers: `prefork compare`.
//!
//! Each server runs in a process of its own, started for one measurement and stopped after it, so that
//! nothing else runs meanwhile. The load generator ([`crate::load`]) runs in this process; its CPU time is
//! reported apart from the servers'. Each round goes through all workloads and all servers in random order, so that a
//! change in the speed of the machine affects all alike. One server is measured twice, as a control.
//!
//! `paired_ratio` has the statistics, `confidence` how sure they are, `comparisons` which servers differ, and `verdict`
//! the lines to quote.
//!
//! No server outlives a run: each is stopped when dropped, and the kernel signals it if this process dies.

mod baseline;
mod compare_certificate;
mod compared_metric;
mod compared_server;
mod comparisons;
mod concurrent_loads;
mod confidence;
mod free_port;
mod measurement;
mod paired_ratio;
mod peers;
mod plan;
mod random_order;
mod report;
mod rounds;
mod run_directory;
mod run_resources;
mod run_settings;
mod running_server;
mod server_configuration;
mod size_in_words;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use baseline::{
    BaselineChange, BaselineReport, ChangeBasis, ChangeResult, SavedReport, UnpairedRatio,
};
pub use compared_metric::{ComparedMetric, MetricUnit};
pub use compared_server::ComparedServer;
pub use comparisons::{Comparison, ComparisonResult};
pub(crate) use concurrent_loads::run_concurrent_loads;
pub use confidence::Confidence;
pub use paired_ratio::PairedRatio;
pub use plan::{ComparePlan, DEFAULT_PRECISION, DEFAULT_TIME_LIMIT};
pub use report::CompareReport;
pub(crate) use run_resources::RunResources;
pub use run_settings::RunSettings;
pub(crate) use running_server::{RunningServer, ServerStartError};
pub use server_configuration::{ConfigurationFile, ServerConfiguration};
pub use verdict::{Verdict, VerdictLine};

use crate::load::LoadPlan;
pub use crate::scenario::Workload;
use crate::scenario::{ScenarioOutcome, ScenarioRequest, StaticRoot, run_scenario};
use measurement::MeasurementOutcome;
pub use measurement::MeasurementSample;
use prefork_os::signal::{Signal, SignalPipe};
use random_order::RandomOrder;
use rounds::{RoundsEnd, RoundsRun};
use server_configuration::configurations;
use tokio_prefork::{Error, Result};

/// Progress of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct CompareProgress<'a> {
    /// Number of the round, from 1.
    pub round: usize,
    /// Number of measurements that have been made.
    pub done: usize,
    /// Number of workloads that need no further rounds.
    pub ended_workloads: usize,
    /// Name of the workload.
    pub workload: &'a str,
    /// Name of the server.
    pub server: &'a str,
    /// Time since the start of the comparison.
    pub elapsed: Duration,
}

/// Runs the rounds of the plan, or as many as a signal or the time limit allows.
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
    let resources = RunResources::prepare(plan)?;
    let seed = plan.seed.map_or_else(RandomOrder::new_seed, Ok);
    let seed = seed.map_err(|e| Error::system("read a random number", e))?;
    let mut order = RandomOrder::from_seed(seed);
    let servers = plan.measured_servers();
    let roots = plan.workloads.iter().map(|workload| StaticRoot::create(&workload.files));
    let roots = roots
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| Error::system("write the files of a scenario to a temporary directory", e))?;
    let mut run = RoundsRun::new(plan, seed);
    while let Some(round) = run.begin_round() {
        for workload in order.shuffled(plan.workloads.len()) {
            for server in order.shuffled(servers.len()) {
                let Some(id) = run.next_measurement(round, workload, server) else { continue };
                if plan.time_limit.is_some_and(|limit| begun.elapsed() > limit) {
                    run.stop(RoundsEnd::TimeLimit);
                    continue;
                }
                let (at, server) = (workload, &servers[server]);
                let workload = &*plan.workloads[at];
                on_progress(CompareProgress {
                    round: round + 1,
                    done: run.measured(),
                    ended_workloads: run.ended_workloads(),
                    workload: workload.name(),
                    server: &server.name,
                    elapsed: begun.elapsed(),
                });
                let root = roots[at].as_ref().map(StaticRoot::path);
                let outcome =
                    measure_server(plan, workload, server, root, &resources, &mut signals)?;
                // The failed load was interrupted with SIGINT by this process: that is not a request to stop.
                let failed = matches!(outcome, MeasurementOutcome::ServerFailed(_));
                if take_stop_signals(&mut signals)? && !failed {
                    run.stop(RoundsEnd::Signal);
                }
                match outcome {
                    // An interrupted measurement does not count.
                    MeasurementOutcome::Interrupted => run.stop(RoundsEnd::Signal),
                    outcome => run.add(id, outcome, begun.elapsed()),
                }
            }
            run.end_workload_round(round, workload);
        }
    }
    let mut report = CompareReport::from_run(plan, &run, begun.elapsed());
    report.servers = configurations(plan, &resources);
    Ok(report)
}

fn take_stop_signals(signals: &mut SignalPipe) -> Result<bool> {
    Ok(!signals.read_pending().map_err(|e| Error::system("read pending signals", e))?.is_empty())
}

/// Measures one server under one workload.
fn measure_server(
    plan: &ComparePlan,
    workload: &Workload,
    compared: &ComparedServer,
    static_root: Option<PathBuf>,
    resources: &RunResources,
    signals: &mut SignalPipe,
) -> Result<MeasurementOutcome> {
    let compared = &compared.clone().with_static_root(static_root);
    let server = match RunningServer::start_server(compared, resources, signals) {
        Ok(server) => server,
        Err(ServerStartError::Interrupted) => return Ok(MeasurementOutcome::Interrupted),
        Err(ServerStartError::Failed(why)) => return Ok(MeasurementOutcome::ServerFailed(why)),
    };
    let base = LoadPlan {
        warm_up: workload.warm_up.unwrap_or(plan.warm_up),
        duration: workload.duration.unwrap_or(plan.duration),
        ..server.load_plan("/").map_err(Error::config)?
    };
    let is_refused = |request: &&ScenarioRequest| !server.answers(request, plan.http2);
    let refused = workload.required_requests().into_iter().filter(|_| compared.is_peer());
    if let Some(ScenarioRequest { method, path, .. }) = refused.into_iter().find(is_refused) {
        let why = format!("does not answer {method} {path} with 200");
        return Ok(MeasurementOutcome::Unable(why));
    }
    let outcome = run_scenario(workload, &base, plan.http2, signals, |_| {});
    drop(server);
    Ok(match outcome {
        Ok(ScenarioOutcome::Complete(result)) => MeasurementOutcome::Measured(Box::new(
            MeasurementSample::from_scenario_result(&result, workload),
        )),
        Ok(ScenarioOutcome::Interrupted(_)) => MeasurementOutcome::Interrupted,
        // The server died, which is its failure and not that of the run.
        Err(why) if why.kind() == tokio_prefork::ErrorKind::TargetUnreachable => {
            MeasurementOutcome::ServerFailed(why.to_string())
        }
        Err(why) if why.kind() == tokio_prefork::ErrorKind::Refused => {
            MeasurementOutcome::Unable(why.to_string())
        }
        Err(why) => return Err(why),
    })
}

/// Interval for polling a child process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a server may take to start: 30 s, as PM2 and interpreters take seconds on a busy machine.
const SERVER_START_TIMEOUT: Duration = Duration::from_secs(30);
