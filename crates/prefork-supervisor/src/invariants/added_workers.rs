//! Invariant of workers that the program adds: each id that it got has one outcome, a fork or a refusal.

use std::collections::BTreeSet;

use super::InvariantViolation;
use crate::worker_identity::WorkerId;
use crate::{Action, ClusterCommand, Event, LogEvent, RefusedCommand, SavedState, ScaleChange};

/// The ids of added workers whose outcome was not reported yet.
#[derive(Debug, Default)]
pub(super) struct AddedWorkerChecker {
    pending: BTreeSet<WorkerId>,
}

impl AddedWorkerChecker {
    pub(super) fn check_added_worker_invariants(
        &mut self,
        event: &Event,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        if let Event::CommandReceived { command, by } = event
            && let ClusterCommand::Scale(change) | ClusterCommand::ScaleKind(_, change) = command
            && let ScaleChange::AddWorker(worker, _) = change
            && by.reply_id.is_none()
        {
            self.pending.insert(*worker);
        }
        for action in actions {
            match action {
                Action::Log(LogEvent::Forked { worker } | LogEvent::ForkFailed { worker, .. }) => {
                    self.pending.remove(&worker.id);
                }
                Action::Log(LogEvent::CommandRefused {
                    command: RefusedCommand::Fork(worker),
                    ..
                }) => {
                    assert!(self.pending.remove(worker), "a fork has one outcome: {violation}");
                }
                Action::Exit(_) => {
                    assert!(self.pending.is_empty(), "{self:?} have no outcome: {violation}");
                }
                _ => {}
            }
        }
    }

    /// The new binary continues with the workers that were not forked yet. Others were forked during the exec.
    pub(super) fn continue_after_upgrade(&mut self, saved: &SavedState) {
        let reserved = saved.forked_slots.iter().filter_map(|slot| slot.reserved_id);
        let reserved: BTreeSet<WorkerId> = reserved.collect();
        self.pending.retain(|worker| reserved.contains(worker));
        assert_eq!(self.pending, reserved, "reserved ids have no outcome yet: {saved:?}");
    }
}
