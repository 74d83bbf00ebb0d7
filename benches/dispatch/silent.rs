//! Measures how silent connections delay the requests of others.

use std::time::Duration;

use crate::support::probe::{Plan, ProbeResults, Probes, SilentConnections};
use crate::support::report::{ColumnValue, column};
use crate::support::target::RunningTarget;
use crate::support::{argument, fail, quantile};
use crate::{BenchOptions, BenchResult};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of open silent connections.
const MAX_SILENT: usize = 2000;

pub fn measure(options: &BenchOptions) -> BenchResult {
    let (workers, clients) = (options.workers.unwrap_or(2), options.clients.unwrap_or(16));
    let (rate, pace): (f64, f64) = (argument("--rate", 500.0), argument("--pace", 0.0));
    if !(1.0..=100_000.0).contains(&rate) || !(0.0..=100_000.0).contains(&pace) {
        fail("--rate, --pace: give a number a second, up to 100000");
    }
    let plan =
        Plan { clients, pace: Some(pace).filter(|pace| *pace > 0.0), timeout: REQUEST_TIMEOUT };
    let all = options.run_rounds(
        workers,
        |_| true,
        |running| measure_target(running, plan, rate, options.length),
    );
    let how =
        plan.pace.map_or("one request after the other".into(), |pace| format!("{pace} requests/s"));
    let names = [
        "p50_before_ms",
        "p99_before_ms",
        "p50_during_ms",
        "p99_during_ms",
        "p50_ratio",
        "p99_ratio",
        "requests_ratio",
        "failed",
    ];
    BenchResult {
        title: format!(
            "SilentConnections: {rate} silent connections per second beside {clients} clients with a new connection for \
             each request ({how}), {workers} workers"
        ),
        names: names.map(String::from).to_vec(),
        columns: vec![
            column("p50 before, ms", 2, ColumnValue::Median(0)),
            column("p99 before", 2, ColumnValue::Median(1)),
            column("p50 during", 2, ColumnValue::Median(2)),
            column("p99 during", 2, ColumnValue::Median(3)),
            column("p50 ratio", 2, ColumnValue::Median(4)),
            column("p99 ratio", 2, ColumnValue::Median(5)),
            column("requests/s ratio", 2, ColumnValue::Median(6)),
            column("failed", 0, ColumnValue::Total(7)),
        ],
        all,
    }
}

fn measure_target(
    running: &RunningTarget,
    plan: Plan,
    rate: f64,
    length: Duration,
) -> Result<Vec<f64>, String> {
    let addr = running.server.addr;
    let ask = || {
        let probes = Probes::start(addr, plan);
        std::thread::sleep(length);
        probes.stop()
    };
    // Warms up caches and pages.
    let probes = Probes::start(addr, plan);
    std::thread::sleep(length.min(Duration::from_millis(250)));
    probes.stop();
    let before = ask();
    let silent = SilentConnections::start(addr, rate, MAX_SILENT);
    // The first connections are not measured.
    std::thread::sleep(length.min(Duration::from_millis(250)));
    let during = ask();
    if silent.stop() == 0 || before.times.is_empty() || during.times.is_empty() {
        return Err("nothing was opened or answered".into());
    }
    let at = |seen: &ProbeResults, q: f64| quantile(&seen.times, q);
    let [a, b, c, d] = [at(&before, 0.5), at(&before, 0.99), at(&during, 0.5), at(&during, 0.99)];
    let requests = during.times.len() as f64 / before.times.len() as f64;
    let failed = before.failed + before.refused + during.failed + during.refused;
    Ok(vec![a, b, c, d, c / a, d / b, requests, failed as f64])
}
