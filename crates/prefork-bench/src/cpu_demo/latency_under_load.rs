//! What other clients notice of requests that compute.

use std::time::Duration;

use serde::Serialize;

use super::CpuDemoPlan;
use crate::compare::{ComparedServer, RunningServer, ServerStartError, run_concurrent_loads};
use crate::load::{self, TargetUrl};
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::ConcurrencyModel;
use tokio_prefork::{Error, Result};

/// Requests for `/` that are due each second.
const LIGHT_REQUESTS_PER_SECOND: u32 = 200;
/// Clients that ask for a number, each again as soon as it has one.
const COMPUTING_CLIENTS: usize = 2;
/// No request waits longer for its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How `/` was answered, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyUnderLoad {
    pub how: String,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// P99, of that without requests that compute.
    pub ratio: f64,
    /// Requests for `/` that got no answer, or one that says that something went wrong.
    pub failed: u64,
}

/// The cases in order, and whether all of them were measured: a signal ends it early.
pub(crate) fn measure_latencies(
    plan: &CpuDemoPlan,
    cores: usize,
    report_step: &mut impl FnMut(&str),
) -> Result<(Vec<LatencyUnderLoad>, bool)> {
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let single = || ComparedServer::built_in(ConcurrencyModel::Single, None, 1);
    // More than those that compute, and as many as the cores have use for.
    let many = 2 * cores.max(COMPUTING_CLIENTS);
    let (on_loop, in_pool) =
        (format!("/fib/{}?on=loop", plan.requested_fib), format!("/fib/{}", plan.requested_fib));
    let cases = [
        ("nobody computes".to_string(), single(), None),
        ("computing on the loop".to_string(), single(), Some(&on_loop)),
        ("computing in the pool".to_string(), single(), Some(&in_pool)),
        (
            format!("on the loops of {many} processes"),
            ComparedServer::built_in(ConcurrencyModel::Prefork, None, many),
            Some(&on_loop),
        ),
    ];
    let mut all: Vec<LatencyUnderLoad> = Vec::new();
    for (how, who, heavy) in cases {
        report_step(&format!("latency of /: {how}"));
        let Some(report) = measure_server(plan, &who, heavy.map(String::as_str), &mut signals)?
        else {
            return Ok((all, false));
        };
        let (failed, load::LatencySummary { p50, p99, max, .. }) =
            (report.errors(), report.latency);
        let idle = all.first().map_or(p99, |first| first.p99);
        all.push(LatencyUnderLoad { how, p50, p99, max, ratio: p99 / idle, failed });
    }
    Ok((all, true))
}

/// `None` if a signal came.
fn measure_server(
    plan: &CpuDemoPlan,
    who: &ComparedServer,
    heavy: Option<&str>,
    signals: &mut SignalPipe,
) -> Result<Option<load::LoadReport>> {
    let server = match RunningServer::start(who, signals) {
        Ok(server) => server,
        Err(ServerStartError::Interrupted) => return Ok(None),
        Err(ServerStartError::Failed(why)) => return Err(Error::config(why)),
    };
    let load = |path: &str| {
        let url = format!("{}{path}", server.url());
        let target =
            TargetUrl::parse(&url).map_err(|why| Error::config(format!("{url}: {why}")))?;
        Ok::<_, Error>(load::LoadPlan {
            threads: 1,
            timeout: RESPONSE_TIMEOUT,
            ..load::LoadPlan::new(target)
        })
    };
    let warm_up = plan.duration.min(Duration::from_secs(1)) / 2;
    // On connections of their own, so that nobody is behind one that waits already.
    let light = load::LoadPlan {
        connections: 1024,
        reconnect_each_request: true,
        rate: Some(LIGHT_REQUESTS_PER_SECOND),
        duration: plan.duration,
        warm_up,
        ..load("/")?
    };
    let heavy = heavy.map(load).transpose()?.map(|heavy| load::LoadPlan {
        connections: COMPUTING_CLIENTS,
        duration: plan.duration + warm_up,
        warm_up: Duration::ZERO,
        ..heavy
    });
    let (report, was_interrupted) = run_concurrent_loads(&light, heavy, signals);
    if was_interrupted { Ok(None) } else { report.map(Some) }
}
