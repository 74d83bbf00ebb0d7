//! What a comparison has found, as plain data: this is what `--json` prints.

use std::time::Duration;

use serde::Serialize;

pub(crate) mod html;
pub(crate) mod text;

use super::differences::{self, Chance};
use super::measurement::{Outcome, Sample};
use super::plan::{Plan, Turn};
use super::{Cut, Workload};
use crate::load::Spread;
use tokio_prefork::exit;

/// Everything a comparison has found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// Processors of this machine, which the generator uses, too.
    pub cores: usize,
    /// Workers of each contestant.
    pub workers: usize,
    /// Rounds that were planned.
    pub rounds: usize,
    /// Seconds that each measurement lasts.
    pub duration_s: f64,
    /// Seconds that all of it took.
    pub took_s: f64,
    /// Why it is not complete; none if it is.
    pub partial: Option<String>,
    #[serde(skip)]
    cut: Option<Cut>,
    /// Measurements that were planned, and that were made.
    pub planned: usize,
    /// See `planned`.
    pub measured: usize,
    /// Whom the others are compared with; none if it was not measured.
    pub reference: Option<String>,
    /// How often two equal contestants would seem to differ.
    pub chance: Chance,
    pub workloads: Vec<WorkloadReport>,
    /// What could not be measured, and why.
    pub broken: Vec<String>,
    /// What differs and what does not, in words.
    pub findings: Vec<String>,
}

/// All contestants under one load.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadReport {
    pub workload: Workload,
    pub about: &'static str,
    pub contestants: Vec<Cell>,
}

/// One contestant under one load. Times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub contestant: String,
    /// It does not have the path that is asked for.
    pub unable: bool,
    pub per_second: Spread,
    pub p50: Spread,
    pub p99: Spread,
    pub max: Spread,
    /// Processor time of the server for each request; none beside heavy requests, which use most of it.
    pub cpu_us: Option<Spread>,
    /// Memory of all its processes (PSS) under load, in MiB.
    pub memory_mib: Option<Spread>,
    /// The part of all requests that the busiest process answered.
    pub busiest: Option<Spread>,
    /// Requests of all rounds without an answer, or with a status of 400 or more.
    pub errors: u64,
    /// Processor time of the generator for each request: in none of the figures above.
    pub generator_us: Spread,
    /// By what the reference has, round by round: requests per second, or the 99th percentile beside heavy requests.
    pub ratio: Option<Spread>,
    pub samples: Vec<Sample>,
}

impl Cell {
    fn of(contestant: &str, unable: bool, samples: Vec<Sample>) -> Cell {
        let spread = |figure: fn(&Sample) -> f64| {
            Spread::of(&samples.iter().map(figure).collect::<Vec<_>>())
        };
        let some = |figure: fn(&Sample) -> Option<f64>| {
            let values: Vec<f64> = samples.iter().filter_map(figure).collect();
            (!values.is_empty()).then(|| Spread::of(&values))
        };
        Cell {
            contestant: contestant.to_string(),
            unable,
            per_second: spread(|s| s.per_second),
            p50: spread(|s| s.p50),
            p99: spread(|s| s.p99),
            max: spread(|s| s.max),
            cpu_us: some(|s| s.cpu_us),
            memory_mib: some(|s| s.memory_mib),
            busiest: some(|s| s.busiest),
            errors: samples.iter().map(|s| s.errors).sum(),
            generator_us: spread(|s| s.generator_us),
            ratio: None,
            samples,
        }
    }

    /// What the contestants are compared by.
    pub(crate) fn figure(&self, workload: Workload) -> Spread {
        if workload.is_about_latency() { self.p99 } else { self.per_second }
    }

    /// Round by round, as both were measured one after the other.
    fn compare_with(&mut self, reference: &Cell, workload: Workload) {
        let ratios = self.samples.iter().filter_map(|own| {
            let other = reference.samples.iter().find(|other| other.round == own.round)?;
            let ratio = own.figure(workload) / other.figure(workload);
            ratio.is_finite().then_some(ratio)
        });
        let ratios: Vec<f64> = ratios.collect();
        self.ratio = (!ratios.is_empty()).then(|| Spread::of(&ratios));
    }
}

impl Report {
    pub(crate) fn of(
        plan: &Plan,
        outcomes: Vec<(Turn, Outcome)>,
        cut: Option<Cut>,
        took: Duration,
    ) -> Report {
        let planned = plan.turns().len();
        let measured = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Measured(_))).count();
        let broken: Vec<String> = outcomes.iter().filter_map(|(_, o)| o.broken()).collect();
        let reference = plan.contestants.iter().find(|one| one.is_single());
        let reference = reference.or(plan.contestants.first()).map(|one| one.name.clone());
        let workloads = workloads(plan, outcomes, reference.as_deref());
        let known = |name: &String| {
            workloads.iter().any(|w| w.cell(name).is_some_and(|cell| !cell.samples.is_empty()))
        };
        let reference = reference.filter(known);
        let partial = cut.map(|cut| {
            let why = match cut {
                Cut::Signal => "a signal ended it",
                Cut::Time => "its time was over",
            };
            format!("{measured} of {planned} measurements were made, then {why}")
        });
        let findings = match &reference {
            Some(reference) => differences::of(&workloads, reference),
            None => Vec::new(),
        };
        Report {
            version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            workers: plan.workers,
            rounds: plan.rounds,
            duration_s: plan.duration.as_secs_f64(),
            took_s: took.as_secs_f64(),
            partial,
            cut,
            planned,
            measured,
            reference,
            chance: Chance::of(&workloads),
            workloads,
            broken,
            findings,
        }
    }

    /// The status to exit with: did every contestant serve, and was everything measured; a time that was given is as
    /// good as the whole if it was enough for a round.
    pub fn exit_status(&self) -> u8 {
        let enough = match self.cut {
            None => true,
            Some(Cut::Signal) => false,
            Some(Cut::Time) => self.measured * self.rounds >= self.planned,
        };
        match enough && self.broken.is_empty() {
            true => exit::OK,
            false => exit::FAILURE,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        text::table(self)
    }

    /// For browsers: one page that needs nothing else.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}

impl WorkloadReport {
    /// The figures of one contestant.
    pub(crate) fn cell(&self, contestant: &str) -> Option<&Cell> {
        self.contestants.iter().find(|cell| cell.contestant == contestant)
    }
}

fn workloads(
    plan: &Plan,
    outcomes: Vec<(Turn, Outcome)>,
    reference: Option<&str>,
) -> Vec<WorkloadReport> {
    let (workloads, contestants) = (plan.workloads.len(), plan.contestants.len());
    let mut samples: Vec<Vec<(bool, Vec<Sample>)>> =
        vec![vec![(false, Vec::new()); contestants]; workloads];
    for (turn, outcome) in outcomes {
        let place = &mut samples[turn.workload][turn.contestant];
        match outcome {
            Outcome::Measured(mut sample) => {
                sample.round = turn.round + 1;
                place.1.push(*sample);
            }
            Outcome::Unable => place.0 = true,
            Outcome::Broken(_) | Outcome::Interrupted => {}
        }
    }
    let report = |(workload, cells): (&Workload, Vec<(bool, Vec<Sample>)>)| {
        let cells = plan.contestants.iter().zip(cells);
        let cells = cells.map(|(one, (unable, samples))| Cell::of(&one.name, unable, samples));
        let mut contestants: Vec<Cell> = cells.collect();
        let base = contestants.iter().find(|cell| Some(cell.contestant.as_str()) == reference);
        if let Some(base) = base.cloned() {
            contestants.iter_mut().for_each(|cell| cell.compare_with(&base, *workload));
        }
        WorkloadReport { workload: *workload, about: workload.about(), contestants }
    };
    plan.workloads.iter().zip(samples).map(report).collect()
}

#[cfg(test)]
pub(crate) mod tests;
