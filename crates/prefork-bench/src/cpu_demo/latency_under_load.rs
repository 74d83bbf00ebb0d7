//! What other clients notice of requests that compute.

use std::time::Duration;

use serde::Serialize;

use super::Plan;
use crate::compare::{Contestant, Failure, Running, beside};
use crate::load::{self, Target};
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::Model;
use tokio_prefork::{Error, Result};

/// Requests for `/` that are due each second.
const RATE: u32 = 200;
/// Clients that ask for a number, each again as soon as it has one.
const HAMMERS: usize = 2;
/// No request waits longer for its answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How `/` was answered, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Served {
    pub how: String,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// P99, of that without requests that compute.
    pub ratio: f64,
    /// Requests for `/` that got no answer, or one that says that something went wrong.
    pub failed: u64,
}

/// The cases in order, and whether all of them were measured: a signal ends it early.
pub(crate) fn measure(
    plan: &Plan,
    cores: usize,
    say: &mut impl FnMut(&str),
) -> Result<(Vec<Served>, bool)> {
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let single = || Contestant::own(Model::Single, None, 1);
    // More than those that compute, and as many as the cores have use for.
    let many = 2 * cores.max(HAMMERS);
    let (on_loop, in_pool) =
        (format!("/fib/{}?on=loop", plan.asked), format!("/fib/{}", plan.asked));
    let cases = [
        ("nobody computes".to_string(), single(), None),
        ("computing on the loop".to_string(), single(), Some(&on_loop)),
        ("computing in the pool".to_string(), single(), Some(&in_pool)),
        (
            format!("on the loops of {many} processes"),
            Contestant::own(Model::Prefork, None, many),
            Some(&on_loop),
        ),
    ];
    let mut all: Vec<Served> = Vec::new();
    for (how, who, heavy) in cases {
        say(&format!("latency of /: {how}"));
        let Some(report) = one(plan, &who, heavy.map(String::as_str), &mut signals)? else {
            return Ok((all, false));
        };
        let (failed, load::Latency { p50, p99, max, .. }) = (report.errors(), report.latency);
        let idle = all.first().map_or(p99, |first| first.p99);
        all.push(Served { how, p50, p99, max, ratio: p99 / idle, failed });
    }
    Ok((all, true))
}

/// `None` if a signal came.
fn one(
    plan: &Plan,
    who: &Contestant,
    heavy: Option<&str>,
    signals: &mut SignalPipe,
) -> Result<Option<load::Report>> {
    let server = match Running::start(who, signals) {
        Ok(server) => server,
        Err(Failure::Interrupted) => return Ok(None),
        Err(Failure::Broken(why)) => return Err(Error::config(why)),
    };
    let load = |path: &str| {
        let url = format!("{}{path}", server.url());
        let target = Target::parse(&url).map_err(|why| Error::config(format!("{url}: {why}")))?;
        Ok::<_, Error>(load::Plan { threads: 1, timeout: TIMEOUT, ..load::Plan::new(target) })
    };
    let warm_up = plan.duration.min(Duration::from_secs(1)) / 2;
    // On connections of their own, so that nobody is behind one that waits already.
    let light = load::Plan {
        connections: 1024,
        close: true,
        rate: Some(RATE),
        duration: plan.duration,
        warm_up,
        ..load("/")?
    };
    let heavy = heavy.map(load).transpose()?.map(|heavy| load::Plan {
        connections: HAMMERS,
        duration: plan.duration + warm_up,
        warm_up: Duration::ZERO,
        ..heavy
    });
    let (report, told) = beside(&light, heavy, signals);
    if told { Ok(None) } else { report.map(Some) }
}
