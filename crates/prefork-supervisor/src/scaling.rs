//! Scaling: changes of the number of workers of a kind.

use std::collections::VecDeque;
use std::time::Instant;

use crate::MAX_WORKERS;
use crate::action::{Action, DrainReason, ExitCause, LogEvent};
use crate::command::{Requester, ScaleChange};
use crate::slot_table::SlotEntry;
use crate::supervisor::Supervisor;
use crate::worker_identity::{Slot, WEB_KIND};

/// Scale commands for `web` in the order of arrival. The first one waits for its sockets.
pub(crate) type ScaleQueue = VecDeque<(ScaleChange, Requester)>;

impl Supervisor {
    pub(crate) fn on_scale_web(&mut self, now: Instant, change: ScaleChange, by: Requester) {
        self.scale_queue.push_back((change, by));
        if self.scale_queue.len() == 1 {
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
        let Some((change, by)) = self.scale_queue.pop_front() else { return };
        match result.and_then(|()| self.scaled_web_workers(&change)) {
            Ok(to) if to <= slots => self.scale_to(now, WEB_KIND, to, change, by),
            // The sockets were opened for another number, requested by an earlier command.
            Ok(_) => self.scale_queue.push_front((change, by)),
            Err(reason) => by.refuse_command_or_log(reason, &mut self.actions),
        }
        self.run_scale_queue(now);
    }

    /// Runs the queued commands up to the first one that has to wait for sockets.
    fn run_scale_queue(&mut self, now: Instant) {
        while let Some((change, by)) = self.scale_queue.pop_front() {
            match self.scaled_web_workers(&change) {
                Ok(to) if self.config.has_socket_per_slot && to > self.config.workers => {
                    self.scale_queue.push_front((change, by));
                    return self.actions.push(Action::OpenSockets { slots: to });
                }
                Ok(to) => self.scale_to(now, WEB_KIND, to, change, by),
                Err(reason) => by.refuse_command_or_log(reason, &mut self.actions),
            }
        }
    }

    /// Returns the new number of `web` workers, or why the command is refused.
    fn scaled_web_workers(&self, change: &ScaleChange) -> Result<u32, String> {
        let to = change.scaled_worker_count(self.config.workers);
        self.check_may_scale()?;
        if to > self.config.max_workers && self.config.max_workers == 1 {
            Err("this concurrency model has one worker process; for more threads change `workers` and reload".to_string())
        } else if !(1..=MAX_WORKERS).contains(&to) {
            Err(format!("cannot scale to {to} workers: ask for 1 to {MAX_WORKERS}"))
        } else {
            Ok(to)
        }
    }

    fn check_may_scale(&self) -> Result<(), String> {
        if self.is_stopping() {
            Err("the cluster is stopping".to_string())
        } else if self.reload.is_reloading() {
            Err("a reload is under way; ask again when it is done".to_string())
        } else {
            Ok(())
        }
    }

    /// Scales a kind besides `web`, which has no sockets to wait for.
    pub(crate) fn on_scale_kind(
        &mut self,
        now: Instant,
        name: &str,
        change: ScaleChange,
        by: Requester,
    ) {
        let Some(kind) = self.kinds.get(name) else {
            let reason = format!("this cluster has no workers of kind {name:?}");
            return by.refuse_command_or_log(reason, &mut self.actions);
        };
        let (name, from) = (kind.config.name, kind.config.workers);
        let to = change.scaled_worker_count(from);
        let of_other_kinds = self.kinds.worker_count() - from;
        let reason = match self.check_may_scale() {
            Err(reason) => reason,
            Ok(()) if to.saturating_add(of_other_kinds) > MAX_WORKERS => {
                let most = MAX_WORKERS - of_other_kinds.min(MAX_WORKERS);
                format!("cannot scale to {to} workers of kind {name}: ask for 0 to {most}")
            }
            Ok(()) => return self.scale_to(now, name, to, change, by),
        };
        by.refuse_command_or_log(reason, &mut self.actions);
    }

    fn scale_to(
        &mut self,
        now: Instant,
        kind: &'static str,
        to: u32,
        change: ScaleChange,
        by: Requester,
    ) {
        let from = self.resize_kind(now, kind, to, &by.name);
        match change {
            ScaleChange::AddWorker(id, environment) => {
                if let Some(entry) = self.slots.iter_mut().rfind(|entry| entry.kind == kind) {
                    (entry.reserved_id, entry.environment) = (Some(id), environment);
                }
            }
            // A request for a number of workers includes the slots that were left empty.
            ScaleChange::To(_) | ScaleChange::Up(_) | ScaleChange::Down(_) => {
                self.slots.refill_slots(kind);
            }
        }
        let of = if kind == WEB_KIND { String::new() } else { format!(" of kind {kind}") };
        by.confirm_command(format!("scaled from {from} to {to} workers{of}"), &mut self.actions);
    }

    /// Refuses all queued commands once the cluster stops.
    pub(crate) fn cancel_scaling_on_stop(&mut self) {
        if self.is_stopping() {
            self.refuse_scaling("the cluster is stopping");
        }
    }

    pub(crate) fn refuse_scaling(&mut self, reason: &str) {
        for (_, by) in std::mem::take(&mut self.scale_queue) {
            by.refuse_command_or_log(reason, &mut self.actions);
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
        self.slots.remove_slots_if(is_surplus);
        self.slots.add_slots(first, from..to, kind, self.reload.generation());
        from
    }
}
