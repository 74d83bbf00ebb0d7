//! Workloads as TOML files: what `prefork compare` and `prefork bench --scenario` put on a server.
//!
//! A [`Workload`] has one load that is measured and any number of loads beside it. The workloads that come with the
//! program are such files too, in `built_in`; `prefork compare --show-scenario NAME` prints them. `toml_table` and
//! `parse` read a file strictly, `load_plans` makes the plans for the load generator, and `run` runs them.

mod bench_report;
mod bench_scenario;
mod built_in;
mod load_kinds;
mod load_plans;
mod parse;
mod run;
mod static_root;
#[cfg(test)]
mod tests;
mod toml_table;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::chaos::{FaultKind, FaultPlan};
use crate::compare::ComparedMetric;
pub use bench_report::{BenchReport, ScenarioKindReport};
pub use bench_scenario::{ScenarioSummary, check_bench_scenario, run_bench_scenario};
pub use built_in::{BuiltInScenario, built_in_scenarios};
pub use load_kinds::{IdleLoad, ReloadLoad, SlowReaderLoad, WebSocketLoad, WorkerKillLoad};
pub use run::{BackgroundResult, CapacityResult, MeasuredReport};
pub(crate) use run::{ScenarioOutcome, ScenarioResult, run_scenario};
pub(crate) use static_root::StaticRoot;

/// Default of `timeout`: 3 s.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest scenario file: 1 MiB.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// What to put on a server, and what to compare servers by: the content of a scenario file.
///
/// Its JSON form has the names of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Workload {
    name: String,
    /// What is requested, in a phrase.
    pub description: String,
    /// What servers are compared by first.
    pub metric: ComparedMetric,
    /// Length of the measurement. `None`, the default, leaves it to the command line.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Length of the load before the measurement. `None`, the default, leaves it to the command line.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Duration>,
    /// Whether it needs a server with TLS. Default `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub https: bool,
    /// Its loads, which run at the same time; one of them is measured.
    #[serde(rename = "load")]
    pub loads: Vec<ScenarioLoad>,
    /// Faults to inject into the server during the measurement.
    #[serde(rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<ScenarioFault>,
    /// Files that the server serves. With files, `prefork serve --root` is compared in place of the built-in application.
    #[serde(rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ScenarioFile>,
}

/// A fault, or one in each interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScenarioFault {
    /// Kind of the fault.
    #[serde(serialize_with = "write_fault_kind")]
    pub kind: FaultKind,
    /// When the first one comes, since the begin of the measurement. Default: after one interval.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub at: Option<Duration>,
    /// Interval; `None`, the default, injects one.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// How long a worker is frozen. Default 1 s, or half the interval.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub length: Option<Duration>,
}

/// A file that the server serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScenarioFile {
    /// Path below the root, such as `css/site.css`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// One load of a workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScenarioLoad {
    /// Name in reports.
    pub name: String,
    /// Whether its figures are those that servers are compared by. Default: `true` if it is the only load.
    #[serde(skip_serializing_if = "is_false")]
    pub measured: bool,
    /// What the connections do.
    #[serde(flatten)]
    pub kind: LoadKind,
}

/// What the connections of a load do: the key `kind`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LoadKind {
    /// They send requests and wait for the responses.
    Requests(RequestLoad),
    /// They have one response each and then stay idle: measures the memory of the server for each of them.
    IdleConnections(IdleLoad),
    /// They request a body and read it slowly, beside the measured load.
    SlowReaders(SlowReaderLoad),
    /// They send WebSocket messages that come back.
    WebsocketEcho(WebSocketLoad),
    /// They send requests while workers are killed: measures the time until new ones answer.
    WorkerKills(WorkerKillLoad),
    /// They send requests during one reload after another: measures what is lost.
    Reloads(ReloadLoad),
}

/// A load of requests and responses.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestLoad {
    /// The request, unless `requests` has several kinds.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub request: Option<ScenarioRequest>,
    /// Requests of several kinds. Default none.
    #[serde(rename = "request", skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<KindOfRequest>,
    /// Number of connections. Default 64.
    pub connections: usize,
    /// Threads of the load generator. Default: 2, or as many as connections.
    pub threads: usize,
    /// Requests due per second (open loop). `None`, the default: each connection sends its next request when it has
    /// the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<LoadRate>,
    /// Requests due per second at the end of the measurement, up or down to which the rate goes evenly. `None`, the
    /// default, does not change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_at_end: Option<LoadRate>,
    /// Time from the begin of the measurement over which connections are opened. `None`, the default: all at once.
    #[serde(serialize_with = "write_duration", skip_serializing_if = "Option::is_none")]
    pub connection_ramp: Option<Duration>,
    /// Requests in flight on each connection of HTTP/1.1. Default 1.
    #[serde(skip_serializing_if = "is_one")]
    pub pipeline: usize,
    /// Whether to use HTTP/2. Default `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub http2: bool,
    /// Streams in flight on each connection of HTTP/2. Default 1.
    #[serde(skip_serializing_if = "is_one")]
    pub streams: usize,
    /// Whether each request opens a new connection. Default `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub close: bool,
    /// Whether new connections resume TLS sessions. Default `false`.
    #[serde(skip_serializing_if = "is_false")]
    pub resume: bool,
    /// Longest wait for a response. Default 3 s.
    #[serde(serialize_with = "write_known_duration")]
    pub timeout: Duration,
}

/// A request of a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScenarioRequest {
    /// Path with query. Default `/`.
    pub path: String,
    /// Method. Default `GET`, or `POST` with a body.
    pub method: String,
    /// Header fields, as `Name: value`. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Size of the body in bytes; `None`, the default, sends none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_size: Option<u64>,
}

/// A request of a load with several kinds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KindOfRequest {
    /// Name in reports. Default: method and path.
    pub name: String,
    /// How many of these requests are sent for each round through all kinds. Default 1.
    pub weight: u32,
    /// The request.
    #[serde(flatten)]
    pub request: ScenarioRequest,
}

/// What grows or shrinks in the course of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LoadRamp {
    /// The requests due per second, from one part of the capacity to another.
    PartOfCapacity { from: f64, to: f64 },
    /// The requests due per second.
    Rate,
    /// The number of connections.
    Connections,
}

/// How many requests are due per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LoadRate {
    /// This number.
    PerSecond(u32),
    /// This part of what the server answers in a closed loop of the same load, measured just before: 0.8 is 80 %.
    PartOfCapacity(f64),
}

impl Workload {
    /// Reads a scenario file. Its workload is named like the file, without the extension.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong; the message names the line.
    pub fn read_file(path: &Path) -> Result<Workload, String> {
        let origin = path.display().to_string();
        let cannot = |why: String| format!("cannot read {origin}: {why}");
        let size = std::fs::metadata(path).map_err(|e| cannot(e.to_string()))?.len();
        if size > MAX_FILE_SIZE {
            return Err(cannot("it is larger than 1 MiB: is it a scenario?".to_string()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| cannot(e.to_string()))?;
        let name = path.file_stem().map_or(String::new(), |name| name.to_string_lossy().into());
        Workload::parse(&name, &origin, &text)
    }

    /// Reads the scenario file at a path that ends in `.toml` or has a `/`; otherwise returns the workload that comes with
    /// the program under this name.
    ///
    /// # Errors
    /// The file cannot be read or is wrong, or the name is unknown.
    pub fn find(text: &str) -> Result<Arc<Workload>, String> {
        match text.contains('/') || text.ends_with(".toml") {
            true => Workload::read_file(Path::new(text)).map(Arc::new),
            false => Workload::built_in(text)
                .map_err(|why| format!("{why}, or a path that ends in .toml or has a /")),
        }
    }

    /// Parses the text of a scenario; `origin` stands before errors.
    ///
    /// # Errors
    /// Names the first wrong line, and what is valid.
    pub fn parse(name: &str, origin: &str, text: &str) -> Result<Workload, String> {
        parse::parse_workload(name, toml_table::SourceText { origin, text })
    }

    /// Reads a workload from its JSON form in a report.
    ///
    /// # Errors
    /// It is damaged, or of a version of this program with other keys.
    pub(crate) fn from_report(
        name: &str,
        scenario: &serde_json::Value,
    ) -> Result<Workload, String> {
        // Its JSON form has the names and units of the file.
        let text = toml::to_string(scenario).map_err(|why| why.to_string())?;
        Workload::parse(name, &format!("the scenario {name}"), &text)
    }

    /// Returns the workload that comes with the program under this name.
    ///
    /// # Errors
    /// There is none; the message lists the known ones.
    pub fn built_in(name: &str) -> Result<Arc<Workload>, String> {
        Ok(BuiltInScenario::find(name)?.workload())
    }

    /// Returns the name on the command line and in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the load whose figures servers are compared by.
    pub fn measured_load(&self) -> &ScenarioLoad {
        // `parse` accepts no workload without one.
        self.loads.iter().find(|load| load.measured).unwrap_or(&self.loads[0])
    }

    /// Returns the requests that a server must answer with 200.
    pub fn required_requests(&self) -> Vec<&ScenarioRequest> {
        self.loads.iter().flat_map(|load| load.kind.required_requests()).collect()
    }

    /// Returns whether a rate is a part of the capacity, which is then measured first.
    pub(crate) fn has_capacity_run(&self) -> bool {
        let is_part = |rate: &LoadRate| matches!(rate, LoadRate::PartOfCapacity(_));
        self.loads.iter().any(|load| match &load.kind {
            LoadKind::Requests(requests) => {
                requests.rate.iter().chain(&requests.rate_at_end).any(is_part)
            }
            _ => false,
        })
    }

    /// Returns what grows or shrinks in the course of the measured load; `None` if nothing does.
    pub(crate) fn ramp(&self) -> Option<LoadRamp> {
        let requests = self.measured_load().kind.requests()?;
        match (requests.rate, requests.rate_at_end, requests.connection_ramp) {
            (Some(LoadRate::PartOfCapacity(from)), Some(LoadRate::PartOfCapacity(to)), _) => {
                Some(LoadRamp::PartOfCapacity { from, to })
            }
            (Some(_), Some(_), _) => Some(LoadRamp::Rate),
            (None, _, Some(_)) => Some(LoadRamp::Connections),
            _ => None,
        }
    }

    /// Returns the faults as a plan; `None` without faults.
    ///
    /// # Errors
    /// An interval is too short, or a freeze too long.
    pub(crate) fn fault_plan(&self) -> Result<Option<FaultPlan>, String> {
        let mut plan = FaultPlan::default();
        for fault in &self.faults {
            let first = fault.at.or(fault.every).unwrap_or_default();
            plan.add(fault.kind, first, fault.every, fault.length)
                .map_err(|why| format!("[[fault]] {}: {why}", fault.kind.name()))?;
        }
        Ok(Some(plan).filter(|_| !self.faults.is_empty()))
    }

    /// Checks that a measurement of this length has what the file describes.
    ///
    /// # Errors
    /// A fault would come after the end, or connections would be opened after it.
    pub(crate) fn check_duration(&self, duration: Duration) -> Result<(), String> {
        let wrong = |why: String| format!("the workload {}: {why}", self.name);
        if let Some(faults) = self.fault_plan().map_err(wrong)? {
            faults.validate(duration).map_err(wrong)?;
        }
        for load in &self.loads {
            let ramp = load.kind.requests().and_then(|requests| requests.connection_ramp);
            if let Some(ramp) = ramp.filter(|ramp| *ramp > duration) {
                return Err(wrong(format!(
                    "connection-ramp = {ramp:?} is longer than the measurement of {duration:?}"
                )));
            }
        }
        Ok(())
    }

    /// Returns whether the CPU time of the server is that of the measured requests: no other load runs.
    pub(crate) fn has_cpu_per_request(&self) -> bool {
        self.loads.len() == 1
            && self.measured_load().kind.metrics().contains(&ComparedMetric::CpuPerRequest)
    }

    /// Returns the time after which a request without a response is given up.
    pub(crate) fn measured_timeout(&self) -> Duration {
        self.measured_load().kind.timeout()
    }

    /// Returns what servers are compared by: the metric of the file first, then the others of the measured load.
    ///
    /// Requests per second of an open loop are those that were due, unless the file names them.
    pub(crate) fn compared_metrics(&self) -> Vec<ComparedMetric> {
        let kind = &self.measured_load().kind;
        let has_rate = kind.requests().is_some_and(|requests| requests.rate.is_some());
        let is_given = |metric: &ComparedMetric| {
            *metric == self.metric || (has_rate && *metric == ComparedMetric::RequestsPerSecond)
        };
        let mut metrics = vec![self.metric];
        metrics.extend(kind.metrics().iter().copied().filter(|metric| !is_given(metric)));
        let has_readers =
            self.loads.iter().any(|load| matches!(load.kind, LoadKind::SlowReaders(_)));
        metrics.extend(has_readers.then_some(ComparedMetric::SlowReaderEffect));
        metrics.retain(|metric| {
            *metric != ComparedMetric::CpuPerRequest || self.has_cpu_per_request()
        });
        metrics
    }
}

impl Serialize for LoadRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LoadRate::PerSecond(rate) => rate.serialize(serializer),
            LoadRate::PartOfCapacity(part) => format_percent(*part).serialize(serializer),
        }
    }
}

/// Formats a part as a percentage, such as `80%`.
pub(crate) fn format_percent(part: f64) -> String {
    // Rounded, as 0.07 * 100.0 is 7.000000000000001.
    format!("{}%", (part * 1e6).round() / 1e4)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &usize) -> bool {
    *count == 1
}

fn write_fault_kind<S: Serializer>(kind: &FaultKind, serializer: S) -> Result<S::Ok, S::Error> {
    kind.name().serialize(serializer)
}

fn write_duration<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.as_ref().map(|duration| format!("{duration:?}")).serialize(serializer)
}

fn write_known_duration<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    format!("{duration:?}").serialize(serializer)
}
