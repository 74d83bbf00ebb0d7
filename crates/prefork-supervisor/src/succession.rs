//! How one worker takes the place of another: when there is room for a successor, and who leaves when.

use std::time::Instant;

use super::action::{Action, DrainReason, ExitCause};
use super::places::Vacancy;
use super::{LAST_MOMENT, Supervisor, WorkerState};
use crate::identity::{Generation, WorkerId};

/// Where a successor may be forked.
pub(super) enum Room {
    /// Beside the worker that holds the slot, if any does.
    Beside,
    /// Only if that worker leaves first.
    Instead,
    None,
}

/// How much of what a reload may use at a time is in use. Counted once for all slots, and kept up to date by whoever forks.
#[derive(Debug)]
pub(super) struct Rooms {
    surge: usize,
    unavailable: usize,
    /// Successors that are under way.
    succeeding: usize,
    /// Those of them that boot beside a holder.
    beside: usize,
    /// Slots whose holder does not serve, or that have none.
    missing: usize,
}

impl Rooms {
    /// Whether no slot at all can get a successor now.
    pub(super) fn are_taken(&self) -> bool {
        self.succeeding >= self.surge + self.unavailable
    }

    /// Where the successor of a slot may go now.
    pub(super) fn room(&self, is_held: bool, is_served: bool) -> Room {
        // The slot itself does not count: it is about to be replaced.
        let missing = self.missing - usize::from(!is_served);
        if self.are_taken() {
            Room::None
        } else if !is_held || self.beside < self.surge {
            Room::Beside
        } else if missing < self.unavailable {
            Room::Instead
        } else {
            Room::None
        }
    }

    /// Counts a successor that is forked for a slot, which somebody holds or nobody does.
    pub(super) fn take_beside(&mut self, is_held: bool) {
        self.succeeding += 1;
        self.beside += usize::from(is_held);
    }

    /// Counts a successor that is forked in place of the holder, which is told to leave.
    pub(super) fn take_instead(&mut self, is_served: bool) {
        self.succeeding += 1;
        self.missing += usize::from(is_served);
    }
}

impl Supervisor {
    /// How many successors a reload may have under way beside holders, and how many slots it may leave without a worker.
    fn surge_and_unavailable(&self) -> (usize, usize) {
        let unavailable = self.policy.max_unavailable as usize;
        // A reload must be able to go on somehow.
        ((self.policy.surge as usize).max(usize::from(unavailable == 0)), unavailable)
    }

    /// Whether as many successors are under way as there may be. A reload asks this after each event, most of which leave
    /// it as it is: the answer takes no look at the members.
    pub(super) fn successors_reach_limit(&self) -> bool {
        let (surge, unavailable) = self.surge_and_unavailable();
        let successors = self.places.iter().filter(|place| place.successor.is_some());
        successors.take(surge + unavailable).count() == surge + unavailable
    }

    /// Counts what is in use now.
    pub(super) fn rooms(&self) -> Rooms {
        let (surge, unavailable) = self.surge_and_unavailable();
        let mut rooms = Rooms { surge, unavailable, succeeding: 0, beside: 0, missing: 0 };
        for place in &self.places {
            if place.successor.is_some() {
                rooms.take_beside(place.holder.is_some());
            }
            rooms.missing += usize::from(!place.holder.is_some_and(|id| self.is_serving(id)));
        }
        rooms
    }

    /// Whether the slot is held by a worker of `generation` that boots: it needs no successor.
    pub(super) fn is_coming(&self, slot: usize, generation: Generation) -> bool {
        let holder = self.places[slot].holder.and_then(|id| self.members.get(&id));
        holder.is_some_and(|holder| {
            let boots = matches!(holder.state, WorkerState::Forking | WorkerState::Booting { .. });
            boots && holder.tag.generation == generation
        })
    }

    /// A worker is ready: if it was to succeed another, it does.
    pub(super) fn succeed(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(slot) = self.places.iter().position(|p| p.successor == Some(worker)) else {
            return;
        };
        let holder = self.places[slot].holder.and_then(|id| self.members.get(&id));
        let worn = holder.filter(|_| self.roll.is_none()).and_then(|holder| holder.worn);
        let reason = worn.map_or(DrainReason::Reload, DrainReason::Recycle);
        self.dismiss_holder(now, slot, reason, actions);
        let generation = self.members.get(&worker).map_or(self.generation, |m| m.tag.generation);
        let place = &mut self.places[slot];
        place.successor = None;
        place.vacancy = Vacancy::None;
        place.holder = Some(worker);
        place.generation = generation;
    }

    /// Tells the worker that holds the slot to leave.
    pub(super) fn dismiss_holder(
        &mut self,
        now: Instant,
        slot: usize,
        reason: DrainReason,
        actions: &mut Vec<Action>,
    ) {
        let Some(worker) = self.places[slot].holder.take() else { return };
        let deadline = now + self.policy.graceful_timeout + LAST_MOMENT;
        let Some(member) = self.members.get_mut(&worker) else { return };
        match member.state {
            WorkerState::Serving => {
                member.state = WorkerState::Draining { deadline };
                member.leave = Some(reason);
                actions.push(Action::Drain(worker));
            }
            WorkerState::Booting { .. } => self.kill(worker, ExitCause::Superseded, actions),
            // A fork that comes back now belongs to nobody: see `forked`.
            WorkerState::Forking | WorkerState::Draining { .. } | WorkerState::Exiting { .. } => {}
            WorkerState::Aborted { .. } | WorkerState::Killed { .. } => {}
        }
    }

    pub(super) fn is_successor(&self, worker: WorkerId) -> bool {
        self.places.iter().any(|place| place.successor == Some(worker))
    }

    pub(super) fn kill_successors(&mut self, actions: &mut Vec<Action>) {
        let successors: Vec<WorkerId> =
            self.places.iter_mut().filter_map(|place| place.successor.take()).collect();
        for worker in successors {
            self.kill(worker, ExitCause::Superseded, actions);
        }
    }
}
