//! What a run has found, as plain data: this is what `--json` prints.

use serde::Serialize;

pub(crate) mod figures;
pub(crate) mod html;
pub(crate) mod text;

use super::counters::{BIN, Tally};
use super::plan::Plan;
use super::{Cost, Round};
use crate::load::process_tree::Usage;
use crate::report_format::statistics as spread;
use figures::{Balance, ChaosReport, Failures, Latency, PidReport, Statuses, micros, ratio};
use tokio_prefork::ListenAddr;
use tokio_prefork::exit;

/// Everything a run has found. Times are microseconds where the name says nothing else.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// What was asked for, and of whom.
    pub target: String,
    /// How the connections were used.
    pub manner: String,
    pub method: String,
    pub connections: usize,
    pub threads: usize,
    /// Requests per second that were due; none in a closed loop.
    pub rate: Option<u32>,
    pub warm_up_s: f64,
    /// Seconds measured, all rounds together.
    pub measured_s: f64,
    /// Whether a signal ended the run before its time.
    pub ended_early: bool,
    /// Requests that were due in the time measured and were answered.
    pub responses: u64,
    /// The same, of the warm-up.
    pub warm_up_responses: u64,
    /// Requests of the warm-up that failed.
    pub warm_up_failures: u64,
    /// Requests on the way when a second signal ended the wait for them.
    pub abandoned: u64,
    /// Connections that were opened.
    pub connections_opened: u64,
    /// Responses that were complete in the time measured, by second.
    pub per_second: Spread,
    /// Bytes of heads and bodies received, by second.
    pub bytes_per_second: f64,
    pub rounds: Vec<RoundReport>,
    /// From the moment a request was due to the end of its response.
    pub latency: Latency,
    /// The same with requests that a closed loop did not send while it waited, as wrk counts; none where there is no
    /// such loop.
    pub corrected: Option<Latency>,
    pub statuses: Statuses,
    pub failures: Failures,
    /// By process, the busiest first; empty if the target does not tell.
    pub pids: Vec<PidReport>,
    /// Responses of processes beyond the first thousand.
    pub other_pids: u64,
    /// How even the requests fell; none without two processes.
    pub balance: Option<Balance>,
    /// What the processes of the target used; none if it is elsewhere, or hidden from us.
    pub server: Option<Usage>,
    /// Processor time of this program, warm-up included.
    pub generator: GeneratorCost,
    /// What was done to the target; none unless that was asked for.
    pub chaos: Option<ChaosReport>,
    pub timeline: Timeline,
}

/// A figure over the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    pub measured_s: f64,
    pub responses: u64,
    pub failures: u64,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct GeneratorCost {
    pub user_s: f64,
    pub system_s: f64,
}

/// Responses and failures over time, round after round.
#[derive(Debug, Clone, Serialize)]
pub struct Timeline {
    pub bin_ms: u64,
    pub responses: Vec<u64>,
    pub failures: Vec<u64>,
    /// Places in the lists at which the second and later rounds begin.
    pub round_starts: Vec<usize>,
}

impl Spread {
    /// Of these values; zeros of none.
    pub fn of(values: &[f64]) -> Spread {
        let [median, min, max] = spread::spread(values);
        Spread { median, min, max }
    }
}

impl Report {
    pub(crate) fn of(
        plan: &Plan,
        answers: &ListenAddr,
        mut rounds: Vec<Round>,
        own: Cost,
        ended_early: bool,
    ) -> Report {
        let mut all = Tally::new();
        rounds.iter().for_each(|round| all.merge(&round.tally));
        let reports: Vec<RoundReport> = rounds.iter().map(RoundReport::of).collect();
        let rates: Vec<f64> = reports.iter().map(|round| round.per_second).collect();
        let measured_s: f64 = rounds.iter().map(|round| round.measured.as_secs_f64()).sum();
        let timeline = Timeline::of(&rounds);
        let chaos = plan.chaos.map(|_| ChaosReport::of(&rounds, plan.late));
        let usages = rounds.drain(..).filter_map(|round| round.usage);
        let target = match &plan.target.to_string() {
            url if url.contains(&answers.to_string()) => url.clone(),
            url => format!("{url} ({answers})"),
        };
        Report {
            version: env!("CARGO_PKG_VERSION"),
            target,
            manner: plan.manner(),
            method: plan.method.clone(),
            connections: plan.connections,
            threads: plan.lanes(),
            rate: plan.rate,
            warm_up_s: plan.warm_up.as_secs_f64(),
            measured_s,
            ended_early,
            responses: all.responses(),
            warm_up_responses: all.warm_up[0],
            warm_up_failures: all.warm_up[1],
            abandoned: all.abandoned,
            connections_opened: all.connections,
            per_second: Spread::of(&rates),
            bytes_per_second: ratio(all.bytes as f64, measured_s),
            rounds: reports,
            latency: Latency::of(&all.latency),
            corrected: plan
                .is_closed_loop()
                .then(|| Latency::corrected(&all, plan.connections, measured_s)),
            statuses: Statuses::of(&all.classes),
            failures: Failures::of(&all.failures),
            balance: figures::balance(&all),
            pids: figures::pids(&all),
            other_pids: all.other_pids,
            server: usages.reduce(Usage::and),
            generator: GeneratorCost { user_s: own.user, system_s: own.system },
            chaos,
            timeline,
        }
    }

    /// Requests that got no response, or one with a status of 400 or more.
    pub fn errors(&self) -> u64 {
        self.failures.total() + self.statuses.wrong + self.statuses.broken
    }

    /// The status to exit with: were all requests answered well, was one answered at all.
    pub fn exit_status(&self) -> u8 {
        let answered = self.responses + self.warm_up_responses;
        match self.errors() + self.warm_up_failures {
            0 => exit::OK,
            _ if answered == 0 => exit::UNAVAILABLE,
            _ => exit::FAILURE,
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

    /// Responses that processor time is divided by.
    pub(crate) fn served(&self) -> f64 {
        self.rounds.iter().map(|round| round.per_second * round.measured_s).sum()
    }
}

impl RoundReport {
    fn of(round: &Round) -> RoundReport {
        let seconds = round.measured.as_secs_f64();
        let at = |q| micros(round.tally.latency.value_at_quantile(q));
        RoundReport {
            measured_s: seconds,
            responses: round.tally.responses(),
            failures: round.tally.lost() + round.tally.bad_statuses(),
            per_second: ratio(round.tally.in_time as f64, seconds),
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

impl Timeline {
    fn of(rounds: &[Round]) -> Timeline {
        let mut line = Timeline {
            bin_ms: BIN / 1_000_000,
            responses: Vec::new(),
            failures: Vec::new(),
            round_starts: Vec::new(),
        };
        for (number, round) in rounds.iter().enumerate() {
            if number > 0 {
                line.round_starts.push(line.responses.len());
            }
            // Nothing at the end of a round is silence, and must be seen as that. A last piece of a bin is not
            // shown: it would look like a collapse.
            let length = (round.measured.as_nanos() as u64 / BIN) as usize;
            for bin in 0..length {
                let [good, bad] = round.tally.bins.get(bin).copied().unwrap_or_default();
                line.responses.push(good);
                line.failures.push(bad);
            }
        }
        line
    }
}

#[cfg(test)]
pub(crate) mod tests;
