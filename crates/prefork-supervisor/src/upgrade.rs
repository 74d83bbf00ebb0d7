//! Upgrades in place: the new binary is checked in a child, then replaces this process by `execve`.
//!
//! The new binary restores the supervisor from the [`SavedState`] and replaces the old binary's workers by a rollout.

use std::time::{Duration, Instant};

use crate::action::{Action, DrainReason, LogEvent};
use crate::command::Requester;
use crate::config::{SupervisorConfig, WorkerKindConfig};
use crate::reload::Reload;
use crate::saved_state::{SavedState, SavedWorker};
use crate::slot_table::SlotTable;
use crate::supervisor::{ClusterPhase, DRAIN_KILL_MARGIN, Supervisor};
use crate::worker_identity::{Generation, WorkerId, WorkerTag};
use crate::worker_table::WorkerState;

/// How long the new binary may take, in addition to the boot timeout, to load and to read its configuration.
const NEW_BINARY_LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The reply to requesters that wait for the check only.
const CHECK_PASSED_REPLY: &str = "the new binary passed its check and takes over now";

/// The current upgrade, and those that wait for the end of a reload.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    check: Option<UpgradeCheck>,
    /// Upgrades requested during a reload: one serves them all.
    queued: Vec<UpgradeRequester>,
    /// Workers of the old binary to which a drain must be sent, even if the old binary sent one.
    undrained: Vec<WorkerId>,
}

/// A new binary that is being checked.
#[derive(Debug)]
struct UpgradeCheck {
    /// The deadline of the check; `None` once it has passed and the exec follows.
    deadline: Option<Instant>,
    requesters: Vec<UpgradeRequester>,
}

#[derive(Debug)]
struct UpgradeRequester {
    by: Requester,
    /// Whether the reply is sent when the new binary's workers serve, instead of when its check has passed.
    wait: bool,
}

impl Upgrade {
    pub(crate) fn is_upgrading(&self) -> bool {
        self.check.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.check.as_ref()?.deadline
    }

    /// Returns the requesters that the new binary has to answer.
    pub(crate) fn waiting_requesters(&self) -> Vec<Requester> {
        let requesters = self.check.iter().flat_map(|check| &check.requesters);
        let waiting = requesters.filter(|one| one.wait && one.by.reply_id.is_some());
        waiting.map(|one| one.by.clone()).collect()
    }

    /// Removes and returns the workers to which the new binary has to send a drain.
    pub(crate) fn take_undrained_workers(&mut self) -> Vec<WorkerId> {
        std::mem::take(&mut self.undrained)
    }
}

impl Supervisor {
    /// Creates a supervisor that continues from the state of the binary before an upgrade.
    ///
    /// The running workers are replaced by a rollout to a new generation at once. If that fails, they keep serving.
    pub fn restore(
        config: SupervisorConfig,
        kinds: Vec<WorkerKindConfig>,
        seed: u64,
        now: Instant,
        saved: SavedState,
    ) -> Supervisor {
        let configured = config.workers;
        let config = SupervisorConfig { workers: saved.wanted_workers, ..config };
        let generation = Generation(saved.generation.0 + 1);
        let mut supervisor = Supervisor::new(config.clone(), seed);
        supervisor.phase = ClusterPhase::Running;
        supervisor.backoff.set_any_worker_ready();
        supervisor.reload = Reload::new(generation);
        supervisor.workers.continue_ids_from(saved.next_id, saved.restart_count);
        supervisor.slots = SlotTable::new_web_slots(saved.wanted_workers, generation);
        let tags: Vec<WorkerTag> = saved.workers.iter().map(|worker| worker.tag).collect();
        supervisor.assign_kinds_after_upgrade(kinds, &tags, &saved.kinds);
        supervisor.orphan_sockets.add_sockets(saved.socket_slots);
        for forked in saved.forked_slots {
            if let Some(entry) = supervisor.slots.get_mut(forked.slot) {
                entry.is_forked = true;
                entry.environment = forked.environment;
                entry.reserved_id = forked.reserved_id;
            }
        }
        let plan = supervisor.plan_all_slots(saved.configured_workers, configured, &saved.kinds);
        supervisor.configured_workers = configured;
        supervisor.reload =
            Reload::new_after_upgrade(generation, plan, config, saved.upgrade_requesters);
        for worker in saved.workers {
            supervisor.restore_worker(now, worker);
        }
        supervisor
    }

    /// Adds a worker of the old binary: as the holder of its slot if it serves, else as one that drains.
    fn restore_worker(&mut self, now: Instant, saved: SavedWorker) {
        let (tag, forked_at) = (saved.tag, now - saved.age);
        let record = self.workers.insert(tag, forked_at);
        record.has_own_socket = saved.has_own_socket;
        record.is_online_logged = true;
        if saved.is_serving {
            self.orphan_sockets.record_adopted_slots(tag.id, &saved.adopted_slots);
        }
        // The new binary may lack the worker's kind, or have fewer slots of it.
        let entry = self.slots.get_mut(tag.slot).filter(|entry| entry.kind == tag.kind);
        match entry.filter(|entry| saved.is_serving && entry.holder.is_none()) {
            Some(entry) => {
                record.state = WorkerState::Serving;
                record.ready_at = Some(forked_at);
                entry.holder = Some(tag.id);
                entry.last_ready = Some(tag.id);
            }
            None => {
                let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
                record.drain_reason = saved.is_serving.then_some(DrainReason::Reload);
                record.state = WorkerState::Draining { deadline };
                self.upgrade.undrained.push(tag.id);
            }
        }
    }

    pub(crate) fn on_upgrade(&mut self, now: Instant, wait: bool, by: Requester) {
        let requester = UpgradeRequester { by, wait };
        match &mut self.upgrade.check {
            Some(UpgradeCheck { deadline: None, .. }) if !wait => {
                return requester.by.confirm_command(CHECK_PASSED_REPLY, &mut self.actions);
            }
            Some(check) => return check.requesters.push(requester),
            None => {}
        }
        if self.is_stopping() {
            self.refuse_upgrade(requester.by, "the cluster is stopping");
        } else if self.phase == ClusterPhase::Booting {
            self.refuse_upgrade(requester.by, "the workers have not all been ready yet");
        } else if !self.reload.is_reloading() {
            self.begin_upgrade(now, vec![requester]);
        } else if requester.by.reply_id.is_some() || self.upgrade.queued.is_empty() {
            // Requesters that expect no reply need not be queued twice.
            self.log_event(LogEvent::UpgradeQueued { by: requester.by.name.clone() });
            self.upgrade.queued.push(requester);
        }
    }

    fn refuse_upgrade(&mut self, by: Requester, reason: &str) {
        self.log_event(LogEvent::UpgradeFailed { reason: reason.to_string() });
        by.refuse_command(reason, &mut self.actions);
    }

    fn begin_upgrade(&mut self, now: Instant, requesters: Vec<UpgradeRequester>) {
        let Some(first) = requesters.first() else { return };
        self.log_event(LogEvent::UpgradeChecking { by: first.by.name.clone() });
        self.resume_listening();
        self.actions.push(Action::StartUpgradeCheck);
        let deadline = Some(now + self.config.boot_timeout + NEW_BINARY_LOAD_TIMEOUT);
        self.upgrade.check = Some(UpgradeCheck { deadline, requesters });
    }

    /// Begins the upgrade that waited for the end of a reload.
    pub(crate) fn begin_queued_upgrade(&mut self, now: Instant) {
        if !self.reload.is_reloading() && !self.upgrade.is_upgrading() {
            let requesters = std::mem::take(&mut self.upgrade.queued);
            self.begin_upgrade(now, requesters);
        }
    }

    pub(crate) fn on_upgrade_check_passed(&mut self) {
        let Some(check) = &mut self.upgrade.check else { return };
        // A second report changes nothing. A late one counts: it was sent in time.
        if check.deadline.take().is_none() {
            return;
        }
        // The new binary replies to the requesters that wait for its workers.
        let done: Vec<_> = check.requesters.extract_if(.., |requester| !requester.wait).collect();
        self.refuse_scaling("an upgrade is under way; ask again when it is done");
        for requester in done {
            requester.by.confirm_command(CHECK_PASSED_REPLY, &mut self.actions);
        }
        self.log_event(LogEvent::UpgradeExecuting);
        self.actions.push(Action::ExecNewBinary);
    }

    pub(crate) fn on_upgrade_failed(&mut self, reason: &str) {
        let Some(check) = self.upgrade.check.take() else { return };
        self.log_event(LogEvent::UpgradeFailed { reason: reason.to_string() });
        for requester in check.requesters {
            requester.by.refuse_command(reason, &mut self.actions);
        }
    }

    /// Stops a check that takes too long. Called on `Event::DeadlineReached` only: by then the result of the check
    /// would have been reported.
    pub(crate) fn stop_overdue_upgrade_check(&mut self, now: Instant) {
        if self.upgrade.deadline().is_some_and(|deadline| deadline <= now) {
            let reason = "the new binary was not ready in time (boot-timeout) and was killed";
            self.stop_upgrade_check(reason);
        }
    }

    /// Cancels all upgrades once a stop was requested.
    pub(crate) fn cancel_upgrade_on_stop(&mut self) {
        if !self.is_stop_requested() {
            return;
        }
        if self.upgrade.is_upgrading() {
            self.stop_upgrade_check("the cluster is stopping");
        }
        for requester in std::mem::take(&mut self.upgrade.queued) {
            self.refuse_upgrade(requester.by, "the cluster is stopping");
        }
    }

    fn stop_upgrade_check(&mut self, reason: &str) {
        self.actions.push(Action::StopUpgradeCheck);
        self.on_upgrade_failed(reason);
    }
}
