//! Workers that leave for good, and slots that stay empty: somebody disconnected the worker, or the application does not
//! want it replaced. A reload fills such a slot again, and so does whoever asks for a number of workers.

use std::time::Instant;

use super::action::{Action, DrainReason, ExitCause, ExitReport, LogEvent};
use super::places::Vacancy;
use super::{ClusterPhase, LAST_MOMENT, Place, Supervisor, WorkerState};
use crate::command::{Requester, WorkerEnvironment};
use crate::identity::{Slot, WorkerId};

impl Supervisor {
    /// Whether the application is asked before a worker that ended unasked is replaced.
    pub fn set_confirm_restarts(&mut self, asks: bool) {
        self.asks_restart = asks;
    }

    /// Somebody wants the worker to finish and leave for good.
    pub(super) fn disconnect(
        &mut self,
        now: Instant,
        worker: WorkerId,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        if self.is_stopping() {
            return by.refuse_or_log("the cluster is stopping".to_string(), actions);
        }
        let Some(member) = self.members.get(&worker) else {
            return by.refuse_or_log(format!("there is no worker {worker}"), actions);
        };
        let hears = matches!(member.state, WorkerState::Booting { .. } | WorkerState::Serving);
        self.leave_for_good(now, worker, actions);
        if hears {
            actions.push(Action::Drain(worker));
        }
        by.confirm(format!("worker {worker} finishes what is open and leaves"), actions);
    }

    /// The worker is draining already, and wants nobody in its place.
    pub(super) fn disconnecting(
        &mut self,
        now: Instant,
        worker: WorkerId,
        actions: &mut Vec<Action>,
    ) {
        self.leave_for_good(now, worker, actions);
    }

    fn leave_for_good(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let deadline = now + self.policy.graceful_timeout + LAST_MOMENT;
        let Some(member) = self.members.get_mut(&worker) else { return };
        match member.state {
            WorkerState::Booting { .. } | WorkerState::Serving => {
                member.state = WorkerState::Draining { deadline };
                member.leave = Some(DrainReason::Disconnect);
                actions.push(Action::Log(LogEvent::Disconnecting { worker: member.tag }));
            }
            // A fork that comes back now belongs to nobody: see `forked`.
            WorkerState::Forking => {}
            // Whoever ends anyway keeps its slot or has lost it already.
            WorkerState::Draining { .. } | WorkerState::Exiting { .. } => return,
            WorkerState::Aborted { .. } | WorkerState::Killed { .. } => return,
        }
        if self.is_successor(worker) {
            let reason = format!("worker={worker} was disconnected before it was ready");
            return self.successor_lost(now, worker, &reason, false, actions);
        }
        let rolls = self.roll.is_some();
        let held = self.places.iter_mut().find(|place| place.holder == Some(worker));
        let Some(place) = held else { return };
        (place.holder, place.last, place.vacancy) = (None, None, Vacancy::Closed);
        // A reload goes on; what was to replace a worn worker alone is not wanted any more.
        if let Some(successor) = place.successor.take_if(|_| !rolls) {
            self.kill(successor, ExitCause::Superseded, actions);
        }
    }

    /// Asks whether the worker, which held its slot and ended unasked, is to be replaced.
    pub(super) fn ask_restart(&mut self, exit: ExitReport, actions: &mut Vec<Action>) {
        if !self.asks_restart || self.is_stopping() {
            return;
        }
        let place = self.places.iter_mut().find(|place| place.slot == exit.worker.slot);
        if let Some(place) = place.filter(|place| place.holder.is_none()) {
            place.vacancy = Vacancy::Asked(exit.worker);
            actions.push(Action::ConfirmRestart(exit));
        }
    }

    pub(super) fn restart_decided(
        &mut self,
        worker: WorkerId,
        restart: bool,
        actions: &mut Vec<Action>,
    ) {
        // The death that was asked about may have been the one that made the cluster give up.
        if self.phase == ClusterPhase::Done {
            return;
        }
        for place in &mut self.places {
            let Vacancy::Asked(tag) = place.vacancy else { continue };
            if tag.id != worker {
                continue;
            }
            place.vacancy = if restart { Vacancy::None } else { Vacancy::Closed };
            if !restart {
                place.last = None;
                actions.push(Action::Log(LogEvent::NotRestarted { worker: tag }));
            }
        }
    }

    /// Slots of this kind that stay empty are to be filled again.
    pub(super) fn reopen(&mut self, kind: &str) {
        for place in &mut self.places {
            if place.vacancy == Vacancy::Closed && place.kind == kind {
                place.vacancy = Vacancy::None;
            }
        }
    }

    /// Slots that stay empty for now.
    pub fn vacant(&self) -> Vec<Slot> {
        let empty = |p: &&Place| p.vacancy == Vacancy::Closed && p.holder.is_none();
        self.places.iter().filter(empty).map(|place| place.slot).collect()
    }

    /// How many slots are served.
    pub(super) fn serving(&self) -> u32 {
        let holders = self.places.iter().filter_map(|place| place.holder);
        holders.filter(|id| self.is_serving(*id)).count() as u32
    }

    /// Variables of slots that have some of their own.
    pub(super) fn environments(&self) -> Vec<(Slot, WorkerEnvironment)> {
        let own = self.places.iter().filter(|place| !place.environment.is_empty());
        own.map(|place| (place.slot, place.environment.clone())).collect()
    }

    /// The worker's channel is closed, or it is gone, which is the same.
    pub(super) fn say_disconnected(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.state != WorkerState::Forking
            && !std::mem::replace(&mut member.disconnected, true)
        {
            actions.push(Action::Log(LogEvent::Disconnected { worker: member.tag }));
        }
    }

    /// The worker is ready in its slot. Says whom it replaces, now or when that one is gone.
    pub(super) fn note_successor(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(place) = self.places.iter_mut().find(|place| place.holder == Some(worker)) else {
            return;
        };
        let Some(before) = place.last.replace(worker) else { return };
        let Some(by) = self.members.get(&worker).map(|member| member.tag) else { return };
        match self.members.get_mut(&before) {
            Some(leaving) => leaving.replaced_by = Some(by),
            None => actions.push(Action::Log(LogEvent::Replaced { worker: before, by })),
        }
    }
}
