//! Scaling: changes of the number of workers of a kind.
//!
//! Commands run in the order of their arrival. Those of signals and of the program wait for the end of a reload;
//! operators, who can ask again, are refused meanwhile.

use std::collections::VecDeque;
use std::time::Instant;

use crate::MAX_WORKERS;
use crate::action::{Action, DrainReason, ExitCause, LogEvent};
use crate::command::{Requester, ScaleChange, WorkerEnvironment};
use crate::config::WorkerRange;
use crate::slot_table::{RestartPolicy, SlotEntry};
use crate::supervisor::Supervisor;
use crate::worker_identity::{Slot, WEB_KIND, WorkerId};

/// How many commands may wait. A program that sends one for each event would otherwise fill the memory in a reload.
const MAX_QUEUED_COMMANDS: usize = 1024;

/// The reason to refuse an operator's command.
const RELOAD_UNDER_WAY: &str = "a reload is under way; ask again when it is done";

/// Scale commands that wait, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct ScaleQueue {
    commands: VecDeque<ScaleCommand>,
    /// Whether the first command waits for its sockets.
    awaits_sockets: bool,
    /// The sockets of the slots `0..open_slots` were opened for the first command.
    open_slots: u32,
}

/// A change of the number of workers of one kind.
#[derive(Debug)]
struct ScaleCommand {
    kind: &'static str,
    change: ScaleChange,
    by: Requester,
}

impl ScaleQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl ScaleCommand {
    fn refuse(self, reason: impl Into<String>, actions: &mut Vec<Action>) {
        self.by.refuse_command_or_log(self.change.as_refused(), reason, actions);
    }
}

impl Supervisor {
    pub(crate) fn on_scale(
        &mut self,
        now: Instant,
        kind: &str,
        change: ScaleChange,
        by: Requester,
    ) {
        let kind = match self.kinds.get(kind) {
            Some(known) => known.config.name,
            None if kind == WEB_KIND => WEB_KIND,
            None => {
                let reason = format!("this cluster has no workers of kind {kind:?}");
                let command = change.as_refused();
                return by.refuse_command_or_log(command, reason, &mut self.actions);
            }
        };
        let command = ScaleCommand { kind, change, by };
        if self.is_stopping() {
            command.refuse("the cluster is stopping", &mut self.actions);
        } else if self.reload.is_reloading() && command.by.reply_id.is_some() {
            command.refuse(RELOAD_UNDER_WAY, &mut self.actions);
        } else if self.scale_queue.commands.len() >= MAX_QUEUED_COMMANDS {
            command.refuse("too many changes of the number of workers wait", &mut self.actions);
        } else {
            self.scale_queue.commands.push_back(command);
            self.run_scale_queue(now);
        }
    }

    /// Continues the scale command that waited for these sockets.
    pub(crate) fn on_sockets_opened(
        &mut self,
        now: Instant,
        slots: u32,
        result: Result<(), String>,
    ) {
        if result.is_ok() {
            self.add_slot_sockets(slots);
        }
        if !std::mem::take(&mut self.scale_queue.awaits_sockets) {
            return;
        }
        match result {
            // The configuration that the reload reads may name other sockets.
            Ok(()) if self.reload.is_reloading() => self.refuse_operators(),
            Ok(()) => self.scale_queue.open_slots = slots,
            Err(reason) => {
                let first = self.scale_queue.commands.pop_front();
                first.into_iter().for_each(|command| command.refuse(&reason, &mut self.actions));
            }
        }
        self.run_scale_queue(now);
    }

    /// Runs the queued commands up to the first one that has to wait for sockets, unless a reload is under way.
    pub(crate) fn run_scale_queue(&mut self, now: Instant) {
        let is_waiting = self.scale_queue.awaits_sockets || self.reload.is_reloading();
        if is_waiting || self.is_stopping() {
            return;
        }
        while let Some(command) = self.scale_queue.commands.pop_front() {
            match self.scaled_worker_count(command.kind, &command.change) {
                Ok(to) if command.kind == WEB_KIND && self.lacks_sockets(to) => {
                    self.scale_queue.commands.push_front(command);
                    self.scale_queue.awaits_sockets = true;
                    self.resume_listening();
                    return self.actions.push(Action::OpenSockets { slots: to });
                }
                Ok(to) => self.scale_to(now, to, command),
                Err(reason) => command.refuse(reason, &mut self.actions),
            }
            self.scale_queue.open_slots = 0;
        }
    }

    /// Returns whether sockets have to be opened for `to` workers.
    fn lacks_sockets(&self, to: u32) -> bool {
        let has_grown = to > self.config.workers && to > self.scale_queue.open_slots;
        self.config.has_socket_per_slot && has_grown
    }

    /// Refuses the waiting commands of operators, because a reload has begun.
    fn refuse_operators(&mut self) {
        let (refused, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.scale_queue.commands)
                .into_iter()
                .partition(|command| command.by.reply_id.is_some());
        self.scale_queue.commands = waiting;
        for command in refused {
            command.refuse(RELOAD_UNDER_WAY, &mut self.actions);
        }
    }

    /// Returns the new number of workers of a kind, or why the command is refused.
    fn scaled_worker_count(&self, kind: &str, change: &ScaleChange) -> Result<u32, String> {
        let Some(other) = self.kinds.get(kind) else { return self.scaled_web_workers(change) };
        let from = other.config.workers;
        let to = self.count_with_change(kind, from, change);
        if let Some(range) = other.config.demand_range.filter(|range| !range.contains(to)) {
            let WorkerRange { min, max } = range;
            return Err(format!(
                "cannot scale to {to} workers of kind {kind}: ask for {min} to {max}, which the program declares"
            ));
        }
        let of_other_kinds = self.kinds.worker_count() - from;
        if to.saturating_add(of_other_kinds) > MAX_WORKERS {
            let max = MAX_WORKERS - of_other_kinds.min(MAX_WORKERS);
            return Err(format!("cannot scale to {to} workers of kind {kind}: ask for 0 to {max}"));
        }
        Ok(to)
    }

    fn scaled_web_workers(&self, change: &ScaleChange) -> Result<u32, String> {
        let to = self.count_with_change(WEB_KIND, self.config.workers, change);
        if to > self.config.max_workers && self.config.max_workers == 1 {
            Err("this concurrency model has one worker process; for more threads change `workers` and reload".to_string())
        } else if to == 0 && *change != ScaleChange::To(0) {
            Err("cannot scale down further: one worker is left, and 0 has to be asked for as such"
                .to_string())
        } else if to > MAX_WORKERS {
            Err(format!("cannot scale to {to} workers: ask for 0 to {MAX_WORKERS}"))
        } else {
            Ok(to)
        }
    }

    /// Returns the number of workers after the change. A worker that the program adds takes over an unused slot.
    fn count_with_change(&self, kind: &str, from: u32, change: &ScaleChange) -> u32 {
        match change {
            ScaleChange::AddWorker(..) if self.unused_forked_slot(kind).is_some() => from,
            change => change.scaled_worker_count(from),
        }
    }

    /// Returns the first slot that the program added and left empty for good, and that has no process any more.
    ///
    /// Without this a program that adds and disconnects workers for ever would run out of slots.
    fn unused_forked_slot(&self, kind: &str) -> Option<Slot> {
        let is_unused = |entry: &&SlotEntry| {
            entry.kind == kind
                && entry.is_forked
                && entry.restart == RestartPolicy::LeaveEmpty
                && entry.holder.or(entry.successor).is_none()
                && !self.workers.iter().any(|record| record.tag.slot == entry.slot)
        };
        self.slots.iter().find(is_unused).map(|entry| entry.slot)
    }

    fn scale_to(&mut self, now: Instant, to: u32, command: ScaleCommand) {
        let ScaleCommand { kind, change, by } = command;
        let unused = self.unused_forked_slot(kind);
        let from = self.resize_kind(now, kind, to, &by.name);
        match change {
            ScaleChange::AddWorker(id, environment) => {
                let last = self.slots.iter().rfind(|entry| entry.kind == kind);
                let slot = unused.or(last.map(|entry| entry.slot));
                self.add_worker_to_slot(slot, id, environment);
            }
            // A request for a number of workers includes the slots that were left empty.
            ScaleChange::To(_) | ScaleChange::Up(_) | ScaleChange::Down(_) => {
                self.slots.refill_slots(kind);
            }
        }
        let of = if kind == WEB_KIND { String::new() } else { format!(" of kind {kind}") };
        by.confirm_command(format!("scaled from {from} to {to} workers{of}"), &mut self.actions);
    }

    fn add_worker_to_slot(
        &mut self,
        slot: Option<Slot>,
        id: WorkerId,
        environment: WorkerEnvironment,
    ) {
        if let Some(entry) = slot.and_then(|slot| self.slots.get_mut(slot)) {
            entry.is_forked = true;
            entry.restart = RestartPolicy::Restart;
            (entry.reserved_id, entry.environment) = (Some(id), environment);
        }
    }

    /// Refuses all queued commands once the cluster stops.
    pub(crate) fn cancel_scaling_on_stop(&mut self) {
        if self.is_stop_requested() {
            self.refuse_scaling("the cluster is stopping");
        }
    }

    pub(crate) fn refuse_scaling(&mut self, reason: &str) {
        self.scale_queue.awaits_sockets = false;
        for command in std::mem::take(&mut self.scale_queue.commands) {
            command.refuse(reason, &mut self.actions);
        }
    }

    /// Changes the number of slots of a kind and returns the old one. The workers of removed slots drain.
    pub(crate) fn resize_kind(
        &mut self,
        now: Instant,
        kind: &'static str,
        to: u32,
        by: &str,
    ) -> u32 {
        let (first, wanted) = match self.kinds.get_mut(kind) {
            Some(kind) => (kind.first_slot, &mut kind.config.workers),
            None => (Slot(0), &mut self.config.workers),
        };
        let from = std::mem::replace(wanted, to);
        if to == from {
            return from;
        }
        self.log_event(LogEvent::Scaled { by: by.to_string(), kind, from, to });
        let is_surplus = |entry: &SlotEntry| entry.kind == kind && entry.slot.0 >= first.0 + to;
        for index in 0..self.slots.len() {
            if !is_surplus(&self.slots[index]) {
                continue;
            }
            self.drain_slot_holder(now, index, DrainReason::Scale);
            if let Some(successor) = self.slots[index].successor.take() {
                self.workers.kill(successor, ExitCause::Superseded, &mut self.actions);
            }
        }
        for removed in self.slots.remove_slots_if(is_surplus) {
            if let Some(worker) = removed.reserved_id {
                self.refuse_reserved_fork(worker, "its slot was scaled away before the fork");
            }
        }
        self.slots.add_slots(first, from..to, kind, self.reload.generation());
        from
    }
}
