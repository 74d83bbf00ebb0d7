//! What is asked of every contestant. The paths are those of the built-in application.

use std::time::Duration;

use serde::Serialize;

use crate::load::{Plan, Target};

/// How long an answer may take, and so how long the end of a measurement.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);
/// Requests per second that are due beside heavy ones.
const RATE: u32 = 500;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    KeepAlive,
    NewConnections,
    Bodies,
    Pipelined,
    CpuLoop,
    CpuPool,
    Mixed,
    NoisyNeighbour,
}

impl Workload {
    /// All of them, in the order in which they are explained.
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

    /// Its name on the command line and in reports.
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
        }
    }

    /// The one with this name.
    ///
    /// # Errors
    /// There is none; the text lists them.
    pub fn parse(text: &str) -> Result<Workload, String> {
        let known = Workload::ALL.into_iter().find(|workload| workload.name() == text);
        let names = Workload::ALL.map(Workload::name).join(", ");
        known.ok_or(format!("{text:?} is no workload: give some of {names}"))
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Workload::KeepAlive => "GET / on 64 kept connections",
            Workload::NewConnections => "GET /, each on a new connection, 64 at a time",
            Workload::Bodies => "GET /bytes/65536 on 32 kept connections",
            Workload::Pipelined => "GET / on 32 kept connections, 16 requests on the way on each",
            Workload::CpuLoop => "GET /fib/24 computed on the event loop, 16 kept connections",
            Workload::CpuPool => "GET /fib/24 computed in the pool, 16 kept connections",
            Workload::Mixed => {
                "GET / on 32 kept connections, 500 due each second, beside 2 connections that ask for /fib/30 in the pool"
            }
            Workload::NoisyNeighbour => {
                "GET / on new connections, 500 due each second, beside 1 connection that asks for /fib/36 on the event \
                 loop, again and again"
            }
        }
    }

    /// What is asked for by the requests that are measured.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Workload::Bodies => "/bytes/65536",
            Workload::CpuLoop => "/fib/24?on=loop",
            Workload::CpuPool => "/fib/24",
            _ => "/",
        }
    }

    /// What is asked for beside them.
    pub(crate) fn heavy(self) -> Option<&'static str> {
        match self {
            Workload::Mixed => Some("/fib/30"),
            Workload::NoisyNeighbour => Some("/fib/36?on=loop"),
            _ => None,
        }
    }

    /// Everything that a contestant must know to take part.
    pub(crate) fn paths(self) -> Vec<&'static str> {
        [Some(self.path()), self.heavy()].into_iter().flatten().collect()
    }

    /// Whether its latency is what matters: the number of requests is given.
    pub fn is_about_latency(self) -> bool {
        self.heavy().is_some()
    }

    /// The load that is measured.
    pub(crate) fn light(self, target: Target, warm_up: Duration, duration: Duration) -> Plan {
        let plan = Plan { warm_up, duration, timeout: TIMEOUT, ..Plan::new(target) };
        match self {
            Workload::KeepAlive => plan,
            Workload::NewConnections => Plan { close: true, ..plan },
            Workload::Bodies => Plan { connections: 32, ..plan },
            Workload::Pipelined => Plan { connections: 32, pipeline: 16, ..plan },
            Workload::CpuLoop | Workload::CpuPool => Plan { connections: 16, threads: 1, ..plan },
            Workload::Mixed => Plan { connections: 32, threads: 1, rate: Some(RATE), ..plan },
            // More connections than can be due while the loop is held up: each must be sent at its time.
            Workload::NoisyNeighbour => {
                Plan { connections: 1024, threads: 1, rate: Some(RATE), close: true, ..plan }
            }
        }
    }

    /// The load beside it.
    pub(crate) fn beside(self, target: Target, duration: Duration) -> Plan {
        let connections = if self == Workload::Mixed { 2 } else { 1 };
        let (warm_up, timeout) = (Duration::ZERO, TIMEOUT);
        Plan { connections, threads: 1, warm_up, duration, timeout, ..Plan::new(target) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_can_be_run_and_every_name_is_read_back() {
        let target = || Target::parse("127.0.0.1:3000").expect("url");
        for workload in Workload::ALL {
            assert_eq!(Workload::parse(workload.name()), Ok(workload));
            assert_eq!(serde_json::json!(workload), workload.name());
            let second = Duration::from_secs(1);
            assert_eq!(workload.light(target(), second, second).check(), Ok(()));
            assert_eq!(workload.beside(target(), second).check(), Ok(()));
        }
        let why = Workload::parse("idle").expect_err("none");
        assert!(why.contains("noisy-neighbour"), "{why}");
    }
}
