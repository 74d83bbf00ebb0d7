//! Replacing workers that serve by others that are proved first: reloads, and single replacements.
//!
//! A *successor* is forked beside the worker that holds a slot and takes the slot over when it is ready; only
//! then is its predecessor told to leave. So what fails leaves things as they were.
//!
//! A reload asks for the configuration, then succeeds slot by slot, a few at a time, to the new generation. If
//! any successor fails, those under way are killed, and slots that were already taken over are rolled back to
//! the old generation in the same manner. Reloads asked for meanwhile are served by one more, afterwards.

use std::time::Instant;

use super::action::{Action, DrainReason, LogEvent};
use super::places::Vacancy;
use super::succession::Room;
use super::{Place, Supervisor, WorkerState};
use crate::command::Requester;
use crate::config::SupervisorConfig;
use crate::identity::{Generation, WEB_KIND, WorkerId};

/// Kills from outside that a reload puts up with.
const FORGIVEN_KILLS: u32 = 3;

/// A reload under way.
#[derive(Debug)]
pub(super) enum Roll {
    /// The configuration is being read.
    Reading { askers: Vec<Requester> },
    /// Slots are being taken over by workers of `target`.
    Rolling { target: Generation, workers: u32, before: Box<Before>, askers: Vec<Requester> },
    /// The slots that had been taken over go back to the generation of before.
    Back { reason: String, askers: Vec<Requester> },
}

/// What a reload that fails goes back to.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) policy: SupervisorConfig,
    pub(super) generation: Generation,
}

impl Before {
    /// Whether the roll to `target` is that of a new image over the workers of the one before it, to which nothing goes
    /// back.
    fn is_upgrade_to(&self, target: Generation) -> bool {
        self.generation == target
    }
}

impl Supervisor {
    /// The generation that all workers should be of.
    pub fn wanted_generation(&self) -> Generation {
        match &self.roll {
            Some(Roll::Rolling { target, .. }) => *target,
            Some(Roll::Reading { .. } | Roll::Back { .. }) | None => self.generation,
        }
    }

    pub(super) fn reload(&mut self, by: Requester, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return by.refuse("the cluster is stopping", actions);
        }
        if self.handoff.is_some() {
            return by.refuse("an upgrade is under way, which replaces all workers", actions);
        }
        if self.roll.is_some() {
            // Those who do not wait are served by the same one more.
            if by.reply_id.is_some() || self.waiting.is_empty() {
                self.waiting.push(by);
            }
            return;
        }
        actions.push(Action::Log(LogEvent::Reloading { by: by.name.clone() }));
        self.begin_reload(vec![by], actions);
    }

    fn begin_reload(&mut self, askers: Vec<Requester>, actions: &mut Vec<Action>) {
        self.last_generation = Generation(self.last_generation.0 + 1);
        actions.push(Action::ReadConfig(self.last_generation));
        self.roll = Some(Roll::Reading { askers });
    }

    /// Whether a reload waits for the configuration of `generation`.
    pub fn is_awaiting_config(&self, generation: Generation) -> bool {
        matches!(self.roll, Some(Roll::Reading { .. })) && self.last_generation == generation
    }

    pub(super) fn config_read(
        &mut self,
        result: Result<SupervisorConfig, String>,
        actions: &mut Vec<Action>,
    ) {
        let reading = self.roll.take_if(|roll| matches!(roll, Roll::Reading { .. }));
        let Some(Roll::Reading { askers }) = reading else { return };
        match result {
            Ok(policy) => {
                let before = Before { policy: self.policy.clone(), generation: self.generation };
                let before = Box::new(before);
                // The number of workers changes when the reload has succeeded.
                let workers = policy.workers;
                self.policy = SupervisorConfig { workers: self.policy.workers, ..policy };
                self.know_sockets(workers.max(self.policy.workers));
                let target = self.last_generation;
                self.roll_kills = 0;
                // What replaces a worn worker is of the old generation: not worth the wait, and its failure
                // would be none of the reload.
                self.kill_successors(actions);
                self.roll = Some(Roll::Rolling { target, workers, before, askers });
            }
            Err(reason) => self.roll_failed(reason, askers, actions),
        }
    }

    /// Goes on with the reload as far as it can, after whatever has happened.
    pub(super) fn roll_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return self.give_up_roll(actions);
        }
        let target = match &self.roll {
            Some(Roll::Rolling { target, .. }) => *target,
            Some(Roll::Back { .. }) => self.generation,
            Some(Roll::Reading { .. }) | None => return,
        };
        if self.successors_reach_limit() {
            return;
        }
        let todo: Vec<usize> =
            (0..self.places.len()).filter(|slot| !self.is_rolled(*slot, target)).collect();
        if todo.is_empty() {
            return self.rolled(now, target, actions);
        }
        let mut rooms = self.rooms();
        for slot in todo {
            if rooms.are_taken() {
                return;
            }
            let place = &self.places[slot];
            let asked = matches!(place.vacancy, Vacancy::Asked(_));
            let taken = place.successor.is_some() || self.is_crowded(slot) || asked;
            if taken || self.is_coming(slot, target) {
                continue;
            }
            let serves = place.holder.is_some_and(|id| self.is_serving(id));
            match rooms.room(place.holder.is_some(), serves) {
                Room::Beside => rooms.take_beside(place.holder.is_some()),
                Room::Instead => {
                    rooms.take_instead(serves);
                    self.dismiss_holder(now, slot, DrainReason::Reload, actions);
                }
                Room::None => continue,
            }
            self.places[slot].successor = Some(self.fork(now, slot, target, actions));
        }
    }

    fn is_rolled(&self, slot: usize, target: Generation) -> bool {
        let place = &self.places[slot];
        // Who left for good before this reload came to its slot is made up for by it; who did so since, is not.
        if place.vacancy == Vacancy::Closed && place.holder.is_none() {
            return place.successor.is_none() && place.generation == target;
        }
        place.successor.is_none()
            && place.holder.and_then(|id| self.members.get(&id)).is_some_and(|holder| {
                holder.tag.generation == target && holder.state == WorkerState::Serving
            })
    }

    /// Whether workers of `generation` are those that a reload under way brings.
    pub(super) fn is_new(&self, generation: Generation) -> bool {
        matches!(&self.roll, Some(Roll::Rolling { target, .. }) if *target == generation)
    }

    /// Somebody killed a worker that was to succeed another, or soon after it had. Returns whether that is
    /// still forgiven. Counted over the whole reload: where the OOM killer takes each new worker the moment
    /// it serves, the reload has to end too.
    pub(super) fn forgive_successor(&mut self) -> bool {
        self.roll_kills += 1;
        self.roll_kills <= FORGIVEN_KILLS
    }

    /// A successor will not come, and reason; another may be tried if `retry`.
    pub(super) fn successor_lost(
        &mut self,
        now: Instant,
        worker: WorkerId,
        reason: &str,
        retry: bool,
        actions: &mut Vec<Action>,
    ) {
        for place in &mut self.places {
            place.successor.take_if(|successor| *successor == worker);
        }
        if self.roll.is_none() {
            // It was to replace a worn worker, which serves on.
            self.pause_recycling(now);
        } else if !retry {
            self.fail_roll(reason, actions);
        }
    }

    /// The reload has failed: back to what was before.
    pub(super) fn fail_roll(&mut self, reason: &str, actions: &mut Vec<Action>) {
        match self.roll.take() {
            Some(Roll::Rolling { target, before, askers, .. }) => {
                self.kill_successors(actions);
                self.policy = SupervisorConfig { workers: self.policy.workers, ..before.policy };
                self.generation = before.generation;
                for place in &mut self.places {
                    place.generation = before.generation;
                }
                // Ready or not: it would become ready after we said that nothing has changed.
                let holders = self.places.iter().filter_map(|p| self.members.get(&p.holder?));
                let taken = holders.into_iter().any(|holder| holder.tag.generation == target);
                // What an adoption brings in has nothing behind it: what serves of it stays.
                let upgrade = before.generation == target;
                if taken && !upgrade {
                    actions.push(Action::Log(LogEvent::RollingBack { to: before.generation }));
                    self.roll = Some(Roll::Back { reason: reason.to_string(), askers });
                } else if upgrade {
                    let reason = format!(
                        "the new binary runs, but its workers do not come up: {reason}; workers of the binary before it serve on"
                    );
                    self.roll_failed(reason, askers, actions);
                } else {
                    self.roll_failed(reason.to_string(), askers, actions);
                }
            }
            Some(Roll::Back { reason: first, askers }) => {
                let reason = format!("{first}; and going back failed too: {reason}");
                self.kill_successors(actions);
                self.roll_failed(reason, askers, actions);
            }
            reading => self.roll = reading,
        }
    }

    fn rolled(&mut self, now: Instant, target: Generation, actions: &mut Vec<Action>) {
        match self.roll.take() {
            Some(Roll::Rolling { askers, workers: wanted, before, .. }) => {
                self.generation = target;
                let closed = |place: &&Place| place.vacancy == Vacancy::Closed;
                let workers = self.places.len() - self.places.iter().filter(closed).count();
                let is_upgrade = before.is_upgrade_to(target);
                let verb = if is_upgrade { "upgraded" } else { "reloaded" };
                let what = format!("{verb}: {workers} workers of generation {target} serve");
                let done = LogEvent::Reloaded { generation: target, workers, is_upgrade };
                actions.push(Action::Log(done));
                for asker in askers {
                    asker.confirm(what.clone(), actions);
                }
                self.keep_generations(actions);
                self.resize(now, WEB_KIND, wanted, "the new configuration", actions);
                self.next_reload(actions);
            }
            Some(Roll::Back { reason, askers }) => self.roll_failed(reason, askers, actions),
            reading => self.roll = reading,
        }
    }

    fn roll_failed(&mut self, reason: String, askers: Vec<Requester>, actions: &mut Vec<Action>) {
        actions.push(Action::Log(LogEvent::ReloadFailed { reason: reason.clone() }));
        for asker in askers {
            asker.refuse(reason.clone(), actions);
        }
        self.keep_generations(actions);
        self.next_reload(actions);
    }

    fn next_reload(&mut self, actions: &mut Vec<Action>) {
        let askers = std::mem::take(&mut self.waiting);
        if let Some(first) = askers.first() {
            actions.push(Action::Log(LogEvent::Reloading { by: first.name.clone() }));
            self.begin_reload(askers, actions);
        }
    }

    /// A stop always wins.
    fn give_up_roll(&mut self, actions: &mut Vec<Action>) {
        let askers = match self.roll.take() {
            Some(
                Roll::Reading { askers } | Roll::Rolling { askers, .. } | Roll::Back { askers, .. },
            ) => askers,
            None => Vec::new(),
        };
        for asker in askers.into_iter().chain(std::mem::take(&mut self.waiting)) {
            asker.refuse("the cluster is stopping", actions);
        }
        for place in &mut self.places {
            place.successor = None;
        }
    }

    fn keep_generations(&self, actions: &mut Vec<Action>) {
        let mut kept: Vec<Generation> =
            self.places.iter().map(|place| place.generation).chain([self.generation]).collect();
        // Workers of two generations serve if going back has failed, and may be told to drain by theirs.
        let workers = self.places.iter().flat_map(|place| [place.holder, place.successor]);
        kept.extend(workers.flatten().filter_map(|id| Some(self.members.get(&id)?.tag.generation)));
        kept.sort_unstable();
        kept.dedup();
        actions.push(Action::KeepGenerations(kept));
    }
}
