//! Measures the latency of `/` while other requests compute.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::CpuDemoPlan;
use super::awake_cores::AwakeCores;
use crate::compare::{
    ComparedServer, RunResources, RunningServer, ServerStartError, run_concurrent_loads,
};
use crate::load;
use prefork_os::signal::SignalPipe;
use tokio_prefork::ConcurrencyModel;
use tokio_prefork::{Error, Result};

/// Requests for `/` due per second.
const LIGHT_REQUESTS_PER_SECOND: u32 = 500;
/// Clients that request a number, one after the other.
const COMPUTING_CLIENTS: usize = 2;
/// Longest wait for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often each case is measured; all cases are measured in each round, so that a change of the machine affects all alike.
/// That chance alone makes the p99 of a case higher in all rounds happens once in 128 times.
const ROUNDS: usize = 7;
/// Shortest measurement of a case in a round: 100 ms.
const MIN_ROUND_DURATION: Duration = Duration::from_millis(100);

/// Latency of `/` in one case, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyUnderLoad {
    /// What computes meanwhile.
    pub how: String,
    /// Median latency of all rounds.
    pub p50: f64,
    /// 99th percentile of the latency of all rounds.
    pub p99: f64,
    /// Highest latency.
    pub max: f64,
    /// Median of the rounds' ratios of the p99 to that without requests that compute.
    pub ratio: f64,
    /// Whether the p99 was higher in all rounds than without requests that compute; it cannot become lower by them.
    pub is_higher: bool,
    /// Failed requests for `/`.
    pub failed: u64,
}

/// A case: what computes where.
struct LatencyCase {
    how: String,
    server: ComparedServer,
    background: Option<String>,
    /// Latency in nanoseconds.
    latency: Histogram<u64>,
    /// 99th percentile of each round.
    p99_of_rounds: Vec<f64>,
    failed: u64,
}

/// Measures all cases in each round; `false` if a signal ended it early.
///
/// The cores are kept awake, so that a server is not slower for being idle.
pub(crate) fn measure_latencies(
    plan: &CpuDemoPlan,
    cores: usize,
    signals: &mut SignalPipe,
    report_step: &mut impl FnMut(&str),
) -> Result<(Vec<LatencyUnderLoad>, bool)> {
    let _awake = AwakeCores::start(cores);
    let mut cases = latency_cases(plan, cores)?;
    for round in 0..ROUNDS {
        for at in 0..cases.len() {
            // Another order in each round.
            let at = (at + round) % cases.len();
            let case = &mut cases[at];
            report_step(&format!("latency of /: {}, {} of {ROUNDS}", case.how, round + 1));
            let measured = measure_server(plan, &case.server, case.background.as_deref(), signals)?;
            let Some(report) = measured else { return Ok((summarize(&cases), false)) };
            // Both histograms have the same bounds.
            let _ = case.latency.add(&report.histogram);
            case.p99_of_rounds.push(report.latency.p99);
            case.failed += report.error_count();
        }
    }
    Ok((summarize(&cases), true))
}

fn latency_cases(plan: &CpuDemoPlan, cores: usize) -> Result<[LatencyCase; 4]> {
    let single = || ComparedServer::built_in(ConcurrencyModel::Single, None, 1);
    // More processes than requests that compute, and enough for all cores.
    let many = 2 * cores.max(COMPUTING_CLIENTS);
    let on_loop = Some(format!("/fib/{}?on=loop", plan.requested_fib));
    let in_pool = Some(format!("/fib/{}", plan.requested_fib));
    let processes = ComparedServer::built_in(ConcurrencyModel::Prefork, None, many);
    let latency =
        Histogram::new(3).map_err(|e| Error::config(format!("cannot count latencies: {e}")))?;
    let case = |how: &str, server, background| LatencyCase {
        how: how.to_string(),
        server,
        background,
        latency: latency.clone(),
        p99_of_rounds: Vec::new(),
        failed: 0,
    };
    Ok([
        case("no request computes", single(), None),
        case("computing on the loop", single(), on_loop.clone()),
        case("computing in the pool", single(), in_pool),
        case(&format!("on the loops of {many} processes"), processes, on_loop),
    ])
}

/// Returns the figures of the cases that were measured.
fn summarize(cases: &[LatencyCase]) -> Vec<LatencyUnderLoad> {
    let idle = &cases[0].p99_of_rounds;
    let measured = cases.iter().filter(|case| !case.p99_of_rounds.is_empty() && !idle.is_empty());
    let summary = |case: &LatencyCase| {
        let at = |quantile| case.latency.value_at_quantile(quantile) as f64 / 1e3;
        let mut ratios: Vec<f64> =
            case.p99_of_rounds.iter().zip(idle).map(|(p99, idle)| p99 / idle).collect();
        ratios.sort_by(f64::total_cmp);
        LatencyUnderLoad {
            how: case.how.clone(),
            p50: at(0.5),
            p99: at(0.99),
            max: case.latency.max() as f64 / 1e3,
            ratio: ratios.get(ratios.len() / 2).copied().unwrap_or(1.0),
            is_higher: ratios.iter().all(|ratio| *ratio > 1.0),
            failed: case.failed,
        }
    };
    measured.map(summary).collect()
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
    let duration = (plan.duration / ROUNDS as u32).max(MIN_ROUND_DURATION);
    let warm_up = duration.min(Duration::from_millis(600)) / 2;
    // New connections, so that no request waits behind another on its connection.
    let measured = load::LoadPlan {
        connections: 1024,
        reconnect_each_request: true,
        rate: Some(LIGHT_REQUESTS_PER_SECOND),
        duration,
        warm_up,
        ..load("/")?
    };
    let background = background.map(load).transpose()?.map(|background| load::LoadPlan {
        connections: COMPUTING_CLIENTS,
        duration: duration + warm_up,
        warm_up: Duration::ZERO,
        ..background
    });
    let (report, _, was_interrupted) =
        run_concurrent_loads(&measured, background.as_slice(), signals, |_| {});
    if was_interrupted { Ok(None) } else { report.map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_compared_by_round() {
        let plan = CpuDemoPlan::usual();
        let mut cases = latency_cases(&plan, 2).expect("cases");
        assert_eq!(summarize(&cases).len(), 0);
        let figures =
            [[100.0, 200.0, 300.0], [5e6, 4e6, 6e6], [90.0, 210.0, 290.0], [200.0, 500.0, 400.0]];
        for (case, p99_of_rounds) in cases.iter_mut().zip(figures) {
            case.p99_of_rounds = p99_of_rounds.to_vec();
            case.latency.record(50_000).expect("fits");
        }
        let all = summarize(&cases);
        let is_higher: Vec<bool> = all.iter().map(|one| one.is_higher).collect();
        assert_eq!(is_higher, [false, true, false, true]);
        assert_eq!((all[1].ratio, all[3].ratio), (20_000.0, 2.0));
        assert!((49.0..51.0).contains(&all[0].p50), "{}", all[0].p50);
    }
}
