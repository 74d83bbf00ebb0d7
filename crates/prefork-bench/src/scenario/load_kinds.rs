//! The kinds of load that are not requests and responses: their keys, and how they are run.

use std::time::Duration;

use serde::Serialize;

use super::parse::{MAX_DURATION, MIN_DURATION, parse_request, parse_request_load, read_timeout};
use super::toml_table::Table;
use super::{LoadKind, LoadRate, RequestLoad, ScenarioRequest, write_known_duration};
use crate::compare::ComparedMetric;
use crate::load::LoadPlan;
use crate::load::plan::MAX_CONNECTIONS;
use crate::load_kinds::KindReport;
use crate::load_kinds::idle_memory::{IdleMemoryPlan, MAX_IDLE_CONNECTIONS, measure_idle_memory};
use crate::load_kinds::reloads::{ReloadsPlan, measure_reloads};
use crate::load_kinds::slow_readers::{MAX_BYTES_PER_SECOND, ReaderPlan};
use crate::load_kinds::websocket_echo::{
    MAX_MESSAGE_SIZE, WebSocketEchoPlan, measure_websocket_echo,
};
use crate::load_kinds::worker_kills::{
    MAX_KILLS, MIN_KILL_INTERVAL, WorkerKillsPlan, measure_worker_kills,
};
use tokio_prefork::{Error, Result};

/// Connections that have one response each and then stay idle.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct IdleLoad {
    /// The request.
    #[serde(flatten)]
    pub request: ScenarioRequest,
    /// Number of connections. Default 10 000.
    pub connections: usize,
    /// How long the memory of the server must stay the same before it is read. Default 2 s.
    #[serde(serialize_with = "write_known_duration")]
    pub quiet: Duration,
    /// Longest wait for a response. Default 3 s.
    #[serde(serialize_with = "write_known_duration")]
    pub timeout: Duration,
}

/// Connections that request a body and read it slowly.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlowReaderLoad {
    /// The request.
    #[serde(flatten)]
    pub request: ScenarioRequest,
    /// Number of connections. Default 32.
    pub connections: usize,
    /// What each reads, in bytes per second. Default 16 KiB.
    pub bytes_per_second: u64,
    /// Size of the receive buffer of each socket in bytes. Default 4096.
    pub receive_buffer: usize,
    /// Longest wait for a connection. Default 3 s.
    #[serde(serialize_with = "write_known_duration")]
    pub timeout: Duration,
}

/// Connections that send WebSocket messages, one in flight on each.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WebSocketLoad {
    /// The handshake. Default path: `/websocket`.
    #[serde(flatten)]
    pub request: ScenarioRequest,
    /// Number of connections. Default 64.
    pub connections: usize,
    /// Threads of the load generator. Default: 2, or as many as connections.
    pub threads: usize,
    /// Size of each message in bytes. Default 128.
    pub message_size: usize,
    /// Longest wait for a message. Default 3 s.
    #[serde(serialize_with = "write_known_duration")]
    pub timeout: Duration,
}

/// Requests while workers are killed, one after another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WorkerKillLoad {
    /// The requests.
    #[serde(flatten)]
    pub requests: RequestLoad,
    /// Number of kills. Default 5.
    pub kills: usize,
    /// Time between two kills. Default 1 s.
    #[serde(serialize_with = "write_known_duration")]
    pub interval: Duration,
}

/// Requests before reloads, then during one reload after another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReloadLoad {
    /// The requests.
    #[serde(flatten)]
    pub requests: RequestLoad,
}

/// Parses the keys of a kind of load.
pub(super) type ParseKind = fn(&mut Table<'_>, bool) -> std::result::Result<LoadKind, String>;

/// Values of `kind`.
pub(super) const LOAD_KINDS: &[(&str, ParseKind)] = &[
    ("requests", |table, https| Ok(LoadKind::Requests(parse_request_load(table, https)?))),
    ("idle-connections", |table, _| Ok(LoadKind::IdleConnections(parse_idle(table)?))),
    ("slow-readers", |table, _| Ok(LoadKind::SlowReaders(parse_slow_readers(table)?))),
    ("websocket-echo", |table, _| Ok(LoadKind::WebsocketEcho(parse_websocket(table)?))),
    ("worker-kills", |table, https| Ok(LoadKind::WorkerKills(parse_kills(table, https)?))),
    ("reloads", |table, https| {
        Ok(LoadKind::Reloads(ReloadLoad { requests: parse_fixed_load(table, https)? }))
    }),
];

fn parse_idle(table: &mut Table<'_>) -> std::result::Result<IdleLoad, String> {
    let most = MAX_IDLE_CONNECTIONS as u64;
    Ok(IdleLoad {
        request: parse_request(table)?,
        connections: table.count("connections", 1..=most)?.unwrap_or(10_000) as usize,
        quiet: table
            .duration("quiet", MIN_DURATION..=MAX_DURATION)?
            .unwrap_or(Duration::from_secs(2)),
        timeout: read_timeout(table)?,
    })
}

fn parse_slow_readers(table: &mut Table<'_>) -> std::result::Result<SlowReaderLoad, String> {
    let rate = table.size("bytes-per-second", MAX_BYTES_PER_SECOND)?.unwrap_or(16 * 1024);
    if rate == 0 {
        return Err(table.error("bytes-per-second must be at least 1"));
    }
    let most = MAX_CONNECTIONS as u64;
    Ok(SlowReaderLoad {
        request: parse_request(table)?,
        connections: table.count("connections", 1..=most)?.unwrap_or(32) as usize,
        bytes_per_second: rate,
        receive_buffer: table.size("receive-buffer", 1 << 30)?.unwrap_or(4096) as usize,
        timeout: read_timeout(table)?,
    })
}

fn parse_websocket(table: &mut Table<'_>) -> std::result::Result<WebSocketLoad, String> {
    let has_path = table.has("path");
    let mut request = parse_request(table)?;
    if request.method != "GET" || request.body_size.is_some() {
        return Err(table.error("a WebSocket handshake is a GET without a body"));
    }
    if !has_path {
        request.path = "/websocket".to_string();
    }
    let connections =
        table.count("connections", 1..=MAX_CONNECTIONS as u64)?.unwrap_or(64) as usize;
    let size = table.size("message-size", MAX_MESSAGE_SIZE as u64)?.unwrap_or(128);
    if size == 0 {
        return Err(table.error("message-size must be at least 1"));
    }
    Ok(WebSocketLoad {
        request,
        connections,
        threads: table.count("threads", 1..=64)?.map_or(connections.min(2), |n| n as usize),
        message_size: size as usize,
        timeout: read_timeout(table)?,
    })
}

fn parse_kills(table: &mut Table<'_>, https: bool) -> std::result::Result<WorkerKillLoad, String> {
    let interval = table.duration("interval", MIN_KILL_INTERVAL..=Duration::from_secs(60))?;
    Ok(WorkerKillLoad {
        kills: table.count("kills", 1..=MAX_KILLS as u64)?.unwrap_or(5) as usize,
        interval: interval.unwrap_or(Duration::from_secs(1)),
        requests: parse_fixed_load(table, https)?,
    })
}

/// Parses a load of requests whose rate, if any, is a number.
fn parse_fixed_load(
    table: &mut Table<'_>,
    https: bool,
) -> std::result::Result<RequestLoad, String> {
    let load = parse_request_load(table, https)?;
    let is_part = |rate: &LoadRate| matches!(rate, LoadRate::PartOfCapacity(_));
    match load.rate.iter().chain(&load.rate_at_end).any(is_part) {
        true => {
            Err(table.error("a rate beside kills and reloads is a number of requests per second"))
        }
        false => Ok(load),
    }
}

impl LoadKind {
    /// Returns the value of the key `kind`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            LoadKind::Requests(_) => "requests",
            LoadKind::IdleConnections(_) => "idle-connections",
            LoadKind::SlowReaders(_) => "slow-readers",
            LoadKind::WebsocketEcho(_) => "websocket-echo",
            LoadKind::WorkerKills(_) => "worker-kills",
            LoadKind::Reloads(_) => "reloads",
        }
    }

    /// Returns what servers can be compared by under a measured load of this kind; the default comes first.
    pub(super) fn metrics(&self) -> &'static [ComparedMetric] {
        match self {
            LoadKind::Requests(_) | LoadKind::SlowReaders(_) => &[
                ComparedMetric::RequestsPerSecond,
                ComparedMetric::P99Latency,
                ComparedMetric::CpuPerRequest,
                ComparedMetric::Memory,
            ],
            LoadKind::IdleConnections(_) => {
                &[ComparedMetric::IdleMemory, ComparedMetric::IdleMemoryAfterBurst]
            }
            LoadKind::WebsocketEcho(_) => &[
                ComparedMetric::RoundTripsPerSecond,
                ComparedMetric::P99Latency,
                ComparedMetric::CpuPerRequest,
            ],
            LoadKind::WorkerKills(_) => {
                &[ComparedMetric::TimeToServe, ComparedMetric::RequestsLost]
            }
            LoadKind::Reloads(_) => &[
                ComparedMetric::RequestsLost,
                ComparedMetric::LongestGap,
                ComparedMetric::P99Latency,
            ],
        }
    }

    /// Returns the requests that it sends, if it is a load of requests.
    pub(super) fn requests(&self) -> Option<&RequestLoad> {
        match self {
            LoadKind::Requests(load) => Some(load),
            LoadKind::WorkerKills(load) => Some(&load.requests),
            LoadKind::Reloads(load) => Some(&load.requests),
            LoadKind::IdleConnections(_)
            | LoadKind::SlowReaders(_)
            | LoadKind::WebsocketEcho(_) => None,
        }
    }

    /// Returns the requests that a server must answer with 200. The handshake of a WebSocket is not one.
    pub(super) fn required_requests(&self) -> Vec<&ScenarioRequest> {
        match self {
            LoadKind::IdleConnections(load) => vec![&load.request],
            LoadKind::SlowReaders(load) => vec![&load.request],
            LoadKind::WebsocketEcho(_) => Vec::new(),
            LoadKind::Requests(_) | LoadKind::WorkerKills(_) | LoadKind::Reloads(_) => {
                self.requests().map(RequestLoad::all_requests).unwrap_or_default()
            }
        }
    }

    /// Returns the time after which a request without a response is given up.
    pub(super) fn timeout(&self) -> Duration {
        match self {
            LoadKind::Requests(load) => load.timeout,
            LoadKind::IdleConnections(load) => load.timeout,
            LoadKind::SlowReaders(load) => load.timeout,
            LoadKind::WebsocketEcho(load) => load.timeout,
            LoadKind::WorkerKills(load) => load.requests.timeout,
            LoadKind::Reloads(load) => load.requests.timeout,
        }
    }

    /// Measures a load that is not of requests only. Returns `None` once `is_stopped` returned `true`.
    ///
    /// # Errors
    /// A plan is invalid, the server does not answer, it cannot be measured in this way
    /// ([`ErrorKind::Refused`](tokio_prefork::ErrorKind::Refused)), or the system refuses what the load needs.
    pub(super) fn measure(
        &self,
        base: &LoadPlan,
        http2: bool,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> Result<Option<KindReport>> {
        let requests = |load: &RequestLoad| -> Result<LoadPlan> {
            let plan = load.plan(base).map_err(Error::config)?;
            Ok(if http2 && !plan.is_http2() { plan.with_http2() } else { plan })
        };
        match self {
            LoadKind::IdleConnections(load) => {
                let request = load.request.plan(base, load.timeout).map_err(Error::config)?;
                let plan = IdleMemoryPlan {
                    connections: load.connections,
                    quiet: load.quiet,
                    quiet_limit: load.quiet * 10,
                    ..IdleMemoryPlan::new(request)
                };
                Ok(measure_idle_memory(&plan, is_stopped)?.map(KindReport::IdleMemory))
            }
            LoadKind::WebsocketEcho(load) => {
                let request = load.request.plan(base, load.timeout).map_err(Error::config)?;
                let (connections, threads) = (load.connections, load.threads);
                let plan = WebSocketEchoPlan {
                    message_size: load.message_size,
                    ..WebSocketEchoPlan::new(LoadPlan { connections, threads, ..request })
                };
                Ok(measure_websocket_echo(&plan, is_stopped)?.map(KindReport::WebSocketEcho))
            }
            LoadKind::WorkerKills(load) => {
                let plan = WorkerKillsPlan {
                    load: requests(&load.requests)?,
                    kills: load.kills,
                    interval: load.interval,
                };
                Ok(measure_worker_kills(&plan, is_stopped)?.map(KindReport::WorkerKills))
            }
            LoadKind::Reloads(load) => {
                let plan = ReloadsPlan::new(requests(&load.requests)?);
                Ok(measure_reloads(&plan, is_stopped)?.map(KindReport::Reloads))
            }
            LoadKind::Requests(_) | LoadKind::SlowReaders(_) => {
                unreachable!("only other kinds are measured in this way")
            }
        }
    }
}

impl RequestLoad {
    fn all_requests(&self) -> Vec<&ScenarioRequest> {
        let kinds = self.requests.iter().map(|kind| &kind.request);
        self.request.iter().chain(kinds).collect()
    }
}

impl SlowReaderLoad {
    /// Returns what the readers do.
    ///
    /// # Errors
    /// The request is invalid together with `base`.
    pub(super) fn plan(&self, base: &LoadPlan) -> std::result::Result<ReaderPlan, String> {
        Ok(ReaderPlan {
            connections: self.connections,
            bytes_per_second: self.bytes_per_second,
            receive_buffer: self.receive_buffer,
            ..ReaderPlan::new(self.request.plan(base, self.timeout)?)
        })
    }
}

impl ScenarioRequest {
    /// Returns a load of this request.
    ///
    /// # Errors
    /// The path is invalid.
    pub(crate) fn plan(
        &self,
        base: &LoadPlan,
        timeout: Duration,
    ) -> std::result::Result<LoadPlan, String> {
        Ok(LoadPlan {
            target: base.target.with_request_target(&self.path)?,
            method: self.method.clone(),
            headers: self.headers.clone(),
            body: self.body_size.map(|size| vec![b'x'; size as usize]),
            timeout,
            ..base.clone()
        })
    }
}
