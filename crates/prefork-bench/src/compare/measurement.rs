//! Result of one measurement of a comparison.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use super::Workload;
use super::compared_metric::ComparedMetric;
use super::plan::MeasurementId;
use crate::load::counters::new_histogram;
use crate::load::{DueRequests, FaultEvent, FaultImpact, LoadReport, RampStep, RequestKindReport};
use crate::load_kinds::KindReport;
use crate::load_kinds::websocket_echo::WebSocketEchoReport;
use crate::scenario::{BackgroundResult, CapacityResult, MeasuredReport, ScenarioResult};

/// Maximum number of processes in the list of request shares.
const MAX_SHARES: usize = 16;

/// Figures of one measurement; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct MeasurementSample {
    /// Number of the round, from 1.
    pub round: usize,
    /// When the measurement ended, in seconds since the start of the comparison.
    pub at_s: f64,
    /// Responses per second.
    pub per_second: f64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency. A request without a response counts as one that took as long as the timeout.
    pub p99: f64,
    /// Highest latency.
    pub max: f64,
    /// Latency of all responses, in nanoseconds.
    #[serde(skip)]
    pub(crate) latency: Histogram<u64>,
    /// CPU time of the server per request; `None` if further loads ran.
    pub cpu_us: Option<f64>,
    /// PSS of the server at the end, in MiB.
    pub memory_mib: Option<f64>,
    /// Share of the responses that came from the busiest process, from 0 to 1.
    pub busiest: Option<f64>,
    /// Share of each process in the responses, busiest first; at most 16.
    pub process_shares: Vec<f64>,
    /// Share of the TLS handshakes that resumed a session, from 0 to 1; `None` without handshakes.
    pub resumed: Option<f64>,
    /// Median duration of a TLS handshake; `None` without handshakes.
    pub handshake_p50: Option<f64>,
    /// 99th percentile of the duration of a TLS handshake; `None` without handshakes.
    pub handshake_p99: Option<f64>,
    /// Failed requests.
    pub errors: u64,
    /// What became of the requests that were due in the measurement; `None` in a closed loop.
    pub due_requests: Option<DueRequests>,
    /// CPU time of the load generator per request.
    pub generator_us: f64,
    /// What the server answered in a closed loop before; `None` unless a rate is a part of it.
    pub capacity: Option<CapacityResult>,
    /// Figures of each kind of request; empty if there is one kind.
    pub request_kinds: Vec<RequestKindReport>,
    /// Figures of each tenth of a ramp; empty without one.
    pub ramp: Vec<RampStep>,
    /// Requests that injected faults affected, by fault; empty without faults.
    pub faults: Vec<FaultImpact>,
    /// Responses over the time of the measurement; `None` without faults.
    #[serde(skip)]
    pub(crate) timeline: Option<FaultTimeline>,
    /// The loads that ran beside the measured one.
    pub background: Vec<BackgroundResult>,
    /// Values of the metrics that only some kinds of load have; in JSON each is a field of its own.
    #[serde(flatten, serialize_with = "write_figures")]
    pub figures: BTreeMap<ComparedMetric, f64>,
    /// What limits the value of the figures, as sentences.
    pub warnings: Vec<String>,
}

/// Responses over the time of a measurement with faults.
#[derive(Debug, Clone)]
pub(crate) struct FaultTimeline {
    /// Length of each bin in seconds.
    pub(crate) bin_s: f64,
    /// Responses in each bin.
    pub(crate) responses: Vec<u64>,
    /// The injected faults.
    pub(crate) injected: Vec<FaultEvent>,
}

/// How a measurement ended.
#[derive(Debug)]
pub(crate) enum MeasurementOutcome {
    Measured(Box<MeasurementSample>),
    /// The server did not start or exited; holds the reason.
    ServerFailed(String),
    /// The server cannot be measured under the workload; holds the reason.
    Unable(String),
    /// A signal came before the measurement was complete.
    Interrupted,
}

impl MeasurementOutcome {
    /// Returns whether this outcome of `earlier` makes `later`, of the same server, pointless.
    pub(crate) fn rules_out_later(&self, earlier: &MeasurementId, later: &MeasurementId) -> bool {
        match self {
            MeasurementOutcome::Measured(_) => false,
            MeasurementOutcome::Unable(_) => earlier.workload == later.workload,
            MeasurementOutcome::ServerFailed(_) | MeasurementOutcome::Interrupted => true,
        }
    }
}

impl MeasurementSample {
    pub(crate) fn from_scenario_result(
        result: &ScenarioResult,
        workload: &Workload,
    ) -> MeasurementSample {
        let mut sample = match (result.report.load(), &result.report) {
            (Some(report), _) => MeasurementSample::from_load_report(report, workload),
            (None, MeasuredReport::Kind(kind)) => match &**kind {
                KindReport::WebSocketEcho(echo) => MeasurementSample::from_echo_report(echo),
                _ => MeasurementSample::without_requests(),
            },
            (None, MeasuredReport::Requests(_)) => MeasurementSample::without_requests(),
        };
        if let MeasuredReport::Kind(kind) = &result.report {
            sample.figures = kind.figures().into_iter().collect();
            sample.warnings = kind.warnings();
        }
        (sample.capacity, sample.background) = (result.capacity, result.background.clone());
        sample
    }

    fn from_load_report(report: &LoadReport, workload: &Workload) -> MeasurementSample {
        // Responses completed while the CPU time was counted.
        let served = (report.per_second.median * report.measured_s).max(1.0);
        let asked = (report.responses + report.warm_up_responses).max(1) as f64;
        let server = report.server.as_ref();
        let cpu = server.map(|s| (s.user_s + s.system_s) * 1e6 / served);
        let memory = server.and_then(|s| s.pss_after_kib).map(|kib| kib as f64 / 1024.0);
        let chaos = report.chaos.as_ref();
        let handshakes = report.tls.as_ref().filter(|_| workload.https);
        let done = handshakes.map(|tls| {
            // The more frequent kind: the first handshakes of a resuming load are full ones.
            if tls.resumed.count > tls.full.count { &tls.resumed } else { &tls.full }
        });
        let done = done.filter(|summary| summary.count > 0);
        let resumed = handshakes
            .map(|tls| (tls.resumed.count, tls.full.count + tls.resumed.count))
            .filter(|(_, all)| *all > 0)
            .map(|(resumed, all)| resumed as f64 / all as f64);
        let at = |quantile| {
            let failures = report.failures.total_failures();
            quantile_with_failures(
                &report.histogram,
                failures,
                workload.measured_timeout(),
                quantile,
            )
        };
        MeasurementSample {
            round: 0,
            at_s: 0.0,
            per_second: report.per_second.median,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
            latency: report.histogram.clone(),
            // The kernel counts CPU time in hundredths of a second: none of them is no measurement.
            cpu_us: cpu
                .filter(|_| workload.has_cpu_per_request() && report.per_second.median > 0.0)
                .filter(|micros| *micros > 0.0),
            memory_mib: memory,
            busiest: report.pids.first().map(|pid| pid.share),
            process_shares: report.pids.iter().take(MAX_SHARES).map(|pid| pid.share).collect(),
            resumed,
            handshake_p50: done.map(|summary| summary.p50),
            handshake_p99: done.map(|summary| summary.p99),
            errors: report.error_count(),
            due_requests: report.due_requests,
            generator_us: (report.generator.user_s + report.generator.system_s) * 1e6 / asked,
            request_kinds: report.request_kinds.clone(),
            ramp: report.ramp.clone(),
            faults: chaos
                .map(|chaos| chaos.impacts_with_unexplained().cloned().collect())
                .unwrap_or_default(),
            timeline: chaos.map(|chaos| FaultTimeline {
                bin_s: report.timeline.bin_ms as f64 / 1e3,
                responses: report.timeline.responses.clone(),
                injected: chaos.injected.clone(),
            }),
            ..MeasurementSample::without_requests()
        }
    }

    fn from_echo_report(report: &WebSocketEchoReport) -> MeasurementSample {
        MeasurementSample {
            per_second: report.round_trips_per_s,
            p50: report.latency.p50,
            p99: report.latency.p99,
            max: report.latency.max,
            latency: report.histogram.clone(),
            cpu_us: report.server_cpu_us.filter(|_| report.round_trips > 0),
            errors: report.failed,
            generator_us: report.generator_cpu_us,
            ..MeasurementSample::without_requests()
        }
    }

    /// Returns a sample of a load that has sent no requests in the measurement.
    fn without_requests() -> MeasurementSample {
        MeasurementSample {
            round: 0,
            at_s: 0.0,
            per_second: 0.0,
            p50: 0.0,
            p99: 0.0,
            max: 0.0,
            latency: new_histogram(3),
            cpu_us: None,
            memory_mib: None,
            busiest: None,
            process_shares: Vec::new(),
            resumed: None,
            handshake_p50: None,
            handshake_p99: None,
            errors: 0,
            due_requests: None,
            generator_us: 0.0,
            capacity: None,
            request_kinds: Vec::new(),
            ramp: Vec::new(),
            faults: Vec::new(),
            timeline: None,
            background: Vec::new(),
            figures: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Returns whether the load has measured no latency: it is not about requests.
    pub(crate) fn has_no_latency(&self) -> bool {
        self.latency.is_empty() && self.errors == 0
    }

    /// Returns the value of a metric, if it was measured.
    pub(crate) fn value(&self, metric: ComparedMetric) -> Option<f64> {
        match metric {
            ComparedMetric::RequestsPerSecond | ComparedMetric::RoundTripsPerSecond => {
                Some(self.per_second)
            }
            ComparedMetric::P99Latency => Some(self.p99),
            ComparedMetric::CpuPerRequest => self.cpu_us,
            ComparedMetric::Memory => self.memory_mib,
            ComparedMetric::IdleMemory
            | ComparedMetric::IdleMemoryAfterBurst
            | ComparedMetric::SlowReaderEffect
            | ComparedMetric::TimeToServe
            | ComparedMetric::RequestsLost
            | ComparedMetric::LongestGap => self.figures.get(&metric).copied(),
        }
    }
}

/// Writes each figure as a field named after its metric.
fn write_figures<S: Serializer>(
    figures: &BTreeMap<ComparedMetric, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().map(|(metric, value)| (metric.sample_field(), value)))
}

/// Returns a quantile of the latency in microseconds, with failed requests as those that took longest.
///
/// Without them a server would look the faster the more requests it loses.
fn quantile_with_failures(
    latency: &Histogram<u64>,
    failures: u64,
    timeout: Duration,
    quantile: f64,
) -> f64 {
    let (answered, all) = (latency.len() as f64, (latency.len() + failures) as f64);
    match quantile * all <= answered && !latency.is_empty() {
        true => latency.value_at_quantile(quantile * all / answered) as f64 / 1e3,
        false => (timeout.as_nanos() as f64).max(latency.max() as f64) / 1e3,
    }
}

impl MeasurementOutcome {
    /// Returns why the server failed.
    pub(crate) fn server_failure_reason(&self) -> Option<String> {
        match self {
            MeasurementOutcome::ServerFailed(why) => Some(why.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_requests_count_as_the_slowest() {
        let mut latency = Histogram::new(3).expect("a histogram");
        (1..=100).for_each(|millis| latency.record(millis * 1_000_000).expect("fits"));
        let at = |failures, quantile| {
            quantile_with_failures(&latency, failures, Duration::from_secs(3), quantile) / 1e3
        };
        assert!((98.0..=100.0).contains(&at(0, 0.99)), "{}", at(0, 0.99));
        assert!((49.0..=51.0).contains(&at(0, 0.5)), "{}", at(0, 0.5));
        assert_eq!((at(2, 0.99), at(1, 1.0)), (3000.0, 3000.0));
        assert!((98.0..=101.0).contains(&at(100, 0.5)), "{}", at(100, 0.5));
        let none = Histogram::new(3).expect("a histogram");
        assert_eq!(quantile_with_failures(&none, 5, Duration::from_secs(3), 0.5), 3e6);
    }
}
