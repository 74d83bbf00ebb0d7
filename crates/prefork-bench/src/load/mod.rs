//! The load generator of `prefork bench`.
//!
//! Each round of a [`LoadPlan`] runs in several `LoadThread`s, each with its share of the
//! connections on one epoll instance. Their `counters` are merged into a [`LoadReport`].
//!
//! *Closed loop* (default): a connection sends its next request when it has the response to the previous one,
//! so a slow server gets fewer requests. *Open loop* (`--rate`): requests are due by a fixed
//! `request_schedule`, and latency counts from the due time even if no connection was free. A server that
//! stalls for a second therefore shows up to a second of latency for every request due meanwhile; a closed
//! loop shows one slow request per connection.
//!
//! A round is warm-up, measurement, then up to `--timeout` for requests in flight. Every request due in the
//! measurement counts once: answered, failed by kind, or (after a second Ctrl-C) abandoned.
//!
//! With TLS, each thread has a `TlsClient` with its own sessions, and each connection a `TlsStream` between the
//! socket and the parser.
//!
//! The generator reads nothing from the server but its responses and, for a server on this machine, `/proc`.

pub(crate) mod connection;
mod connection_opening;
pub(crate) mod counters;
#[cfg(test)]
mod counting_server;
#[cfg(test)]
mod exact_counts_tests;
mod http2;
pub(crate) mod http_response;
mod latency_timeline;
mod load_thread;
mod part_counters;
pub(crate) mod plan;
pub(crate) mod process_tree;
pub(crate) mod report;
pub(crate) mod request_failure;
pub(crate) mod request_mix;
mod request_schedule;
mod round_state;
pub(crate) mod target_url;
pub(crate) mod tls;
pub(crate) mod transport;
mod wake_time;

use std::io;
use std::time::Duration;

pub use crate::chaos::FaultPlan;
pub use plan::LoadPlan;
pub use report::LatencySummary;
pub(crate) use report::describe_due;
pub use report::{
    DueRequests, FaultEvent, FaultImpact, LoadReport, MedianRange, RampStep, RequestKindReport,
};
pub use request_mix::WeightedRequest;
pub use target_url::TargetUrl;
pub use tls::{TlsOptions, TlsVersions, unverified_stream};

use crate::chaos::{ChaosTarget, FaultInjector, FaultKind, InjectedFaults};
use counters::LoadCounters;
use load_thread::LoadThread;
use prefork_os::poll::{self, WatchedFd};
use prefork_os::process::raise_open_file_limit;
use prefork_os::signal::{Signal, SignalPipe};
use process_tree::{ProcessTree, ProcessTreeSample, ProcessTreeUsage};
use round_state::RoundState;
use target_url::ServerAddress;
use tls::TlsClient;
use tokio_prefork::{Error, Result};

/// How often `on_progress` is called.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// File descriptors kept free for other uses than connections.
const RESERVED_FILE_DESCRIPTORS: u64 = 64;

/// Progress of a run.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// Number of the round, from 1.
    pub round: usize,
    /// Time since the round began, warm-up included.
    pub elapsed: Duration,
    /// Planned length of the round, warm-up included.
    pub total: Duration,
    /// Responses per second since the previous call.
    pub requests_per_second: f64,
    /// Failed requests of this round so far.
    pub failed: u64,
}

/// Result of one round.
#[derive(Debug)]
pub(crate) struct RoundResult {
    counters: LoadCounters,
    measured: Duration,
    usage: Option<ProcessTreeUsage>,
    /// Faults injected in the round.
    injected: InjectedFaults,
}

/// Runs the plan to its end; SIGINT or SIGTERM ends it early, and the report then holds what was measured.
///
/// Calls `on_progress` four times a second.
///
/// # Errors
/// The plan is invalid, the target does not answer, or the system refuses threads or file descriptors.
pub fn run_load(plan: &LoadPlan, mut on_progress: impl FnMut(LoadProgress)) -> Result<LoadReport> {
    plan.validate().map_err(Error::config)?;
    let files =
        raise_open_file_limit().map_err(|e| Error::system("raise the limit on open files", e))?;
    if plan.connections as u64 + RESERVED_FILE_DESCRIPTORS > files {
        return Err(Error::config(format!(
            "--connections {}: the limit on open files is {files}; lower the count or raise `ulimit -n`",
            plan.connections
        )));
    }
    let tls = match plan.target.is_https() {
        true => {
            Some(TlsClient::from_options(&plan.tls, plan.target.server_name(), plan.is_http2())?)
        }
        false => None,
    };
    let address = plan.target.find_reachable_address()?;
    let tree =
        if address.is_local() { ProcessTree::find_by_listener(&address.listen_addr) } else { None };
    let chaos_target = plan.faults.map(|_| ChaosTarget::open_primary(tree.as_ref())).transpose()?;
    if let Some(target) = chaos_target
        .as_ref()
        .filter(|_| plan.faults.is_some_and(|faults| faults.has_kind(FaultKind::Reload)))
    {
        target.require_reload()?;
    }
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    let mut rounds = Vec::new();
    let own = CpuTime::of_this_process();
    let mut ended_early = false;
    for number in 1..=plan.rounds {
        let mut runner = RoundRunner {
            plan,
            address: &address,
            tls: tls.as_ref(),
            tree: tree.as_ref(),
            chaos_target: chaos_target.as_ref(),
            number,
        };
        let (round, stopped) = runner.run_round(&mut signals, &mut on_progress)?;
        rounds.push(round);
        ended_early = stopped;
        if stopped {
            break;
        }
    }
    let own = CpuTime::of_this_process().since(own);
    Ok(LoadReport::from_rounds(plan, &address.listen_addr, rounds, own, ended_early))
}

/// User and system CPU time of this process, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    user: f64,
    system: f64,
}

impl CpuTime {
    pub(crate) fn of_this_process() -> CpuTime {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        // `getrusage` does not fail for RUSAGE_SELF.
        getrusage(UsageWho::RUSAGE_SELF).map_or(CpuTime { user: 0.0, system: 0.0 }, |usage| {
            CpuTime {
                user: usage.user_time().num_microseconds() as f64 / 1e6,
                system: usage.system_time().num_microseconds() as f64 / 1e6,
            }
        })
    }

    pub(crate) fn since(self, before: CpuTime) -> CpuTime {
        CpuTime { user: self.user - before.user, system: self.system - before.system }
    }

    /// Returns user and system time together, in seconds.
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Runs one round of a plan.
struct RoundRunner<'a> {
    plan: &'a LoadPlan,
    address: &'a ServerAddress,
    tls: Option<&'a TlsClient>,
    tree: Option<&'a ProcessTree>,
    chaos_target: Option<&'a ChaosTarget>,
    number: usize,
}

impl RoundRunner<'_> {
    /// Returns the result of the round, and whether a signal ended it early.
    fn run_round(
        &mut self,
        signals: &mut SignalPipe,
        on_progress: &mut impl FnMut(LoadProgress),
    ) -> Result<(RoundResult, bool)> {
        let state = RoundState::new(self.plan);
        let failed = |e: io::Error| Error::system("run a load thread", e);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for thread in 0..self.plan.thread_count() {
                let thread = LoadThread::new(self.plan, self.address, self.tls, &state, thread);
                let thread = thread.map_err(|e| Error::system("create a load thread", e))?;
                let started = std::thread::Builder::new()
                    .name("bench".to_string())
                    .spawn_scoped(scope, move || thread.run_until_complete());
                threads.push(started.map_err(|e| {
                    state.stop_round();
                    state.stop_round();
                    failed(e)
                })?);
            }
            let is_over = || threads.iter().all(|thread| thread.is_finished());
            let outcome = self.watch_round(&state, is_over, signals, on_progress);
            let (usage, injected, stopped) = outcome.inspect_err(|_| {
                // Ends the threads at once: otherwise the scope would wait for the rest of the round.
                state.stop_round();
                state.stop_round();
            })?;
            let mut counters = LoadCounters::new();
            for thread in threads {
                let counted =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                counters.merge(&counted.map_err(failed)?);
            }
            Ok((
                RoundResult { counters, measured: state.measured_duration(), usage, injected },
                stopped,
            ))
        })
    }

    /// Samples the server, injects faults and reports progress until all threads have ended.
    fn watch_round(
        &self,
        state: &RoundState,
        is_over: impl Fn() -> bool,
        signals: &mut SignalPipe,
        on_progress: &mut impl FnMut(LoadProgress),
    ) -> Result<(Option<ProcessTreeUsage>, InjectedFaults, bool)> {
        let (mut before, mut after): (Option<ProcessTreeSample>, Option<ProcessTreeSample>) =
            (None, None);
        let (mut reported, mut reported_at, mut stopped) = (0, Duration::ZERO, false);
        let faults = self.plan.faults.unwrap_or_default();
        let mut injector = self
            .chaos_target
            .map(|chaos_target| FaultInjector::new(faults, chaos_target, state.measure_start()));
        let mut injected = InjectedFaults::default();
        loop {
            let now = state.elapsed_nanos();
            if before.is_none() && now >= state.measure_start() {
                before = self.tree.map(ProcessTree::read_sample);
            }
            if after.is_none() && now >= state.measure_end() {
                after = self.tree.map(ProcessTree::read_sample);
            }
            if now >= state.measure_end() {
                injected =
                    injector.take().map_or(injected, |mut injector| injector.finish_round(now));
            } else if let Some(injector) = &mut injector {
                injector
                    .inject_due(now)
                    .map_err(|e| Error::system("inject a fault into the target", e))?;
            }
            let elapsed = Duration::from_nanos(state.elapsed_nanos());
            if elapsed >= reported_at + PROGRESS_INTERVAL {
                let [answered, failed] = state.progress_counts();
                let since = (elapsed - reported_at).as_secs_f64();
                let requests_per_second = (answered - reported) as f64 / since;
                let total = self.plan.warm_up + self.plan.duration;
                on_progress(LoadProgress {
                    round: self.number,
                    elapsed,
                    total,
                    requests_per_second,
                    failed,
                });
                (reported, reported_at) = (answered, elapsed);
            }
            if is_over() {
                break;
            }
            let fault = injector.as_ref().and_then(FaultInjector::next_due);
            let next = [state.measure_start(), state.measure_end()].into_iter().chain(fault);
            let next = next.filter(|at| *at > now).min();
            let wait = next.map_or(PROGRESS_INTERVAL, |at| {
                Duration::from_nanos(at - now).min(PROGRESS_INTERVAL)
            });
            // After the measurement the threads may end at any moment.
            let wait = if now >= state.measure_end() { Duration::from_millis(10) } else { wait };
            let outcome: Vec<WatchedFd<'_>> =
                signals.fd().into_iter().map(WatchedFd::readable).collect();
            poll::poll_fds(&outcome, Some(wait))
                .map_err(|e| Error::system("poll for signals during the load", e))?;
            for _ in signals.read_pending().map_err(|e| Error::system("read a signal", e))? {
                state.stop_round();
                stopped = true;
            }
        }
        let usage = match (self.tree, before, after) {
            (Some(tree), Some(before), Some(after)) => Some(tree.usage_between(&before, &after)),
            _ => None,
        };
        injected = injector
            .take()
            .map_or(injected, |mut injector| injector.finish_round(state.elapsed_nanos()));
        Ok((usage, injected, stopped))
    }
}
