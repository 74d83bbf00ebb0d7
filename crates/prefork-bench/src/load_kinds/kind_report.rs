//! The report of a load that is more than requests per second.

use super::idle_memory::{IdleMemoryReport, IdlePhase};
use super::reloads::ReloadsReport;
use super::slow_readers::SlowReadersReport;
use super::websocket_echo::WebSocketEchoReport;
use super::worker_kills::WorkerKillsReport;
use crate::compare::ComparedMetric;
use crate::load::LoadReport;

/// Report of one of the kinds of load of this module.
#[derive(Debug, Clone)]
pub enum KindReport {
    /// Memory of idle connections.
    IdleMemory(IdleMemoryReport),
    /// A load beside slow readers.
    SlowReaders(SlowReadersReport),
    /// WebSocket messages.
    WebSocketEcho(WebSocketEchoReport),
    /// Requests while workers are killed.
    WorkerKills(WorkerKillsReport),
    /// Requests during reloads.
    Reloads(ReloadsReport),
}

impl KindReport {
    /// Returns the load of requests that ran, if there was one: that beside the readers, the kills or the reloads.
    pub fn load(&self) -> Option<&LoadReport> {
        match self {
            KindReport::IdleMemory(_) | KindReport::WebSocketEcho(_) => None,
            KindReport::SlowReaders(report) => Some(&report.beside),
            KindReport::WorkerKills(report) => Some(&report.load),
            KindReport::Reloads(report) => Some(&report.during.load),
        }
    }

    /// Returns whether it was stopped, and holds what was measured until then.
    pub fn ended_early(&self) -> bool {
        match self {
            KindReport::IdleMemory(report) => report.ended_early,
            KindReport::WebSocketEcho(report) => report.ended_early,
            KindReport::SlowReaders(_) | KindReport::WorkerKills(_) | KindReport::Reloads(_) => {
                self.load().is_some_and(|load| load.ended_early)
            }
        }
    }

    /// Returns the values by which servers are compared, apart from those of [`load`](KindReport::load). A value that could not be measured is
    /// left out.
    pub fn figures(&self) -> Vec<(ComparedMetric, f64)> {
        let figures = match self {
            KindReport::IdleMemory(report) => {
                // A growth of nothing is not a size: something else has shrunk meanwhile.
                let grown = |phase: Option<&IdlePhase>| {
                    phase?.bytes_per_connection.filter(|bytes| *bytes > 0.0)
                };
                vec![
                    (ComparedMetric::IdleMemory, grown(Some(&report.after_opening))),
                    (ComparedMetric::IdleMemoryAfterBurst, grown(report.after_burst.as_ref())),
                ]
            }
            KindReport::SlowReaders(report) => {
                vec![(ComparedMetric::SlowReaderEffect, report.p99_ratio)]
            }
            // Its figures are in the fields of every measurement.
            KindReport::WebSocketEcho(_) => Vec::new(),
            KindReport::WorkerKills(report) => {
                let is_measured = !report.each_ms.is_empty() && report.not_replaced == 0;
                let median = report.serving_again_ms.median * 1e3;
                let lost = (report.kills > 0).then_some(report.failed_per_kill);
                vec![
                    (ComparedMetric::TimeToServe, is_measured.then_some(median)),
                    (ComparedMetric::RequestsLost, lost),
                ]
            }
            KindReport::Reloads(report) => {
                let lost = report.lost_requests as f64 / report.reloads.max(1) as f64;
                let is_measured = report.reloads > 0;
                let gap = report.during.longest_gap_ms * 1e3;
                vec![
                    (ComparedMetric::RequestsLost, is_measured.then_some(lost)),
                    (ComparedMetric::LongestGap, is_measured.then_some(gap)),
                ]
            }
        };
        figures.into_iter().filter_map(|(metric, value)| Some((metric, value?))).collect()
    }

    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            KindReport::IdleMemory(report) => report.warnings(),
            KindReport::SlowReaders(report) => report.warnings(),
            KindReport::WebSocketEcho(report) => report.warnings(),
            KindReport::WorkerKills(report) => report.warnings(),
            KindReport::Reloads(report) => report.warnings(),
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        match self {
            KindReport::IdleMemory(report) => report.to_json(),
            KindReport::SlowReaders(report) => report.to_json(),
            KindReport::WebSocketEcho(report) => report.to_json(),
            KindReport::WorkerKills(report) => report.to_json(),
            KindReport::Reloads(report) => report.to_json(),
        }
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        match self {
            KindReport::IdleMemory(report) => report.to_table(),
            KindReport::SlowReaders(report) => report.to_table(),
            KindReport::WebSocketEcho(report) => report.to_table(),
            KindReport::WorkerKills(report) => report.to_table(),
            KindReport::Reloads(report) => report.to_table(),
        }
    }
}
