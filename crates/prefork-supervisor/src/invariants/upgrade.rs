//! Invariants of upgrades: a failed one changes nothing, and no worker is lost on the way to the new binary.

use std::time::{Duration, Instant};

use super::InvariantViolation;
use crate::supervisor::{ClusterPhase, DRAIN_KILL_MARGIN, Supervisor};
use crate::worker_identity::{Generation, WorkerId, WorkerTag};
use crate::worker_table::WorkerState;
use crate::{Action, Event, SavedState, SavedWorker, SupervisorConfig};

/// Upper bound of the time that an upgrade check may take in addition to the boot timeout.
const UPGRADE_CHECK_MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct UpgradeChecker {
    /// The deadline of the current upgrade check.
    check_deadline: Option<Instant>,
    has_passed: bool,
    is_executing: bool,
    /// Workers to which the new binary has to send a drain, because the old one may not have.
    undrained: Vec<WorkerId>,
}

/// State that a failed upgrade must not change.
#[derive(Debug, PartialEq)]
pub(super) struct ClusterSetup {
    holders: Vec<Option<WorkerId>>,
    slot_generations: Vec<Generation>,
    generation: Generation,
    config: SupervisorConfig,
    phase: ClusterPhase,
    is_reloading: bool,
}

impl ClusterSetup {
    pub(super) fn capture_state(supervisor: &Supervisor) -> ClusterSetup {
        ClusterSetup {
            holders: supervisor.slots.iter().map(|entry| entry.holder).collect(),
            slot_generations: supervisor.slots.iter().map(|entry| entry.generation).collect(),
            generation: supervisor.reload.generation(),
            config: supervisor.config.clone(),
            phase: supervisor.phase,
            is_reloading: supervisor.reload.is_reloading(),
        }
    }

    /// Returns whether `after` is the same, except for empty slots, which may be filled at any time.
    fn is_same_setup(&self, mut after: ClusterSetup) -> bool {
        for (holder, before) in after.holders.iter_mut().zip(&self.holders) {
            *holder = holder.filter(|_| before.is_some());
        }
        *self == after
    }
}

impl UpgradeChecker {
    pub(super) fn check_upgrade_invariants(
        &mut self,
        now: Instant,
        supervisor: &Supervisor,
        event: &Event,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        match event {
            Event::UpgradeCheckPassed => self.has_passed = self.check_deadline.is_some(),
            Event::UpgradeFailed { .. } => {
                *self = UpgradeChecker::default();
                let is_kept =
                    violation.before.setup.is_same_setup(ClusterSetup::capture_state(supervisor));
                assert!(is_kept, "a failed upgrade changes nothing: {violation}");
            }
            _ => {}
        }
        for worker in std::mem::take(&mut self.undrained) {
            let is_told = actions.contains(&Action::Drain(worker));
            assert!(is_told, "the new binary repeats drains at its start: {violation}");
        }
        for action in actions {
            self.check_upgrade_action(now, action, supervisor, violation);
        }
        let is_under_way = self.check_deadline.is_some();
        assert_eq!(supervisor.upgrade.is_upgrading(), is_under_way, "upgrades: {violation}");
        let is_stopping = supervisor.is_stopping();
        assert!(!is_under_way || !is_stopping, "a stop ends an upgrade: {violation}");
        let is_reloading = supervisor.reload.is_reloading();
        assert!(!is_under_way || !is_reloading, "no reload during an upgrade: {violation}");
        assert!(!self.has_passed || self.is_executing, "a passed check is executed: {violation}");
        if let Some(limit) = self.check_deadline.filter(|_| !self.has_passed) {
            let ends = supervisor.next_deadline().is_some_and(|deadline| deadline <= limit);
            assert!(ends, "a check ends in time: {violation}");
        }
    }

    fn check_upgrade_action(
        &mut self,
        now: Instant,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        match action {
            Action::StartUpgradeCheck => {
                assert!(self.check_deadline.is_none(), "one check at a time: {violation}");
                let is_running = supervisor.phase == ClusterPhase::Running;
                assert!(is_running, "only a running cluster is upgraded: {violation}");
                self.check_deadline =
                    Some(now + supervisor.config.boot_timeout + UPGRADE_CHECK_MARGIN);
            }
            Action::StopUpgradeCheck => {
                assert!(self.check_deadline.is_some(), "only a check is stopped: {violation}");
                *self = UpgradeChecker::default();
            }
            Action::ExecNewBinary => {
                assert!(self.has_passed, "only a checked binary is executed: {violation}");
                assert!(!self.is_executing, "the binary is executed once: {violation}");
                assert!(!supervisor.is_stopping(), "no exec during a stop: {violation}");
                self.is_executing = true;
            }
            _ => {}
        }
    }

    /// Checks that the new binary continues with all workers and counters.
    pub(super) fn continue_after_upgrade(
        &mut self,
        supervisor: &Supervisor,
        saved: &SavedState,
        now: Instant,
    ) {
        assert!(self.is_executing, "only an exec starts a new binary: {supervisor:#?}");
        *self = UpgradeChecker::default();
        // The new binary may have fewer workers of another kind than `web`, or none.
        let has_slot = |tag: &WorkerTag| {
            supervisor.slots.iter().any(|one| (one.slot, one.kind) == (tag.slot, tag.kind))
        };
        let drains = |one: &SavedWorker| !one.is_serving || !has_slot(&one.tag);
        let draining = saved.workers.iter().filter(|one| drains(one));
        self.undrained = draining.map(|one| one.tag.id).collect();
        let (ids, reload) = (supervisor.workers.next_worker_id(), &supervisor.reload);
        let has_grown = ids >= saved.next_id && reload.last_generation() > saved.generation;
        assert!(has_grown, "ids and generations only grow: {saved:?}, {supervisor:#?}");
        let has_counted = supervisor.restart_count() >= saved.restart_count;
        assert!(has_counted, "counters only grow: {saved:?}, {supervisor:#?}");
        let wanted = supervisor.wanted_workers();
        assert_eq!(wanted, saved.wanted_workers, "the rollout ends before workers are scaled");
        for one in &saved.workers {
            let state = supervisor.workers.get(one.tag.id).map(|record| record.state);
            let is_holder = supervisor.slots.index_of_holder(one.tag.id).is_some();
            let limit = now + supervisor.config.graceful_timeout + DRAIN_KILL_MARGIN;
            let is_kept = match state {
                Some(WorkerState::Serving) => is_holder && !drains(one),
                Some(WorkerState::Draining { deadline }) => {
                    !is_holder && drains(one) && deadline <= limit
                }
                _ => false,
            };
            assert!(is_kept, "no worker is lost: {one:?}, {supervisor:#?}");
        }
    }
}
