//! Invariants of the listening sockets: connections are refused only while no `web` worker could ever take them.

use super::InvariantViolation;
use crate::empty_cluster::ListenState;
use crate::supervisor::Supervisor;
use crate::{Action, LogEvent};

/// What the actions so far have done to the sockets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sockets {
    #[default]
    Accepting,
    Held,
    Refusing,
}

#[derive(Debug, Default)]
pub(super) struct ListeningChecker {
    sockets: Sockets,
    /// Whether `Empty` was logged since the sockets accepted last.
    is_announced: bool,
}

impl ListeningChecker {
    pub(super) fn check_listening_invariants(
        &mut self,
        supervisor: &Supervisor,
        actions: &[Action],
        violation: &InvariantViolation<'_>,
    ) {
        for action in actions {
            self.check_action(action, supervisor, violation);
        }
        if supervisor.is_stop_requested() {
            return;
        }
        let has_workers = has_web_workers(supervisor);
        let state = supervisor.listen_state;
        assert_eq!(
            supervisor.is_left_empty(),
            state != ListenState::Listening,
            "the state follows the slots: {violation}"
        );
        assert_eq!(
            self.sockets == Sockets::Accepting,
            state == ListenState::Listening,
            "the sockets follow the state: {violation}"
        );
        // Without workers, an event is pending or connections are refused: no client waits for ever.
        let waits_for_workers = state == ListenState::Holding;
        assert!(has_workers || !waits_for_workers, "an empty cluster goes on: {violation}");
    }

    fn check_action(
        &mut self,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        let needs_sockets = match action {
            Action::Fork(tag) => tag.slot.is_web(),
            Action::OpenSockets { .. } | Action::ReadConfig(_) | Action::StartUpgradeCheck => true,
            Action::HoldConnections => {
                assert_eq!(self.sockets, Sockets::Accepting, "held once: {violation}");
                (self.sockets, self.is_announced) = (Sockets::Held, false);
                false
            }
            Action::Log(LogEvent::Empty) => {
                assert!(!has_web_workers(supervisor), "no worker is left: {violation}");
                assert_eq!(self.sockets, Sockets::Held, "held before: {violation}");
                assert!(!std::mem::replace(&mut self.is_announced, true), "once: {violation}");
                false
            }
            Action::RefuseConnections => {
                assert!(self.is_announced, "the application was told before: {violation}");
                assert_eq!(self.sockets, Sockets::Held, "refused once: {violation}");
                let is_needed = has_web_workers(supervisor) || supervisor.is_stop_requested();
                assert!(!is_needed, "no worker could take a connection: {violation}");
                self.sockets = Sockets::Refusing;
                false
            }
            Action::ResumeListening => {
                assert_ne!(self.sockets, Sockets::Accepting, "resumed once: {violation}");
                self.sockets = Sockets::Accepting;
                false
            }
            _ => false,
        };
        let is_accepting = self.sockets == Sockets::Accepting;
        assert!(is_accepting || !needs_sockets, "sockets accept before {action:?}: {violation}");
    }
}

fn has_web_workers(supervisor: &Supervisor) -> bool {
    supervisor.workers.iter().any(|record| record.tag.slot.is_web())
}
