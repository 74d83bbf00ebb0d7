//! Measures the latency of `/` while other requests compute.

use std::time::Duration;

use serde::Serialize;

use super::CpuDemoPlan;
use crate::compare::{
    ComparedServer, RunResources, RunningServer, ServerStartError, run_concurrent_loads,
};
use crate::load;
use prefork_os::signal::SignalPipe;
use tokio_prefork::ConcurrencyModel;
use tokio_prefork::{Error, Result};

/// Requests for `/` due per second.
const LIGHT_REQUESTS_PER_SECOND: u32 = 200;
/// Clients that request a number, one after the other.
const COMPUTING_CLIENTS: usize = 2;
/// Longest wait for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Latency of `/` in one case, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyUnderLoad {
    /// What computes meanwhile.
    pub how: String,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// Highest latency.
    pub max: f64,
    /// p99 divided by the p99 without requests that compute.
    pub ratio: f64,
    /// Requests for `/` without a response, or with a status of 400 or more.
    pub failed: u64,
}

/// Measures all cases in order; `false` if a signal ended it early.
pub(crate) fn measure_latencies(
    plan: &CpuDemoPlan,
    cores: usize,
    signals: &mut SignalPipe,
    report_step: &mut impl FnMut(&str),
) -> Result<(Vec<LatencyUnderLoad>, bool)> {
    let single = || ComparedServer::built_in(ConcurrencyModel::Single, None, 1);
    // More processes than requests that compute, and enough for all cores.
    let many = 2 * cores.max(COMPUTING_CLIENTS);
    let (on_loop, in_pool) =
        (format!("/fib/{}?on=loop", plan.requested_fib), format!("/fib/{}", plan.requested_fib));
    let cases = [
        ("no request computes".to_string(), single(), None),
        ("computing on the loop".to_string(), single(), Some(&on_loop)),
        ("computing in the pool".to_string(), single(), Some(&in_pool)),
        (
            format!("on the loops of {many} processes"),
            ComparedServer::built_in(ConcurrencyModel::Prefork, None, many),
            Some(&on_loop),
        ),
    ];
    let mut all: Vec<LatencyUnderLoad> = Vec::new();
    for (how, compared, background) in cases {
        report_step(&format!("latency of /: {how}"));
        let Some(report) =
            measure_server(plan, &compared, background.map(String::as_str), signals)?
        else {
            return Ok((all, false));
        };
        let (failed, load::LatencySummary { p50, p99, max, .. }) =
            (report.error_count(), report.latency);
        let idle = all.first().map_or(p99, |first| first.p99);
        all.push(LatencyUnderLoad { how, p50, p99, max, ratio: p99 / idle, failed });
    }
    Ok((all, true))
}

/// Measures one server; `None` if a signal arrived.
fn measure_server(
    plan: &CpuDemoPlan,
    compared: &ComparedServer,
    background: Option<&str>,
    signals: &mut SignalPipe,
) -> Result<Option<load::LoadReport>> {
    let resources = RunResources::default();
    let server = match RunningServer::start_server(compared, &resources, signals) {
        Ok(server) => server,
        Err(ServerStartError::Interrupted) => return Ok(None),
        Err(ServerStartError::Failed(why)) => return Err(Error::config(why)),
    };
    let load = |path: &str| {
        let base = server.load_plan(path).map_err(Error::config)?;
        Ok::<_, Error>(load::LoadPlan { threads: 1, timeout: RESPONSE_TIMEOUT, ..base })
    };
    let warm_up = plan.duration.min(Duration::from_secs(1)) / 2;
    // New connections, so that no request waits behind another on its connection.
    let measured = load::LoadPlan {
        connections: 1024,
        reconnect_each_request: true,
        rate: Some(LIGHT_REQUESTS_PER_SECOND),
        duration: plan.duration,
        warm_up,
        ..load("/")?
    };
    let background = background.map(load).transpose()?.map(|background| load::LoadPlan {
        connections: COMPUTING_CLIENTS,
        duration: plan.duration + warm_up,
        warm_up: Duration::ZERO,
        ..background
    });
    let (report, _, was_interrupted) =
        run_concurrent_loads(&measured, background.as_slice(), signals, |_| {});
    if was_interrupted { Ok(None) } else { report.map(Some) }
}
