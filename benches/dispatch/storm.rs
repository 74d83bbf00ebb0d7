//! What clients notice of workers that are killed, and of reloads.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::contestant::{Contestant, Running};
use crate::support::load::{Load, Plan};
use crate::support::report::{Show, column};
use crate::support::{argument, fail};
use crate::{Asked, Outcome, apart};

/// How long the load runs before and after.
const CALM: Duration = Duration::from_millis(250);
/// How long one reload may take.
const RELOAD: Duration = Duration::from_secs(30);

const NAMES: [&str; 8] = [
    "done",
    "answered",
    "failed",
    "refused",
    "failed_each",
    "over_1_s",
    "worst_ms",
    "requests_per_s",
];

pub fn kills(asked: &Asked) -> Outcome {
    let count: u32 = argument("--count", if asked.trial { 3 } else { 50 });
    let interval: u32 = argument("--interval", 100);
    if !(1..=100_000).contains(&count) || !(1..=60_000).contains(&interval) {
        fail("--count, --interval: give 1 to 100000 kills, each 1 to 60000 ms");
    }
    let each = Duration::from_millis(interval.into());
    let what = format!("kill -9 of a random worker each {interval} ms, {count} times");
    storm(asked, &what, Contestant::has_processes, |running| {
        let begun = Instant::now();
        let mut done = 0;
        for turn in 1..=count {
            done += u32::from(kill_one(running));
            std::thread::sleep((begun + each * turn).saturating_duration_since(Instant::now()));
        }
        Ok(done)
    })
}

pub fn reloads(asked: &Asked) -> Outcome {
    let count: u32 = argument("--count", if asked.trial { 2 } else { 50 });
    if !(1..=100_000).contains(&count) {
        fail("--count: give 1 to 100000 reloads");
    }
    let what = format!("{count} reloads, one after the other");
    storm(asked, &what, Contestant::can_reload, |running| {
        for _ in 0..count {
            reload(running)?;
        }
        Ok(count)
    })
}

/// A load, and what `happens` under it: how often it did.
fn storm(
    asked: &Asked,
    what: &str,
    can: impl Fn(Contestant) -> bool,
    happens: impl Fn(&Running) -> Result<u32, String>,
) -> Outcome {
    let (workers, clients) = (asked.workers.unwrap_or(4), asked.clients.unwrap_or(64));
    let plan = Plan { connections: clients, threads: 2, depth: 1, close: true, apart: apart() };
    let all = asked.rounds(workers, can, |running| one(running, plan, &happens));
    Outcome {
        title: format!(
            "{what}; {clients} clients, a new connection for each request, {workers} workers"
        ),
        names: NAMES.map(String::from).to_vec(),
        columns: vec![
            column("done", 0, Show::Total(0)),
            column("answered", 0, Show::Total(1)),
            column("requests/s", 0, Show::Median(7)),
            column("failed", 0, Show::Total(2)),
            column("failed each", 2, Show::Median(4)),
            column("refused", 0, Show::Total(3)),
            column("> 1 s", 0, Show::Total(5)),
            column("worst ms", 1, Show::Worst(6)),
        ],
        all,
    }
}

fn one(
    running: &Running,
    plan: Plan,
    happens: &impl Fn(&Running) -> Result<u32, String>,
) -> Result<Vec<f64>, String> {
    let (begun, load) = (Instant::now(), Load::start(running.server.addr, plan));
    std::thread::sleep(CALM);
    let done = happens(running);
    std::thread::sleep(CALM);
    let counts = Arc::clone(&load.counts);
    let took = begun.elapsed().as_secs_f64();
    let (answered, failed, refused) = load.stop();
    let done = f64::from(done?);
    if done == 0.0 {
        return Err("there was never a worker to kill".into());
    }
    let late = counts.late.load(Relaxed) as f64;
    let worst = counts.worst_us.load(Relaxed) as f64 / 1000.0;
    let (failed, refused) = (failed as f64, refused as f64);
    Ok(vec![
        done,
        answered as f64,
        failed,
        refused,
        failed / done,
        late,
        worst,
        answered as f64 / took,
    ])
}

/// Whether there was a worker to kill.
fn kill_one(running: &Running) -> bool {
    let workers = running.server.workers();
    let Some(victim) = workers.get(random() as usize % workers.len().max(1)) else { return false };
    // Only the primary itself is left: it is not our victim.
    let is_worker = *victim != running.server.pid();
    is_worker && kill(Pid::from_raw(*victim as i32), Signal::SIGKILL).is_ok()
}

/// One reload, to its end.
fn reload(running: &Running) -> Result<(), String> {
    let Some(control) = &running.control else { return hang_up(running) };
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    command.arg("reload").arg("--control").arg(control);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("cannot start prefork reload: {e}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(None) if begun.elapsed() < RELOAD => std::thread::sleep(Duration::from_millis(1)),
            other => {
                let _ = child.kill();
                let said = child.wait_with_output().map(|output| output.stderr).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                return Err(format!("prefork reload: {other:?}: {}", said.trim()));
            }
        }
    }
}

/// SIGHUP, until there are as many workers as before and none of them was there before.
fn hang_up(running: &Running) -> Result<(), String> {
    let workers = || -> BTreeSet<u32> { running.server.workers().into_iter().collect() };
    let (old, begun) = (workers(), Instant::now());
    running.server.signal(Signal::SIGHUP);
    loop {
        let now = workers();
        if now.is_disjoint(&old) && now.len() == old.len() {
            return Ok(());
        }
        if begun.elapsed() > RELOAD {
            return Err(format!("the reload did not end within {RELOAD:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// From std's hash keys: good enough to choose a victim.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
