//! More workers, or fewer.

use std::time::Instant;

use super::action::{Action, DrainReason, ExitCause, LogEvent};
use super::{Place, Supervisor};
use crate::MAX_WORKERS;
use crate::command::{Requester, ScaleChange};
use crate::identity::{Slot, WEB_KIND};

impl Supervisor {
    pub(super) fn scale(
        &mut self,
        now: Instant,
        scale: ScaleChange,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        self.scaling.push_back((scale, by));
        if self.scaling.len() == 1 {
            self.scale_on(now, actions);
        }
    }

    /// The sockets that the first one waits for are open, or cannot be.
    pub(super) fn sockets_opened(
        &mut self,
        now: Instant,
        slots: u32,
        result: Result<(), String>,
        actions: &mut Vec<Action>,
    ) {
        if result.is_ok() {
            self.know_sockets(slots);
        }
        let Some((scale, by)) = self.scaling.pop_front() else { return };
        match result.and_then(|()| self.scaled(&scale)) {
            Ok(to) if to <= slots => self.scale_web(now, to, scale, by, actions),
            // Opened for another number, which was asked for before this one.
            Ok(_) => self.scaling.push_front((scale, by)),
            Err(reason) => by.refuse_or_log(reason, actions),
        }
        self.scale_on(now, actions);
    }

    /// Does what was asked for, up to the first that has to wait for sockets.
    fn scale_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((scale, by)) = self.scaling.pop_front() {
            match self.scaled(&scale) {
                Ok(to) if self.policy.has_socket_per_slot && to > self.policy.workers => {
                    self.scaling.push_front((scale, by));
                    return actions.push(Action::OpenSockets { slots: to });
                }
                Ok(to) => self.scale_web(now, to, scale, by, actions),
                Err(reason) => by.refuse_or_log(reason, actions),
            }
        }
    }

    /// How many workers that would be, or reason it cannot be.
    fn scaled(&self, scale: &ScaleChange) -> Result<u32, String> {
        let from = self.policy.workers;
        let to = scale.apply_to(from);
        if self.is_stopping() {
            Err("the cluster is stopping".to_string())
        } else if self.roll.is_some() {
            Err("a reload is under way; ask again when it is done".to_string())
        } else if to > self.policy.max_workers && self.policy.max_workers == 1 {
            Err("the concurrency model has one worker process: for more threads change workers and reload".to_string())
        } else if !(1..=MAX_WORKERS).contains(&to) {
            Err(format!("{to} workers are out of range: ask for 1 to {}", MAX_WORKERS))
        } else {
            Ok(to)
        }
    }

    fn scale_web(
        &mut self,
        now: Instant,
        to: u32,
        scale: ScaleChange,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        let from = self.policy.workers;
        self.scale_to(now, WEB_KIND, (from, to), scale, by, actions);
    }

    pub(super) fn scale_to(
        &mut self,
        now: Instant,
        kind: &'static str,
        (from, to): (u32, u32),
        scale: ScaleChange,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        self.resize(now, kind, to, &by.name, actions);
        match scale {
            ScaleChange::AddWorker(id, environment) => {
                if let Some(place) = self.places.iter_mut().rfind(|place| place.kind == kind) {
                    (place.first, place.environment) = (Some(id), environment);
                }
            }
            // Who asks for a number wants it to be met.
            ScaleChange::To(_) | ScaleChange::Up(_) | ScaleChange::Down(_) => self.reopen(kind),
        }
        let of = if kind == WEB_KIND { String::new() } else { format!(" of kind {kind}") };
        by.confirm(format!("{to} workers{of} are wanted, {from} were"), actions);
    }

    /// A stop always wins.
    pub(super) fn give_up_scaling(&mut self, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            self.refuse_scaling("the cluster is stopping", actions);
        }
    }

    pub(super) fn refuse_scaling(&mut self, reason: &str, actions: &mut Vec<Action>) {
        for (_, by) in std::mem::take(&mut self.scaling) {
            by.refuse_or_log(reason.to_string(), actions);
        }
    }

    /// From now on there are `to` slots of this kind. The workers of slots that are no more finish what they have open.
    pub(super) fn resize(
        &mut self,
        now: Instant,
        kind: &'static str,
        to: u32,
        by: &str,
        actions: &mut Vec<Action>,
    ) {
        let (first, wanted) = self.first_and_wanted(kind);
        let from = std::mem::replace(wanted, to);
        if to == from {
            return;
        }
        actions.push(Action::Log(LogEvent::Scaled { by: by.to_string(), kind, from, to }));
        let end = first.0 + to;
        let surplus = move |place: &Place| place.kind == kind && place.slot.0 >= end;
        for place in 0..self.places.len() {
            if !surplus(&self.places[place]) {
                continue;
            }
            self.dismiss_holder(now, place, DrainReason::Scale, actions);
            if let Some(successor) = self.places[place].successor.take() {
                self.kill(successor, ExitCause::Superseded, actions);
            }
        }
        self.places.retain(|place| !surplus(place));
        let more = (first.0 + from..end).map(|slot| Place::new(Slot(slot), kind, self.generation));
        self.places.extend(more);
        self.places.sort_by_key(|place| place.slot);
    }
}
