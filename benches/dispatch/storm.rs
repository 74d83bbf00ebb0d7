//! Measures how killed workers and reloads affect clients.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::load::{Load, Plan};
use crate::support::report::{ColumnValue, column};
use crate::support::target::{BenchTarget, RunningTarget};
use crate::support::{argument, fail};
use crate::{BenchOptions, BenchResult, delays_request};

/// How long the load runs before the first and after the last fault.
const FAULT_FREE_TIME: Duration = Duration::from_millis(250);
/// Timeout of one reload.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

const VALUE_NAMES: [&str; 8] = [
    "done",
    "answered",
    "failed",
    "refused",
    "failed_each",
    "over_1_s",
    "worst_ms",
    "requests_per_s",
];

pub fn measure_kills(options: &BenchOptions) -> BenchResult {
    let count: u32 = argument("--count", if options.is_smoke_test { 3 } else { 50 });
    let interval: u32 = argument("--interval", 100);
    if !(1..=100_000).contains(&count) || !(1..=60_000).contains(&interval) {
        fail("--count, --interval: give 1 to 100000 kills, each 1 to 60000 ms");
    }
    let each = Duration::from_millis(interval.into());
    let what = format!("kill -9 of a random worker each {interval} ms, {count} times");
    measure_faults(options, &what, BenchTarget::has_processes, |running| {
        let begun = Instant::now();
        let mut done = 0;
        for turn in 1..=count {
            done += u32::from(kill_one(running));
            std::thread::sleep((begun + each * turn).saturating_duration_since(Instant::now()));
        }
        Ok(done)
    })
}

pub fn measure_reloads(options: &BenchOptions) -> BenchResult {
    let count: u32 = argument("--count", if options.is_smoke_test { 2 } else { 50 });
    if !(1..=100_000).contains(&count) {
        fail("--count: give 1 to 100000 reloads");
    }
    let what = format!("{count} reloads, one after the other");
    measure_faults(options, &what, BenchTarget::can_reload, |running| {
        for _ in 0..count {
            reload(running)?;
        }
        Ok(count)
    })
}

/// Measures a load while `inject` causes faults and returns their number.
fn measure_faults(
    options: &BenchOptions,
    what: &str,
    can: impl Fn(BenchTarget) -> bool,
    inject: impl Fn(&RunningTarget) -> Result<u32, String>,
) -> BenchResult {
    let (workers, clients) = (options.workers.unwrap_or(4), options.clients.unwrap_or(64));
    let plan = Plan {
        connections: clients,
        threads: 2,
        depth: 1,
        close: true,
        delays_request: delays_request(),
    };
    let all = options.run_rounds(workers, can, |running| measure_target(running, plan, &inject));
    BenchResult {
        title: format!(
            "{what}; {clients} clients, a new connection for each request, {workers} workers"
        ),
        names: VALUE_NAMES.map(String::from).to_vec(),
        columns: vec![
            column("done", 0, ColumnValue::Total(0)),
            column("answered", 0, ColumnValue::Total(1)),
            column("requests/s", 0, ColumnValue::Median(7)),
            column("failed", 0, ColumnValue::Total(2)),
            column("failed each", 2, ColumnValue::Median(4)),
            column("refused", 0, ColumnValue::Total(3)),
            column("> 1 s", 0, ColumnValue::Total(5)),
            column("worst ms", 1, ColumnValue::Worst(6)),
        ],
        all,
    }
}

fn measure_target(
    running: &RunningTarget,
    plan: Plan,
    inject: &impl Fn(&RunningTarget) -> Result<u32, String>,
) -> Result<Vec<f64>, String> {
    let (begun, load) = (Instant::now(), Load::start(running.server.addr, plan));
    std::thread::sleep(FAULT_FREE_TIME);
    let done = inject(running);
    std::thread::sleep(FAULT_FREE_TIME);
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

/// Kills a random worker; returns `false` if there is none.
fn kill_one(running: &RunningTarget) -> bool {
    let workers = running.server.workers();
    let Some(victim) = workers.get(random_number() as usize % workers.len().max(1)) else {
        return false;
    };
    // Without workers, only the primary is left.
    let is_worker = *victim != running.server.pid();
    is_worker && kill(Pid::from_raw(*victim as i32), Signal::SIGKILL).is_ok()
}

/// Reloads, and waits for the end of the reload.
fn reload(running: &RunningTarget) -> Result<(), String> {
    let Some(control) = &running.control else { return reload_by_sighup(running) };
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    command.arg("reload").arg("--control").arg(control);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("cannot start prefork reload: {e}"))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(None) if begun.elapsed() < RELOAD_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(1))
            }
            other => {
                let _ = child.kill();
                let stderr =
                    child.wait_with_output().map(|output| output.stderr).unwrap_or_default();
                let stderr = String::from_utf8_lossy(&stderr);
                return Err(format!("prefork reload: {other:?}: {}", stderr.trim()));
            }
        }
    }
}

/// Sends SIGHUP, and waits until all workers have been replaced.
fn reload_by_sighup(running: &RunningTarget) -> Result<(), String> {
    let workers = || -> BTreeSet<u32> { running.server.workers().into_iter().collect() };
    let (old, begun) = (workers(), Instant::now());
    running.server.signal(Signal::SIGHUP);
    loop {
        let now = workers();
        if now.is_disjoint(&old) && now.len() == old.len() {
            return Ok(());
        }
        if begun.elapsed() > RELOAD_TIMEOUT {
            return Err(format!("the reload did not end within {RELOAD_TIMEOUT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns a random number from the hash keys of std.
fn random_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
