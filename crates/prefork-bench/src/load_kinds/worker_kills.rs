//! Time to serve after `kill -9` of a worker: how long it takes until the worker that replaces it answers.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::beside_load::run_beside_load;
use super::find_server_tree;
use super::prober::Prober;
use crate::chaos::ChaosTarget;
use crate::load::process_tree::ProcessTree;
use crate::load::{LoadPlan, LoadReport, MedianRange};
use crate::report_format::text_table::format_micros;
use prefork_os::child::PidFd;
use prefork_os::signal::Signal;
use tokio_prefork::{Error, Result};

/// Most kills of a measurement.
pub const MAX_KILLS: usize = 1000;
/// Shortest time between two kills.
pub const MIN_KILL_INTERVAL: Duration = Duration::from_millis(100);

/// A measurement of how fast a server replaces killed workers under load.
#[derive(Debug, Clone)]
pub struct WorkerKillsPlan {
    /// The load meanwhile. Its duration is not used: the load goes on until the last killed worker is replaced.
    pub load: LoadPlan,
    /// Number of kills. Default 5.
    pub kills: usize,
    /// Time between two kills, and after the last one. Default 1 s.
    pub interval: Duration,
}

impl WorkerKillsPlan {
    /// Creates a plan with the defaults.
    pub fn new(load: LoadPlan) -> WorkerKillsPlan {
        WorkerKillsPlan { load, kills: 5, interval: Duration::from_secs(1) }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=MAX_KILLS).contains(&self.kills) {
            return Err(format!("kills {}: give 1 to {MAX_KILLS}", self.kills));
        }
        if self.interval < MIN_KILL_INTERVAL {
            return Err(format!(
                "interval {:?} between kills: give at least {MIN_KILL_INTERVAL:?}",
                self.interval
            ));
        }
        self.whole_load().validate()
    }

    /// Returns the load, as long as all kills take.
    fn whole_load(&self) -> LoadPlan {
        let duration = self.interval * (self.kills as u32 + 1);
        LoadPlan { duration, faults: None, ..self.load.clone() }
    }
}

/// What killed workers cost.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerKillsReport {
    /// Number of kills.
    pub kills: usize,
    /// Number of kills after which no new process answered in time.
    pub not_replaced: usize,
    /// Time from a kill to the first response of a process that was not there before, in milliseconds. Observed by a
    /// client that sends one request after another, each on a new connection.
    pub serving_again_ms: MedianRange,
    /// Time from a kill to the next response of any process to that client, in milliseconds.
    pub next_response_ms: MedianRange,
    /// Time of each kill to the response of the new process, in milliseconds.
    pub each_ms: Vec<f64>,
    /// Median time that one request of that client takes while all is well, in microseconds: the resolution.
    pub probe_p50_us: f64,
    /// Requests of the load without a response, or with a status of 400 or more.
    pub failed_requests: u64,
    /// Failed requests for each kill.
    pub failed_per_kill: f64,
    /// The load meanwhile.
    pub load: Box<LoadReport>,
}

/// What the prober has seen of one kill.
struct KillOutcome {
    /// `None` if no new process answered in time.
    serving_again: Option<Duration>,
    next_response: Option<Duration>,
}

/// Kills workers under load, and measures how long it takes until their successors answer. Ends early once `is_stopped` returns
/// `true`, with a report of the kills made so far; without one returns `None`.
///
/// # Errors
/// The plan is invalid, the target does not answer, it has no workers, this program may not kill them, or its responses do
/// not name the process that answers.
pub fn measure_worker_kills(
    plan: &WorkerKillsPlan,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Result<Option<WorkerKillsReport>> {
    plan.validate().map_err(Error::config)?;
    let mut prober = Prober::from_plan(&plan.load)?;
    let tree = find_server_tree(&plan.load, &prober.client().address)?;
    // Only a server that this program may signal has its workers killed.
    ChaosTarget::open_primary(Some(&tree))?;
    require_named_worker(&tree, &mut prober)?;
    drop(prober.take_log());
    let (load, (outcomes, probe_p50_us)) =
        run_beside_load(&plan.whole_load(), is_stopped, |is_over| {
            let mut run = KillRun { plan, tree: &tree, prober: &mut prober, is_over };
            Ok(run.kill_all())
        })?;
    let has_report = !load.ended_early || !outcomes.is_empty();
    Ok(has_report.then(|| WorkerKillsReport::new(load, &outcomes, probe_p50_us)))
}

/// Checks that a process other than the root answers, and says its pid.
fn require_named_worker(tree: &ProcessTree, prober: &mut Prober) -> Result<()> {
    let pid = prober.probe().and_then(|response| response.pid).ok_or_else(|| {
        Error::refused(
            "responses do not name the process that answers, so a new one cannot be told: request a path \
             that answers \"Handled by PID n\", or name the header field with the pid",
        )
    })?;
    match is_worker(tree, pid) {
        true => Ok(()),
        false => Err(Error::refused(format!(
            "pid {pid} answers, and is no worker of pid {}: there is none to kill",
            tree.root_pid()
        ))),
    }
}

fn is_worker(tree: &ProcessTree, pid: u32) -> bool {
    pid != tree.root_pid() && tree.pids().contains(&pid)
}

struct KillRun<'a> {
    plan: &'a WorkerKillsPlan,
    tree: &'a ProcessTree,
    prober: &'a mut Prober,
    /// Returns whether the load has ended, or has to.
    is_over: &'a dyn Fn() -> bool,
}

impl KillRun<'_> {
    /// Makes all kills for which the load has time. Returns their outcomes and the median time of a probe before them.
    fn kill_all(&mut self) -> (Vec<KillOutcome>, f64) {
        let mut outcomes = Vec::new();
        let mut due = Instant::now() + self.plan.load.warm_up + self.plan.interval;
        let mut probe_p50_us = None;
        for _ in 0..self.plan.kills {
            // Killed is the worker that has answered last, so that under a policy that sends a client always to the same
            // worker its successor answers.
            let victim = self.probe_until(due);
            // The probes before the first kill see a server that is well.
            let log = self.prober.take_log();
            probe_p50_us.get_or_insert(log.median_us());
            if (self.is_over)() {
                break;
            }
            outcomes.extend(victim.and_then(|pid| self.kill(pid)));
            due = (due + self.plan.interval).max(Instant::now());
        }
        // What the last kill breaks is counted, too.
        self.probe_until(due);
        (outcomes, probe_p50_us.unwrap_or(0.0))
    }

    /// Probes until `due`, or until the load has ended. Returns the process that answered last.
    fn probe_until(&mut self, due: Instant) -> Option<u32> {
        let mut last = None;
        while (last.is_none() || Instant::now() < due) && !(self.is_over)() {
            last = self.prober.probe().and_then(|response| response.pid).or(last);
            self.prober.pause();
        }
        last
    }

    /// Kills a worker and probes until a new one answers. Returns `None` if it is no worker, or has ended by itself.
    fn kill(&mut self, pid: u32) -> Option<KillOutcome> {
        let victim = PidFd::open(pid).ok()?;
        // Checked after opening: the pidfd now rules out that another process has the pid.
        if !is_worker(self.tree, pid) {
            return None;
        }
        let known = self.tree.pids();
        victim.send_signal(Signal::SIGKILL).ok()?;
        let killed_at = Instant::now();
        let mut outcome = KillOutcome { serving_again: None, next_response: None };
        // Limits the wait for a server that does not replace the worker.
        let deadline = killed_at + self.plan.load.timeout.max(self.plan.interval);
        while outcome.serving_again.is_none() && Instant::now() < deadline && !(self.is_over)() {
            let Some(response) = self.prober.probe() else {
                self.prober.pause();
                continue;
            };
            let after = response.at - killed_at;
            outcome.next_response.get_or_insert(after);
            if response.pid.is_some_and(|pid| !known.contains(&pid)) {
                outcome.serving_again = Some(after);
            }
        }
        Some(outcome)
    }
}

impl WorkerKillsReport {
    fn new(load: LoadReport, outcomes: &[KillOutcome], probe_p50_us: f64) -> WorkerKillsReport {
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        let each_ms: Vec<f64> =
            outcomes.iter().filter_map(|one| one.serving_again).map(ms).collect();
        let next: Vec<f64> = outcomes.iter().filter_map(|one| one.next_response).map(ms).collect();
        let failed_requests = load.error_count();
        // After the last kill there was no time for an answer.
        let is_cut_short =
            load.ended_early && outcomes.last().is_some_and(|one| one.serving_again.is_none());
        WorkerKillsReport {
            kills: outcomes.len(),
            not_replaced: outcomes.len() - each_ms.len() - usize::from(is_cut_short),
            serving_again_ms: MedianRange::from_values(&each_ms),
            next_response_ms: MedianRange::from_values(&next),
            each_ms,
            probe_p50_us,
            failed_requests,
            failed_per_kill: failed_requests as f64 / (outcomes.len().max(1)) as f64,
            load: Box::new(load),
        }
    }

    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        match self.not_replaced {
            0 => Vec::new(),
            n => vec![format!("after {n} of {} kills no new process answered in time", self.kills)],
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        let ms = |range: &MedianRange| {
            let [median, max] = [range.median, range.max].map(|ms| format_micros(ms * 1e3));
            format!("median {median}, longest {max}")
        };
        // Writing to a string cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "kills            {}", self.kills);
        let _ = writeln!(text, "new process      {}", ms(&self.serving_again_ms));
        let _ = writeln!(text, "any process      {}", ms(&self.next_response_ms));
        let _ = writeln!(
            text,
            "failed requests  {} ({:.1} per kill)",
            self.failed_requests, self.failed_per_kill
        );
        let _ = writeln!(text, "one probe        {}", format_micros(self.probe_p50_us));
        for warning in self.warnings() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }
}
