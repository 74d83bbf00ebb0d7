//! How one worker takes the place of another: when there is room for a successor, and who leaves when.

use std::time::Instant;

use super::action::{Action, Cause, Leave};
use super::places::Vacancy;
use super::{LAST_MOMENT, State, Supervisor};
use crate::identity::{Generation, WorkerId};

/// Where a successor may be forked.
pub(super) enum Room {
    /// Beside the worker that holds the slot, if any does.
    Beside,
    /// Only if that worker leaves first.
    Instead,
    None,
}

impl Supervisor {
    /// Where a successor for the slot may go now.
    pub(super) fn room(&self, slot: usize) -> Room {
        let unavailable = self.policy.max_unavailable as usize;
        // A reload must be able to go on somehow.
        let surge = (self.policy.surge as usize).max(usize::from(unavailable == 0));
        let succeeding = || self.places.iter().filter(|place| place.successor.is_some());
        let beside = succeeding().filter(|place| place.holder.is_some()).count();
        let missing = (0..self.places.len())
            .filter(|other| *other != slot)
            .filter(|other| !self.places[*other].holder.is_some_and(|id| self.serves(id)))
            .count();
        if succeeding().count() >= surge + unavailable {
            Room::None
        } else if self.places[slot].holder.is_none() || beside < surge {
            Room::Beside
        } else if missing < unavailable {
            Room::Instead
        } else {
            Room::None
        }
    }

    /// Whether the slot is held by a worker of `generation` that boots: it needs no successor.
    pub(super) fn is_coming(&self, slot: usize, generation: Generation) -> bool {
        let holder = self.places[slot].holder.and_then(|id| self.members.get(&id));
        holder.is_some_and(|holder| {
            let boots = matches!(holder.state, State::Forking | State::Booting { .. });
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
        let why = worn.map_or(Leave::Reload, Leave::Recycle);
        self.dismiss_holder(now, slot, why, actions);
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
        why: Leave,
        actions: &mut Vec<Action>,
    ) {
        let Some(worker) = self.places[slot].holder.take() else { return };
        let deadline = now + self.policy.graceful_timeout + LAST_MOMENT;
        let Some(member) = self.members.get_mut(&worker) else { return };
        match member.state {
            State::Serving => {
                member.state = State::Draining { deadline };
                member.leave = Some(why);
                actions.push(Action::Drain(worker));
            }
            State::Booting { .. } => self.kill(worker, Cause::Superseded, actions),
            // A fork that comes back now belongs to nobody: see `forked`.
            State::Forking | State::Draining { .. } | State::Leaving { .. } => {}
            State::Aborted { .. } | State::Killed { .. } => {}
        }
    }

    pub(super) fn is_successor(&self, worker: WorkerId) -> bool {
        self.places.iter().any(|place| place.successor == Some(worker))
    }

    pub(super) fn kill_successors(&mut self, actions: &mut Vec<Action>) {
        let successors: Vec<WorkerId> =
            self.places.iter_mut().filter_map(|place| place.successor.take()).collect();
        for worker in successors {
            self.kill(worker, Cause::Superseded, actions);
        }
    }
}
