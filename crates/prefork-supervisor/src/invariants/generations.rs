//! Invariants of reloads, scaling and recycling: a worker serves until a better one does.

use std::collections::BTreeSet;

use super::{ForkAllowance, InvariantViolation, is_settled};
use crate::reload::ROLLBACK_FAILED;
use crate::slot_table::SlotEntry;
use crate::supervisor::Supervisor;
use crate::worker_identity::{Generation, WorkerId};
use crate::worker_table::WorkerState;
use crate::{Action, ClusterCommand, Event, LogEvent};

#[derive(Debug)]
pub(super) struct GenerationChecker {
    /// Generations whose configuration the primary keeps.
    kept: BTreeSet<Generation>,
    /// The generation whose configuration was requested last.
    requested: Generation,
    /// Whether workers of several generations may serve: a rollback failed, or those of an old binary are not all
    /// replaced.
    is_mixed: bool,
}

impl Default for GenerationChecker {
    fn default() -> GenerationChecker {
        let first = Generation(1);
        GenerationChecker { kept: BTreeSet::from([first]), requested: first, is_mixed: false }
    }
}

impl GenerationChecker {
    pub(super) fn check_generation_invariants(
        &mut self,
        supervisor: &Supervisor,
        event: &Event,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        if let Event::ConfigRead { result: Ok(_) } = event {
            self.kept.insert(self.requested);
        }
        for action in actions {
            self.check_generation_action(action, supervisor, violation);
        }
        check_successors(supervisor, violation);
        if supervisor.is_stopping() {
            return;
        }
        let slots = &supervisor.slots;
        let workers = slots.iter().flat_map(|entry| [entry.holder, entry.successor]);
        let records = workers.flatten().filter_map(|worker| supervisor.workers.get(worker));
        let of_slots = slots.iter().map(|entry| entry.generation);
        let in_force = supervisor.reload.generation();
        let needed: BTreeSet<Generation> =
            records.map(|one| one.tag.generation).chain(of_slots).chain([in_force]).collect();
        assert!(needed.is_subset(&self.kept), "needed generations are kept: {violation}");
        if is_settled(supervisor) && !self.is_mixed {
            let kept_by_reloads: BTreeSet<Generation> = supervisor
                .workers
                .iter()
                .filter(|record| is_kept_by_reloads(supervisor, record.tag.kind))
                .map(|record| record.tag.generation)
                .collect();
            let others: BTreeSet<Generation> =
                needed.difference(&kept_by_reloads).copied().chain([in_force]).collect();
            assert_eq!(others, BTreeSet::from([in_force]), "one generation serves: {violation}");
            let most = 2 + kept_by_reloads.len();
            assert!(self.kept.len() <= most, "unneeded generations are dropped: {violation}");
        }
    }

    pub(super) fn may_mix_generations(&self) -> bool {
        self.is_mixed
    }

    /// The new binary has a configuration of its own, and the old binary's workers need none.
    pub(super) fn continue_after_upgrade(&mut self, supervisor: &Supervisor) {
        let in_force = supervisor.reload.generation();
        assert!(in_force > self.requested, "generations only grow: {supervisor:#?}");
        let of_workers = supervisor.workers.iter().map(|record| record.tag.generation);
        self.kept = of_workers.chain([in_force]).collect();
        self.requested = in_force;
        self.is_mixed = true;
    }

    fn check_generation_action(
        &mut self,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        match action {
            Action::ReadConfig(generation) => {
                assert!(*generation > self.requested, "generations only grow: {violation}");
                self.requested = *generation;
            }
            Action::KeepGenerations(kept) => {
                let is_known = kept.iter().all(|generation| self.kept.contains(generation));
                assert!(is_known, "only a known generation is kept: {violation}");
                self.kept = kept.iter().copied().collect();
            }
            Action::Fork(tag) => {
                assert!(self.kept.contains(&tag.generation), "a fork has its config: {violation}");
            }
            Action::Drain(worker) if must_replace_before_drain(violation, supervisor) => {
                check_drain(*worker, supervisor, violation);
            }
            Action::Log(LogEvent::Recycling { .. }) => {
                let is_used_up = matches!(violation.event, Event::WorkerUsedUp { .. });
                let is_calm = supervisor.backoff.fork_allowance() == ForkAllowance::All;
                assert!(
                    is_calm || is_used_up,
                    "no worker is recycled in a crash loop: {violation}"
                );
            }
            Action::Log(LogEvent::Reloaded { generation, .. }) => {
                let in_force = supervisor.reload.generation();
                assert!(*generation == in_force, "the new generation is in force: {violation}");
                self.is_mixed = false;
            }
            Action::Log(LogEvent::ReloadFailed { reason }) => {
                self.is_mixed |= reason.contains(ROLLBACK_FAILED);
            }
            _ => {}
        }
    }
}

/// Returns whether drained workers must be replaced first. A stop, a disconnect and scaling reduce service on purpose, a
/// used up worker serves no more, and the workers that a new binary drains at its start held no slot.
fn must_replace_before_drain(violation: &InvariantViolation<'_>, supervisor: &Supervisor) -> bool {
    let event = violation.event;
    let is_disconnect =
        matches!(event, Event::CommandReceived { command: ClusterCommand::Disconnect(_), .. });
    let is_scaled = |action: &Action| matches!(action, Action::Log(LogEvent::Scaled { .. }));
    let is_used_up = matches!(event, Event::WorkerUsedUp { .. });
    let is_reduced = is_disconnect || is_used_up || violation.actions.iter().any(is_scaled);
    !supervisor.is_stopping() && *event != Event::Started && !is_reduced
}

fn is_kept_by_reloads(supervisor: &Supervisor, kind: &str) -> bool {
    supervisor.kinds.get(kind).is_some_and(|kind| kind.config.is_kept_by_reload)
}

fn check_drain(worker: WorkerId, supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
    let workers = &supervisor.workers;
    let slot = workers.get(worker).map(|record| record.tag.slot);
    let entry = supervisor.slots.iter().find(|entry| Some(entry.slot) == slot);
    let is_replaced = entry.is_none_or(|entry| entry.is_served(workers));
    let served = supervisor.slots.served_slot_count(workers) as usize;
    let max_unavailable = supervisor.config.max_unavailable as usize;
    let is_allowed = served + max_unavailable >= supervisor.slots.len();
    assert!(is_replaced || is_allowed, "a drained worker is replaced first: {violation}");
}

fn check_successors(supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
    let is_surplus = |entry: &&SlotEntry| entry.successor.is_some() && entry.holder.is_some();
    let surge = supervisor.config.surge.max(1) as usize;
    let surplus = supervisor.slots.iter().filter(is_surplus).count();
    assert!(surplus <= surge, "the surge is respected: {violation}");
    let successors: Vec<_> = supervisor.slots.iter().filter_map(|one| one.successor).collect();
    let is_stopping = supervisor.is_stopping();
    assert!(successors.is_empty() || !is_stopping, "a stop needs no successors: {violation}");
    for entry in supervisor.slots.iter() {
        let record = |worker: Option<WorkerId>| supervisor.workers.get(worker?);
        let pair = record(entry.holder).zip(record(entry.successor));
        let Some((holder, successor)) = pair else { continue };
        let is_same = holder.tag.generation == successor.tag.generation;
        let boots = matches!(holder.state, WorkerState::Forking | WorkerState::Booting { .. });
        assert!(!is_same || !boots, "a booting worker needs no successor: {violation}");
    }
    let is_single = successors.len() <= 1;
    assert!(!is_settled(supervisor) || is_single, "one worker is recycled at a time: {violation}");
    for successor in successors {
        let record = supervisor.workers.get(successor);
        let is_waiting = record.is_some_and(|record| !record.is_serving());
        assert!(is_waiting, "a successor that serves takes over: {violation}");
    }
}
