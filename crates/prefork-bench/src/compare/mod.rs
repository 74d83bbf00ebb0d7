//! The models, the policies and the peers side by side: `prefork compare`.
//!
//! Each contestant is a real server in a process of its own, started for one measurement and stopped after it, so
//! that nothing else serves meanwhile. The load is that of [`crate::load`], in this process: what the generator costs
//! is known, and is not in the figures of the server. A round goes through all workloads, and in each of them through
//! all contestants, in another order than the round before ([`plan`]): a machine whose speed drifts is unfair to all alike.
//!
//! [`differences`] says which differences are larger than what one contestant differs from itself. What is measured
//! becomes a [`Report`], which is printed as a table, as JSON, or as a page.
//!
//! Nothing outlives a run: contestants are stopped when they are dropped, and if this process is killed the kernel
//! tells them to stop.

mod compared_server;
mod concurrent_loads;
mod differences;
mod measurement;
mod plan;
mod report;
mod workload;

use std::time::{Duration, Instant};

pub use compared_server::{Contestant, Failure, Running};
pub use concurrent_loads::beside;
pub use plan::Plan;
pub use report::Report;
pub use workload::Workload;

use crate::load::Target;
use measurement::{Outcome, Sample};
use plan::Turn;
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::{Error, Result};

/// How far a comparison is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Measurements that are done, and all of them.
    pub done: usize,
    /// See `done`.
    pub of: usize,
    pub workload: &'a str,
    pub contestant: &'a str,
}

/// Why a comparison did not measure all it was to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// SIGINT or SIGTERM.
    Signal,
    /// The time that it may take was over.
    Time,
}

/// Measures all that the plan says, or as much of it as SIGINT, SIGTERM or its time leaves. `watch` is told before each
/// measurement.
///
/// # Errors
/// The plan makes no sense, or the system refuses what the load needs. A contestant that cannot be measured
/// is no error but is told in the report.
pub fn run(plan: &Plan, mut watch: impl FnMut(Progress<'_>)) -> Result<Report> {
    plan.check().map_err(Error::config)?;
    let begun = Instant::now();
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let (turns, mut outcomes, mut cut) = (plan.turns(), Vec::new(), None);
    for (done, turn) in turns.iter().enumerate() {
        let workload = plan.workloads[turn.workload];
        let contestant = &plan.contestants[turn.contestant];
        let given_up = outcomes.iter().any(|(earlier, outcome): &(Turn, Outcome)| {
            earlier.contestant == turn.contestant && outcome.is_final(earlier, turn)
        });
        if given_up {
            continue;
        }
        cut = cut.or(plan.limit.filter(|limit| begun.elapsed() > *limit).map(|_| Cut::Time));
        if cut.is_some() {
            break;
        }
        watch(Progress {
            done,
            of: turns.len(),
            workload: workload.name(),
            contestant: &contestant.name,
        });
        let outcome = measure(plan, workload, contestant, &mut signals)?;
        // Our own signals come here, too: a load that failed is not a wish of anybody's to end.
        let failed = matches!(outcome, Outcome::Broken(_));
        if was_told(&mut signals)? && !failed {
            cut = Some(Cut::Signal);
        }
        match outcome {
            // A measurement that was cut short is none.
            Outcome::Interrupted => cut = Some(Cut::Signal),
            outcome => outcomes.push((*turn, outcome)),
        }
    }
    Ok(Report::of(plan, outcomes, cut, begun.elapsed()))
}

fn was_told(signals: &mut SignalPipe) -> Result<bool> {
    Ok(!signals.read_pending().map_err(|e| Error::system("read a signal", e))?.is_empty())
}

/// One contestant under one load.
fn measure(
    plan: &Plan,
    workload: Workload,
    contestant: &Contestant,
    signals: &mut SignalPipe,
) -> Result<Outcome> {
    let server = match Running::start(contestant, signals) {
        Ok(server) => server,
        Err(Failure::Interrupted) => return Ok(Outcome::Interrupted),
        Err(Failure::Broken(why)) => return Ok(Outcome::Broken(why)),
    };
    if contestant.is_peer() && !workload.paths().into_iter().all(|path| server.answers(path)) {
        return Ok(Outcome::Unable);
    }
    let target = |path: &str| {
        let url = format!("{}{path}", server.url());
        Target::parse(&url).map_err(|why| Error::config(format!("{url}: {why}")))
    };
    let light = workload.light(target(workload.path())?, plan.warm_up, plan.duration);
    let heavy = match workload.heavy() {
        Some(path) => Some(workload.beside(target(path)?, plan.warm_up + plan.duration)),
        None => None,
    };
    let (report, told) = beside(&light, heavy, signals);
    drop(server);
    if told {
        return Ok(Outcome::Interrupted);
    }
    Ok(match report {
        Ok(report) => Outcome::Measured(Box::new(Sample::of(&report, workload))),
        // Nobody answers any more: it has died, which is its own failure and not that of the run.
        Err(why) if why.exit_status() == tokio_prefork::exit::UNAVAILABLE => {
            Outcome::Broken(why.to_string())
        }
        Err(why) => return Err(why),
    })
}

/// Between two looks at something that tells nobody.
const LOOK: Duration = Duration::from_millis(10);
/// Longer than any server that is well needs to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(10);
