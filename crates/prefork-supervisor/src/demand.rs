//! Kinds of workers that run jobs: how many run, by the number of jobs, and the end of those that are used up or idle.
//!
//! Where jobs are given out knows which workers have something to do; it asks here by events. The answer decides:
//! idle workers end from the highest slot downwards, so that the slots of a kind stay contiguous.

use std::time::Instant;

use crate::MAX_WORKERS;
use crate::action::{Action, DrainReason, LogEvent, RecycleReason};
use crate::supervisor::{DRAIN_KILL_MARGIN, Supervisor};
use crate::worker_identity::WorkerId;

impl Supervisor {
    /// Adds workers to a kind with a range, also during a reload: a job does not wait for that.
    pub(crate) fn on_workers_needed(&mut self, now: Instant, kind: &'static str, workers: u32) {
        let Some(known) = self.kinds.get(kind) else { return };
        let Some(range) = known.config.demand_range.filter(|_| !self.is_stopping()) else { return };
        // Other kinds may have been scaled beyond what they declared.
        let current = known.config.workers;
        let max = MAX_WORKERS.saturating_sub(self.kinds.worker_count() - current);
        let to = range.nearest(workers).min(max);
        if to > current {
            self.resize_kind(now, kind, to, "waiting jobs");
        }
    }

    /// Ends an idle worker, if its kind can do without it.
    pub(crate) fn on_worker_idle(&mut self, now: Instant, worker: WorkerId) {
        match self.kind_without_idle_worker(worker) {
            Some((kind, to)) => drop(self.resize_kind(now, kind, to, "the idle timeout")),
            None => self.actions.push(Action::KeepIdleWorker(worker)),
        }
    }

    /// Returns the worker's kind and how many workers are left, if the worker can end now: not during a rollout, which
    /// counts slots, and only from the last slot.
    fn kind_without_idle_worker(&self, worker: WorkerId) -> Option<(&'static str, u32)> {
        let record = self.workers.get(worker).filter(|record| record.is_serving())?;
        let kind = &self.kinds.get(record.tag.kind)?.config;
        let range = kind.demand_range.filter(|range| kind.workers > range.min)?;
        let last = self.slots.iter().rfind(|entry| entry.kind == kind.name)?;
        let is_settled =
            !self.is_stopping() && !self.reload.is_reloading() && !self.upgrade.is_upgrading();
        let to = range.nearest(kind.workers - 1);
        (is_settled && last.holder == Some(worker)).then_some((kind.name, to))
    }

    /// Drains a worker that gets no more jobs, and forks its replacement at once. Its end is no crash, and it has proved
    /// that such workers boot, so that the crash loop of others does not delay its replacement.
    pub(crate) fn on_worker_used_up(
        &mut self,
        now: Instant,
        worker: WorkerId,
        limit: RecycleReason,
    ) {
        let deadline = now + self.config.graceful_timeout + DRAIN_KILL_MARGIN;
        let Some(record) = self.workers.get_mut(worker) else { return };
        if !record.is_serving() {
            return;
        }
        record.start_draining(deadline, DrainReason::Recycle(limit));
        let tag = record.tag;
        self.log_event(LogEvent::Recycling { worker: tag, limit });
        self.actions.push(Action::Drain(worker));
        let Some(index) = self.slots.index_of_holder(worker) else { return };
        let entry = &mut self.slots[index];
        entry.holder = None;
        let (slot, generation) = (entry.slot, entry.generation);
        if entry.successor.is_none() && !self.workers.is_slot_full(slot) {
            self.slots[index].holder = Some(self.request_fork(now, index, generation));
        }
    }

    /// Returns how many workers a kind with a range has after a rollout: as many as now, within its range.
    pub(crate) fn size_by_demand(&self, kind: &str) -> Option<u32> {
        let kind = &self.kinds.get(kind)?.config;
        Some(kind.demand_range?.nearest(kind.workers))
    }
}
