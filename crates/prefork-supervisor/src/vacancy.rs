//! Workers that leave for good, and slots that stay empty: somebody disconnected the worker, or the application does not
//! want it replaced. A reload fills such a slot again, and so does whoever asks for a number of workers.

use std::time::Instant;

use super::action::{Action, Cause, Exit, Leave, Notice};
use super::event::{Asker, Environment};
use super::places::Vacancy;
use super::scaling::refuse;
use super::{LAST_MOMENT, Phase, Place, State, Supervisor};
use crate::identity::{Slot, WorkerId};

impl Supervisor {
    /// Whether the application is asked before a worker that ended unasked is replaced.
    pub fn ask_before_restarts(&mut self, asks: bool) {
        self.asks_restart = asks;
    }

    /// Somebody wants the worker to finish and leave for good.
    pub(super) fn disconnect(
        &mut self,
        now: Instant,
        worker: WorkerId,
        by: Asker,
        actions: &mut Vec<Action>,
    ) {
        if self.stopping() {
            return refuse(by, "the cluster is stopping".to_string(), actions);
        }
        let Some(member) = self.members.get(&worker) else {
            return refuse(by, format!("there is no worker {worker}"), actions);
        };
        let hears = matches!(member.state, State::Booting { .. } | State::Serving);
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
            State::Booting { .. } | State::Serving => {
                member.state = State::Draining { deadline };
                member.leave = Some(Leave::Disconnect);
                actions.push(Action::Report(Notice::Disconnecting { worker: member.tag }));
            }
            // A fork that comes back now belongs to nobody: see `forked`.
            State::Forking => {}
            // Whoever ends anyway keeps its slot or has lost it already.
            State::Draining { .. } | State::Leaving { .. } => return,
            State::Aborted { .. } | State::Killed { .. } => return,
        }
        if self.is_successor(worker) {
            let why = format!("worker={worker} was disconnected before it was ready");
            return self.successor_lost(now, worker, &why, false, actions);
        }
        let rolls = self.roll.is_some();
        let held = self.places.iter_mut().find(|place| place.holder == Some(worker));
        let Some(place) = held else { return };
        (place.holder, place.last, place.vacancy) = (None, None, Vacancy::Closed);
        // A reload goes on; what was to replace a worn worker alone is not wanted any more.
        if let Some(successor) = place.successor.take_if(|_| !rolls) {
            self.kill(successor, Cause::Superseded, actions);
        }
    }

    /// Asks whether the worker, which held its slot and ended unasked, is to be replaced.
    pub(super) fn ask_restart(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        if !self.asks_restart || self.stopping() {
            return;
        }
        let place = self.places.iter_mut().find(|place| place.slot == exit.worker.slot);
        if let Some(place) = place.filter(|place| place.holder.is_none()) {
            place.vacancy = Vacancy::Asked(exit.worker);
            actions.push(Action::AskRestart(exit));
        }
    }

    pub(super) fn restart_decided(
        &mut self,
        worker: WorkerId,
        restart: bool,
        actions: &mut Vec<Action>,
    ) {
        // The death that was asked about may have been the one that made the cluster give up.
        if self.phase == Phase::Done {
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
                actions.push(Action::Report(Notice::NotRestarted { worker: tag }));
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
        holders.filter(|id| self.serves(*id)).count() as u32
    }

    /// Variables of slots that have some of their own.
    pub(super) fn environments(&self) -> Vec<(Slot, Environment)> {
        let own = self.places.iter().filter(|place| !place.environment.is_empty());
        own.map(|place| (place.slot, place.environment.clone())).collect()
    }

    /// The worker's channel is closed, or it is gone, which is the same.
    pub(super) fn say_disconnected(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker)
            && member.state != State::Forking
            && !std::mem::replace(&mut member.disconnected, true)
        {
            actions.push(Action::Report(Notice::Disconnected { worker: member.tag }));
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
            None => actions.push(Action::Report(Notice::Replaced { worker: before, by })),
        }
    }
}
