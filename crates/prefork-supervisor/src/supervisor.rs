//! The state machine: one event in, a list of actions out.
//!
//! Desired state is kept apart from actual state. Desired: a phase, and one worker for each slot. Actual: the workers,
//! each in a state of its own (see `worker_table`). A slot is *held* by the worker that serves it or is about to. A
//! worker that drains gives up its slot at once, so that its replacement can be forked while it finishes its open
//! connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::MAX_WORKERS;
use crate::action::{Action, DrainReason, ExitCause, LogEvent, ShutdownReason};
use crate::command::{ClusterCommand, Requester, WorkerEnvironment};
use crate::config::{SupervisorConfig, WorkerKindConfig};
use crate::crash_backoff::{CrashBackoff, ForkAllowance};
use crate::empty_cluster::ListenState;
use crate::event::Event;
use crate::health::HealthMonitor;
use crate::orphan_sockets::OrphanSockets;
use crate::reload::Reload;
use crate::saved_state::{SavedKind, SavedState, SavedWorker};
use crate::scaling::ScaleQueue;
use crate::slot_table::{RestartPolicy, SlotEntry, SlotTable};
use crate::stop::StopRequest;
use crate::upgrade::Upgrade;
use crate::worker_identity::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
use crate::worker_kinds::{WorkerKind, WorkerKinds};
use crate::worker_table::{WorkerRecord, WorkerState, WorkerTable};

/// How long a worker that closed its channel may take to exit. It has nothing left to do.
pub(crate) const CLOSED_CHANNEL_EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after the graceful timeout before a draining worker is killed.
///
/// At the graceful timeout the worker itself closes its open connections and exits.
pub(crate) const DRAIN_KILL_MARGIN: Duration = Duration::from_secs(1);

/// The phase of the cluster, from boot to exit. Phases only move forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterPhase {
    /// Not all workers have been ready yet.
    Booting,
    /// All workers have been ready once.
    Running,
    /// Workers drain.
    Stopping,
    /// Workers are killed.
    Killing(ShutdownReason),
    /// `Action::Exit` was returned.
    Done,
}

/// Decides what the primary does. See the [crate documentation](crate) for an example.
#[derive(Debug)]
pub struct Supervisor {
    /// The configuration in force. `workers` changes with each scale command.
    pub(crate) config: SupervisorConfig,
    /// The number of `web` workers that the configuration in force names.
    pub(crate) configured_workers: u32,
    pub(crate) phase: ClusterPhase,
    pub(crate) slots: SlotTable,
    pub(crate) kinds: WorkerKinds,
    pub(crate) workers: WorkerTable,
    pub(crate) backoff: CrashBackoff,
    pub(crate) reload: Reload,
    pub(crate) upgrade: Upgrade,
    pub(crate) stop: StopRequest,
    pub(crate) scale_queue: ScaleQueue,
    pub(crate) orphan_sockets: OrphanSockets,
    pub(crate) health: HealthMonitor,
    pub(crate) listen_state: ListenState,
    /// Whether the application is asked before a worker is replaced.
    pub(crate) confirms_restarts: bool,
    /// Why the cluster gave up, if it did.
    pub(crate) boot_failure: Option<String>,
    /// Actions requested so far by the event that is being handled.
    pub(crate) actions: Vec<Action>,
}

impl Supervisor {
    /// Creates the supervisor of a cluster without workers. `seed` jitters back-off delays and recycling limits.
    pub fn new(config: SupervisorConfig, seed: u64) -> Supervisor {
        let generation = Generation(1);
        Supervisor {
            phase: ClusterPhase::Booting,
            slots: SlotTable::new_web_slots(config.workers, generation),
            kinds: WorkerKinds::default(),
            workers: WorkerTable::new(seed),
            backoff: CrashBackoff::new(&config, seed),
            reload: Reload::new(generation),
            upgrade: Upgrade::default(),
            stop: StopRequest::default(),
            scale_queue: ScaleQueue::default(),
            orphan_sockets: OrphanSockets::default(),
            health: HealthMonitor::default(),
            listen_state: ListenState::default(),
            confirms_restarts: false,
            boot_failure: None,
            actions: Vec::new(),
            configured_workers: config.workers,
            config,
        }
    }

    /// Adds worker kinds besides `web`. Call it before the first event.
    pub fn with_kinds(mut self, kinds: Vec<WorkerKindConfig>) -> Supervisor {
        self.assign_kinds(kinds, &[]);
        self
    }

    /// Sets additional environment variables of slots, which may be added later. The workers that the program adds
    /// (`ScaleChange::AddWorker`) have their own instead. Call it before the first event.
    pub fn with_slot_environments(
        mut self,
        declared: BTreeMap<Slot, WorkerEnvironment>,
    ) -> Supervisor {
        self.slots.declare_environments(declared);
        self
    }

    /// Handles one event, and returns the actions to perform in this order.
    #[must_use]
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Started => self.on_started(),
            Event::Forked { worker, pid } => self.on_forked(now, worker, pid),
            Event::ForkFailed { worker, reason } => self.on_fork_failed(now, worker, reason),
            Event::Online { worker } => self.on_online(worker),
            Event::ProgramStarted { worker, pid } => self.on_program_started(worker, pid),
            Event::Ready { worker } => self.on_ready(now, worker),
            Event::RiskyJobStarted { worker } => self.on_risky_job_started(worker),
            Event::WorkersNeeded { kind, workers } => self.on_workers_needed(now, kind, workers),
            Event::WorkerIdle { worker } => self.on_worker_idle(now, worker),
            Event::WorkerUsedUp { worker, reason } => self.on_worker_used_up(now, worker, reason),
            Event::BootFailed { worker, reason } => self.on_boot_failed(worker, reason, true),
            Event::BootAttemptFailed { worker, reason } => {
                self.on_boot_failed(worker, reason, false);
            }
            Event::Retiring { worker } => self.on_retiring(now, worker),
            Event::TerminationSent { worker } => self.on_termination_sent(now, worker),
            Event::Disconnecting { worker } => self.on_disconnecting(now, worker),
            Event::ChannelClosed { worker } => self.on_channel_closed(now, worker),
            Event::ProtocolError { worker, reason } => self.on_protocol_error(worker, reason),
            Event::Stopped { worker } => self.set_stopped_by_signal(worker, true),
            Event::Continued { worker } => self.set_stopped_by_signal(worker, false),
            Event::Exited { worker, status, requests_served } => {
                self.on_exited(now, worker, status, requests_served);
            }
            Event::CommandReceived { command, by } => self.on_command(now, command, by),
            Event::ConfigRead { result } => self.on_config_read(result),
            Event::SocketsOpened { slots, result } => self.on_sockets_opened(now, slots, result),
            Event::AdoptSlotFailed { worker, slot } => {
                self.orphan_sockets.adoption_failed(now, worker, slot);
            }
            Event::ReleaseSlotFailed { worker, slot } => {
                self.orphan_sockets.release_failed(now, worker, slot);
            }
            Event::RestartDecided { worker, decision } => {
                self.on_restart_decided(now, worker, decision);
            }
            Event::EmptyConfirmed => self.on_empty_confirmed(),
            Event::ApplicationIdle => self.on_application_idle(now),
            Event::UpgradeCheckPassed => self.on_upgrade_check_passed(),
            Event::UpgradeFailed { reason } => self.on_upgrade_failed(&reason),
            Event::HealthSampled { samples } => self.on_health_sampled(now, samples),
            Event::DeadlineReached => self.on_deadline(now),
        }
        self.reconcile_state(now);
        std::mem::take(&mut self.actions)
    }

    /// Moves the actual state towards the desired one, as far as the event made that possible or necessary.
    fn reconcile_state(&mut self, now: Instant) {
        self.cancel_upgrade_on_stop();
        self.cancel_scaling_on_stop();
        self.continue_rollout(now);
        self.run_scale_queue(now);
        self.begin_queued_upgrade(now);
        self.fill_slots(now);
        self.reassign_orphan_sockets(now);
        self.log_all_ready();
        self.schedule_health_sample(now);
        self.update_listen_state();
        self.exit_if_stopped();
    }

    fn on_started(&mut self) {
        self.add_slot_sockets(self.config.workers);
        // The old binary may not have sent it.
        self.actions.extend(self.upgrade.take_undrained_workers().into_iter().map(Action::Drain));
    }

    fn on_command(&mut self, now: Instant, command: ClusterCommand, by: Requester) {
        let is_allowed_in_drain_delay = match command {
            ClusterCommand::Stop | ClusterCommand::StopNow => true,
            ClusterCommand::Reload | ClusterCommand::Scale(_) | ClusterCommand::ScaleKind(..) => {
                false
            }
            ClusterCommand::Disconnect(_) | ClusterCommand::Upgrade { .. } => false,
        };
        if self.stop.is_delayed() && !is_allowed_in_drain_delay {
            let (command, reason) = (command.as_refused(), "the cluster is stopping");
            return by.refuse_command_or_log(command, reason, &mut self.actions);
        }
        match command {
            ClusterCommand::Stop => self.on_stop(now, by),
            ClusterCommand::StopNow => self.on_stop_now(by),
            ClusterCommand::Reload => self.on_reload(by),
            ClusterCommand::Scale(change) => self.on_scale(now, WEB_KIND, change, by),
            ClusterCommand::ScaleKind(kind, change) => self.on_scale(now, &kind, change, by),
            ClusterCommand::Disconnect(worker) => self.on_disconnect(now, worker, by),
            ClusterCommand::Upgrade { wait } => self.on_upgrade(now, wait, by),
        }
    }

    fn on_deadline(&mut self, now: Instant) {
        self.begin_delayed_stop(now);
        self.kill_overdue_workers(now);
        self.stop_overdue_upgrade_check(now);
        self.sample_health_if_due(now);
    }

    /// Returns when to report `Event::DeadlineReached`, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            ClusterPhase::Booting | ClusterPhase::Running => {
                let of_fork =
                    self.backoff.deadline().into_iter().chain(self.slots.restart_deadline());
                [of_fork.min(), self.health.deadline(), self.stop.deadline()]
            }
            ClusterPhase::Stopping => [None, self.health.deadline(), None],
            ClusterPhase::Killing(_) | ClusterPhase::Done => [None, None, None],
        };
        let always = [self.workers.next_deadline(), self.upgrade.deadline()];
        of_phase.into_iter().chain(always).flatten().min()
    }
}

/// Questions and settings for the primary.
impl Supervisor {
    /// Returns how many workers of the kind `web` should run.
    pub fn wanted_workers(&self) -> u32 {
        self.config.workers
    }

    /// Returns the number of workers forked to replace workers that exited unexpectedly.
    pub fn restart_count(&self) -> u64 {
        self.workers.restart_count
    }

    /// Returns whether the cluster drains or kills its workers.
    pub fn is_stopping(&self) -> bool {
        !matches!(self.phase, ClusterPhase::Booting | ClusterPhase::Running)
    }

    /// Returns whether the cluster stops or waits for its drain delay: load balancers should send nothing more.
    pub fn is_stop_requested(&self) -> bool {
        self.is_stopping() || self.stop.is_delayed()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == ClusterPhase::Done
    }

    /// Returns whether the worker accepts connections.
    pub fn is_serving(&self, worker: WorkerId) -> bool {
        self.workers.is_serving(worker)
    }

    /// Returns whether a worker serves this slot, or one is to be forked for it.
    pub fn is_worker_expected(&self, slot: Slot) -> bool {
        let mut slots = self.slots.iter();
        !self.is_stopping() && slots.any(|entry| entry.slot == slot && !entry.is_kept_empty())
    }

    /// Returns whether a signal such as SIGSTOP has stopped the worker's process.
    pub fn is_stopped_by_signal(&self, worker: WorkerId) -> bool {
        self.workers.get(worker).is_some_and(|record| record.heartbeat.is_stopped)
    }

    /// Returns whether the worker was killed by `Action::Kill` and is not reaped yet.
    pub fn is_killed(&self, worker: WorkerId) -> bool {
        let record = self.workers.get(worker);
        record.is_some_and(|record| matches!(record.state, WorkerState::Killed { .. }))
    }

    /// Returns why no worker could boot, if that ended the cluster.
    pub fn boot_failure(&self) -> Option<&str> {
        self.boot_failure.as_deref()
    }

    /// Returns the generation in force. A reload raises it when it has succeeded.
    pub fn generation(&self) -> Generation {
        self.reload.generation()
    }

    /// Returns the generation that all workers should have.
    pub fn wanted_generation(&self) -> Generation {
        self.reload.wanted_generation()
    }

    /// Returns whether a reload waits for the configuration of `generation`.
    pub fn is_awaiting_config(&self, generation: Generation) -> bool {
        self.reload.is_awaiting_config(generation)
    }

    /// Returns an id that no worker has had, for `ScaleChange::AddWorker`.
    pub fn reserve_worker_id(&mut self) -> WorkerId {
        self.workers.reserve_worker_id()
    }

    /// Returns the name and the first slot of each kind besides `web`.
    pub fn kind_first_slots(&self) -> Vec<(&'static str, Slot)> {
        self.kinds.iter().map(|kind| (kind.config.name, kind.first_slot)).collect()
    }

    /// Returns the name and the wanted number of workers of each kind besides `web`.
    pub fn wanted_by_kind(&self) -> Vec<(&'static str, u32)> {
        self.kinds.iter().map(|kind| (kind.config.name, kind.config.workers)).collect()
    }

    /// Returns how many workers of a kind besides `web` should run.
    pub fn wanted_of_kind(&self, kind: &str) -> Option<u32> {
        self.kinds.get(kind).map(|kind| kind.config.workers)
    }

    /// Returns which worker has adopted the orphan sockets of which slot.
    pub fn slot_adopters(&self) -> impl Iterator<Item = (Slot, WorkerId)> {
        self.orphan_sockets.adopters()
    }

    /// Returns the dispatch target of each slot, as last announced by `Action::SetDispatchTarget`.
    pub fn dispatch_targets(&self) -> &BTreeMap<Slot, WorkerId> {
        self.orphan_sockets.dispatch_targets()
    }

    /// Records that the slots `0..slots` have sockets inherited from a primary that was killed, so that they are served
    /// under any configuration.
    pub fn add_inherited_sockets(&mut self, slots: u32) {
        self.orphan_sockets.add_sockets(slots);
    }

    /// Sets whether the application is asked before a worker that exited unexpectedly is replaced. Off by default.
    pub fn set_confirm_restarts(&mut self, confirms: bool) {
        self.confirms_restarts = confirms;
    }

    /// Returns the state that the new binary of an upgrade continues from.
    pub fn save_state(&self, now: Instant) -> SavedState {
        let forked = self.workers.iter().filter(|record| record.state != WorkerState::Forking);
        let workers = forked.map(|record| SavedWorker {
            tag: record.tag,
            age: now.duration_since(record.forked_at),
            is_serving: record.is_serving() && self.slots.holds_or_awaits_slot(record.tag.id),
            has_own_socket: record.has_own_socket,
            adopted_slots: self.orphan_sockets.slots_adopted_by(record.tag.id),
        });
        SavedState {
            generation: self.reload.last_generation(),
            next_id: self.workers.next_worker_id(),
            restart_count: self.workers.restart_count,
            wanted_workers: self.config.workers,
            configured_workers: Some(self.configured_workers),
            kinds: self.kinds.iter().map(WorkerKind::saved).collect(),
            socket_slots: self.orphan_sockets.socket_slots(),
            forked_slots: self.slots.iter().filter_map(SlotEntry::saved).collect(),
            workers: workers.collect(),
            upgrade_requesters: self.upgrade.waiting_requesters(),
        }
    }
}

/// Helpers that several parts of the supervisor use.
impl Supervisor {
    pub(crate) fn log_event(&mut self, event: LogEvent) {
        self.actions.push(Action::Log(event));
    }

    /// Adds slots for the declared kinds. Kinds of `running` workers keep theirs.
    pub(crate) fn assign_kinds(&mut self, kinds: Vec<WorkerKindConfig>, running: &[WorkerTag]) {
        self.assign_kinds_after_upgrade(kinds, running, &[]);
    }

    /// Adds slots for the declared kinds, as many as there were before an upgrade.
    pub(crate) fn assign_kinds_after_upgrade(
        &mut self,
        kinds: Vec<WorkerKindConfig>,
        running: &[WorkerTag],
        saved: &[SavedKind],
    ) {
        self.kinds = WorkerKinds::assign_slots(kinds, running);
        self.kinds.restore_worker_counts(saved, MAX_WORKERS);
        for kind in self.kinds.iter() {
            let (slots, generation) = (0..kind.config.workers, self.reload.generation());
            self.slots.add_slots(kind.first_slot, slots, kind.config.name, generation);
        }
    }

    /// Records that the slots `0..slots` have sockets, if slots have sockets of their own.
    pub(crate) fn add_slot_sockets(&mut self, slots: u32) {
        if self.config.has_socket_per_slot {
            self.orphan_sockets.add_sockets(slots);
        }
    }

    /// In a stop all stays as it is: each worker empties the queues that it accepts from.
    fn reassign_orphan_sockets(&mut self, now: Instant) {
        if self.is_stopping() {
            return;
        }
        let slot_of = if self.config.can_adopt_sockets {
            let surplus_from =
                if self.config.has_socket_per_slot { self.config.workers } else { 0 };
            let (workers, actions) = (&self.workers, &mut self.actions);
            self.orphan_sockets.assign_adopters(now, workers, surplus_from, actions);
            WorkerRecord::socket_slot
        } else {
            |record: &WorkerRecord| record.tag.slot
        };
        let (workers, actions) = (&self.workers, &mut self.actions);
        self.orphan_sockets.announce_dispatch_targets(workers, slot_of, actions);
    }

    /// Forks a worker for each empty slot, as far as the crash back-off allows.
    fn fill_slots(&mut self, now: Instant) {
        if self.is_stopping() {
            return;
        }
        self.slots.end_restart_delays(now);
        self.backoff.advance_stage(now);
        if self.slots.are_all_slots_served(&self.workers) {
            return self.backoff.record_all_slots_served(now, self.config.min_uptime);
        }
        for index in 0..self.slots.len() {
            let entry = &self.slots[index];
            let is_taken = entry.holder.or(entry.successor).is_some();
            if is_taken
                || entry.restart != RestartPolicy::Restart
                || self.workers.is_slot_full(entry.slot)
            {
                continue;
            }
            if self.backoff.fork_allowance() == ForkAllowance::None {
                return;
            }
            let worker = self.request_fork(now, index, entry.generation);
            self.slots[index].holder = Some(worker);
            self.backoff.record_fork(worker);
        }
    }

    /// Requests the fork of a worker for a slot.
    pub(crate) fn request_fork(
        &mut self,
        now: Instant,
        index: usize,
        generation: Generation,
    ) -> WorkerId {
        if self.slots[index].slot.is_web() {
            self.resume_listening();
        }
        let entry = &mut self.slots[index];
        let id = entry.reserved_id.take().unwrap_or_else(|| self.workers.reserve_worker_id());
        let tag = WorkerTag { id, slot: entry.slot, generation, pid: None, kind: entry.kind };
        self.workers.insert(tag, now).has_own_socket =
            tag.slot.is_web() && self.reload.has_own_socket(generation, &self.config);
        self.actions.push(Action::Fork(tag));
        id
    }

    /// Empties a slot and drains its holder.
    pub(crate) fn drain_slot_holder(&mut self, now: Instant, index: usize, reason: DrainReason) {
        let Some(worker) = self.slots[index].holder.take() else { return };
        let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
        let Some(record) = self.workers.get_mut(worker) else { return };
        match record.state {
            WorkerState::Serving => {
                record.start_draining(deadline, reason);
                self.actions.push(Action::Drain(worker));
            }
            WorkerState::Booting { .. } => {
                self.workers.kill(worker, ExitCause::Superseded, &mut self.actions);
            }
            // A worker whose fork returns later is killed then: see `on_forked`.
            WorkerState::Forking | WorkerState::Draining { .. } => {}
            WorkerState::Exiting { .. } => {}
            WorkerState::Aborted { .. } | WorkerState::Killed { .. } => {}
        }
    }

    fn log_all_ready(&mut self) {
        // Both look at every slot, and this runs after every event.
        if self.phase != ClusterPhase::Booting || !self.slots.are_open_slots_served(&self.workers) {
            return;
        }
        let workers = self.slots.served_slot_count(&self.workers);
        if workers > 0 {
            self.phase = ClusterPhase::Running;
            self.log_event(LogEvent::AllReady { workers });
        }
    }
}
