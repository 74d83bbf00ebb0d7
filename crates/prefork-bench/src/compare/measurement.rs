//! Result of one measurement of a comparison.

use serde::Serialize;

use super::Workload;
use super::plan::PlannedMeasurement;
use super::workload::RESPONSE_TIMEOUT;
use crate::load;

/// Figures of one measurement; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct MeasurementSample {
    /// Number of the round, from 1.
    pub round: usize,
    /// Responses per second.
    pub per_second: f64,
    /// Median latency.
    pub p50: f64,
    /// 99th percentile of the latency.
    pub p99: f64,
    /// Highest latency.
    pub max: f64,
    /// CPU time of the server per request; `None` under latency workloads.
    pub cpu_us: Option<f64>,
    /// PSS of the server at the end, in MiB.
    pub memory_mib: Option<f64>,
    /// Share of the responses that came from the busiest process, from 0 to 1.
    pub busiest: Option<f64>,
    /// Share of the TLS handshakes that resumed a session, from 0 to 1; `None` without handshakes.
    pub resumed: Option<f64>,
    /// Median duration of a TLS handshake; `None` without handshakes.
    pub handshake_p50: Option<f64>,
    /// 99th percentile of the duration of a TLS handshake; `None` without handshakes.
    pub handshake_p99: Option<f64>,
    /// Failed requests.
    pub errors: u64,
    /// CPU time of the load generator per request.
    pub generator_us: f64,
}

/// How a measurement ended.
#[derive(Debug)]
pub(crate) enum MeasurementOutcome {
    Measured(Box<MeasurementSample>),
    /// The server did not start or exited; holds the reason.
    ServerFailed(String),
    /// The server does not have the path.
    PathMissing,
    /// A signal came before the measurement was complete.
    Interrupted,
}

impl MeasurementOutcome {
    /// Returns whether this outcome of `earlier` makes `later`, of the same server, pointless.
    pub(crate) fn rules_out_later(
        &self,
        earlier: &PlannedMeasurement,
        later: &PlannedMeasurement,
    ) -> bool {
        match self {
            MeasurementOutcome::Measured(_) => false,
            MeasurementOutcome::PathMissing => earlier.workload == later.workload,
            MeasurementOutcome::ServerFailed(_) | MeasurementOutcome::Interrupted => true,
        }
    }
}

impl MeasurementSample {
    pub(crate) fn from_load_report(
        report: &load::LoadReport,
        workload: Workload,
    ) -> MeasurementSample {
        // Responses completed while the CPU time was counted.
        let served = (report.per_second.median * report.measured_s).max(1.0);
        let asked = (report.responses + report.warm_up_responses).max(1) as f64;
        let server = report.server.as_ref();
        let cpu = server.map(|s| (s.user_s + s.system_s) * 1e6 / served);
        let memory = server.and_then(|s| s.pss_after_kib).map(|kib| kib as f64 / 1024.0);
        let handshakes = report.tls.as_ref().filter(|_| workload.needs_tls());
        let done = handshakes.map(|tls| {
            // The more frequent kind: the first handshakes of a resuming load are full ones.
            if tls.resumed.count > tls.full.count { &tls.resumed } else { &tls.full }
        });
        let done = done.filter(|summary| summary.count > 0);
        let resumed = handshakes
            .map(|tls| (tls.resumed.count, tls.full.count + tls.resumed.count))
            .filter(|(_, all)| *all > 0)
            .map(|(resumed, all)| resumed as f64 / all as f64);
        // Without a response, latency was at least the timeout.
        let or_timeout = |micros: f64| match report.responses {
            0 => RESPONSE_TIMEOUT.as_secs_f64() * 1e6,
            _ => micros,
        };
        MeasurementSample {
            round: 0,
            per_second: report.per_second.median,
            p50: or_timeout(report.latency.p50),
            p99: or_timeout(report.latency.p99),
            max: or_timeout(report.latency.max),
            cpu_us: cpu
                .filter(|_| !workload.is_latency_workload() && report.per_second.median > 0.0),
            memory_mib: memory,
            busiest: report.pids.first().map(|pid| pid.share),
            resumed,
            handshake_p50: done.map(|summary| summary.p50),
            handshake_p99: done.map(|summary| summary.p99),
            errors: report.error_count(),
            generator_us: (report.generator.user_s + report.generator.system_s) * 1e6 / asked,
        }
    }

    /// Returns the value by which servers are compared under `workload`.
    pub(crate) fn main_metric(&self, workload: Workload) -> f64 {
        if workload.is_latency_workload() { self.p99 } else { self.per_second }
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
