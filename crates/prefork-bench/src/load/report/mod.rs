//! The report of a load test, as the plain data that `--json` prints.

mod chaos_report;
mod connection_report;
mod failure_counts;
mod failure_notes;
pub(crate) mod html;
mod open_loop;
mod part_reports;
mod text;
mod tls_report;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::counters::{LoadCounters, TIMELINE_BIN_NANOS};
use super::plan::LoadPlan;
use super::{CpuTime, RoundResult};
use crate::load::process_tree::ProcessTreeUsage;
use crate::report_format::statistics;
use crate::run_environment::RunEnvironment;
use crate::scenario::ScenarioSummary;
pub use chaos_report::{ChaosReport, FaultEvent, FaultImpact};
pub use connection_report::ConnectionReport;
pub use failure_counts::FailureCounts;
pub use failure_notes::FailureNote;
pub use open_loop::{DueRequests, SendDelay};
pub use part_reports::{RampStep, RequestKindReport};
pub(crate) use text::describe_due;
pub use tls_report::{HandshakeSummary, TlsReport};
use tokio_prefork::ListenAddr;
use tokio_prefork::exit;

/// Report of a load test; times are microseconds unless the name says otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Machine, kernel, versions, command and date.
    pub environment: RunEnvironment,
    /// The scenario, and what else it has measured; `None` without one.
    pub scenario: Option<ScenarioSummary>,
    /// URL under load, and the address behind it.
    pub target: String,
    /// How the connections were used, as a phrase.
    pub manner: String,
    /// Method of the requests.
    pub method: String,
    /// Number of connections.
    pub connections: usize,
    /// Number of threads.
    pub threads: usize,
    /// Requests due per second; `None` in a closed loop.
    pub rate: Option<u32>,
    /// How long after their due times requests were sent; `None` in a closed loop.
    pub send_delay: Option<SendDelay>,
    /// What became of the requests that were due in the measurement; `None` in a closed loop.
    pub due_requests: Option<DueRequests>,
    /// Timeout of a request in seconds.
    pub timeout_s: f64,
    /// Length of the warm-up in seconds.
    pub warm_up_s: f64,
    /// Length of the measurement in seconds, all rounds together.
    pub measured_s: f64,
    /// Whether a signal ended the run early.
    pub ended_early: bool,
    /// Responses to requests due in the measurement.
    pub responses: u64,
    /// Responses to requests of the warm-up.
    pub warm_up_responses: u64,
    /// Failed requests of the warm-up.
    pub warm_up_failures: u64,
    /// Requests in flight when a second signal ended the wait for them.
    pub abandoned: u64,
    /// Number of opened connections.
    pub connections_opened: u64,
    /// How they were opened, and how evenly they were served; `None` if no thread has ended.
    pub connecting: Option<ConnectionReport>,
    /// Responses per second completed in the measurement, over the rounds.
    pub per_second: MedianRange,
    /// Bytes of heads and bodies received per second.
    pub bytes_per_second: f64,
    /// Result of each round.
    pub rounds: Vec<LoadRoundReport>,
    /// Latency from the due time of a request to the end of its response.
    pub latency: LatencySummary,
    /// Latency of each response, in nanoseconds.
    #[serde(skip)]
    pub(crate) histogram: Histogram<u64>,
    /// Latency corrected for coordinated omission as wrk does; closed loop only.
    pub corrected: Option<LatencySummary>,
    /// Responses by class of status.
    pub statuses: StatusCounts,
    /// Requests without a response, by reason.
    pub failures: FailureCounts,
    /// The first error of each kind that needs an explanation; warm-up included.
    pub failure_notes: Vec<FailureNote>,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Requests sent again because the server had not processed them: GOAWAY or REFUSED_STREAM of HTTP/2.
    pub retried: u64,
    /// TLS and its handshakes; `None` for plain HTTP.
    pub tls: Option<TlsReport>,
    /// Counts by process, busiest first; empty if responses name no pid.
    pub pids: Vec<ProcessShare>,
    /// Responses of processes beyond the first 1024.
    pub other_pids: u64,
    /// Balance of requests among processes; `None` with fewer than two.
    pub balance: Option<ProcessBalance>,
    /// Resources used by the server's processes; `None` if they are remote or unreadable.
    pub server: Option<ProcessTreeUsage>,
    /// CPU time of this program, warm-up included.
    pub generator: GeneratorCpuTime,
    /// Faults and what they cost; `None` without fault injection.
    pub chaos: Option<ChaosReport>,
    /// Figures of each kind of request; empty with one kind.
    pub request_kinds: Vec<RequestKindReport>,
    /// Figures of each tenth of a ramp; empty without one.
    pub ramp: Vec<RampStep>,
    /// Responses and failures over time.
    pub timeline: ThroughputTimeline,
}

/// Median, minimum and maximum of a value over the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MedianRange {
    /// Median.
    pub median: f64,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
}

/// Result of one round.
#[derive(Debug, Clone, Serialize)]
pub struct LoadRoundReport {
    /// Length of the measurement in seconds.
    pub measured_s: f64,
    /// Responses to requests due in the measurement.
    pub responses: u64,
    /// Requests without a response, or with a status of 400 or more.
    pub failures: u64,
    /// Responses per second.
    pub per_second: f64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
}

/// CPU time of the load generator.
#[derive(Debug, Clone, Serialize)]
pub struct GeneratorCpuTime {
    /// User time in seconds.
    pub user_s: f64,
    /// System time in seconds.
    pub system_s: f64,
}

/// Responses and failures in each bin of time, round after round.
#[derive(Debug, Clone, Serialize)]
pub struct ThroughputTimeline {
    /// Width of a bin in milliseconds.
    pub bin_ms: u64,
    /// Responses in each bin.
    pub responses: Vec<u64>,
    /// Failures in each bin.
    pub failures: Vec<u64>,
    /// Indices of the bins at which the second and later rounds begin.
    pub round_starts: Vec<usize>,
    /// Latency over time; exact to 1/16.
    pub latency: Vec<TimelineLatency>,
}

/// The latency in a span of the measured time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimelineLatency {
    /// Begin of the span in seconds.
    pub from_s: f64,
    /// End of the span in seconds.
    pub until_s: f64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
}

impl MedianRange {
    /// Summarizes `values`; zeros if empty.
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
        let round_count = reports.len();
        let rates: Vec<f64> = reports.iter().map(|round| round.per_second).collect();
        let measured_s: f64 = rounds.iter().map(|round| round.measured.as_secs_f64()).sum();
        let timeline = ThroughputTimeline::from_rounds(&rounds);
        let chaos = plan.faults.map(|_| ChaosReport::from_rounds(&rounds, plan));
        let usages = rounds.drain(..).filter_map(|round| round.usage);
        let target = match &plan.target.to_string() {
            url if url.contains(&answers.to_string()) => url.clone(),
            url => format!("{url} ({answers})"),
        };
        LoadReport {
            environment: RunEnvironment::read(),
            scenario: None,
            target,
            manner: plan.describe_connections(),
            method: match plan.mix.is_empty() {
                true => plan.method.clone(),
                false => "several".to_string(),
            },
            connections: plan.connections,
            threads: plan.thread_count(),
            rate: plan.rate,
            send_delay: plan.rate.map(|_| SendDelay::from_histogram(&all.send_delay)),
            due_requests: plan.rate.map(|_| DueRequests::from_counters(&all)),
            timeout_s: plan.timeout.as_secs_f64(),
            warm_up_s: plan.warm_up.as_secs_f64(),
            measured_s,
            ended_early,
            responses: all.responses(),
            warm_up_responses: all.warm_up[0],
            warm_up_failures: all.warm_up[1],
            abandoned: all.abandoned,
            connections_opened: all.connections_opened,
            connecting: ConnectionReport::from_counters(&all),
            per_second: MedianRange::from_values(&rates),
            bytes_per_second: ratio_or_zero(all.bytes as f64, measured_s),
            rounds: reports,
            latency: LatencySummary::from_histogram(&all.latency),
            histogram: all.latency.clone(),
            corrected: plan.is_closed_loop().then(|| {
                LatencySummary::with_omission_corrected(&all, plan.connections, measured_s)
            }),
            statuses: StatusCounts::from_status_classes(&all.status_classes),
            failures: FailureCounts::from_kind_counts(&all.failures),
            failure_notes: FailureNote::from_errors(&all.handshakes.errors),
            protocol: if plan.is_http2() { "HTTP/2" } else { "HTTP/1.1" },
            retried: all.retried,
            tls: plan
                .target
                .is_https()
                .then(|| TlsReport::from_counters(plan, &all.handshakes, measured_s)),
            balance: process_balance(&all),
            pids: process_shares(&all),
            other_pids: all.untracked_responses,
            server: usages.reduce(ProcessTreeUsage::combine),
            generator: GeneratorCpuTime { user_s: own.user, system_s: own.system },
            chaos,
            request_kinds: part_reports::request_kind_reports(plan, &all, measured_s),
            ramp: part_reports::ramp_steps(plan, &all, round_count),
            timeline,
        }
    }

    /// Returns the number of requests without a response, or with a status of 400 or more.
    pub fn error_count(&self) -> u64 {
        self.failures.total_failures() + self.statuses.client_error + self.statuses.server_error
    }

    /// Returns the exit status: 0 all requests succeeded, 1 some failed, 69 no response at all.
    pub fn exit_status(&self) -> u8 {
        let answered = self.responses + self.warm_up_responses;
        match self.error_count() + self.warm_up_failures {
            0 => exit::OK,
            _ if answered == 0 => exit::UNAVAILABLE,
            _ => exit::FAILURE,
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        text::render_text(self)
    }

    /// Formats the report as one self-contained HTML page.
    pub fn to_html(&self) -> String {
        html::render_html(self)
    }

    /// Returns the number of responses that server CPU time is divided by.
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
            latency: Vec::new(),
        };
        for (number, round) in rounds.iter().enumerate() {
            if number > 0 {
                line.round_starts.push(line.responses.len());
            }
            // A silent end of a round still gets bins. An incomplete last bin is left out: it would look like
            // a collapse.
            let length = (round.measured.as_nanos() as u64 / TIMELINE_BIN_NANOS) as usize;
            let (begin, end) = (
                line.responses.len() as u64 * TIMELINE_BIN_NANOS,
                length as u64 * TIMELINE_BIN_NANOS,
            );
            let whole = round
                .counters
                .latency_timeline
                .percentiles()
                .into_iter()
                .filter(|bin| bin.from < end);
            line.latency.extend(whole.map(|bin| TimelineLatency {
                from_s: (begin + bin.from) as f64 / 1e9,
                until_s: (begin + bin.until.min(end)) as f64 / 1e9,
                p50: nanos_to_micros(bin.p50),
                p99: nanos_to_micros(bin.p99),
            }));
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

/// Percentiles of the plotted latency curve.
const LATENCY_CURVE_PERCENTILES: [f64; 22] = [
    0.0, 10.0, 25.0, 50.0, 60.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 98.0, 99.0, 99.25, 99.5,
    99.75, 99.9, 99.95, 99.99, 99.999, 100.0,
];

/// Summary of latencies, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LatencySummary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// Minimum.
    pub min: f64,
    /// Median latency.
    pub p50: f64,
    /// 75th percentile of the latency.
    pub p75: f64,
    /// 90th percentile of the latency.
    pub p90: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// 99.9th percentile of the latency.
    pub p999: f64,
    /// Maximum.
    pub max: f64,
    /// Points of the latency curve: percentile and microseconds.
    pub curve: Vec<(f64, f64)>,
}

/// Responses by class of status.
#[derive(Debug, Clone, Serialize)]
pub struct StatusCounts {
    /// Responses with a status of 200 to 299.
    #[serde(rename = "2xx")]
    pub success: u64,
    /// Responses with a status of 300 to 399.
    #[serde(rename = "3xx")]
    pub redirect: u64,
    /// Responses with a status of 400 to 499.
    #[serde(rename = "4xx")]
    pub client_error: u64,
    /// Responses with a status of 500 to 599.
    #[serde(rename = "5xx")]
    pub server_error: u64,
    /// Responses with another status.
    pub other: u64,
}

/// Responses of one process.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessShare {
    /// Pid of the process.
    pub pid: u32,
    /// Number of its responses.
    pub requests: u64,
    /// Share of all responses with a known pid, from 0 to 1.
    pub share: f64,
    /// Connections on which it answered.
    pub connections: u64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

/// How evenly the requests were spread over processes.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessBalance {
    /// Requests of the busiest process divided by those of the least busy.
    pub max_to_min: f64,
    /// Standard deviation of the requests per process, divided by the mean.
    pub variation: f64,
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

    /// Corrects the latency for coordinated omission, as wrk and HdrHistogram do.
    ///
    /// A connection in a closed loop sends nothing while it waits, so a stall is one slow request. Each
    /// response slower than twice the mean interval of a connection also counts for the requests due
    /// meanwhile, one interval apart.
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

/// Returns the counts of each process, busiest first.
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

/// Returns the balance of requests among the processes.
pub(crate) fn process_balance(all: &LoadCounters) -> Option<ProcessBalance> {
    let shares: Vec<u64> = all.processes.iter().map(|share| share.requests).collect();
    let (max_to_min, variation) = statistics::share_imbalance(&shares)?;
    Some(ProcessBalance { max_to_min, variation })
}

pub(crate) fn nanos_to_micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Divides `part` by `whole`; 0 if `whole` is 0.
pub(crate) fn ratio_or_zero(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
pub(crate) mod tests;
