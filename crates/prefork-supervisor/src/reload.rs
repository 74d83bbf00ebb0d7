//! Reloads: a rolling replacement of all workers by those of a new generation.
//!
//! A *successor* is forked beside the worker that holds a slot, and takes the slot over when it is ready; only then is
//! its predecessor drained. So a failure leaves things as they were.
//!
//! A reload reads the configuration, then replaces slot by slot, a few at a time. If any successor fails, those under
//! way are killed, and slots that were already taken over are rolled back to the old generation in the same manner.
//! Reloads requested meanwhile are served together by one more reload.

use std::time::Instant;

use crate::action::{Action, DrainReason, ExitCause, LogEvent};
use crate::command::{RefusedCommand, Requester};
use crate::config::SupervisorConfig;
use crate::replacement_budget::{
    ReplacementBudget, ReplacementTiming, is_replacement_limit_reached,
};
use crate::slot_plan::SlotPlan;
use crate::slot_table::{RestartPolicy, SlotEntry};
use crate::supervisor::Supervisor;
use crate::worker_identity::{Generation, WorkerId};
use crate::worker_table::WorkerState;

/// Number of external kills of new workers that do not fail a reload.
const MAX_FORGIVEN_KILLS: u32 = 3;

/// The part of the failure reason which says that workers of two generations serve.
pub(crate) const ROLLBACK_FAILED: &str = "rolling back failed too";

/// The state of generations and of the current reload.
#[derive(Debug)]
pub(crate) struct Reload {
    rollout: Option<Rollout>,
    /// Requesters of another reload: one more serves them all.
    queued: Vec<Requester>,
    /// The generation in force.
    generation: Generation,
    /// The highest generation that was tried; never decreases.
    last_generation: Generation,
    /// Number of external kills of new workers since the rollout began.
    forgiven_kills: u32,
}

/// The stages of a reload.
#[derive(Debug)]
pub(crate) enum Rollout {
    /// The configuration is being read.
    ReadingConfig { requesters: Vec<Requester> },
    /// Slots are being taken over by workers of `target`.
    Replacing {
        target: Generation,
        /// The slots when all are taken over.
        plan: SlotPlan,
        previous: Box<PreviousConfig>,
        requesters: Vec<Requester>,
    },
    /// Slots that were taken over go back to the generation in force.
    RollingBack { reason: String, requesters: Vec<Requester> },
}

/// The configuration that a failed reload restores.
#[derive(Debug)]
pub(crate) struct PreviousConfig {
    config: SupervisorConfig,
    generation: Generation,
}

impl Reload {
    pub(crate) fn new(generation: Generation) -> Reload {
        let (rollout, queued) = (None, Vec::new());
        Reload { rollout, queued, generation, last_generation: generation, forgiven_kills: 0 }
    }

    /// Starts as the rollout after an upgrade: the old binary's workers are replaced by those of `generation`.
    ///
    /// Whatever is forked from now on is of `generation`, even if the rollout fails: the old binary is gone.
    pub(crate) fn new_after_upgrade(
        generation: Generation,
        plan: SlotPlan,
        config: SupervisorConfig,
        requesters: Vec<Requester>,
    ) -> Reload {
        let previous = Box::new(PreviousConfig { config, generation });
        let rollout = Rollout::Replacing { target: generation, plan, previous, requesters };
        Reload { rollout: Some(rollout), ..Reload::new(generation) }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn last_generation(&self) -> Generation {
        self.last_generation
    }

    pub(crate) fn is_reloading(&self) -> bool {
        self.rollout.is_some()
    }

    #[cfg(test)]
    pub(crate) fn rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
    }

    /// Returns the generation that all workers should have when the rollout is done.
    pub(crate) fn wanted_generation(&self) -> Generation {
        match &self.rollout {
            Some(Rollout::Replacing { target, .. }) => *target,
            Some(Rollout::ReadingConfig { .. } | Rollout::RollingBack { .. }) | None => {
                self.generation
            }
        }
    }

    /// Returns the plan for the slots of `generation`, if the rollout introduces it.
    pub(crate) fn plan_for(&self, generation: Generation) -> Option<&SlotPlan> {
        match &self.rollout {
            Some(Rollout::Replacing { target, plan, .. }) if *target == generation => Some(plan),
            Some(
                Rollout::Replacing { .. }
                | Rollout::ReadingConfig { .. }
                | Rollout::RollingBack { .. },
            )
            | None => None,
        }
    }

    pub(crate) fn is_awaiting_config(&self, generation: Generation) -> bool {
        matches!(self.rollout, Some(Rollout::ReadingConfig { .. }))
            && self.last_generation == generation
    }

    /// Returns whether `generation` is the one that the rollout introduces.
    pub(crate) fn is_new_generation(&self, generation: Generation) -> bool {
        matches!(&self.rollout, Some(Rollout::Replacing { target, .. }) if *target == generation)
    }

    /// Returns whether a worker of `generation` is forked with the sockets of its slot.
    pub(crate) fn has_own_socket(&self, generation: Generation, config: &SupervisorConfig) -> bool {
        if let Some(Rollout::Replacing { target, previous, .. }) = &self.rollout
            && *target != generation
        {
            previous.config.has_socket_per_slot
        } else {
            config.has_socket_per_slot
        }
    }

    /// Records an external kill of a new worker, and returns whether the reload continues.
    ///
    /// Counted over the whole reload: where the OOM killer takes each new worker, the reload has to end too.
    pub(crate) fn forgive_successor_kill(&mut self) -> bool {
        self.forgiven_kills += 1;
        self.forgiven_kills <= MAX_FORGIVEN_KILLS
    }

    /// Begins a reload by reading the configuration.
    fn begin_reload(&mut self, requesters: Vec<Requester>, actions: &mut Vec<Action>) {
        let Some(first) = requesters.first() else { return };
        actions.push(Action::Log(LogEvent::Reloading { by: first.name.clone() }));
        self.last_generation = Generation(self.last_generation.0 + 1);
        actions.push(Action::ReadConfig(self.last_generation));
        self.rollout = Some(Rollout::ReadingConfig { requesters });
    }

    fn begin_queued_reload(&mut self, actions: &mut Vec<Action>) {
        let requesters = std::mem::take(&mut self.queued);
        self.begin_reload(requesters, actions);
    }

    /// Ends the rollout and returns all requesters, including those of the next one.
    fn cancel_reload(&mut self) -> Vec<Requester> {
        let mut requesters = match self.rollout.take() {
            Some(
                Rollout::ReadingConfig { requesters }
                | Rollout::Replacing { requesters, .. }
                | Rollout::RollingBack { requesters, .. },
            ) => requesters,
            None => Vec::new(),
        };
        requesters.append(&mut self.queued);
        requesters
    }
}

impl Supervisor {
    pub(crate) fn on_reload(&mut self, by: Requester) {
        if self.is_stopping() {
            let reason = "the cluster is stopping";
            by.refuse_command_or_log(RefusedCommand::Reload, reason, &mut self.actions);
        } else if self.upgrade.is_upgrading() {
            let reason = "an upgrade is under way, which replaces all workers";
            by.refuse_command_or_log(RefusedCommand::Reload, reason, &mut self.actions);
        } else if !self.reload.is_reloading() {
            self.resume_listening();
            self.reload.begin_reload(vec![by], &mut self.actions);
        } else if by.reply_id.is_some() || self.reload.queued.is_empty() {
            // Requesters that expect no reply need not be queued twice.
            self.reload.queued.push(by);
        }
    }

    pub(crate) fn on_config_read(&mut self, result: Result<SupervisorConfig, String>) {
        let reading = |rollout: &mut Rollout| matches!(rollout, Rollout::ReadingConfig { .. });
        let rollout = self.reload.rollout.take_if(reading);
        let Some(Rollout::ReadingConfig { requesters }) = rollout else { return };
        let config = match result {
            Ok(config) => config,
            Err(reason) => return self.finish_failed_reload(reason, requesters),
        };
        // The number of workers changes when the reload has succeeded.
        let plan = self.plan_web_slots(config.workers);
        let workers = plan.sizes.iter().map(|(_, size)| *size).fold(self.config.workers, u32::max);
        let config = SupervisorConfig { workers: self.config.workers, ..config };
        let previous = std::mem::replace(&mut self.config, config);
        let generation = self.reload.generation;
        let previous = Box::new(PreviousConfig { config: previous, generation });
        self.add_slot_sockets(workers);
        // The successor of a recycled worker is of the old generation. Waiting for it is not worth while, and its
        // failure would not be one of the reload.
        self.kill_successors();
        self.reload.forgiven_kills = 0;
        let target = self.reload.last_generation;
        self.reload.rollout = Some(Rollout::Replacing { target, plan, previous, requesters });
    }

    /// Replaces as many slots as the budget allows, and finishes the rollout when all are replaced.
    pub(crate) fn continue_rollout(&mut self, now: Instant) {
        if self.is_stopping() {
            return self.cancel_rollout();
        }
        let target = match &self.reload.rollout {
            Some(Rollout::Replacing { target, .. }) => *target,
            Some(Rollout::RollingBack { .. }) => self.reload.generation,
            Some(Rollout::ReadingConfig { .. }) | None => return,
        };
        if is_replacement_limit_reached(&self.config, &self.slots) {
            return;
        }
        let todo: Vec<usize> =
            (0..self.slots.len()).filter(|index| !self.is_slot_replaced(*index, target)).collect();
        if todo.is_empty() {
            return self.finish_rollout(now, target);
        }
        let mut budget = ReplacementBudget::new(&self.config, &self.slots, &self.workers);
        for index in todo {
            if budget.is_exhausted() {
                return;
            }
            self.replace_slot(now, index, target, &mut budget);
        }
    }

    /// Forks the successor of a slot if the budget allows it.
    fn replace_slot(
        &mut self,
        now: Instant,
        index: usize,
        target: Generation,
        budget: &mut ReplacementBudget,
    ) {
        let entry = &self.slots[index];
        let is_undecided = matches!(entry.restart, RestartPolicy::AwaitDecision(_));
        let is_full = self.workers.is_slot_full(entry.slot);
        if entry.successor.is_some()
            || is_full
            || is_undecided
            || self.is_slot_booting(index, target)
        {
            return;
        }
        let (is_held, is_served) = (entry.holder.is_some(), entry.is_served(&self.workers));
        match budget.replacement_timing(is_held, is_served) {
            ReplacementTiming::BesideHolder => budget.count_successor_beside_holder(is_held),
            ReplacementTiming::AfterHolder => {
                budget.count_successor_after_holder(is_served);
                self.drain_slot_holder(now, index, DrainReason::Reload);
            }
            ReplacementTiming::Later => return,
        }
        self.slots[index].successor = Some(self.request_fork(now, index, target));
    }

    /// Returns whether the slot needs no more replacement by a worker of `target`.
    fn is_slot_replaced(&self, index: usize, target: Generation) -> bool {
        let entry = &self.slots[index];
        if self.is_kept_by_reload(entry) {
            return true;
        }
        // A reload refills slots that were left empty before it, but not those left empty since.
        if entry.is_kept_empty() {
            return entry.successor.is_none() && entry.generation == target;
        }
        let holder = entry.holder.and_then(|holder| self.workers.get(holder));
        entry.successor.is_none()
            && holder.is_some_and(|holder| holder.tag.generation == target && holder.is_serving())
    }

    /// Returns whether the rollout leaves the worker of this slot alone, because of its kind. An upgrade does not.
    fn is_kept_by_reload(&self, entry: &SlotEntry) -> bool {
        let is_upgrade = matches!(
            &self.reload.rollout,
            Some(Rollout::Replacing { target, previous, .. }) if previous.generation == *target
        );
        !is_upgrade && self.kinds.get(entry.kind).is_some_and(|kind| kind.config.is_kept_by_reload)
    }

    /// Returns whether the slot's holder is a worker of `generation` that boots: it needs no successor.
    fn is_slot_booting(&self, index: usize, generation: Generation) -> bool {
        let holder = self.slots[index].holder.and_then(|holder| self.workers.get(holder));
        holder.is_some_and(|holder| {
            let boots = matches!(holder.state, WorkerState::Forking | WorkerState::Booting { .. });
            boots && holder.tag.generation == generation
        })
    }

    /// Makes a ready successor the holder of its slot, and drains its predecessor.
    pub(crate) fn promote_successor(&mut self, now: Instant, worker: WorkerId) {
        let Some(index) = self.slots.index_of_successor(worker) else { return };
        let holder = self.slots[index].holder.and_then(|holder| self.workers.get(holder));
        let recycled = holder.filter(|_| !self.reload.is_reloading());
        let recycle_reason = recycled.and_then(|holder| holder.recycle_reason);
        let reason = recycle_reason.map_or(DrainReason::Reload, DrainReason::Recycle);
        self.drain_slot_holder(now, index, reason);
        let record = self.workers.get(worker);
        let entry = &mut self.slots[index];
        entry.generation = record.map_or(self.reload.generation, |record| record.tag.generation);
        entry.successor = None;
        entry.restart = RestartPolicy::Restart;
        entry.holder = Some(worker);
    }

    /// Handles the loss of a successor. Another one is forked if `retry` is true.
    pub(crate) fn on_successor_lost(
        &mut self,
        now: Instant,
        worker: WorkerId,
        reason: &str,
        retry: bool,
    ) {
        self.slots.release_successor(worker);
        if !self.reload.is_reloading() {
            // The recycled worker that it was to replace keeps serving.
            self.health.pause_recycling(now);
        } else if !retry {
            self.fail_rollout(reason);
        }
    }

    /// Fails the rollout: rolls back the slots that were taken over, if any.
    pub(crate) fn fail_rollout(&mut self, reason: &str) {
        match self.reload.rollout.take() {
            Some(Rollout::Replacing { target, previous, requesters, .. }) => {
                self.roll_back_or_finish(target, *previous, reason, requesters);
            }
            Some(Rollout::RollingBack { reason: first, requesters }) => {
                let reason = format!("{first}; {ROLLBACK_FAILED}: {reason}");
                self.kill_successors();
                self.finish_failed_reload(reason, requesters);
            }
            reading @ (Some(Rollout::ReadingConfig { .. }) | None) => self.reload.rollout = reading,
        }
    }

    fn roll_back_or_finish(
        &mut self,
        target: Generation,
        previous: PreviousConfig,
        reason: &str,
        requesters: Vec<Requester>,
    ) {
        self.kill_successors();
        self.config = SupervisorConfig { workers: self.config.workers, ..previous.config };
        self.reload.generation = previous.generation;
        for entry in self.slots.iter_mut() {
            entry.generation = previous.generation;
        }
        if previous.generation == target {
            // The rollout after an upgrade has nothing to go back to: what serves stays.
            let reason = format!(
                "the new binary runs, but its workers do not boot: {reason}; the old binary's workers keep serving"
            );
            return self.finish_failed_reload(reason, requesters);
        }
        // Ready or not: it would become ready after the report that nothing has changed.
        let mut holders = self.slots.iter().filter_map(|entry| self.workers.get(entry.holder?));
        if holders.any(|holder| holder.tag.generation == target) {
            self.log_event(LogEvent::RollingBack { to: previous.generation });
            let reason = reason.to_string();
            self.reload.rollout = Some(Rollout::RollingBack { reason, requesters });
        } else {
            self.finish_failed_reload(reason.to_string(), requesters);
        }
    }

    fn finish_rollout(&mut self, now: Instant, target: Generation) {
        match self.reload.rollout.take() {
            Some(Rollout::Replacing { requesters, plan, previous, .. }) => {
                let is_upgrade = previous.generation == target;
                plan.apply_moves(&mut self.slots);
                self.configured_workers = plan.configured_workers;
                self.finish_reload(target, is_upgrade, requesters);
                for (kind, size) in plan.sizes {
                    let size = self.size_by_demand(kind).unwrap_or(size);
                    self.resize_kind(now, kind, size, "the new configuration");
                }
                self.reload.begin_queued_reload(&mut self.actions);
            }
            Some(Rollout::RollingBack { reason, requesters }) => {
                self.finish_failed_reload(reason, requesters);
            }
            reading @ (Some(Rollout::ReadingConfig { .. }) | None) => self.reload.rollout = reading,
        }
    }

    fn finish_reload(&mut self, target: Generation, is_upgrade: bool, requesters: Vec<Requester>) {
        self.reload.generation = target;
        for index in 0..self.slots.len() {
            // The next worker of a slot that was left alone has the new configuration.
            if self.is_kept_by_reload(&self.slots[index]) {
                self.slots[index].generation = target;
            }
        }
        let is_open = |entry: &&SlotEntry| !entry.restart.leaves_empty();
        let workers = self.slots.iter().filter(is_open).count();
        let verb = if is_upgrade { "upgraded" } else { "reloaded" };
        let done = format!("{verb}: {workers} workers of generation {target} serve");
        self.log_event(LogEvent::Reloaded { generation: target, workers, is_upgrade });
        for requester in requesters {
            requester.confirm_command(&done, &mut self.actions);
        }
        self.keep_generations();
    }

    fn finish_failed_reload(&mut self, reason: String, requesters: Vec<Requester>) {
        self.log_event(LogEvent::ReloadFailed { reason: reason.clone() });
        for requester in requesters {
            requester.refuse_command(&reason, &mut self.actions);
        }
        self.keep_generations();
        self.reload.begin_queued_reload(&mut self.actions);
    }

    /// Cancels the rollout because of a stop.
    fn cancel_rollout(&mut self) {
        for requester in self.reload.cancel_reload() {
            let reason = "the cluster is stopping";
            requester.refuse_command_or_log(RefusedCommand::Reload, reason, &mut self.actions);
        }
        self.slots.take_successors();
    }

    fn kill_successors(&mut self) {
        for worker in self.slots.take_successors() {
            self.workers.kill(worker, ExitCause::Superseded, &mut self.actions);
        }
    }

    /// Reports to the primary which generations are still in use.
    fn keep_generations(&mut self) {
        // After a failed rollback, workers of two generations serve, and each may be drained by its own configuration.
        let workers = self.slots.iter().flat_map(|entry| [entry.holder, entry.successor]);
        let of_workers = workers.flatten().filter_map(|worker| self.workers.get(worker));
        let mut kept: Vec<Generation> = of_workers.map(|record| record.tag.generation).collect();
        kept.extend(self.slots.iter().map(|entry| entry.generation));
        kept.push(self.reload.generation);
        kept.sort_unstable();
        kept.dedup();
        self.actions.push(Action::KeepGenerations(kept));
    }
}
