//! Invariants of the log: the events of each worker come in order, and once. `ClusterEvent` promises it.

use std::collections::{BTreeMap, BTreeSet};

use super::InvariantViolation;
use crate::worker_identity::WorkerId;
use crate::{Action, Event, LogEvent};

/// Which events of one worker were logged.
#[derive(Debug, Clone, Copy, Default)]
struct LoggedEvents {
    forked: bool,
    online: bool,
    ready: bool,
    disconnected: bool,
    exited: bool,
    replaced: bool,
}

#[derive(Debug, Default)]
pub(super) struct LogOrderChecker {
    logged: BTreeMap<WorkerId, LoggedEvents>,
}

impl LogOrderChecker {
    pub(super) fn check_log_order_invariants(
        &mut self,
        event: &Event,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        for action in actions {
            match action {
                Action::Log(event) => self.check_log_event(event, violation),
                Action::ConfirmRestart(report) => {
                    let is_exited = self.logged_events_of(report.worker.id).exited;
                    assert!(is_exited, "only exited workers are asked about: {violation}");
                }
                _ => {}
            }
        }
        match event {
            Event::Forked { worker, .. } => {
                let exists = violation.supervisor.workers.get(*worker).is_some();
                assert!(
                    self.logged_events_of(*worker).forked || !exists,
                    "forks are logged: {violation}"
                );
            }
            Event::Exited { worker, .. } => {
                let logged = self.logged_events_of(*worker);
                assert!(!logged.forked || logged.exited, "exits are logged: {violation}");
            }
            _ => {}
        }
        if actions.iter().any(|action| matches!(action, Action::Exit(_))) {
            let is_open = self.logged.values().any(|logged| logged.forked && !logged.exited);
            assert!(!is_open, "the exit of every worker was logged: {violation}");
        }
    }

    fn logged_events_of(&self, worker: WorkerId) -> LoggedEvents {
        self.logged.get(&worker).copied().unwrap_or_default()
    }

    fn check_log_event(&mut self, event: &LogEvent, violation: &InvariantViolation<'_>) {
        let worker = match event {
            LogEvent::Forked { worker }
            | LogEvent::Online { worker }
            | LogEvent::Ready { worker, .. }
            | LogEvent::Disconnected { worker } => worker.id,
            LogEvent::Exited(report) => report.worker.id,
            LogEvent::Replaced { worker, by } => {
                assert!(
                    self.logged_events_of(by.id).ready,
                    "replaced by a ready worker: {violation}"
                );
                *worker
            }
            _ => return,
        };
        let logged = self.logged.entry(worker).or_default();
        let (is_in_order, flag) = match event {
            LogEvent::Forked { .. } => (true, &mut logged.forked),
            LogEvent::Online { .. } => (logged.forked && !logged.disconnected, &mut logged.online),
            LogEvent::Ready { .. } => (logged.online && !logged.disconnected, &mut logged.ready),
            LogEvent::Disconnected { .. } => {
                (logged.forked && !logged.exited, &mut logged.disconnected)
            }
            LogEvent::Exited(_) => (logged.disconnected, &mut logged.exited),
            _ => (logged.exited && logged.ready, &mut logged.replaced),
        };
        assert!(is_in_order, "a worker's events are logged in order: {violation}");
        assert!(!std::mem::replace(flag, true), "each event is logged once: {violation}");
    }

    /// Records that the old binary has logged the first events of the running workers.
    pub(super) fn continue_after_upgrade(&mut self, alive: &BTreeSet<WorkerId>) {
        for worker in alive {
            let logged = self.logged.entry(*worker).or_default();
            (logged.forked, logged.online, logged.ready) = (true, true, true);
            logged.disconnected = false;
        }
    }
}
