//! Measures CPU time per request and requests per second.

use std::time::{Duration, Instant};

use crate::support::has_argument;
use crate::support::load::{Load, Plan};
use crate::support::report::{ColumnValue, column};
use crate::support::rounds::{self, Rounds};
use crate::support::target::RunningTarget;
use crate::{BenchOptions, BenchResult, delays_request};

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(250);

pub fn measure(options: &BenchOptions) -> BenchResult {
    let (workers, clients) = (options.workers.unwrap_or(2), options.clients.unwrap_or(64));
    let close = !has_argument("--keep-alive");
    let plan = Plan {
        connections: clients,
        threads: 2,
        depth: 1,
        close,
        delays_request: delays_request(),
    };
    let rounds = Rounds { count: options.rounds, with_floor: true };
    let all = rounds::run(
        &options.setup,
        rounds,
        |_| true,
        |target| measure_target(&options.setup.start(target, workers)?, plan, options.length),
    );
    let how = if close { "a new connection for each request" } else { "kept connections" };
    BenchResult {
        title: format!("Cost: {how}, {clients} clients, {workers} workers"),
        names: ["requests_per_s", "cpu_us", "user_us", "kernel_us"].map(String::from).to_vec(),
        columns: vec![
            column("requests/s", 0, ColumnValue::Median(0)),
            column("/ floor", 2, ColumnValue::ToFloor(0)),
            column("CPU us/request", 1, ColumnValue::Median(1)),
            column("/ floor", 2, ColumnValue::ToFloor(1)),
            column("user us", 1, ColumnValue::Median(2)),
            column("kernel us", 1, ColumnValue::Median(3)),
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
    let load = Load::start(server.addr, plan);
    std::thread::sleep(WARM_UP.min(length));
    let (begun, before, answered) = (Instant::now(), server.cpu(), load.answered());
    std::thread::sleep(length);
    let answered = (load.answered() - answered) as f64;
    let (after, took) = (server.cpu(), begun.elapsed());
    let (_, failed, refused) = load.stop();
    if answered == 0.0 || failed + refused > 0 {
        return Err(format!("{answered} answers, {failed} failures and {refused} refusals"));
    }
    let cpu = (after.total - before.total) / answered;
    let (user, system) = (after.user - before.user, after.system - before.system);
    // The kernel counts user and system time in steps of 10 ms, so only their ratio is used.
    let share = user / (user + system);
    Ok(vec![answered / took.as_secs_f64(), cpu, cpu * share, cpu * (1.0 - share)])
}
