//! The table of worker processes, from the decision to fork one until it is reaped.
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | `Forking` | `Action::Fork` | `Forked` -> `Booting`; `ForkFailed` -> gone |
//! | `Booting` | `Forked` | `Ready` -> `Serving`; its deadline -> `Killed` |
//! | `Serving` | `Ready` | `Retiring`, a stop -> `Draining`; its channel closes -> `Exiting` |
//! | `Draining` | drained or draining on its own account | exits by itself; its deadline -> `Killed` |
//! | `Exiting` | channel closed without a drain | exits by itself; its deadline -> `Killed` |
//! | `Aborted` | `Action::Abort` | dumps core; its deadline -> `Killed` |
//! | `Killed` | `Action::Kill` | the kernel ends it |
//!
//! `Exited` ends each of them but `Forking`, at any time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::action::{Action, DrainReason, ExitCause, LogEvent, RecycleReason};
use crate::worker_identity::{Slot, WorkerId, WorkerTag};

/// The state of a worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    Forking,
    Booting { deadline: Instant },
    Serving,
    Draining { deadline: Instant },
    Exiting { deadline: Instant },
    Aborted { deadline: Instant },
    Killed { cause: ExitCause },
}

/// Everything known about one worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerRecord {
    pub(crate) tag: WorkerTag,
    pub(crate) state: WorkerState,
    /// When the supervisor decided to fork it.
    pub(crate) forked_at: Instant,
    /// When the worker became ready; `None` before.
    pub(crate) ready_at: Option<Instant>,
    /// Whether the worker ran a job that may kill it, so that its exit does not count towards a crash loop.
    pub(crate) ran_risky_job: bool,
    /// The worker's last error, or the primary's reason for killing it.
    pub(crate) error: Option<String>,
    /// Whether `error` is what the worker itself reported as the reason why it cannot boot.
    pub(crate) has_reported_boot_error: bool,
    /// The reason why it drains; `None` if it does not drain.
    pub(crate) drain_reason: Option<DrainReason>,
    /// The limit for which its successor was forked.
    pub(crate) recycle_reason: Option<RecycleReason>,
    /// Whether `LogEvent::Online` was logged for it.
    pub(crate) is_online_logged: bool,
    /// Whether `LogEvent::Disconnected` was logged for it.
    pub(crate) is_disconnect_logged: bool,
    /// The worker that took over its slot before it exited.
    pub(crate) replaced_by: Option<WorkerTag>,
    /// Whether the worker was forked with its slot's own sockets instead of shared ones.
    pub(crate) has_own_socket: bool,
    /// Whether the last health sample found it at its connection limit.
    pub(crate) is_full: bool,
    pub(crate) heartbeat: HeartbeatRecord,
    /// The jitter of its recycling limits: 0 is the whole limit, 1 is four fifths of it. Workers that started
    /// together should not end together.
    pub(crate) recycle_jitter: f64,
}

/// The heartbeat of one worker, as the last health samples showed it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HeartbeatRecord {
    /// The last sampled counter.
    pub(crate) counter: Option<u64>,
    /// How long the counter has not changed, without times when the primary itself was stopped.
    pub(crate) stalled_for: Duration,
    /// Whether siblings should accept in its place: see `health::LATE_HEARTBEAT_THRESHOLD`.
    pub(crate) is_late: bool,
    /// Whether a signal has stopped the process, as the kernel reported.
    pub(crate) is_stopped: bool,
    /// Whether `LogEvent::Stalled` was logged for this stall.
    pub(crate) is_stall_logged: bool,
}

impl WorkerRecord {
    /// Returns whether the worker is believed to accept new connections now.
    pub(crate) fn can_accept(&self) -> bool {
        let makes_progress = !self.heartbeat.is_late && !self.heartbeat.is_stopped;
        self.tag.slot.is_web() && self.is_serving() && makes_progress && !self.is_full
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.state == WorkerState::Serving
    }

    /// Returns the slot whose sockets it was forked with. Workers with a shared socket have that of slot 0.
    pub(crate) fn socket_slot(&self) -> Slot {
        if self.has_own_socket { self.tag.slot } else { Slot(0) }
    }

    /// Returns when the supervisor has to act on this worker if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            WorkerState::Booting { deadline }
            | WorkerState::Draining { deadline }
            | WorkerState::Exiting { deadline }
            | WorkerState::Aborted { deadline } => Some(deadline),
            WorkerState::Forking | WorkerState::Serving | WorkerState::Killed { .. } => None,
        }
    }

    /// Returns the cause of the worker's exit.
    pub(crate) fn exit_cause(&self) -> ExitCause {
        match self.state {
            WorkerState::Killed { cause } => cause,
            WorkerState::Aborted { .. } => ExitCause::Stalled,
            WorkerState::Draining { .. } => ExitCause::Drained,
            WorkerState::Serving | WorkerState::Exiting { .. } if self.ready_at.is_some() => {
                ExitCause::Unexpected
            }
            WorkerState::Forking
            | WorkerState::Booting { .. }
            | WorkerState::Serving
            | WorkerState::Exiting { .. } => ExitCause::BootFailed,
        }
    }

    /// Returns whether its exit counts towards a crash loop.
    pub(crate) fn is_early_exit(&self, now: Instant, min_uptime: Duration) -> bool {
        !self.ran_risky_job && self.time_since_ready(now).is_none_or(|uptime| uptime < min_uptime)
    }

    /// Returns how long ago it became ready.
    pub(crate) fn time_since_ready(&self, now: Instant) -> Option<Duration> {
        self.ready_at.map(|since| now.duration_since(since))
    }

    /// Records that it drains, for `reason` and until `deadline` at the latest.
    pub(crate) fn start_draining(&mut self, deadline: Instant, reason: DrainReason) {
        self.state = WorkerState::Draining { deadline };
        self.drain_reason = Some(reason);
    }

    /// Logs once that the worker runs.
    pub(crate) fn log_online(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.is_online_logged, true) {
            actions.push(Action::Log(LogEvent::Online { worker: self.tag }));
        }
    }
}

/// Every worker that exists or is being forked.
#[derive(Debug)]
pub(crate) struct WorkerTable {
    records: BTreeMap<WorkerId, WorkerRecord>,
    /// How many records belong to each slot; empty slots have no entry. Counting them for each slot after each event
    /// takes cubic time over a reload: 100 s with 1024 workers.
    count_by_slot: BTreeMap<Slot, usize>,
    next_id: WorkerId,
    /// Number of workers forked to replace workers that exited unexpectedly.
    pub(crate) restart_count: u64,
    /// State of the generator of `recycle_jitter`.
    jitter_state: u64,
}

impl WorkerTable {
    pub(crate) fn new(seed: u64) -> WorkerTable {
        WorkerTable {
            records: BTreeMap::new(),
            count_by_slot: BTreeMap::new(),
            next_id: WorkerId(1),
            restart_count: 0,
            jitter_state: seed,
        }
    }

    /// Continues the ids and counters of the binary before an upgrade.
    pub(crate) fn continue_ids_from(&mut self, next_id: WorkerId, restart_count: u64) {
        (self.next_id, self.restart_count) = (next_id, restart_count);
    }

    pub(crate) fn next_worker_id(&self) -> WorkerId {
        self.next_id
    }

    /// Returns an id that no worker has had.
    pub(crate) fn reserve_worker_id(&mut self) -> WorkerId {
        let id = self.next_id;
        self.next_id = WorkerId(id.0 + 1);
        id
    }

    /// Adds a worker that is about to be forked, or was forked before an upgrade.
    pub(crate) fn insert(&mut self, tag: WorkerTag, forked_at: Instant) -> &mut WorkerRecord {
        *self.count_by_slot.entry(tag.slot).or_default() += 1;
        let record = WorkerRecord {
            tag,
            state: WorkerState::Forking,
            forked_at,
            ready_at: None,
            ran_risky_job: false,
            error: None,
            has_reported_boot_error: false,
            drain_reason: None,
            recycle_reason: None,
            is_online_logged: false,
            is_disconnect_logged: false,
            replaced_by: None,
            has_own_socket: false,
            is_full: false,
            heartbeat: HeartbeatRecord::default(),
            recycle_jitter: self.next_jitter(),
        };
        // Ids are never used again, so the entry is vacant.
        self.records.entry(tag.id).or_insert(record)
    }

    /// Removes a worker that no longer exists.
    pub(crate) fn remove(&mut self, worker: WorkerId) -> Option<WorkerRecord> {
        let record = self.records.remove(&worker)?;
        if let Some(count) = self.count_by_slot.get_mut(&record.tag.slot) {
            *count -= 1;
            if *count == 0 {
                self.count_by_slot.remove(&record.tag.slot);
            }
        }
        Some(record)
    }

    pub(crate) fn get(&self, worker: WorkerId) -> Option<&WorkerRecord> {
        self.records.get(&worker)
    }

    pub(crate) fn get_mut(&mut self, worker: WorkerId) -> Option<&mut WorkerRecord> {
        self.records.get_mut(&worker)
    }

    /// Returns all workers, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.records.values()
    }

    pub(crate) fn ids(&self) -> Vec<WorkerId> {
        self.records.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn is_serving(&self, worker: WorkerId) -> bool {
        self.get(worker).is_some_and(WorkerRecord::is_serving)
    }

    /// Returns whether the slot has its maximum number of processes: one that drains, and its replacement.
    ///
    /// A worker that retires as soon as it is ready would otherwise pile up predecessors.
    pub(crate) fn is_slot_full(&self, slot: Slot) -> bool {
        self.count_by_slot.get(&slot).is_some_and(|count| *count >= 2)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.iter().filter_map(WorkerRecord::deadline).min()
    }

    /// Returns the workers whose deadline has passed.
    pub(crate) fn overdue_workers(&self, now: Instant) -> Vec<WorkerId> {
        let late = |record: &&WorkerRecord| record.deadline().is_some_and(|at| at <= now);
        self.iter().filter(late).map(|record| record.tag.id).collect()
    }

    /// Sends SIGKILL, once, to a process that exists and has not been reaped.
    pub(crate) fn kill(&mut self, worker: WorkerId, cause: ExitCause, actions: &mut Vec<Action>) {
        if let Some(record) = self.records.get_mut(&worker)
            && !matches!(record.state, WorkerState::Forking | WorkerState::Killed { .. })
        {
            record.state = WorkerState::Killed { cause };
            actions.push(Action::Kill(worker));
        }
    }

    pub(crate) fn kill_all(&mut self, cause: ExitCause, actions: &mut Vec<Action>) {
        for worker in self.ids() {
            self.kill(worker, cause, actions);
        }
    }

    /// Logs once that the worker's channel is closed. The exit of a worker closes it too.
    pub(crate) fn log_disconnected(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some(record) = self.records.get_mut(&worker)
            && record.state != WorkerState::Forking
            && !std::mem::replace(&mut record.is_disconnect_logged, true)
        {
            actions.push(Action::Log(LogEvent::Disconnected { worker: record.tag }));
        }
    }

    /// Returns the next worker's jitter, from 0 to 1.
    fn next_jitter(&mut self) -> f64 {
        // The additive constant is the golden ratio: neighbours land far apart.
        self.jitter_state = self.jitter_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (self.jitter_state >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker_identity::{Generation, WEB_KIND};

    fn insert(table: &mut WorkerTable, slot: u32) -> WorkerId {
        let (id, slot, generation) = (table.reserve_worker_id(), Slot(slot), Generation(1));
        let tag = WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND };
        table.insert(tag, Instant::now());
        id
    }

    #[test]
    fn a_slot_with_two_workers_is_full() {
        let mut table = WorkerTable::new(1);
        let first = insert(&mut table, 3);
        assert!(!table.is_slot_full(Slot(3)));
        insert(&mut table, 3);
        assert!(table.is_slot_full(Slot(3)) && !table.is_slot_full(Slot(2)));
        table.remove(first);
        assert!(!table.is_slot_full(Slot(3)));
    }

    #[test]
    fn a_worker_is_killed_once_and_not_before_its_fork_returned() {
        let (mut table, mut actions) = (WorkerTable::new(1), Vec::new());
        let worker = insert(&mut table, 0);
        table.kill(worker, ExitCause::Superseded, &mut actions);
        assert_eq!(actions, []);
        table.get_mut(worker).expect("inserted").state = WorkerState::Serving;
        table.kill(worker, ExitCause::Superseded, &mut actions);
        table.kill(worker, ExitCause::KilledByStop, &mut actions);
        assert_eq!(actions, [Action::Kill(worker)]);
        let record = table.remove(worker).expect("inserted");
        assert_eq!(record.exit_cause(), ExitCause::Superseded);
    }

    #[test]
    fn worker_ids_are_never_used_again() {
        let mut table = WorkerTable::new(1);
        let first = insert(&mut table, 0);
        table.remove(first);
        assert!(insert(&mut table, 0) > first);
    }
}
