//! A simulated cluster with virtual time.
//!
//! Workers follow a [`WorkerScript`]; the kernel forks and kills; the configuration can be read again; the
//! primary can be stopped for a while. The invariants are checked after every event.

mod new_binary;
mod perform;
mod queries;
mod worker_script;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::invariants::{InvariantChecker, StateBeforeEvent};
use crate::supervisor::Supervisor;
use crate::worker_identity::{WorkerId, WorkerTag};
use crate::{
    Action, ClusterCommand, Event, HealthSample, Requester, ShutdownReason, SupervisorConfig,
    WorkerKindConfig,
};
pub(crate) use new_binary::{NewBinary, SimulatedExec};
use new_binary::{NewBinaryFn, SimulatedUpgrade, UpgradeStage};
use worker_script::SimulatedWorker;
pub(crate) use worker_script::{
    SIGABRT, SIGKILL, SIGSEGV, TestRng, WorkerScript, WorkerStep, exit_by_signal, exit_code, ms,
};

/// Chooses the script of the worker with this tag.
type WorkerScriptFn = Box<dyn FnMut(WorkerTag, &mut TestRng) -> WorkerScript>;

/// Returns how long it takes to read the configuration, and the result, given the configuration in force.
type ConfigFileFn =
    Box<dyn FnMut(&SupervisorConfig, &mut TestRng) -> (Duration, Result<SupervisorConfig, String>)>;

/// An item of the simulator's schedule.
#[derive(Debug)]
enum ScheduledItem {
    ForkReturn(WorkerId),
    WorkerStep(WorkerId, WorkerStep),
    Command(ClusterCommand),
    ConfigRead,
    HealthSampled(Vec<HealthSample>),
    Report(Event),
    Upgrade(UpgradeStage),
}

pub(crate) struct Simulator {
    pub(crate) supervisor: Supervisor,
    /// The kinds besides `web` that the next new binary declares.
    pub(crate) kinds: Vec<WorkerKindConfig>,
    pub(crate) now: Instant,
    /// Every action so far, with its time since the start.
    pub(crate) log: Vec<(Duration, Action)>,
    pub(crate) exit: Option<ShutdownReason>,
    started_at: Instant,
    /// The primary is stopped until this time.
    primary_stopped_until: Instant,
    invariants: InvariantChecker,
    rng: TestRng,
    choose_script: WorkerScriptFn,
    pub(crate) config_file: ConfigFileFn,
    pub(crate) new_binary: NewBinaryFn,
    /// The current upgrade.
    upgrade: Option<SimulatedUpgrade>,
    /// How many upgrades have replaced the binary.
    pub(crate) upgrade_count: u32,
    /// One in this many messages about slot adoption meets a full channel; 0 disables this.
    pub(crate) full_channel_odds: u64,
    /// The application vetoes the replacement of one in this many workers; 0 disables this.
    pub(crate) restart_veto_odds: u64,
    /// How long the application puts off the replacements that it does not veto; `None` replaces at once.
    pub(crate) restart_delay: Option<Duration>,
    /// Whether the application has no timers and descriptors in the primary, so that nothing but workers keeps it.
    pub(crate) is_application_idle: bool,
    /// The result of the configuration that is being read.
    pending_config: Option<Result<SupervisorConfig, String>>,
    /// Scheduled items, ordered by time and then by insertion.
    schedule: BTreeMap<(Instant, usize), ScheduledItem>,
    scheduled_count: usize,
    forking: BTreeMap<WorkerId, WorkerScript>,
    workers: BTreeMap<WorkerId, SimulatedWorker>,
}

impl Simulator {
    pub(crate) fn new(
        config: SupervisorConfig,
        seed: u64,
        choose_script: impl FnMut(WorkerTag, &mut TestRng) -> WorkerScript + 'static,
    ) -> Simulator {
        let now = Instant::now();
        Simulator {
            supervisor: Supervisor::new(config, seed),
            kinds: Vec::new(),
            now,
            log: Vec::new(),
            exit: None,
            started_at: now,
            primary_stopped_until: now,
            invariants: InvariantChecker::default(),
            rng: TestRng(seed),
            choose_script: Box::new(choose_script),
            config_file: Box::new(|config, _| (ms(5), Ok(config.clone()))),
            new_binary: Box::new(|config, _| NewBinary::working_binary(config)),
            upgrade: None,
            upgrade_count: 0,
            full_channel_odds: 0,
            restart_veto_odds: 0,
            restart_delay: None,
            is_application_idle: false,
            pending_config: None,
            schedule: BTreeMap::new(),
            scheduled_count: 0,
            forking: BTreeMap::new(),
            workers: BTreeMap::new(),
        }
    }

    /// Reports an event now, checks the invariants, and performs the actions.
    pub(crate) fn report_event(&mut self, event: Event) {
        match &event {
            Event::Forked { worker, .. } => {
                if let Some(script) = self.forking.remove(worker) {
                    self.start_worker(*worker, script);
                }
            }
            Event::UpgradeFailed { .. } => self.upgrade = None,
            Event::ForkFailed { worker, .. } => drop(self.forking.remove(worker)),
            Event::Exited { worker, .. } => {
                self.forking.remove(worker);
                self.workers.remove(worker);
            }
            _ => {}
        }
        let before = StateBeforeEvent::capture_state(&self.supervisor);
        let actions = self.supervisor.handle(self.now, event.clone());
        self.invariants.check_invariants(&before, self.now, &self.supervisor, &event, &actions);
        for action in actions {
            self.perform_action(action);
        }
        if self.is_application_idle && self.supervisor.is_idle() && event != Event::ApplicationIdle
        {
            self.schedule_item(ms(0), ScheduledItem::Report(Event::ApplicationIdle));
        }
    }

    /// Advances to the next scheduled item or deadline. Returns false if nothing will ever happen.
    ///
    /// What has happened is reported before a deadline, even if the primary was stopped meanwhile.
    pub(crate) fn run_step(&mut self) -> bool {
        let scheduled = self.schedule.keys().next().map(|(at, _)| *at);
        let deadline = self.supervisor.next_deadline().map(|at| at.max(self.primary_stopped_until));
        match (scheduled, deadline) {
            (None, None) => return false,
            (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => {
                self.now = self.now.max(at).max(self.primary_stopped_until);
                let (_, item) = self.schedule.pop_first().expect("its key was read above");
                self.run_scheduled(item);
            }
            (_, deadline) => {
                self.now = self.now.max(deadline.expect("else the scheduled item is first"));
                self.report_event(Event::DeadlineReached);
            }
        }
        true
    }

    /// Runs until the schedule is empty, and panics after `max_steps`.
    pub(crate) fn run_until_idle_within(&mut self, max_steps: usize) {
        for _ in 0..max_steps {
            if !self.run_step() {
                return;
            }
        }
        panic!("not idle after {max_steps} steps: {:#?}", self.supervisor);
    }

    pub(crate) fn run_until_idle(&mut self) {
        self.run_until_idle_within(100_000);
    }

    /// Runs for this much simulated time.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        let next = |sim: &Simulator| {
            let scheduled = sim.schedule.keys().next().map(|(at, _)| *at);
            let next = scheduled.into_iter().chain(sim.supervisor.next_deadline()).min();
            next.map(|at| at.max(sim.primary_stopped_until))
        };
        while next(self).is_some_and(|at| at <= end) {
            self.run_step();
        }
        self.now = self.now.max(end);
    }

    /// Adds worker kinds besides `web`.
    pub(crate) fn with_kinds(mut self, kinds: Vec<WorkerKindConfig>) -> Simulator {
        self.supervisor = self.supervisor.with_kinds(kinds.clone());
        self.kinds = kinds;
        self
    }

    /// Starts the cluster and runs until the immediate forks have returned.
    pub(crate) fn start(mut self) -> Simulator {
        self.report_event(Event::Started);
        self.run_for(ms(0));
        self
    }

    /// Stops the primary for this long. It learns afterwards, all at once, what happened meanwhile.
    pub(crate) fn stop_primary_for(&mut self, time: Duration) {
        self.primary_stopped_until = self.now + time;
    }

    /// Stops the primary and its workers for this long.
    pub(crate) fn suspend_all_for(&mut self, time: Duration) {
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in workers {
            self.perform_worker_step(worker, WorkerStep::Freeze);
            // It is scheduled again a moment after the primary.
            self.schedule_item(time + ms(30), ScheduledItem::WorkerStep(worker, WorkerStep::Thaw));
        }
        self.stop_primary_for(time);
    }

    /// Sends a command that expects no reply.
    pub(crate) fn send_command(&mut self, command: ClusterCommand) {
        let by = Requester::without_reply("SIGTERM");
        self.report_event(Event::CommandReceived { command, by });
    }

    pub(crate) fn send_command_after(&mut self, time: Duration, command: ClusterCommand) {
        self.schedule_item(time, ScheduledItem::Command(command));
    }

    /// Sends a command that expects a reply, unless the primary has exited.
    pub(crate) fn send_command_with_reply(&mut self, reply_id: u64, command: ClusterCommand) {
        if self.exit.is_none() {
            let by = Requester { name: "control".to_string(), reply_id: Some(reply_id) };
            self.report_event(Event::CommandReceived { command, by });
        }
    }

    /// Performs a step of the worker now.
    pub(crate) fn perform_step_now(&mut self, worker: u64, step: WorkerStep) {
        self.run_scheduled(ScheduledItem::WorkerStep(WorkerId(worker), step));
    }

    /// Ends the worker now with this status.
    pub(crate) fn exit_worker_now(&mut self, worker: u64, status: ExitStatus) {
        self.perform_step_now(worker, WorkerStep::Exit(status));
    }

    fn schedule_item(&mut self, after: Duration, item: ScheduledItem) {
        self.scheduled_count += 1;
        self.schedule.insert((self.now + after, self.scheduled_count), item);
    }
}
