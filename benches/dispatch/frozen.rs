//! What a frozen worker costs those who only want to connect.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::contestant::{Contestant, Running};
use crate::support::probe::{Plan, Probes};
use crate::support::process::is_child;
use crate::support::quantile;
use crate::support::report::{Show, column};
use crate::{Asked, Outcome};

/// How long the load runs before the worker is stopped.
const WARM_UP: Duration = Duration::from_millis(250);
/// How long a request may wait beyond the time that the worker is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that is stopped until this is dropped. Should the bench be killed, its server goes, too, and takes
/// it along.
struct Frozen {
    worker: u32,
    parent: u32,
}

impl Frozen {
    fn freeze(worker: u32, parent: u32) -> Result<Frozen, String> {
        let frozen = Frozen { worker, parent };
        kill(Pid::from_raw(worker as i32), Signal::SIGSTOP)
            .map_err(|e| format!("cannot stop worker {worker}: {e}"))?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Its server may have killed it meanwhile.
        if is_child(self.worker, self.parent) {
            let _ = kill(Pid::from_raw(self.worker as i32), Signal::SIGCONT);
        }
    }
}

pub fn measure(asked: &Asked) -> Outcome {
    let (workers, clients) = (asked.workers.unwrap_or(4), asked.clients.unwrap_or(16));
    let plan = Plan { clients, pace: None, patience: PATIENCE + asked.length };
    let all = asked
        .rounds(workers, Contestant::has_processes, |running| one(running, plan, asked.length));
    let names = ["answered", "p99_ms", "worst_ms", "over_100_ms", "over_1_s", "failed", "refused"];
    let seconds = asked.length.as_secs_f64();
    Outcome {
        title: format!(
            "Frozen: one of {workers} workers stopped for {seconds} s, {clients} clients, a new connection \
             for each request"
        ),
        names: names.map(String::from).to_vec(),
        columns: vec![
            column("requests", 0, Show::Median(0)),
            column("p99 ms", 2, Show::Median(1)),
            column("worst ms", 1, Show::Worst(2)),
            column("> 100 ms", 0, Show::Median(3)),
            column("> 1 s", 0, Show::Median(4)),
            column("failed", 0, Show::Total(5)),
            column("refused", 0, Show::Total(6)),
        ],
        all,
    }
}

fn one(running: &Running, plan: Plan, length: Duration) -> Result<Vec<f64>, String> {
    let server = &running.server;
    let probes = Probes::start(server.addr, plan);
    std::thread::sleep(WARM_UP.min(length));
    let victim = server.workers().last().copied().ok_or("it has no workers")?;
    let frozen = Frozen::freeze(victim, server.pid())?;
    std::thread::sleep(length);
    drop(frozen);
    // Those who waited for the frozen one are answered now, and tell how long it was.
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
