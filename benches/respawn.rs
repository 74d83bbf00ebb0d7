//! Kills random workers with SIGKILL, with and without load: lost requests, and the time until the replacement is ready.
//!
//! ```text
//! cargo bench --bench respawn
//! cargo bench --bench respawn -- --kills 2000 --seconds 40 --workers 8
//! ```
//!
//! Two clocks measure that time. *Log*: from the line about the death to the line about the ready replacement, by their
//! timestamps of one millisecond. *Exact*: from just before `kill(2)` until this program has read the second line, which
//! includes the death, its detection, the fork, the boot and the pipe.

mod support;

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::load::{Load, Plan};
use support::process::{Server, TimedLine};
use support::{argument, fail, has_argument, quantile};

fn main() {
    let is_smoke_test = !has_argument("--bench");
    let kills: u32 = argument("--kills", if is_smoke_test { 20 } else { 500 });
    let seconds: f64 = argument("--seconds", f64::from(kills) / 50.0);
    let workers: u32 = argument("--workers", 4);
    if kills == 0 || workers == 0 || !(0.01..=3600.0).contains(&seconds) {
        fail("give at least one kill and one worker, and up to 3600 seconds");
    }
    let interval = Duration::from_secs_f64(seconds / f64::from(kills));
    println!("{kills} kills in {seconds} s, {workers} workers; times in ms");
    measure_kills(kills, interval, workers, true);
    measure_kills(kills, interval, workers, false);
}

/// Times of deaths and replacements, by slot.
#[derive(Default)]
struct KillTimes {
    /// The pid of the living worker of each slot.
    alive: HashMap<u32, i32>,
    killed: HashMap<u32, Instant>,
    /// Timestamp of the line about the death, in milliseconds since midnight.
    died: HashMap<u32, f64>,
    exact_ms: Vec<f64>,
    log_ms: Vec<f64>,
    killed_pids: HashSet<u32>,
}

impl KillTimes {
    fn record_line(&mut self, (now, line): TimedLine) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split(' ').next()?.trim_end_matches(':').parse::<u32>().ok()
        };
        let (Some(slot), Some(pid)) = (field(" slot="), field(" pid=")) else { return };
        let stamp = time_of_day_ms(&line);
        if line.contains("SIGKILL") {
            self.died.extend(stamp.map(|stamp| (slot, stamp)));
        } else if self.alive.get(&slot) != Some(&(pid as i32)) && !self.killed_pids.contains(&pid) {
            // The first line about a new worker means that it is ready.
            self.alive.insert(slot, pid as i32);
            if let Some(killed) = self.killed.remove(&slot) {
                self.exact_ms.push((now - killed).as_secs_f64() * 1000.0);
            }
            if let (Some(died), Some(stamp)) = (self.died.remove(&slot), stamp) {
                self.log_ms.push((stamp - died).rem_euclid(86_400_000.0));
            }
        }
    }

    /// Kills a random serving worker; returns `false` if there is none.
    fn kill_one(&mut self, random: u64) -> bool {
        let mut slots: Vec<u32> = self.alive.keys().copied().collect();
        slots.sort_unstable();
        let Some(slot) = slots.get(random as usize % slots.len().max(1)).copied() else {
            return false;
        };
        let Some(pid) = self.alive.remove(&slot) else { return false };
        self.killed.insert(slot, Instant::now());
        self.killed_pids.insert(pid as u32);
        // Only this program kills workers, so the pid is still that of the worker.
        kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
    }
}

/// Returns the milliseconds since midnight of `2026-01-02T03:04:05.678Z ...`.
fn time_of_day_ms(line: &str) -> Option<f64> {
    let (time, _) = line.split_once('T')?.1.split_once('Z')?;
    let mut fields = time.split(':').map(|field| field.parse::<f64>().ok());
    let (hours, minutes, seconds) = (fields.next()??, fields.next()??, fields.next()??);
    Some((((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0).round())
}

/// Kills workers at an interval, and prints the results.
fn measure_kills(kills: u32, interval: Duration, workers: u32, loaded: bool) {
    let times = Arc::new(Mutex::new(KillTimes::default()));
    let recorded = Arc::clone(&times);
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefork"));
    command.args(["serve", "-b", "127.0.0.1:0", "-w", &workers.to_string()]);
    let server =
        Server::start(&mut command, move |line| with_times(&recorded, |s| s.record_line(line)));
    if let Err(why) = server.wait_for_workers(workers as usize) {
        fail(why);
    }
    let plan = Plan { connections: 64, threads: 2, depth: 1, close: false, delays_request: false };
    let load = loaded.then(|| Load::start(server.addr, plan));
    std::thread::sleep(Duration::from_millis(250));
    let begun = Instant::now();
    let mut done = 0;
    for turn in 1..=kills {
        done += u32::from(with_times(&times, |s| s.kill_one(random_number())));
        std::thread::sleep((begun + interval * turn).saturating_duration_since(Instant::now()));
    }
    let took = begun.elapsed().as_secs_f64();
    // The last replacements.
    std::thread::sleep(Duration::from_millis(500));
    println!("\n{}", if loaded { "under load (64 kept connections)" } else { "without load" });
    if let Some(load) = load {
        let (answered, failed, refused) = load.stop();
        let each = failed as f64 / f64::from(done.max(1));
        println!("  requests   {answered} answered, {failed} failed ({each:.1} a kill)");
        println!("  connects   {refused} refused");
    }
    with_times(&times, |s| {
        let (replaced, skipped) = (s.exact_ms.len(), kills - done);
        println!("  workers    {done} killed in {took:.1} s, {replaced} replaced");
        if skipped > 0 {
            println!("             {skipped} kills skipped: no worker was ready");
        }
        distribution("log", 0, &s.log_ms);
        distribution("exact", 2, &s.exact_ms);
        if replaced as u32 != done {
            fail("not every worker was replaced");
        }
    });
}

fn with_times<T>(times: &Mutex<KillTimes>, what: impl FnOnce(&mut KillTimes) -> T) -> T {
    what(&mut times.lock().unwrap_or_else(PoisonError::into_inner))
}

fn distribution(clock: &str, digits: usize, times: &[f64]) {
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(times, q));
    println!("  {clock:9}  p50 {p50:.digits$}  p99 {p99:.digits$}  max {max:.digits$}");
}

/// Returns a random number from the hash keys of std.
fn random_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
