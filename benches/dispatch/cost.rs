//! What a request costs.

use std::time::{Duration, Instant};

use crate::support::contest::{self, Rounds};
use crate::support::contestant::Running;
use crate::support::given;
use crate::support::load::{Load, Plan};
use crate::support::report::{Show, column};
use crate::{Asked, Outcome, apart};

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(250);

pub fn measure(asked: &Asked) -> Outcome {
    let (workers, clients) = (asked.workers.unwrap_or(2), asked.clients.unwrap_or(64));
    let close = !given("--keep-alive");
    let plan = Plan { connections: clients, threads: 2, depth: 1, close, apart: apart() };
    let rounds = Rounds { count: asked.rounds, with_floor: true };
    let all = contest::run(
        &asked.ground,
        rounds,
        |_| true,
        |who| one(&asked.ground.start(who, workers)?, plan, asked.length),
    );
    let how = if close { "a new connection for each request" } else { "kept connections" };
    Outcome {
        title: format!("Cost: {how}, {clients} clients, {workers} workers"),
        names: ["requests_per_s", "cpu_us", "user_us", "kernel_us"].map(String::from).to_vec(),
        columns: vec![
            column("requests/s", 0, Show::Median(0)),
            column("/ floor", 2, Show::ToFloor(0)),
            column("CPU us/request", 1, Show::Median(1)),
            column("/ floor", 2, Show::ToFloor(1)),
            column("user us", 1, Show::Median(2)),
            column("kernel us", 1, Show::Median(3)),
        ],
        all,
    }
}

fn one(running: &Running, plan: Plan, length: Duration) -> Result<Vec<f64>, String> {
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
    // The kernel tells them apart in steps of 10 ms: their proportion, of the exact sum.
    let share = user / (user + system);
    Ok(vec![answered / took.as_secs_f64(), cpu, cpu * share, cpu * (1.0 - share)])
}
