//! Invariants of kinds whose number of workers follows the demand, and of workers that are used up.

use super::InvariantViolation;
use crate::supervisor::Supervisor;
use crate::{Action, Event};

/// Checks that each question has its answer at once, and that the number of workers stays within its range.
pub(super) fn check_demand_invariants(
    supervisor: &Supervisor,
    event: &Event,
    actions: &[Action],
    violation: &InvariantViolation<'_>,
) {
    let count = |wanted: &Action| actions.iter().filter(|action| *action == wanted).count();
    match event {
        Event::WorkerIdle { worker } => {
            let answers = count(&Action::KeepIdleWorker(*worker)) + count(&Action::Drain(*worker));
            assert_eq!(answers, 1, "an idle worker is kept or drained: {violation}");
        }
        Event::WorkerUsedUp { worker, .. } => {
            assert!(!supervisor.is_serving(*worker), "a used up worker gets no job: {violation}");
            let is_killed = count(&Action::Kill(*worker)) > 0;
            assert!(!is_killed, "a used up worker ends by itself: {violation}");
        }
        _ => {
            let is_kept = |action: &Action| matches!(action, Action::KeepIdleWorker(_));
            assert!(!actions.iter().any(is_kept), "only a question is answered: {violation}");
        }
    }
    // The new binary of an upgrade may declare another range, which holds from the end of its rollout.
    if supervisor.reload.is_reloading() {
        return;
    }
    for (kind, range) in supervisor.view().demand_ranges {
        let wanted = supervisor.wanted_of_kind(kind);
        let is_within = wanted.is_some_and(|wanted| range.contains(wanted));
        assert!(is_within, "{kind}: {wanted:?} is not in {range:?}: {violation}");
    }
}
