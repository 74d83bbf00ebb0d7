//! What a run has found, as plain data: this is what `--json` prints.

mod html;
mod text;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::counters::{LoadCounters, REQUEST_FAILURE_KINDS, RequestFailure, TIMELINE_BIN_NANOS};
use super::plan::LoadPlan;
use super::{CpuTime, RoundResult};
use crate::chaos::{self, FaultCost, FaultKind};
use crate::load::process_tree::ProcessTreeUsage;
use crate::report_format::statistics;
use tokio_prefork::ListenAddr;
use tokio_prefork::exit;

/// Everything a run has found. Times are microseconds where the name says nothing else.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
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
    pub per_second: MedianRange,
    /// Bytes of heads and bodies received, by second.
    pub bytes_per_second: f64,
    pub rounds: Vec<LoadRoundReport>,
    /// From the moment a request was due to the end of its response.
    pub latency: LatencySummary,
    /// The same with requests that a closed loop did not send while it waited, as wrk counts; none where there is no
    /// such loop.
    pub corrected: Option<LatencySummary>,
    pub statuses: StatusCounts,
    pub failures: FailureCounts,
    /// By process, the busiest first; empty if the target does not tell.
    pub pids: Vec<ProcessShare>,
    /// Responses of processes beyond the first thousand.
    pub other_pids: u64,
    /// How even the requests fell; none without two processes.
    pub balance: Option<ProcessBalance>,
    /// What the processes of the target used; none if it is elsewhere, or hidden from us.
    pub server: Option<ProcessTreeUsage>,
    /// Processor time of this program, warm-up included.
    pub generator: GeneratorCpuTime,
    /// What was done to the target; none unless that was asked for.
    pub chaos: Option<ChaosReport>,
    pub timeline: ThroughputTimeline,
}

/// A figure over the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MedianRange {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct LoadRoundReport {
    pub measured_s: f64,
    pub responses: u64,
    pub failures: u64,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct GeneratorCpuTime {
    pub user_s: f64,
    pub system_s: f64,
}

/// Responses and failures over time, round after round.
#[derive(Debug, Clone, Serialize)]
pub struct ThroughputTimeline {
    pub bin_ms: u64,
    pub responses: Vec<u64>,
    pub failures: Vec<u64>,
    /// Places in the lists at which the second and later rounds begin.
    pub round_starts: Vec<usize>,
}

impl MedianRange {
    /// Of these values; zeros of none.
    pub fn from_values(values: &[f64]) -> MedianRange {
        let [median, min, max] = statistics::median_min_max(values);
        MedianRange { median, min, max }
    }
}

impl LoadReport {
    pub(crate) fn from_rounds(
        plan: &LoadPlan,
        answers: &ListenAddr,
        mut rounds: Vec<RoundResult>,
        own: CpuTime,
        ended_early: bool,
    ) -> LoadReport {
        let mut all = LoadCounters::new();
        rounds.iter().for_each(|round| all.merge(&round.counters));
        let reports: Vec<LoadRoundReport> =
            rounds.iter().map(LoadRoundReport::from_round).collect();
        let rates: Vec<f64> = reports.iter().map(|round| round.per_second).collect();
        let measured_s: f64 = rounds.iter().map(|round| round.measured.as_secs_f64()).sum();
        let timeline = ThroughputTimeline::from_rounds(&rounds);
        let chaos = plan.faults.map(|_| ChaosReport::from_rounds(&rounds, plan.late_threshold));
        let usages = rounds.drain(..).filter_map(|round| round.usage);
        let target = match &plan.target.to_string() {
            url if url.contains(&answers.to_string()) => url.clone(),
            url => format!("{url} ({answers})"),
        };
        LoadReport {
            version: env!("CARGO_PKG_VERSION"),
            target,
            manner: plan.describe_connections(),
            method: plan.method.clone(),
            connections: plan.connections,
            threads: plan.thread_count(),
            rate: plan.rate,
            warm_up_s: plan.warm_up.as_secs_f64(),
            measured_s,
            ended_early,
            responses: all.responses(),
            warm_up_responses: all.warm_up[0],
            warm_up_failures: all.warm_up[1],
            abandoned: all.abandoned,
            connections_opened: all.connections_opened,
            per_second: MedianRange::from_values(&rates),
            bytes_per_second: ratio_or_zero(all.bytes as f64, measured_s),
            rounds: reports,
            latency: LatencySummary::from_histogram(&all.latency),
            corrected: plan.is_closed_loop().then(|| {
                LatencySummary::with_omission_corrected(&all, plan.connections, measured_s)
            }),
            statuses: StatusCounts::from_status_classes(&all.status_classes),
            failures: FailureCounts::from_kind_counts(&all.failures),
            balance: process_balance(&all),
            pids: process_shares(&all),
            other_pids: all.untracked_responses,
            server: usages.reduce(ProcessTreeUsage::combine),
            generator: GeneratorCpuTime { user_s: own.user, system_s: own.system },
            chaos,
            timeline,
        }
    }

    /// Requests that got no response, or one with a status of 400 or more.
    pub fn errors(&self) -> u64 {
        self.failures.total() + self.statuses.client_error + self.statuses.server_error
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
        text::render_text(self)
    }

    /// For browsers: one page that needs nothing else.
    pub fn to_html(&self) -> String {
        html::render_html(self)
    }

    /// Responses that processor time is divided by.
    pub(crate) fn requests_served(&self) -> f64 {
        self.rounds.iter().map(|round| round.per_second * round.measured_s).sum()
    }
}

impl LoadRoundReport {
    fn from_round(round: &RoundResult) -> LoadRoundReport {
        let seconds = round.measured.as_secs_f64();
        let at = |q| nanos_to_micros(round.counters.latency.value_at_quantile(q));
        LoadRoundReport {
            measured_s: seconds,
            responses: round.counters.responses(),
            failures: round.counters.failed_requests() + round.counters.error_statuses(),
            per_second: ratio_or_zero(round.counters.completed_in_time as f64, seconds),
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

impl ThroughputTimeline {
    fn from_rounds(rounds: &[RoundResult]) -> ThroughputTimeline {
        let mut line = ThroughputTimeline {
            bin_ms: TIMELINE_BIN_NANOS / 1_000_000,
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
            let length = (round.measured.as_nanos() as u64 / TIMELINE_BIN_NANOS) as usize;
            for bin in 0..length {
                let [good, bad] =
                    round.counters.timeline_bins.get(bin).copied().unwrap_or_default();
                line.responses.push(good);
                line.failures.push(bad);
            }
        }
        line
    }
}

/// Percentiles that are drawn: nine tenths of what is left, in steps.
const LATENCY_CURVE_PERCENTILES: [f64; 22] = [
    0.0, 10.0, 25.0, 50.0, 60.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 98.0, 99.0, 99.25, 99.5,
    99.75, 99.9, 99.95, 99.99, 99.999, 100.0,
];

#[derive(Debug, Clone, Serialize)]
pub struct LatencySummary {
    pub mean: f64,
    pub deviation: f64,
    pub min: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// Percentile and microseconds.
    pub curve: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Serialize)]
pub struct StatusCounts {
    #[serde(rename = "2xx")]
    pub success: u64,
    #[serde(rename = "3xx")]
    pub redirect: u64,
    #[serde(rename = "4xx")]
    pub client_error: u64,
    #[serde(rename = "5xx")]
    pub server_error: u64,
    pub other: u64,
}

/// Requests without a response.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FailureCounts {
    pub refused: u64,
    pub reset: u64,
    pub closed_early: u64,
    pub timed_out: u64,
    pub malformed: u64,
    /// This machine had no port, descriptor or route for the connection.
    pub local: u64,
    /// Responses beyond a limit of the bench: header fields,
    pub too_many_fields: u64,
    /// bytes of the head,
    pub head_too_large: u64,
    /// bytes of a chunk's size with its extensions, or of the trailers.
    pub chunk_line_too_long: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessShare {
    pub pid: u32,
    pub requests: u64,
    /// Of all requests whose process is known.
    pub share: f64,
    /// Connections on which it answered.
    pub connections: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessBalance {
    /// Requests of the busiest process by those of the least busy.
    pub max_to_min: f64,
    /// Standard deviation by mean.
    pub variation: f64,
}

/// What was done to the target, and what that cost.
#[derive(Debug, Clone, Serialize)]
pub struct ChaosReport {
    /// Answers that took longer are late.
    pub late_after_ms: f64,
    /// One for each kind of fault.
    pub faults: Vec<FaultImpact>,
    /// Requests that did not go well though no fault was near.
    pub unexplained: FaultImpact,
    /// Requests that did not go well beyond those that could be noted down one by one.
    pub unnoted: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct FaultImpact {
    pub fault: &'static str,
    /// How often it was done.
    pub count: u64,
    /// How often it was due when there was nobody to do it to.
    pub skipped: u64,
    /// Requests whose connection was refused, or that were answered with 503.
    pub refused: u64,
    /// Requests that got no answer for another reason.
    pub lost: u64,
    /// Requests that were answered late.
    pub late: u64,
}

impl ChaosReport {
    pub(crate) fn from_rounds(rounds: &[RoundResult], late: std::time::Duration) -> ChaosReport {
        let mut costs = [FaultCost::default(); 4];
        let (mut counts, mut skipped) = ([0; 4], [0; 4]);
        for round in rounds {
            let found = chaos::costs_by_fault(&round.injected, &round.counters.affected);
            costs = std::array::from_fn(|at| costs[at].combine(found[at]));
            for fault in &round.injected.faults {
                counts[fault.kind as usize] += 1;
            }
            for (sum, more) in skipped.iter_mut().zip(round.injected.skipped) {
                *sum += more;
            }
        }
        let report = |fault: &'static str, at: usize| FaultImpact {
            fault,
            count: counts[at],
            skipped: skipped[at],
            refused: costs[at].refused,
            lost: costs[at].lost,
            late: costs[at].late,
        };
        let seen = |kind: &FaultKind| counts[*kind as usize] + skipped[*kind as usize] > 0;
        let kinds = FaultKind::ALL.into_iter().filter(seen);
        ChaosReport {
            late_after_ms: late.as_secs_f64() * 1e3,
            faults: kinds.map(|kind| report(kind.name(), kind as usize)).collect(),
            unexplained: report("none", FaultKind::ALL.len()),
            unnoted: rounds.iter().map(|round| round.counters.unlisted_affected).sum(),
        }
    }

    /// All rows, that of no fault last.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &FaultImpact> {
        self.faults.iter().chain([&self.unexplained])
    }
}

impl LatencySummary {
    pub(crate) fn from_histogram(latency: &Histogram<u64>) -> LatencySummary {
        let at = |q| nanos_to_micros(latency.value_at_quantile(q));
        let shown = LATENCY_CURVE_PERCENTILES.into_iter().filter(|_| !latency.is_empty());
        LatencySummary {
            mean: latency.mean() / 1000.0,
            deviation: latency.stdev() / 1000.0,
            min: nanos_to_micros(latency.min()),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: nanos_to_micros(latency.max()),
            curve: shown.map(|percent| (percent, at(percent / 100.0))).collect(),
        }
    }

    /// Whoever waits for an answer sends nothing meanwhile, so a stall is one slow request of each connection. Here each
    /// answer that took longer than twice the mean interval of a connection stands for those as well that would have
    /// been due in it, each an interval later: what wrk does, and HdrHistogram's correction for coordinated omission.
    pub(crate) fn with_omission_corrected(
        all: &LoadCounters,
        connections: usize,
        measured_s: f64,
    ) -> LatencySummary {
        let interval = ratio_or_zero(measured_s * 1e9 * connections as f64, all.responses() as f64);
        LatencySummary::from_histogram(&all.latency.clone_correct(interval as u64))
    }
}

impl StatusCounts {
    pub(crate) fn from_status_classes(classes: &[u64; 6]) -> StatusCounts {
        let [zero, one, success, redirect, client_error, server_error] = *classes;
        StatusCounts { success, redirect, client_error, server_error, other: zero + one }
    }
}

impl FailureCounts {
    pub(crate) fn from_kind_counts(counts: &[u64; REQUEST_FAILURE_KINDS]) -> FailureCounts {
        let count = |kind: RequestFailure| counts[kind as usize];
        FailureCounts {
            refused: count(RequestFailure::Refused),
            reset: count(RequestFailure::Reset),
            closed_early: count(RequestFailure::ClosedEarly),
            timed_out: count(RequestFailure::TimedOut),
            malformed: count(RequestFailure::Malformed),
            local: count(RequestFailure::Local),
            too_many_fields: count(RequestFailure::TooManyFields),
            head_too_large: count(RequestFailure::HeadTooLarge),
            chunk_line_too_long: count(RequestFailure::ChunkLineTooLong),
        }
    }

    /// Each kind with its name for people.
    pub fn named_counts(&self) -> [(&'static str, u64); REQUEST_FAILURE_KINDS] {
        [
            ("refused", self.refused),
            ("reset", self.reset),
            ("closed early", self.closed_early),
            ("timed out", self.timed_out),
            ("not HTTP", self.malformed),
            ("no port, file or route here", self.local),
            ("more than 4096 header fields", self.too_many_fields),
            ("head larger than 1 MiB", self.head_too_large),
            ("chunk line or trailers longer than 64 KiB", self.chunk_line_too_long),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.named_counts().iter().map(|(_, count)| count).sum()
    }
}

/// By process, the busiest first.
pub(crate) fn process_shares(all: &LoadCounters) -> Vec<ProcessShare> {
    let sum: u64 =
        all.processes.iter().map(|share| share.requests).sum::<u64>() + all.untracked_responses;
    let mut pids: Vec<ProcessShare> = all
        .processes
        .iter()
        .map(|share| ProcessShare {
            pid: share.pid,
            requests: share.requests,
            share: ratio_or_zero(share.requests as f64, sum as f64),
            connections: share.connections,
            p50: nanos_to_micros(share.latency.value_at_quantile(0.5)),
            p99: nanos_to_micros(share.latency.value_at_quantile(0.99)),
            max: nanos_to_micros(share.latency.max()),
        })
        .collect();
    pids.sort_by_key(|share| (std::cmp::Reverse(share.requests), share.pid));
    pids
}

/// How even the requests fell.
pub(crate) fn process_balance(all: &LoadCounters) -> Option<ProcessBalance> {
    let shares: Vec<u64> = all.processes.iter().map(|share| share.requests).collect();
    let (max_to_min, variation) = statistics::share_imbalance(&shares)?;
    Some(ProcessBalance { max_to_min, variation })
}

pub(crate) fn nanos_to_micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Zero of nothing is zero.
pub(crate) fn ratio_or_zero(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
pub(crate) mod tests;
