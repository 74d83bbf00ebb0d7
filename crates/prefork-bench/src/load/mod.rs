//! A load generator that sees processes: `prefork bench`.
//!
//! A [`Plan`] says what is done to the target. Each round of it runs in threads of its own, [`load_thread::Lane`]s, each
//! with its share of the connections on one epoll and nothing to wait for but the kernel; so it costs little beside
//! the server on the same machine. What they count ([`counters`]) is put together when they have ended, and
//! becomes a [`Report`], which is printed as a table, as JSON, or as a page.
//!
//! Two loops. *Closed*: a connection sends its next request when it has the answer to the one before, so that a
//! slow server is asked less. *Open* (`--rate`): requests are due by a schedule ([`request_schedule`]) that nothing can change, and
//! latency counts from the moment one was due, even if no connection was free to send it then. A server that
//! stands still for a second shows up as up to a second in the latency of all that was due meanwhile, where a
//! closed loop would show one slow request for each connection.
//!
//! A round is warm-up, then the time measured, then up to `--timeout` for what is on the way. What counts is what was
//! due in the time measured, so every request is in the figures once: answered, failed by kind, or (after a
//! second Ctrl-C) abandoned.
//!
//! Nothing is read from the target but its responses and, if it runs on this machine, `/proc`.

mod connection;
pub(crate) mod counters;
mod http_response;
mod load_thread;
mod plan;
pub(crate) mod process_tree;
pub(crate) mod report;
mod request_schedule;
mod round_state;
pub(crate) mod target_url;

use std::io;
use std::time::Duration;

pub use crate::chaos::Faults;
pub use plan::Plan;
pub use report::figures::Latency;
pub use report::{Report, Spread};
pub use target_url::Target;

use crate::chaos::{Chaos, Done, Victim};
use counters::Tally;
use load_thread::Lane;
use prefork_os::poll::{self, WatchedFd};
use prefork_os::process::raise_open_file_limit;
use prefork_os::signal::{Signal, SignalPipe};
use process_tree::{Moment, Tree, Usage};
use round_state::Shared;
use target_url::Address;
use tokio_prefork::{Error, Result};

/// How often somebody who looks on is told.
const LOOK: Duration = Duration::from_millis(250);
/// Descriptors that are not connections.
const OTHER_FILES: u64 = 64;

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The round, from 1.
    pub round: usize,
    /// Time since the round began, and how long it is to last, warm-up included.
    pub elapsed: Duration,
    /// See `elapsed`.
    pub whole: Duration,
    /// Responses per second since the last word.
    pub per_second: f64,
    /// Failures in this round.
    pub failed: u64,
}

/// What one round found.
#[derive(Debug)]
pub(crate) struct Round {
    tally: Tally,
    measured: Duration,
    usage: Option<Usage>,
    /// What was done to the target.
    done: Done,
}

/// Runs the plan to its end, or to SIGINT or SIGTERM, which end it early: the report then has what was measured.
/// `watch` is told four times a second how far it is.
///
/// # Errors
/// The plan makes no sense, nobody answers at the target, or the system refuses threads or descriptors.
pub fn run(plan: &Plan, mut watch: impl FnMut(Progress)) -> Result<Report> {
    plan.check().map_err(Error::config)?;
    let files =
        raise_open_file_limit().map_err(|e| Error::system("raise the limit on open files", e))?;
    if plan.connections as u64 + OTHER_FILES > files {
        return Err(Error::config(format!(
            "--connections {}: only {files} files may be open here (ulimit -n)",
            plan.connections
        )));
    }
    let address = plan.target.reach()?;
    let tree = if address.is_here() { Tree::of(&address.listener) } else { None };
    let victim = plan.chaos.map(|_| Victim::find(tree.as_ref())).transpose()?;
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let mut rounds = Vec::new();
    let own = Cost::so_far();
    let mut ended_early = false;
    for number in 1..=plan.rounds {
        let mut stage =
            Stage { plan, address: &address, tree: tree.as_ref(), victim: victim.as_ref(), number };
        let (round, stopped) = stage.run(&mut signals, &mut watch)?;
        rounds.push(round);
        ended_early = stopped;
        if stopped {
            break;
        }
    }
    let own = Cost::so_far().since(own);
    Ok(Report::of(plan, &address.listener, rounds, own, ended_early))
}

/// User and system time of this process, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    user: f64,
    system: f64,
}

impl Cost {
    fn so_far() -> Cost {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        // Asked for ourselves it does not fail.
        getrusage(UsageWho::RUSAGE_SELF).map_or(Cost { user: 0.0, system: 0.0 }, |usage| Cost {
            user: usage.user_time().num_microseconds() as f64 / 1e6,
            system: usage.system_time().num_microseconds() as f64 / 1e6,
        })
    }

    fn since(self, before: Cost) -> Cost {
        Cost { user: self.user - before.user, system: self.system - before.system }
    }
}

/// One round, about to run.
struct Stage<'a> {
    plan: &'a Plan,
    address: &'a Address,
    tree: Option<&'a Tree>,
    victim: Option<&'a Victim>,
    number: usize,
}

impl Stage<'_> {
    /// The round, and whether it was ended early.
    fn run(
        &mut self,
        signals: &mut SignalPipe,
        watch: &mut impl FnMut(Progress),
    ) -> Result<(Round, bool)> {
        let shared = Shared::new(self.plan);
        let failed = |e: io::Error| Error::system("run a thread of the load", e);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for lane in 0..self.plan.lanes() {
                let lane = Lane::new(self.plan, self.address, &shared, lane);
                let lane = lane.map_err(|e| Error::system("make an epoll for the load", e))?;
                let started = std::thread::Builder::new()
                    .name("bench".to_string())
                    .spawn_scoped(scope, move || lane.run());
                threads.push(started.map_err(|e| {
                    shared.end_now();
                    shared.end_now();
                    failed(e)
                })?);
            }
            let is_over = || threads.iter().all(|thread| thread.is_finished());
            let watched = self.watch(&shared, is_over, signals, watch);
            let (usage, done, stopped) = watched.inspect_err(|_| {
                // Nobody looks on any more, so the threads are not to go on for the rest of the round.
                shared.end_now();
                shared.end_now();
            })?;
            let mut tally = Tally::new();
            for thread in threads {
                let counted =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                tally.merge(&counted.map_err(failed)?);
            }
            Ok((Round { tally, measured: shared.measured(), usage, done }, stopped))
        })
    }

    /// Looks on until it is over.
    fn watch(
        &self,
        shared: &Shared,
        is_over: impl Fn() -> bool,
        signals: &mut SignalPipe,
        watch: &mut impl FnMut(Progress),
    ) -> Result<(Option<Usage>, Done, bool)> {
        let (mut before, mut after): (Option<Moment>, Option<Moment>) = (None, None);
        let (mut told, mut told_at, mut stopped) = (0, Duration::ZERO, false);
        let faults = self.plan.chaos.unwrap_or_default();
        let mut chaos = self.victim.map(|victim| Chaos::new(faults, victim, shared.begin()));
        let mut done = Done::default();
        loop {
            let now = shared.now();
            if before.is_none() && now >= shared.begin() {
                before = self.tree.map(Tree::look);
            }
            if after.is_none() && now >= shared.end() {
                after = self.tree.map(Tree::look);
            }
            if now >= shared.end() {
                done = chaos.take().map_or(done, |mut chaos| chaos.finish(now));
            } else if let Some(chaos) = &mut chaos {
                chaos.act(now).map_err(|e| Error::system("do a fault to the target", e))?;
            }
            let elapsed = Duration::from_nanos(shared.now());
            if elapsed >= told_at + LOOK {
                let [answered, failed] = shared.told();
                let since = (elapsed - told_at).as_secs_f64();
                let per_second = (answered - told) as f64 / since;
                let whole = self.plan.warm_up + self.plan.duration;
                watch(Progress { round: self.number, elapsed, whole, per_second, failed });
                (told, told_at) = (answered, elapsed);
            }
            if is_over() {
                break;
            }
            let fault = chaos.as_ref().and_then(Chaos::next);
            let next = [shared.begin(), shared.end()].into_iter().chain(fault);
            let next = next.filter(|at| *at > now).min();
            let wait = next.map_or(LOOK, |at| Duration::from_nanos(at - now).min(LOOK));
            // Once the end has come, it is over any moment.
            let wait = if now >= shared.end() { Duration::from_millis(10) } else { wait };
            let watched: Vec<WatchedFd<'_>> =
                signals.fd().into_iter().map(WatchedFd::readable).collect();
            poll::poll_fds(&watched, Some(wait))
                .map_err(|e| Error::system("wait for the load", e))?;
            for _ in signals.read_pending().map_err(|e| Error::system("read a signal", e))? {
                shared.end_now();
                stopped = true;
            }
        }
        let usage = match (self.tree, before, after) {
            (Some(tree), Some(before), Some(after)) => Some(tree.between(&before, &after)),
            _ => None,
        };
        done = chaos.take().map_or(done, |mut chaos| chaos.finish(shared.now()));
        Ok((usage, done, stopped))
    }
}
