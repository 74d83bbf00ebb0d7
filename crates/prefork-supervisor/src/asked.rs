//! What people ask for: each command decided once, whoever asks.

use std::time::{Duration, Instant};

use super::action::{Action, DrainReason, ExitCause, LogEvent, ShutdownReason};
use super::{ClusterPhase, LAST_MOMENT, Supervisor, WorkerState};
use crate::command::{ClusterCommand, Requester};
use crate::identity::{WEB_KIND, WorkerId};

/// Requests to stop that come closer together than this are one. `timeout` and some shells and init programs
/// signal a process and then its group.
const AGAIN: Duration = Duration::from_millis(100);

impl Supervisor {
    pub(super) fn asked(
        &mut self,
        now: Instant,
        command: ClusterCommand,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        match command {
            // A signal to the whole process group may reach us twice; a person's second one comes later.
            ClusterCommand::Stop
                if self.stop_began.is_some_and(|at| now.duration_since(at) < AGAIN) =>
            {
                by.confirm("stopping already".to_string(), actions);
            }
            ClusterCommand::Stop if self.is_stopping() => self.stop_now(by, true, actions),
            ClusterCommand::Stop if self.departure.is_some() => self.depart_early(now, by, actions),
            ClusterCommand::Stop => self.announce_stop(now, by, actions),
            ClusterCommand::StopNow => self.stop_now(by, false, actions),
            ClusterCommand::Reload
            | ClusterCommand::Scale(_)
            | ClusterCommand::Disconnect(_)
            | ClusterCommand::Upgrade { .. }
                if self.departure.is_some() =>
            {
                by.refuse_or_log("the cluster is stopping".to_string(), actions);
            }
            ClusterCommand::Reload => self.reload(by, actions),
            ClusterCommand::Scale(scale) => self.scale(now, scale, by, actions),
            ClusterCommand::ScaleKind(kind, scale) if kind == WEB_KIND => {
                self.scale(now, scale, by, actions)
            }
            ClusterCommand::ScaleKind(kind, scale) => {
                self.scale_kind(now, &kind, scale, by, actions)
            }
            ClusterCommand::Disconnect(worker) => self.disconnect(now, worker, by, actions),
            ClusterCommand::Upgrade { wait } => self.upgrade(now, wait, by, actions),
        }
    }

    /// Workers that serve drain; one that never was ready has nothing to finish and may not listen yet.
    pub(super) fn stop(&mut self, now: Instant, by: Requester, actions: &mut Vec<Action>) {
        self.phase = ClusterPhase::Stopping;
        self.departure = None;
        self.stop_began = Some(now);
        let workers = self.members.len();
        actions.push(Action::Log(LogEvent::Stopping { by: by.name.clone(), workers }));
        actions.push(Action::CloseListeners);
        by.confirm(format!("stopping: {workers} workers finish what is open"), actions);
        let deadline = now + self.policy.graceful_timeout + LAST_MOMENT;
        let ids: Vec<WorkerId> = self.members.keys().copied().collect();
        for id in ids {
            let Some(member) = self.members.get_mut(&id) else { continue };
            match member.state {
                WorkerState::Serving => {
                    member.state = WorkerState::Draining { deadline };
                    member.leave = Some(DrainReason::Stop);
                    actions.push(Action::Drain(id));
                }
                WorkerState::Booting { .. } => self.kill(id, ExitCause::KilledByStop, actions),
                WorkerState::Forking | WorkerState::Draining { .. } => {}
                WorkerState::Exiting { .. }
                | WorkerState::Aborted { .. }
                | WorkerState::Killed { .. } => {}
            }
        }
    }

    fn stop_now(&mut self, by: Requester, again: bool, actions: &mut Vec<Action>) {
        if matches!(self.phase, ClusterPhase::Killing(_) | ClusterPhase::Done) {
            return by.confirm("stopping already".to_string(), actions);
        }
        let workers = self.members.len();
        let who = if again { format!("{}, the second request", by.name) } else { by.name.clone() };
        actions.push(Action::Log(LogEvent::StoppingNow { by: who, workers }));
        by.confirm(format!("stopping now: {workers} workers are killed"), actions);
        self.end(ShutdownReason::StopRequested, actions);
    }

    /// Kills everybody; `finish` exits when the last one is reaped.
    pub(super) fn end(&mut self, result: ShutdownReason, actions: &mut Vec<Action>) {
        self.phase = ClusterPhase::Killing(result);
        self.departure = None;
        let ids: Vec<WorkerId> = self.members.keys().copied().collect();
        for id in ids {
            self.kill(id, ExitCause::KilledByStop, actions);
        }
    }
}
