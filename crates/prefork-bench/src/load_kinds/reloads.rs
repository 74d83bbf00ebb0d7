//! Reloads under load: requests lost, the longest time without a response, and the latency meanwhile.

use std::fmt::Write;
use std::time::Instant;

use serde::Serialize;

use super::beside_load::run_beside_load;
use super::find_server_tree;
use super::prober::{ProbeLog, Prober};
use crate::chaos::ChaosTarget;
use crate::load::{LoadPlan, LoadReport, MedianRange};
use crate::report_format::text_table::{format_micros, write_table};
use tokio_prefork::{Error, Result};

/// A measurement of reloads under load.
#[derive(Debug, Clone)]
pub struct ReloadsPlan {
    /// The load: once for its duration without reloads, then once for its duration with one reload after another.
    pub load: LoadPlan,
}

impl ReloadsPlan {
    /// Creates a plan.
    pub fn new(load: LoadPlan) -> ReloadsPlan {
        ReloadsPlan { load }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        self.phase_load().validate()
    }

    fn phase_load(&self) -> LoadPlan {
        LoadPlan { faults: None, ..self.load.clone() }
    }
}

/// What reloads cost.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadsReport {
    /// Number of reloads that were complete before the load ended. Each begins when the one before is complete.
    pub reloads: usize,
    /// Whether the last reload was not complete when the load ended.
    pub last_is_incomplete: bool,
    /// Time from a reload's signal until all processes of before have ended and their successors are there, in
    /// milliseconds.
    pub reload_ms: MedianRange,
    /// Requests without a response, or with a status of 400 or more, during the reloads.
    pub lost_requests: u64,
    /// The server without reloads.
    pub before: ReloadPhase,
    /// The server with one reload after another.
    pub during: ReloadPhase,
}

/// The load before or during the reloads.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadPhase {
    /// Longest time without a response, in milliseconds, for a client that sends one request after another, each on a new
    /// connection.
    pub longest_gap_ms: f64,
    /// Requests of that client without a response, or with a status of 400 or more.
    pub failed_probes: u64,
    /// The load.
    pub load: Box<LoadReport>,
}

/// Reloads a server under load. Ends early once `is_stopped` returns `true`, with a report of the reloads made so far; before
/// the first one returns `None`.
///
/// # Errors
/// The plan is invalid, the target does not answer, it is not a server that can be reloaded, or this program may not signal
/// it.
pub fn measure_reloads(
    plan: &ReloadsPlan,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Result<Option<ReloadsReport>> {
    plan.validate().map_err(Error::config)?;
    let mut prober = Prober::from_plan(&plan.load)?;
    let tree = find_server_tree(&plan.load, &prober.client().address)?;
    let target = ChaosTarget::open_primary(Some(&tree))?;
    target.require_reload()?;
    if target.list_workers().is_empty() {
        return Err(Error::refused(format!(
            "pid {} has no workers: it cannot replace them in a reload",
            target.pid()
        )));
    }
    let load = plan.phase_load();
    let mut run_phase = |target: Option<&ChaosTarget>| {
        run_beside_load(&load, is_stopped, |is_over| {
            Ok(ReloadRun { load: &load, target, prober: &mut prober, is_over }.run())
        })
    };
    let (before, (_, before_probes)) = run_phase(None)?;
    if before.ended_early {
        return Ok(None);
    }
    let (during, (reloads, during_probes)) = run_phase(Some(&target))?;
    Ok(Some(ReloadsReport {
        reloads: reloads.took_ms.len(),
        last_is_incomplete: reloads.last_is_incomplete,
        reload_ms: MedianRange::from_values(&reloads.took_ms),
        lost_requests: during.error_count(),
        before: ReloadPhase::new(before, &before_probes),
        during: ReloadPhase::new(during, &during_probes),
    }))
}

/// The reloads of a phase.
#[derive(Debug, Default)]
struct ReloadTimes {
    took_ms: Vec<f64>,
    last_is_incomplete: bool,
}

struct ReloadRun<'a> {
    load: &'a LoadPlan,
    /// What to reload; `None` before the reloads.
    target: Option<&'a ChaosTarget>,
    prober: &'a mut Prober,
    /// Returns whether the load has ended, or has to.
    is_over: &'a dyn Fn() -> bool,
}

impl ReloadRun<'_> {
    /// Probes until the load ends, with one reload after another from the end of the warm-up.
    fn run(&mut self) -> (ReloadTimes, ProbeLog) {
        let begun = Instant::now();
        let measured_from = begun + self.load.warm_up;
        let measured_until = measured_from + self.load.duration;
        let mut reloads = ReloadTimes::default();
        let mut current: Option<Reload> = None;
        let mut is_warm = false;
        while !(self.is_over)() && Instant::now() < measured_until {
            if !is_warm && Instant::now() >= measured_from {
                is_warm = true;
                drop(self.prober.take_log());
            }
            self.prober.probe();
            let Some(target) = self.target.filter(|_| is_warm) else {
                self.prober.pause();
                continue;
            };
            match &current {
                Some(reload) if !reload.is_complete(target) => self.prober.pause(),
                complete => {
                    reloads.took_ms.extend(complete.as_ref().map(Reload::elapsed_ms));
                    current = Reload::start(target);
                }
            }
        }
        reloads.last_is_incomplete = current.is_some();
        (reloads, self.prober.take_log())
    }
}

/// A reload in progress.
struct Reload {
    begun: Instant,
    /// The workers that it replaces.
    old: Vec<u32>,
}

impl Reload {
    /// Sends the signal; `None` if the server has ended.
    fn start(target: &ChaosTarget) -> Option<Reload> {
        let old = target.list_workers().into_iter().map(|(pid, _)| pid).collect();
        let begun = Instant::now();
        target.reload().ok().map(|()| Reload { begun, old })
    }

    /// Returns whether all workers of before have ended, and as many are there.
    fn is_complete(&self, target: &ChaosTarget) -> bool {
        let workers = target.list_workers();
        workers.len() >= self.old.len() && workers.iter().all(|(pid, _)| !self.old.contains(pid))
    }

    fn elapsed_ms(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() * 1e3
    }
}

impl ReloadPhase {
    fn new(load: LoadReport, probes: &ProbeLog) -> ReloadPhase {
        ReloadPhase {
            longest_gap_ms: probes.longest_gap_ms(),
            failed_probes: probes.failed,
            load: Box::new(load),
        }
    }
}

impl ReloadsReport {
    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        match self.reloads {
            0 => vec![
                "no reload was complete before the load ended: give a longer duration".to_string(),
            ],
            _ => Vec::new(),
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        let row = |name: &str, phase: &ReloadPhase| {
            let latency = &phase.load.latency;
            [
                format!("{name:8}"),
                format!("{:.0}", phase.load.per_second.median),
                phase.load.error_count().to_string(),
                format_micros(latency.p50),
                format_micros(latency.p99),
                format_micros(latency.max),
                format_micros(phase.longest_gap_ms * 1e3),
                phase.failed_probes.to_string(),
            ]
        };
        let titles =
            ["        ", "REQ/S", "LOST", "P50", "P99", "MAX", "LONGEST GAP", "FAILED PROBES"];
        let mut text = String::new();
        write_table(
            &mut text,
            &[
                titles.map(str::to_string),
                row("before", &self.before),
                row("reloads", &self.during),
            ],
        );
        let [median, max] =
            [self.reload_ms.median, self.reload_ms.max].map(|ms| format_micros(ms * 1e3));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} reloads, one after another: median {median}, longest {max}",
            self.reloads
        );
        for warning in self.warnings() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }
}
