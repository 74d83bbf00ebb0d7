//! Measures how a stopped worker delays new connections.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::probe::{Plan, Probes};
use crate::support::process::is_child;
use crate::support::quantile;
use crate::support::report::{ColumnValue, column};
use crate::support::target::{BenchTarget, RunningTarget};
use crate::{BenchOptions, BenchResult};

/// How long the load runs before the worker is stopped.
const WARM_UP: Duration = Duration::from_millis(250);
/// How long a request may wait beyond the time that the worker is stopped.
const MAX_EXTRA_WAIT: Duration = Duration::from_secs(10);

/// A worker that is stopped until this value is dropped.
struct StoppedWorker {
    worker: u32,
    parent: u32,
}

impl StoppedWorker {
    fn stop_worker(worker: u32, parent: u32) -> Result<StoppedWorker, String> {
        let frozen = StoppedWorker { worker, parent };
        kill(Pid::from_raw(worker as i32), Signal::SIGSTOP)
            .map_err(|e| format!("cannot stop worker {worker}: {e}"))?;
        Ok(frozen)
    }
}

impl Drop for StoppedWorker {
    fn drop(&mut self) {
        // The server may have killed the worker meanwhile.
        if is_child(self.worker, self.parent) {
            let _ = kill(Pid::from_raw(self.worker as i32), Signal::SIGCONT);
        }
    }
}

pub fn measure(options: &BenchOptions) -> BenchResult {
    let (workers, clients) = (options.workers.unwrap_or(4), options.clients.unwrap_or(16));
    let plan = Plan { clients, pace: None, timeout: MAX_EXTRA_WAIT + options.length };
    let all = options.run_rounds(workers, BenchTarget::has_processes, |running| {
        measure_target(running, plan, options.length)
    });
    let names = ["answered", "p99_ms", "worst_ms", "over_100_ms", "over_1_s", "failed", "refused"];
    let seconds = options.length.as_secs_f64();
    BenchResult {
        title: format!(
            "StoppedWorker: one of {workers} workers stopped for {seconds} s, {clients} clients, a new connection \
             for each request"
        ),
        names: names.map(String::from).to_vec(),
        columns: vec![
            column("requests", 0, ColumnValue::Median(0)),
            column("p99 ms", 2, ColumnValue::Median(1)),
            column("worst ms", 1, ColumnValue::Worst(2)),
            column("> 100 ms", 0, ColumnValue::Median(3)),
            column("> 1 s", 0, ColumnValue::Median(4)),
            column("failed", 0, ColumnValue::Total(5)),
            column("refused", 0, ColumnValue::Total(6)),
        ],
        all,
    }
}

fn measure_target(
    running: &RunningTarget,
    plan: Plan,
    length: Duration,
) -> Result<Vec<f64>, String> {
    let server = &running.server;
    let probes = Probes::start(server.addr, plan);
    std::thread::sleep(WARM_UP.min(length));
    let victim = server.workers().last().copied().ok_or("it has no workers")?;
    let frozen = StoppedWorker::stop_worker(victim, server.pid())?;
    std::thread::sleep(length);
    drop(frozen);
    // Clients that waited for the stopped worker are answered now.
    let seen = probes.stop();
    if seen.times.is_empty() {
        return Err("it answered nothing".into());
    }
    let over = |limit: f64| seen.times.iter().filter(|ms| **ms > limit).count() as f64;
    Ok(vec![
        seen.times.len() as f64,
        quantile(&seen.times, 0.99),
        quantile(&seen.times, 1.0),
        over(100.0),
        over(1000.0),
        seen.failed as f64,
        seen.refused as f64,
    ])
}
