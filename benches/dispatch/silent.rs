//! What those who connect and say nothing cost those who ask something.

use std::time::Duration;

use crate::support::contestant::Running;
use crate::support::probe::{Plan, Probes, Seen, Silent};
use crate::support::report::{Show, column};
use crate::support::{argument, fail, quantile};
use crate::{Asked, Outcome};

const PATIENCE: Duration = Duration::from_secs(10);
/// So many silent connections are open at most.
const MOST: usize = 2000;

pub fn measure(asked: &Asked) -> Outcome {
    let (workers, clients) = (asked.workers.unwrap_or(2), asked.clients.unwrap_or(16));
    let (rate, pace): (f64, f64) = (argument("--rate", 500.0), argument("--pace", 0.0));
    if !(1.0..=100_000.0).contains(&rate) || !(0.0..=100_000.0).contains(&pace) {
        fail("--rate, --pace: give a number a second, up to 100000");
    }
    let plan = Plan { clients, pace: Some(pace).filter(|pace| *pace > 0.0), patience: PATIENCE };
    let all = asked.rounds(workers, |_| true, |running| one(running, plan, rate, asked.length));
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
    Outcome {
        title: format!(
            "Silent: {rate} silent connections per second beside {clients} clients with a new connection for \
             each request ({how}), {workers} workers"
        ),
        names: names.map(String::from).to_vec(),
        columns: vec![
            column("p50 before, ms", 2, Show::Median(0)),
            column("p99 before", 2, Show::Median(1)),
            column("p50 during", 2, Show::Median(2)),
            column("p99 during", 2, Show::Median(3)),
            column("p50 ratio", 2, Show::Median(4)),
            column("p99 ratio", 2, Show::Median(5)),
            column("requests/s ratio", 2, Show::Median(6)),
            column("failed", 0, Show::Total(7)),
        ],
        all,
    }
}

fn one(running: &Running, plan: Plan, rate: f64, length: Duration) -> Result<Vec<f64>, String> {
    let addr = running.server.addr;
    let ask = || {
        let probes = Probes::start(addr, plan);
        std::thread::sleep(length);
        probes.stop()
    };
    // Caches and pages, which the first requests would pay for.
    let probes = Probes::start(addr, plan);
    std::thread::sleep(length.min(Duration::from_millis(250)));
    probes.stop();
    let before = ask();
    let silent = Silent::start(addr, rate, MOST);
    // Those who wait for the first one are not what we ask for.
    std::thread::sleep(length.min(Duration::from_millis(250)));
    let during = ask();
    if silent.stop() == 0 || before.times.is_empty() || during.times.is_empty() {
        return Err("nothing was opened or answered".into());
    }
    let at = |seen: &Seen, q: f64| quantile(&seen.times, q);
    let [a, b, c, d] = [at(&before, 0.5), at(&before, 0.99), at(&during, 0.5), at(&during, 0.99)];
    let requests = during.times.len() as f64 / before.times.len() as f64;
    let failed = before.failed + before.refused + during.failed + during.refused;
    Ok(vec![a, b, c, d, c / a, d / b, requests, failed as f64])
}
