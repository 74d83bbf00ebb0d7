//! The behaviour of simulated workers, and the random numbers that decide it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

pub(crate) const SIGABRT: i32 = 6;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGSEGV: i32 = 11;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn exit_code(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

pub(crate) fn exit_by_signal(number: i32) -> ExitStatus {
    ExitStatus::from_raw(number)
}

/// A random number generator (splitmix64) of the tests' own, so that a seed always gives the same run.
pub(crate) struct TestRng(pub(crate) u64);

impl TestRng {
    /// Returns a number in `0..limit`.
    pub(crate) fn random_below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn random_millis(&mut self, limit: u64) -> Duration {
        ms(self.random_below(limit))
    }
}

/// One step of a worker's script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerStep {
    ReportOnline,
    ReportReady,
    ReportBootFailed,
    StartRiskyJob,
    Retire,
    Disconnect,
    CloseChannel,
    BreakProtocol,
    /// The event loop stalls.
    Freeze,
    /// The event loop makes progress again.
    Thaw,
    /// A signal stops the process, which the kernel reports.
    StopBySignal,
    /// A signal continues the process, which the kernel reports.
    ContinueBySignal,
    /// The connection limit is reached.
    BecomeFull,
    BecomeEmpty,
    FinishDraining,
    /// Exits with this status, even if the worker is frozen.
    Exit(ExitStatus),
}

/// The scripted behaviour of a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerScript {
    pub(crate) fork_time: Duration,
    pub(crate) is_fork_failing: bool,
    /// Steps by their time since the fork returned.
    pub(crate) steps: Vec<(Duration, WorkerStep)>,
    /// How long the worker drains; `None` if it never finishes.
    pub(crate) drain_time: Option<Duration>,
    /// How long the worker takes to die of SIGABRT; `None` if it survives.
    pub(crate) abort_time: Option<Duration>,
    pub(crate) requests_per_second: u64,
    pub(crate) initial_memory: u64,
    pub(crate) memory_growth_per_second: u64,
}

impl WorkerScript {
    /// Creates a worker that never reports anything.
    pub(crate) fn never_reporting() -> WorkerScript {
        WorkerScript {
            fork_time: ms(0),
            is_fork_failing: false,
            steps: Vec::new(),
            drain_time: Some(ms(20)),
            abort_time: Some(ms(200)),
            requests_per_second: 100,
            initial_memory: 1_000,
            memory_growth_per_second: 0,
        }
    }

    /// Creates a worker that is ready after 10 ms and serves for ever.
    pub(crate) fn ready_after_10_ms() -> WorkerScript {
        WorkerScript::never_reporting().with_step_at(10, WorkerStep::ReportReady)
    }

    /// Creates a worker whose fork fails.
    pub(crate) fn failing_fork() -> WorkerScript {
        WorkerScript { is_fork_failing: true, ..WorkerScript::never_reporting() }
    }

    /// Adds a step at `at` milliseconds after the fork.
    pub(crate) fn with_step_at(mut self, at: u64, step: WorkerStep) -> WorkerScript {
        self.steps.push((ms(at), step));
        self
    }

    /// Sets the duration of the fork in milliseconds.
    pub(crate) fn with_fork_time(self, fork: u64) -> WorkerScript {
        WorkerScript { fork_time: ms(fork), ..self }
    }

    /// Makes the worker never finish draining.
    pub(crate) fn never_draining(self) -> WorkerScript {
        WorkerScript { drain_time: None, ..self }
    }

    /// Makes the worker survive SIGABRT, as a stopped process does.
    pub(crate) fn surviving_abort(self) -> WorkerScript {
        WorkerScript { abort_time: None, ..self }
    }

    /// Sets the initial memory use and its growth per second, in bytes.
    pub(crate) fn with_memory(self, initial: u64, growth: u64) -> WorkerScript {
        WorkerScript { initial_memory: initial, memory_growth_per_second: growth, ..self }
    }

    /// Creates a random script; `ready` in ten of such workers become ready.
    pub(crate) fn random_script(rng: &mut TestRng, ready: u64) -> WorkerScript {
        if rng.random_below(12) == 0 {
            return WorkerScript::failing_fork().with_fork_time(rng.random_below(30));
        }
        let mut script = WorkerScript::never_reporting().with_fork_time(rng.random_below(3) * 10);
        let boot = rng.random_below(800);
        if rng.random_below(10) < ready {
            script = script.with_step_at(boot, WorkerStep::ReportReady);
        }
        let statuses =
            [0, 1].map(exit_code).into_iter().chain([SIGSEGV, SIGKILL, 15].map(exit_by_signal));
        let statuses: Vec<ExitStatus> = statuses.collect();
        let exit = WorkerStep::Exit(statuses[rng.random_below(5) as usize]);
        let steps = [
            exit,
            exit,
            WorkerStep::Retire,
            WorkerStep::CloseChannel,
            WorkerStep::BreakProtocol,
            WorkerStep::ReportBootFailed,
            WorkerStep::ReportOnline,
            WorkerStep::StartRiskyJob,
            WorkerStep::Freeze,
            WorkerStep::Thaw,
            WorkerStep::StopBySignal,
            WorkerStep::ContinueBySignal,
        ];
        for _ in 0..rng.random_below(4) {
            let at = if rng.random_below(3) == 0 {
                rng.random_below(boot + 1)
            } else {
                rng.random_below(8000)
            };
            script = script.with_step_at(at, steps[rng.random_below(steps.len() as u64) as usize]);
        }
        script = script.with_memory(rng.random_below(2_000), rng.random_below(200));
        if rng.random_below(3) == 0 {
            script = script.surviving_abort();
        }
        if rng.random_below(4) == 0 { script.never_draining() } else { script }
    }
}

/// A living worker of the simulated cluster.
#[derive(Debug)]
pub(super) struct SimulatedWorker {
    pub(super) script: WorkerScript,
    started_at: Instant,
    frozen_since: Option<Instant>,
    /// Total time that the worker was frozen before.
    frozen_time: Duration,
    is_full: bool,
}

impl SimulatedWorker {
    pub(super) fn new(script: WorkerScript, started_at: Instant) -> SimulatedWorker {
        let (frozen_since, frozen_time, is_full) = (None, ms(0), false);
        SimulatedWorker { script, started_at, frozen_since, frozen_time, is_full }
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(super) fn set_full_of_connections(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen_since.is_some()
    }

    pub(super) fn can_perform_step(&self, step: WorkerStep) -> bool {
        let is_from_outside =
            matches!(step, WorkerStep::Thaw | WorkerStep::ContinueBySignal | WorkerStep::Exit(_));
        !self.is_frozen() || is_from_outside
    }

    pub(super) fn set_frozen(&mut self, is_frozen: bool, now: Instant) {
        let since = self.frozen_since.take();
        self.frozen_time += since.map_or(ms(0), |since| now - since);
        self.frozen_since = is_frozen.then_some(now);
    }

    /// Returns the total time in milliseconds during which the event loop made progress.
    fn active_millis(&self, now: Instant) -> u64 {
        let active = self.frozen_since.unwrap_or(now) - self.started_at - self.frozen_time;
        active.as_millis() as u64
    }

    /// Returns the heartbeat counter, which changes every 100 ms while the event loop makes progress.
    pub(super) fn heartbeat(&self, now: Instant) -> u64 {
        self.active_millis(now) / 100
    }

    pub(super) fn requests(&self, now: Instant) -> u64 {
        self.active_millis(now) * self.script.requests_per_second / 1000
    }

    pub(super) fn memory(&self, now: Instant) -> u64 {
        let growth = self.active_millis(now) * self.script.memory_growth_per_second / 1000;
        self.script.initial_memory + growth
    }
}
