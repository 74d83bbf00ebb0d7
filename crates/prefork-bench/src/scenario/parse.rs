//! The keys of a scenario file, and which of them go together.

use std::time::Duration;

use toml::de::DeValue;

use super::load_kinds::LOAD_KINDS;
use super::toml_table::{SourceText, Table, Value, read_count, read_text};
use super::{
    DEFAULT_TIMEOUT, KindOfRequest, LoadKind, LoadRate, RequestLoad, ScenarioFault, ScenarioFile,
    ScenarioLoad, ScenarioRequest, Workload,
};
use crate::chaos::FaultKind;
use crate::compare::ComparedMetric;
use crate::load::plan::{MAX_CONNECTIONS, MAX_REQUESTS_PER_SECOND, is_http_token, split_header};
use crate::load::target_url::validate_request_target;

/// Keys of the first level.
const FILE_KEYS: &[&str] =
    &["name", "description", "metric", "duration", "warm-up", "https", "load", "fault", "file"];
/// Keys of `[[load]]`.
const LOAD_KEYS: &[&str] = &[
    "name",
    "measured",
    "kind",
    "path",
    "method",
    "headers",
    "body-size",
    "connections",
    "threads",
    "request",
    "rate",
    "rate-at-end",
    "connection-ramp",
    "pipeline",
    "http2",
    "streams",
    "close",
    "resume",
    "timeout",
    "quiet",
    "bytes-per-second",
    "receive-buffer",
    "message-size",
    "kills",
    "interval",
];
/// Keys of `[[load.request]]`.
const REQUEST_KEYS: &[&str] = &["name", "weight", "path", "method", "headers", "body-size"];
/// Keys of `[[fault]]`.
const FAULT_KEYS: &[&str] = &["kind", "at", "every", "length"];
/// Values of `kind` in `[[fault]]`.
const FAULT_KINDS: &[(&str, FaultKind)] =
    &[("kill", FaultKind::Kill), ("reload", FaultKind::Reload), ("freeze", FaultKind::Freeze)];
/// Keys of `[[file]]`.
const FILE_TABLE_KEYS: &[&str] = &["path", "size"];
/// Largest file: 1 GiB.
const MAX_SERVED_FILE: u64 = 1 << 30;
/// Most files.
const MAX_SERVED_FILES: usize = 1000;
/// Values of `metric`.
const METRICS: &[(&str, ComparedMetric)] = &[
    ("requests-per-second", ComparedMetric::RequestsPerSecond),
    ("p99-latency", ComparedMetric::P99Latency),
    ("cpu-per-request", ComparedMetric::CpuPerRequest),
    ("memory", ComparedMetric::Memory),
    ("round-trips-per-second", ComparedMetric::RoundTripsPerSecond),
    ("idle-memory", ComparedMetric::IdleMemory),
    ("idle-memory-after-burst", ComparedMetric::IdleMemoryAfterBurst),
    ("time-to-serve", ComparedMetric::TimeToServe),
    ("requests-lost", ComparedMetric::RequestsLost),
    ("longest-gap", ComparedMetric::LongestGap),
];
/// Longest duration: one hour.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(3600);
/// Shortest measurement, and shortest timeout.
pub(super) const MIN_DURATION: Duration = Duration::from_millis(100);
/// Largest body of a request: 64 MiB.
const MAX_BODY: u64 = 64 << 20;
/// Most loads of a workload.
const MAX_LOADS: usize = 16;
/// Longest name.
const MAX_NAME_LENGTH: usize = 40;

/// Parses a scenario.
pub(super) fn parse_workload(file_name: &str, source: SourceText<'_>) -> Result<Workload, String> {
    let mut file = source.read_tables(FILE_KEYS)?;
    let name = read_name(&mut file)?;
    let name = match name {
        Some(name) => name,
        None => check_name(file_name).map_err(|why| {
            file.error(format!("the file name {file_name:?}: {why}; or write a name = \"…\""))
        })?,
    };
    let description = file.line("description")?;
    let description = description.ok_or_else(|| {
        file.error("there is no description: write description = \"…\" above the first table")
    })?;
    let metric = file.choice("metric", METRICS)?;
    let duration = file.duration("duration", MIN_DURATION..=MAX_DURATION)?;
    let warm_up = file.duration("warm-up", Duration::ZERO..=MAX_DURATION)?;
    let https = file.flag("https")?.unwrap_or(false);
    let loads = parse_loads(&mut file, https)?;
    let faults = parse_faults(&mut file)?;
    let files = parse_files(&mut file)?;
    let mut workload = Workload {
        name,
        description,
        metric: metric.unwrap_or(ComparedMetric::RequestsPerSecond),
        duration,
        warm_up,
        https,
        loads,
        faults,
        files,
    };
    if let Some(duration) = workload.duration {
        workload.check_duration(duration).map_err(|why| file.error(why))?;
    }
    workload.fault_plan().map_err(|why| file.error(why))?;
    check_kinds(&file, &workload, metric)?;
    let kind = &workload.measured_load().kind;
    let LoadKind::Requests(requests) = kind else {
        workload.metric = metric.unwrap_or(kind.metrics()[0]);
        return Ok(workload);
    };
    let has_rate = requests.rate.is_some();
    match metric {
        // With a rate, all servers that keep up answer the same number of requests.
        None if has_rate => workload.metric = ComparedMetric::P99Latency,
        Some(ComparedMetric::RequestsPerSecond) if has_rate => {
            return Err(file.error(
                "metric = \"requests-per-second\" says nothing about a load with a rate: use \"p99-latency\"",
            ));
        }
        Some(ComparedMetric::CpuPerRequest) if !workload.has_cpu_per_request() => {
            return Err(file.error(
                "metric = \"cpu-per-request\" needs a single [[load]]: the CPU time of the server is that of all",
            ));
        }
        _ => {}
    }
    Ok(workload)
}

/// Reads the loads, of which one is measured.
fn parse_loads(file: &mut Table<'_>, https: bool) -> Result<Vec<ScenarioLoad>, String> {
    let tables = file.tables("load", "[[load]] ", LOAD_KEYS)?;
    if !(1..=MAX_LOADS).contains(&tables.len()) {
        return Err(file.error(format!(
            "there are {} loads: write [[load]] once for each, 1 to {MAX_LOADS} times",
            tables.len()
        )));
    }
    let count = tables.len();
    let mut loads = Vec::new();
    for (at, table) in tables.into_iter().enumerate() {
        let load = parse_load(table, count, at, https)?;
        if loads.iter().any(|other: &ScenarioLoad| other.name == load.name) {
            return Err(
                file.error(format!("two loads have the name {:?}: give each its own", load.name))
            );
        }
        loads.push(load);
    }
    match loads.iter().filter(|load| load.measured).count() {
        1 => Ok(loads),
        0 => Err(file.error("no load is measured: write measured = true in one [[load]]")),
        more => {
            Err(file
                .error(format!("{more} loads are measured: write measured = true in one [[load]]")))
        }
    }
}

fn parse_load(
    mut table: Table<'_>,
    count: usize,
    at: usize,
    https: bool,
) -> Result<ScenarioLoad, String> {
    let name = read_name(&mut table)?.unwrap_or(format!("load-{}", at + 1));
    let measured = table.flag("measured")?.unwrap_or(count == 1);
    let parse_kind = table.choice("kind", LOAD_KINDS)?.unwrap_or(LOAD_KINDS[0].1);
    let kind = parse_kind(&mut table, https)?;
    match table.take_any() {
        Some(value) => {
            Err(value.error(format!("a load of the kind {:?} has no such key", kind.name())))
        }
        None => Ok(ScenarioLoad { name, measured, kind }),
    }
}

/// Checks which loads stand together, and that the metric is one of the measured load.
fn check_kinds(
    file: &Table<'_>,
    workload: &Workload,
    metric: Option<ComparedMetric>,
) -> Result<(), String> {
    let measured = &workload.measured_load().kind;
    let readers = |load: &&ScenarioLoad| matches!(load.kind, LoadKind::SlowReaders(_));
    if matches!(measured, LoadKind::SlowReaders(_)) {
        return Err(file.error(
            "slow readers are not measured: add a [[load]] with measured = true, which runs beside them",
        ));
    }
    if workload.loads.iter().filter(readers).count() > 1 {
        return Err(
            file.error("there is more than one load of slow readers: give them in one [[load]]")
        );
    }
    let is_requests = matches!(measured, LoadKind::Requests(_));
    if !is_requests && workload.loads.len() > 1 {
        return Err(file.error(format!(
            "a load of the kind {:?} runs alone: remove the other [[load]]",
            measured.name()
        )));
    }
    if !is_requests && !workload.faults.is_empty() {
        return Err(file.error(format!(
            "a load of the kind {:?} has no [[fault]]: remove it",
            measured.name()
        )));
    }
    let other = workload
        .loads
        .iter()
        .filter(|load| !load.measured)
        .find(|load| !matches!(load.kind, LoadKind::Requests(_) | LoadKind::SlowReaders(_)));
    if let Some(other) = other {
        let name = other.kind.name();
        return Err(file.error(format!("a load of the kind {name:?} must be the measured one")));
    }
    let valid = measured.metrics();
    match metric.filter(|metric| !valid.contains(metric)) {
        Some(_) => {
            let words = METRICS.iter().filter(|(_, metric)| valid.contains(metric));
            let words: Vec<&str> = words.map(|(word, _)| *word).collect();
            Err(file.error(format!(
                "a load of the kind {:?} does not have this metric: give one of \"{}\"",
                measured.name(),
                words.join("\", \"")
            )))
        }
        None => Ok(()),
    }
}

pub(super) fn parse_request_load(
    table: &mut Table<'_>,
    https: bool,
) -> Result<RequestLoad, String> {
    let tables = table.tables("request", "[[load.request]] ", REQUEST_KEYS)?;
    let requests = parse_kinds(table, tables)?;
    let request = match requests.is_empty() {
        true => Some(parse_request(table)?),
        false => None,
    };
    let connections =
        table.count("connections", 1..=MAX_CONNECTIONS as u64)?.unwrap_or(64) as usize;
    let threads =
        table.count("threads", 1..=64)?.map_or(connections.min(2), |count| count as usize);
    let load = RequestLoad {
        request,
        requests,
        connections,
        threads,
        rate: table
            .take("rate")
            .map(|value| read_rate(&value).map_err(|why| value.error(why)))
            .transpose()?,
        rate_at_end: table
            .take("rate-at-end")
            .map(|value| read_rate(&value).map_err(|why| value.error(why)))
            .transpose()?,
        connection_ramp: table.duration("connection-ramp", MIN_DURATION..=MAX_DURATION)?,
        http2: table.flag("http2")?.unwrap_or(false),
        close: table.flag("close")?.unwrap_or(false),
        pipeline: 1,
        streams: 1,
        resume: false,
        timeout: read_timeout(table)?,
    };
    let refuse = |table: &mut Table<'_>, key: &str, why: &str| match table.take(key) {
        Some(value) => Err(value.error(why)),
        None => Ok(()),
    };
    if load.http2 {
        refuse(table, "pipeline", "HTTP/2 has no pipelining: use streams")?;
    } else {
        refuse(table, "streams", "only HTTP/2 has streams: add http2 = true, or use pipeline")?;
    }
    if load.close {
        refuse(table, "pipeline", "a connection with close = true has one request")?;
        refuse(table, "streams", "a connection with close = true has one request")?;
    }
    if load.rate.is_some() {
        refuse(table, "pipeline", "requests with a rate are not pipelined: use more connections")?;
    }
    if load.rate.is_none() && load.rate_at_end.is_some() {
        return Err(table.error("rate-at-end needs rate, with which the measurement begins"));
    }
    if load.rate.is_some() && load.connection_ramp.is_some() {
        return Err(table.error(
            "connection-ramp needs a load without rate: with one, connections are opened when requests are due",
        ));
    }
    if !https {
        refuse(
            table,
            "resume",
            "only TLS has sessions to resume: add https = true above the first table",
        )?;
    }
    if !load.close {
        refuse(table, "resume", "kept connections make few handshakes: add close = true")?;
    }
    Ok(RequestLoad {
        pipeline: table.count("pipeline", 1..=1024)?.unwrap_or(1) as usize,
        streams: table.count("streams", 1..=1024)?.unwrap_or(1) as usize,
        resume: table.flag("resume")?.unwrap_or(false),
        ..load
    })
}

/// Takes the longest wait for a response.
pub(super) fn read_timeout(table: &mut Table<'_>) -> Result<Duration, String> {
    Ok(table.duration("timeout", MIN_DURATION..=MAX_DURATION)?.unwrap_or(DEFAULT_TIMEOUT))
}

/// Parses the kinds of requests of a load, which then has no request of its own.
fn parse_kinds(load: &mut Table<'_>, tables: Vec<Table<'_>>) -> Result<Vec<KindOfRequest>, String> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    for key in ["path", "method", "headers", "body-size"] {
        if let Some(value) = load.take(key) {
            return Err(value.error("a load with [[load.request]] has these keys there"));
        }
    }
    let mut kinds: Vec<KindOfRequest> = Vec::new();
    for mut table in tables {
        let name = table.line("name")?;
        let weight = table.count("weight", 1..=1000)?.unwrap_or(1) as u32;
        let request = parse_request(&mut table)?;
        let name = name.unwrap_or(format!("{} {}", request.method, request.path));
        if kinds.iter().any(|other| other.name == name) {
            return Err(
                table.error(format!("two requests have the name {name:?}: give each its own"))
            );
        }
        kinds.push(KindOfRequest { name, weight, request });
    }
    Ok(kinds)
}

fn parse_faults(file: &mut Table<'_>) -> Result<Vec<ScenarioFault>, String> {
    let mut faults: Vec<ScenarioFault> = Vec::new();
    for mut table in file.tables("fault", "[[fault]] ", FAULT_KEYS)? {
        let kind = table.choice("kind", FAULT_KINDS)?;
        let kind = kind.ok_or_else(|| {
            table.error("there is no kind: write kind = \"kill\", \"reload\" or \"freeze\"")
        })?;
        let at = table.duration("at", Duration::ZERO..=MAX_DURATION)?;
        let every = table.duration("every", MIN_DURATION..=MAX_DURATION)?;
        if at.is_none() && every.is_none() {
            return Err(table.error("there is no time: write at = \"1s\", every = \"5s\", or both"));
        }
        let length = match kind {
            FaultKind::Freeze => table.duration("length", MIN_DURATION..=MAX_DURATION)?,
            _ => match table.take("length") {
                Some(length) => return Err(length.error("only a freeze has a length")),
                None => None,
            },
        };
        if faults.iter().any(|other| other.kind == kind) {
            return Err(table.error(format!("two tables for {}: write one", kind.name())));
        }
        faults.push(ScenarioFault { kind, at, every, length });
    }
    Ok(faults)
}

fn parse_files(file: &mut Table<'_>) -> Result<Vec<ScenarioFile>, String> {
    let tables = file.tables("file", "[[file]] ", FILE_TABLE_KEYS)?;
    if tables.len() > MAX_SERVED_FILES {
        return Err(file.error(format!("{} files: give up to {MAX_SERVED_FILES}", tables.len())));
    }
    let mut files: Vec<ScenarioFile> = Vec::new();
    for mut table in tables {
        let path = table.read("path", |value| {
            let text = read_text(value, "a path below the root in quotes, such as \"css/site.css\"")?;
            let fits = |part: &str| {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
            };
            match text.split('/').all(fits) && text.len() <= 200 {
                true => Ok(text),
                false => Err("give a path below the root of letters, digits and -._, such as \"css/site.css\"".to_string()),
            }
        })?;
        let path =
            path.ok_or_else(|| table.error("there is no path: write path = \"index.html\""))?;
        let size = table.size("size", MAX_SERVED_FILE)?;
        let size = size.ok_or_else(|| table.error("there is no size: write size = \"4KiB\""))?;
        let clashes = |other: &ScenarioFile| {
            other.path == path
                || other.path.starts_with(&format!("{path}/"))
                || path.starts_with(&format!("{}/", other.path))
        };
        if files.iter().any(clashes) {
            return Err(table.error(format!("{path:?} is there already, as a file or a directory")));
        }
        files.push(ScenarioFile { path, size });
    }
    Ok(files)
}

pub(super) fn parse_request(table: &mut Table<'_>) -> Result<ScenarioRequest, String> {
    let path = table.read("path", |value| {
        let text = read_text(value, "a path in quotes, such as \"/users?page=2\"")?;
        match text.starts_with('/') && !text.contains('#') {
            true => validate_request_target(&text),
            false => Err("give a path that begins with /, such as \"/users?page=2\"".to_string()),
        }
    })?;
    let body_size = table.size("body-size", MAX_BODY)?;
    let method = table.read("method", |value| {
        let text = read_text(value, "a method in quotes, such as \"POST\"")?;
        let fits = is_http_token(&text) && text != "CONNECT";
        if fits { Ok(text) } else { Err("give a method such as \"GET\" or \"POST\"".to_string()) }
    })?;
    let default_method = if body_size.is_some() { "POST" } else { "GET" };
    let headers = table.take("headers");
    let headers = match headers {
        Some(value) => read_headers(&value).map_err(|why| value.error(why))?,
        None => Vec::new(),
    };
    Ok(ScenarioRequest {
        path: path.unwrap_or("/".to_string()),
        method: method.unwrap_or(default_method.to_string()),
        headers,
        body_size,
    })
}

fn read_headers(value: &Value<'_>) -> Result<Vec<String>, String> {
    const EXPECTED: &str = "a list of header fields, such as [\"Accept: text/html\"]";
    let DeValue::Array(items) = &value.value else { return Err(format!("give {EXPECTED}")) };
    items
        .iter()
        .map(|item| {
            let line = read_text(item.get_ref(), EXPECTED)?;
            split_header(&line).map(|_| line.clone())
        })
        .collect()
}

/// Returns a number of requests per second, or a part of the capacity.
fn read_rate(value: &Value<'_>) -> Result<LoadRate, String> {
    const EXPECTED: &str =
        "give a number of requests per second, or a part of the capacity such as \"80%\"";
    match &value.value {
        DeValue::String(text) => {
            let percent =
                text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
            match percent {
                Some(percent) if (1.0..=200.0).contains(&percent) => {
                    Ok(LoadRate::PartOfCapacity(percent / 100.0))
                }
                Some(_) => Err("give \"1%\" to \"200%\" of the capacity".to_string()),
                None => Err(EXPECTED.to_string()),
            }
        }
        DeValue::Integer(_) => {
            let rate = read_count(&value.value, 1..=u64::from(MAX_REQUESTS_PER_SECOND))?;
            Ok(LoadRate::PerSecond(rate as u32))
        }
        _ => Err(EXPECTED.to_string()),
    }
}

fn read_name(table: &mut Table<'_>) -> Result<Option<String>, String> {
    table.read("name", |value| check_name(&read_text(value, "a name in quotes")?))
}

/// Checks a name for the command line and for reports.
fn check_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match (1..=MAX_NAME_LENGTH).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_string()),
        false => Err(format!("a name has 1 to {MAX_NAME_LENGTH} letters, digits and -._")),
    }
}
