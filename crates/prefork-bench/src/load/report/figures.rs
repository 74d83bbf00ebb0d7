//! The figures of a report: how counts become what people ask for. Times are microseconds.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::chaos::{self, Kind};
use crate::load::Round;
use crate::load::counters::{FAILURES, Failure, Tally};
use crate::report_format::statistics as spread;

/// Percentiles that are drawn: nine tenths of what is left, in steps.
const CURVE: [f64; 22] = [
    0.0, 10.0, 25.0, 50.0, 60.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.5, 98.0, 99.0, 99.25, 99.5,
    99.75, 99.9, 99.95, 99.99, 99.999, 100.0,
];

#[derive(Debug, Clone, Serialize)]
pub struct Latency {
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
pub struct Statuses {
    #[serde(rename = "2xx")]
    pub good: u64,
    #[serde(rename = "3xx")]
    pub elsewhere: u64,
    #[serde(rename = "4xx")]
    pub wrong: u64,
    #[serde(rename = "5xx")]
    pub broken: u64,
    pub other: u64,
}

/// Requests without a response.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Failures {
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
pub struct PidReport {
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
pub struct Balance {
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
    pub faults: Vec<FaultReport>,
    /// Requests that did not go well though no fault was near.
    pub unexplained: FaultReport,
    /// Requests that did not go well beyond those that could be noted down one by one.
    pub unnoted: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct FaultReport {
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
    pub(crate) fn of(rounds: &[Round], late: std::time::Duration) -> ChaosReport {
        let mut costs = [chaos::Cost::default(); 4];
        let (mut counts, mut skipped) = ([0; 4], [0; 4]);
        for round in rounds {
            let found = chaos::costs(&round.done, &round.tally.odds);
            costs = std::array::from_fn(|at| costs[at].and(found[at]));
            for fault in &round.done.faults {
                counts[fault.kind as usize] += 1;
            }
            for (sum, more) in skipped.iter_mut().zip(round.done.skipped) {
                *sum += more;
            }
        }
        let report = |fault: &'static str, at: usize| FaultReport {
            fault,
            count: counts[at],
            skipped: skipped[at],
            refused: costs[at].refused,
            lost: costs[at].lost,
            late: costs[at].late,
        };
        let seen = |kind: &Kind| counts[*kind as usize] + skipped[*kind as usize] > 0;
        let kinds = Kind::ALL.into_iter().filter(seen);
        ChaosReport {
            late_after_ms: late.as_secs_f64() * 1e3,
            faults: kinds.map(|kind| report(kind.name(), kind as usize)).collect(),
            unexplained: report("none", Kind::ALL.len()),
            unnoted: rounds.iter().map(|round| round.tally.more_odds).sum(),
        }
    }

    /// All rows, that of no fault last.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &FaultReport> {
        self.faults.iter().chain([&self.unexplained])
    }
}

impl Latency {
    pub(crate) fn of(latency: &Histogram<u64>) -> Latency {
        let at = |q| micros(latency.value_at_quantile(q));
        let shown = CURVE.into_iter().filter(|_| !latency.is_empty());
        Latency {
            mean: latency.mean() / 1000.0,
            deviation: latency.stdev() / 1000.0,
            min: micros(latency.min()),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(latency.max()),
            curve: shown.map(|percent| (percent, at(percent / 100.0))).collect(),
        }
    }

    /// Whoever waits for an answer sends nothing meanwhile, so a stall is one slow request of each connection. Here each
    /// answer that took longer than twice the mean interval of a connection stands for those as well that would have
    /// been due in it, each an interval later: what wrk does, and HdrHistogram's correction for coordinated omission.
    pub(crate) fn corrected(all: &Tally, connections: usize, measured_s: f64) -> Latency {
        let interval = ratio(measured_s * 1e9 * connections as f64, all.responses() as f64);
        Latency::of(&all.latency.clone_correct(interval as u64))
    }
}

impl Statuses {
    pub(crate) fn of(classes: &[u64; 6]) -> Statuses {
        let [zero, one, good, elsewhere, wrong, broken] = *classes;
        Statuses { good, elsewhere, wrong, broken, other: zero + one }
    }
}

impl Failures {
    pub(crate) fn of(counts: &[u64; FAILURES]) -> Failures {
        let count = |kind: Failure| counts[kind as usize];
        Failures {
            refused: count(Failure::Refused),
            reset: count(Failure::Reset),
            closed_early: count(Failure::ClosedEarly),
            timed_out: count(Failure::TimedOut),
            malformed: count(Failure::Malformed),
            local: count(Failure::Local),
            too_many_fields: count(Failure::TooManyFields),
            head_too_large: count(Failure::HeadTooLarge),
            chunk_line_too_long: count(Failure::ChunkLineTooLong),
        }
    }

    /// Each kind with its name for people.
    pub fn named(&self) -> [(&'static str, u64); FAILURES] {
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
        self.named().iter().map(|(_, count)| count).sum()
    }
}

/// By process, the busiest first.
pub(crate) fn pids(all: &Tally) -> Vec<PidReport> {
    let sum: u64 = all.pids.iter().map(|share| share.requests).sum::<u64>() + all.other_pids;
    let mut pids: Vec<PidReport> = all
        .pids
        .iter()
        .map(|share| PidReport {
            pid: share.pid,
            requests: share.requests,
            share: ratio(share.requests as f64, sum as f64),
            connections: share.connections,
            p50: micros(share.latency.value_at_quantile(0.5)),
            p99: micros(share.latency.value_at_quantile(0.99)),
            max: micros(share.latency.max()),
        })
        .collect();
    pids.sort_by_key(|share| (std::cmp::Reverse(share.requests), share.pid));
    pids
}

/// How even the requests fell.
pub(crate) fn balance(all: &Tally) -> Option<Balance> {
    let shares: Vec<u64> = all.pids.iter().map(|share| share.requests).collect();
    let (max_to_min, variation) = spread::balance(&shares)?;
    Some(Balance { max_to_min, variation })
}

pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Zero of nothing is zero.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
