//! The keys of a scenario file, and which of them go together.

use std::time::Duration;

use toml::de::DeValue;

use super::toml_table::{SourceText, Table, Value, read_count, read_text};
use super::{
    DEFAULT_TIMEOUT, LoadKind, LoadRate, RequestLoad, ScenarioLoad, ScenarioRequest, Workload,
};
use crate::compare::ComparedMetric;
use crate::load::plan::{MAX_CONNECTIONS, MAX_REQUESTS_PER_SECOND, is_http_token, split_header};
use crate::load::target_url::validate_request_target;

/// Keys of the first level.
const FILE_KEYS: &[&str] =
    &["name", "description", "metric", "duration", "warm-up", "https", "load"];
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
    "rate",
    "pipeline",
    "http2",
    "streams",
    "close",
    "resume",
    "timeout",
];
/// Values of `kind`.
const LOAD_KINDS: &[(&str, ())] = &[("requests", ())];
/// Values of `metric`.
const METRICS: &[(&str, ComparedMetric)] = &[
    ("requests-per-second", ComparedMetric::RequestsPerSecond),
    ("p99-latency", ComparedMetric::P99Latency),
    ("cpu-per-request", ComparedMetric::CpuPerRequest),
    ("memory", ComparedMetric::Memory),
];
/// Longest duration: one hour.
const MAX_DURATION: Duration = Duration::from_secs(3600);
/// Shortest measurement, and shortest timeout.
const MIN_DURATION: Duration = Duration::from_millis(100);
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
        1 => {}
        0 => return Err(file.error("no load is measured: write measured = true in one [[load]]")),
        more => {
            return Err(file.error(format!(
                "{more} loads are measured: write measured = true in one [[load]]"
            )));
        }
    }
    let mut workload = Workload {
        name,
        description,
        metric: metric.unwrap_or(ComparedMetric::RequestsPerSecond),
        duration,
        warm_up,
        https,
        loads,
    };
    let LoadKind::Requests(requests) = &workload.measured_load().kind;
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

fn parse_load(
    mut table: Table<'_>,
    count: usize,
    at: usize,
    https: bool,
) -> Result<ScenarioLoad, String> {
    let name = read_name(&mut table)?.unwrap_or(format!("load-{}", at + 1));
    let measured = table.flag("measured")?.unwrap_or(count == 1);
    table.choice("kind", LOAD_KINDS)?;
    let kind = LoadKind::Requests(parse_request_load(&mut table, https)?);
    Ok(ScenarioLoad { name, measured, kind })
}

fn parse_request_load(table: &mut Table<'_>, https: bool) -> Result<RequestLoad, String> {
    let request = parse_request(table)?;
    let connections =
        table.count("connections", 1..=MAX_CONNECTIONS as u64)?.unwrap_or(64) as usize;
    let threads =
        table.count("threads", 1..=64)?.map_or(connections.min(2), |count| count as usize);
    let load = RequestLoad {
        request,
        connections,
        threads,
        rate: table
            .take("rate")
            .map(|value| read_rate(&value).map_err(|why| value.error(why)))
            .transpose()?,
        http2: table.flag("http2")?.unwrap_or(false),
        close: table.flag("close")?.unwrap_or(false),
        pipeline: 1,
        streams: 1,
        resume: false,
        timeout: table.duration("timeout", MIN_DURATION..=MAX_DURATION)?.unwrap_or(DEFAULT_TIMEOUT),
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

fn parse_request(table: &mut Table<'_>) -> Result<ScenarioRequest, String> {
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
