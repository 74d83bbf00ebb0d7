//! The workloads of a comparison; their paths are those of the built-in application.

use std::time::Duration;

use serde::Serialize;

use super::compared_metric::ComparedMetric;
use crate::load::{LoadPlan, TlsOptions};

/// Longest wait for a response, and so for the end of a measurement.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests per second of latency workloads.
const OPEN_LOOP_RATE: u32 = 500;

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Small responses on kept connections.
    KeepAlive,
    /// A new connection for each request.
    NewConnections,
    /// Responses with a body of 64 KiB.
    Bodies,
    /// 16 requests in flight on each connection.
    Pipelined,
    /// CPU-bound work on the event loop.
    CpuLoop,
    /// CPU-bound work in the pool.
    CpuPool,
    /// Small requests while others compute in the pool.
    Mixed,
    /// Small requests while another computes on the event loop.
    NoisyNeighbour,
    /// A new TLS connection with a full handshake for each request.
    FullHandshakes,
    /// A new TLS connection that resumes a session for each request.
    ResumedHandshakes,
}

impl Workload {
    /// The workloads of plain HTTP, in the order of the documentation.
    pub const ALL: [Workload; 8] = [
        Workload::KeepAlive,
        Workload::NewConnections,
        Workload::Bodies,
        Workload::Pipelined,
        Workload::CpuLoop,
        Workload::CpuPool,
        Workload::Mixed,
        Workload::NoisyNeighbour,
    ];

    /// The workloads of HTTPS, in the order of the documentation.
    pub const HTTPS: [Workload; 9] = [
        Workload::KeepAlive,
        Workload::FullHandshakes,
        Workload::ResumedHandshakes,
        Workload::Bodies,
        Workload::Pipelined,
        Workload::CpuLoop,
        Workload::CpuPool,
        Workload::Mixed,
        Workload::NoisyNeighbour,
    ];

    /// The workloads of `--quick` over plain HTTP: so few that two minutes have enough rounds.
    pub const QUICK: [Workload; 3] =
        [Workload::KeepAlive, Workload::NewConnections, Workload::NoisyNeighbour];

    /// The workloads of `--quick` over HTTPS.
    pub const QUICK_HTTPS: [Workload; 3] =
        [Workload::KeepAlive, Workload::FullHandshakes, Workload::NoisyNeighbour];

    /// Returns the name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Workload::KeepAlive => "keep-alive",
            Workload::NewConnections => "new-connections",
            Workload::Bodies => "bodies",
            Workload::Pipelined => "pipelined",
            Workload::CpuLoop => "cpu-loop",
            Workload::CpuPool => "cpu-pool",
            Workload::Mixed => "mixed",
            Workload::NoisyNeighbour => "noisy-neighbour",
            Workload::FullHandshakes => "full-handshakes",
            Workload::ResumedHandshakes => "resumed-handshakes",
        }
    }

    /// Parses a workload name.
    ///
    /// # Errors
    /// The name is unknown; the message lists the known ones.
    pub fn parse(text: &str) -> Result<Workload, String> {
        let mut all = Workload::ALL.to_vec();
        all.extend(Workload::HTTPS.into_iter().filter(|workload| workload.needs_tls()));
        let known = all.iter().copied().find(|workload| workload.name() == text);
        let names = all.iter().map(|workload| workload.name()).collect::<Vec<_>>().join(", ");
        known.ok_or(format!("{text:?} is not a workload: give one or more of {names}"))
    }

    /// Describes the workload in a phrase.
    pub fn description(self) -> &'static str {
        match self {
            Workload::KeepAlive => "GET / on 64 kept connections",
            Workload::NewConnections => "GET /, each on a new connection, 64 at a time",
            Workload::Bodies => "GET /bytes/65536 on 32 kept connections",
            Workload::Pipelined => "GET / on 32 kept connections, 16 requests in flight on each",
            Workload::CpuLoop => "GET /fib/24 computed on the event loop, 16 kept connections",
            Workload::CpuPool => "GET /fib/24 computed in the pool, 16 kept connections",
            Workload::Mixed => {
                "GET / on 32 kept connections, 500 due per second, while 2 connections request /fib/30 in the pool"
            }
            Workload::NoisyNeighbour => {
                "GET / on new connections, 500 due per second, while 1 connection requests /fib/36 on the event \
                 loop repeatedly"
            }
            Workload::FullHandshakes => {
                "GET /, each on a new connection after a full TLS handshake, 64 at a time"
            }
            Workload::ResumedHandshakes => {
                "GET /, each on a new connection that resumes a TLS session, 64 at a time"
            }
        }
    }

    /// Returns whether it measures TLS handshakes.
    pub fn needs_tls(self) -> bool {
        matches!(self, Workload::FullHandshakes | Workload::ResumedHandshakes)
    }

    /// Returns the path of the measured requests.
    pub(crate) fn measured_path(self) -> &'static str {
        match self {
            Workload::Bodies => "/bytes/65536",
            Workload::CpuLoop => "/fib/24?on=loop",
            Workload::CpuPool => "/fib/24",
            _ => "/",
        }
    }

    /// Returns the path of the background requests, if there are any.
    pub(crate) fn background_path(self) -> Option<&'static str> {
        match self {
            Workload::Mixed => Some("/fib/30"),
            Workload::NoisyNeighbour => Some("/fib/36?on=loop"),
            _ => None,
        }
    }

    /// Returns all paths that a server must have.
    pub(crate) fn required_paths(self) -> Vec<&'static str> {
        [Some(self.measured_path()), self.background_path()].into_iter().flatten().collect()
    }

    /// Returns whether servers are compared by latency: the request rate is fixed.
    pub fn is_latency_workload(self) -> bool {
        self.background_path().is_some()
    }

    /// Returns the value by which servers are compared first.
    pub fn main_metric(self) -> ComparedMetric {
        match self.is_latency_workload() {
            true => ComparedMetric::P99Latency,
            false => ComparedMetric::RequestsPerSecond,
        }
    }

    /// Returns the plan of the measured load.
    pub(crate) fn measured_load(
        self,
        base: LoadPlan,
        warm_up: Duration,
        duration: Duration,
    ) -> LoadPlan {
        let plan = LoadPlan { warm_up, duration, timeout: RESPONSE_TIMEOUT, ..base };
        match self {
            Workload::KeepAlive => plan,
            Workload::ResumedHandshakes => LoadPlan {
                reconnect_each_request: true,
                tls: TlsOptions { resume: true, ..plan.tls.clone() },
                ..plan
            },
            Workload::NewConnections | Workload::FullHandshakes => {
                LoadPlan { reconnect_each_request: true, ..plan }
            }
            Workload::Bodies => LoadPlan { connections: 32, ..plan },
            Workload::Pipelined => LoadPlan { connections: 32, pipeline_depth: 16, ..plan },
            Workload::CpuLoop | Workload::CpuPool => {
                LoadPlan { connections: 16, threads: 1, ..plan }
            }
            Workload::Mixed => {
                LoadPlan { connections: 32, threads: 1, rate: Some(OPEN_LOOP_RATE), ..plan }
            }
            // More connections than requests due during a stall of the event loop: each is sent when due.
            Workload::NoisyNeighbour => LoadPlan {
                connections: 1024,
                threads: 1,
                rate: Some(OPEN_LOOP_RATE),
                reconnect_each_request: true,
                ..plan
            },
        }
    }

    /// Returns the plan of the background load.
    pub(crate) fn background_load(self, base: LoadPlan, duration: Duration) -> LoadPlan {
        let connections = if self == Workload::Mixed { 2 } else { 1 };
        let (warm_up, timeout) = (Duration::ZERO, RESPONSE_TIMEOUT);
        LoadPlan { connections, threads: 1, warm_up, duration, timeout, ..base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;

    #[test]
    fn workloads_have_valid_plans_and_their_names_parse() {
        let base = || LoadPlan::new(TargetUrl::parse("https://127.0.0.1:3000").expect("url"));
        for workload in Workload::ALL.into_iter().chain(Workload::HTTPS) {
            assert_eq!(Workload::parse(workload.name()), Ok(workload));
            assert_eq!(serde_json::json!(workload), workload.name());
            let second = Duration::from_secs(1);
            let measured = workload.measured_load(base(), second, second);
            assert_eq!(measured.validate(), Ok(()));
            assert_eq!(measured.with_http2().validate(), Ok(()));
            assert_eq!(workload.background_load(base(), second).validate(), Ok(()));
        }
        let why = Workload::parse("idle").expect_err("none");
        assert!(why.contains("noisy-neighbour"), "{why}");
    }
}
