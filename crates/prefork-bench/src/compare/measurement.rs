//! One measurement, and how it ended.

use serde::Serialize;

use super::Workload;
use super::plan::PlannedMeasurement;
use super::workload::RESPONSE_TIMEOUT;
use crate::load;

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct MeasurementSample {
    pub round: usize,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub cpu_us: Option<f64>,
    pub memory_mib: Option<f64>,
    pub busiest: Option<f64>,
    pub errors: u64,
    pub generator_us: f64,
}

/// How a measurement ended.
#[derive(Debug)]
pub(crate) enum MeasurementOutcome {
    Measured(Box<MeasurementSample>),
    /// The server did not serve.
    ServerFailed(String),
    /// It does not have the path.
    PathMissing,
    /// A signal came before anything was measured.
    Interrupted,
}

impl MeasurementOutcome {
    /// Whether after this outcome of `earlier` there is no use in `later`, which has the same contestant.
    pub(crate) fn rules_out(
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
        // Those that were complete while the processor time was counted.
        let served = (report.per_second.median * report.measured_s).max(1.0);
        let asked = (report.responses + report.warm_up_responses).max(1) as f64;
        let server = report.server.as_ref();
        let cpu = server.map(|s| (s.user_s + s.system_s) * 1e6 / served);
        let memory = server.and_then(|s| s.pss_after_kib).map(|kib| kib as f64 / 1024.0);
        // Who answered nothing took at least as long as was waited.
        let waited = |micros: f64| match report.responses {
            0 => RESPONSE_TIMEOUT.as_secs_f64() * 1e6,
            _ => micros,
        };
        MeasurementSample {
            round: 0,
            per_second: report.per_second.median,
            p50: waited(report.latency.p50),
            p99: waited(report.latency.p99),
            max: waited(report.latency.max),
            cpu_us: cpu
                .filter(|_| !workload.is_latency_workload() && report.per_second.median > 0.0),
            memory_mib: memory,
            busiest: report.pids.first().map(|pid| pid.share),
            errors: report.errors(),
            generator_us: (report.generator.user_s + report.generator.system_s) * 1e6 / asked,
        }
    }

    /// What the contestants are compared by.
    pub(crate) fn main_metric(&self, workload: Workload) -> f64 {
        if workload.is_latency_workload() { self.p99 } else { self.per_second }
    }
}

impl MeasurementOutcome {
    /// Why the server did not serve.
    pub(crate) fn server_error(&self) -> Option<String> {
        match self {
            MeasurementOutcome::ServerFailed(why) => Some(why.clone()),
            _ => None,
        }
    }
}
