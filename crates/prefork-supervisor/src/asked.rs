//! What people ask for: each intent decided once, whoever asks.

use std::time::{Duration, Instant};

use super::action::{Action, Cause, Leave, Notice, Outcome};
use super::event::{Asker, Intent};
use super::scaling::refuse;
use super::{LAST_MOMENT, Phase, State, Supervisor};
use crate::identity::{WEB, WorkerId};

/// Requests to stop that come closer together than this are one. `timeout` and some shells and init programs
/// signal a process and then its group.
const AGAIN: Duration = Duration::from_millis(100);

impl Supervisor {
    pub(super) fn asked(
        &mut self,
        now: Instant,
        intent: Intent,
        by: Asker,
        actions: &mut Vec<Action>,
    ) {
        match intent {
            // A signal to the whole process group may reach us twice; a person's second one comes later.
            Intent::Stop if self.stop_began.is_some_and(|at| now.duration_since(at) < AGAIN) => {
                by.confirm("stopping already".to_string(), actions);
            }
            Intent::Stop if self.stopping() => self.stop_now(by, true, actions),
            Intent::Stop if self.departure.is_some() => self.depart_early(now, by, actions),
            Intent::Stop => self.announce_stop(now, by, actions),
            Intent::StopNow => self.stop_now(by, false, actions),
            Intent::Reload | Intent::Scale(_) | Intent::Disconnect(_) | Intent::Upgrade { .. }
                if self.departure.is_some() =>
            {
                refuse(by, "the cluster is stopping".to_string(), actions);
            }
            Intent::Reload => self.reload(by, actions),
            Intent::Scale(scale) => self.scale(now, scale, by, actions),
            Intent::ScaleKind(kind, scale) if kind == WEB => self.scale(now, scale, by, actions),
            Intent::ScaleKind(kind, scale) => self.scale_kind(now, &kind, scale, by, actions),
            Intent::Disconnect(worker) => self.disconnect(now, worker, by, actions),
            Intent::Upgrade { wait } => self.upgrade(now, wait, by, actions),
        }
    }

    /// Workers that serve drain; one that never was ready has nothing to finish and may not listen yet.
    pub(super) fn stop(&mut self, now: Instant, by: Asker, actions: &mut Vec<Action>) {
        self.phase = Phase::Stopping;
        self.departure = None;
        self.stop_began = Some(now);
        let workers = self.members.len();
        actions.push(Action::Report(Notice::Stopping { by: by.who.clone(), workers }));
        actions.push(Action::CloseListeners);
        by.confirm(format!("stopping: {workers} workers finish what is open"), actions);
        let deadline = now + self.policy.graceful_timeout + LAST_MOMENT;
        let ids: Vec<WorkerId> = self.members.keys().copied().collect();
        for id in ids {
            let Some(member) = self.members.get_mut(&id) else { continue };
            match member.state {
                State::Serving => {
                    member.state = State::Draining { deadline };
                    member.leave = Some(Leave::Stop);
                    actions.push(Action::Drain(id));
                }
                State::Booting { .. } => self.kill(id, Cause::Stopped, actions),
                State::Forking | State::Draining { .. } => {}
                State::Leaving { .. } | State::Aborted { .. } | State::Killed { .. } => {}
            }
        }
    }

    fn stop_now(&mut self, by: Asker, again: bool, actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Ending(_) | Phase::Done) {
            return by.confirm("stopping already".to_string(), actions);
        }
        let workers = self.members.len();
        let who = if again { format!("{}, the second request", by.who) } else { by.who.clone() };
        actions.push(Action::Report(Notice::StoppingNow { by: who, workers }));
        by.confirm(format!("stopping now: {workers} workers are killed"), actions);
        self.end(Outcome::Stopped, actions);
    }

    /// Kills everybody; `finish` exits when the last one is reaped.
    pub(super) fn end(&mut self, outcome: Outcome, actions: &mut Vec<Action>) {
        self.phase = Phase::Ending(outcome);
        self.departure = None;
        let ids: Vec<WorkerId> = self.members.keys().copied().collect();
        for id in ids {
            self.kill(id, Cause::Stopped, actions);
        }
    }
}

impl Asker {
    /// Tells those who wait that it is done.
    pub(super) fn confirm(self, what: String, actions: &mut Vec<Action>) {
        if let Some(ticket) = self.ticket {
            actions.push(Action::Answer { ticket, outcome: Ok(what) });
        }
    }

    /// Tells those who wait that it is not, and why.
    pub(super) fn refuse(self, why: impl Into<String>, actions: &mut Vec<Action>) {
        if let Some(ticket) = self.ticket {
            actions.push(Action::Answer { ticket, outcome: Err(why.into()) });
        }
    }
}
