//! Health checks of workers: stalled event loops, memory limits, and recycling.
//!
//! A stall shows in the heartbeat, a counter that changes while the event loop makes progress. Time counts as stalled
//! only as far as the *primary* was awake to see it. After the primary was stopped or the machine suspended, one long
//! gap between two samples counts as a short one, and no worker is judged by it: the workers may have been stopped too.

use std::time::{Duration, Instant};

use crate::action::{Action, ExitCause, LogEvent, RecycleReason};
use crate::config::{RecycleLimits, SupervisorConfig};
use crate::crash_backoff::ForkAllowance;
use crate::event::HealthSample;
use crate::supervisor::{ClusterPhase, Supervisor};
use crate::worker_identity::WorkerId;
use crate::worker_table::{WorkerRecord, WorkerState};

/// How often workers are sampled. A stall is noticed at most this much late.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// How often workers are sampled where slots have sockets of their own. Workers send heartbeats as often.
const SLOT_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// How long a heartbeat may stay unchanged before a sibling adopts the slot's sockets. With heartbeats and samples of
/// 100 ms each, connections of a frozen worker are accepted within half a second.
const LATE_HEARTBEAT_THRESHOLD: Duration = Duration::from_millis(300);

/// A longer gap between two samples means that the primary itself was stopped.
const MAX_SAMPLE_GAP: Duration = Duration::from_secs(1);

/// How long a worker may take to dump core after SIGABRT before it is killed.
const CORE_DUMP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long recycling pauses after the successor of a recycled worker failed to boot.
const RECYCLE_RETRY_DELAY: Duration = Duration::from_secs(10);

/// The times of the last and the next health sample.
#[derive(Debug, Default)]
pub(crate) struct HealthMonitor {
    next_sample: Option<Instant>,
    /// Whether a requested sample has not arrived yet.
    is_sampling: bool,
    last_sample: Option<Instant>,
    last_memory_sample: Option<Instant>,
    recycling_paused_until: Option<Instant>,
}

impl HealthMonitor {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_sample
    }

    /// Requests a sample when it is due. Memory is sampled less often: it costs a file per worker.
    fn sample_if_due(&mut self, now: Instant, has_memory_limit: bool, actions: &mut Vec<Action>) {
        if self.next_sample.take_if(|next| *next <= now).is_none() {
            return;
        }
        self.is_sampling = true;
        let last = self.last_memory_sample;
        let is_due = last.is_none_or(|at| now.duration_since(at) >= SAMPLE_INTERVAL);
        let with_memory = has_memory_limit && is_due;
        if with_memory {
            self.last_memory_sample = Some(now);
        }
        actions.push(Action::SampleHealth { with_memory });
    }

    /// Schedules the next sample, one at a time, as long as there is a limit to check.
    fn schedule_sample(&mut self, now: Instant, is_needed: bool, interval: Duration) {
        let next = self.next_sample.unwrap_or(now + interval);
        self.next_sample = (is_needed && !self.is_sampling).then_some(next);
    }

    /// Records that a sample arrived. Returns the time since the one before, or `None` if none was requested.
    fn record_sample(&mut self, now: Instant) -> Option<Duration> {
        if !std::mem::take(&mut self.is_sampling) {
            return None;
        }
        let last = self.last_sample.replace(now);
        Some(last.map_or(SAMPLE_INTERVAL, |last| now.duration_since(last)))
    }

    /// Pauses recycling, because the last successor failed to boot.
    pub(crate) fn pause_recycling(&mut self, now: Instant) {
        self.recycling_paused_until = Some(now + RECYCLE_RETRY_DELAY);
    }

    fn is_recycling_paused(&self, now: Instant) -> bool {
        self.recycling_paused_until.is_some_and(|until| now < until)
    }
}

impl Supervisor {
    /// Returns whether any stall or recycling limit is configured.
    pub(crate) fn has_health_limits(&self) -> bool {
        let mut limits = self.kinds.all_recycle_limits(&self.config);
        self.config.has_stall_limit() || limits.any(|one| one != RecycleLimits::default())
    }

    pub(crate) fn sample_health_if_due(&mut self, now: Instant) {
        let has_memory_limit =
            self.kinds.all_recycle_limits(&self.config).any(|limits| limits.has_memory_limit());
        self.health.sample_if_due(now, has_memory_limit, &mut self.actions);
    }

    /// Schedules the next sample. Called after every event, since a reload may bring limits where there were none.
    pub(crate) fn schedule_health_sample(&mut self, now: Instant) {
        let socket_slots = if self.is_stopping() { 0 } else { self.orphan_sockets.socket_slots() };
        let can_adopt = self.config.can_adopt_sockets;
        let interval =
            if can_adopt && socket_slots > 1 { SLOT_SAMPLE_INTERVAL } else { SAMPLE_INTERVAL };
        // The primary uses the sample to look for connections on sockets without a worker.
        let has_orphan_sockets = socket_slots > u32::from(can_adopt);
        let is_needed = has_orphan_sockets || self.has_health_limits();
        self.health.schedule_sample(now, is_needed, interval);
    }

    pub(crate) fn on_health_sampled(&mut self, now: Instant, samples: Vec<HealthSample>) {
        let Some(gap) = self.health.record_sample(now) else { return };
        let mut to_recycle = None;
        for sample in samples {
            if let Some(record) = self.workers.get_mut(sample.worker) {
                record.is_full = sample.is_full;
                check_stall(record, now, gap, &sample, &self.config, &mut self.actions);
            }
            self.check_memory_limit(&sample);
            let reason = || self.recycle_reason(now, &sample).map(|reason| (sample.worker, reason));
            to_recycle = to_recycle.or_else(reason);
        }
        if let Some((worker, reason)) = to_recycle {
            self.recycle_worker(now, worker, reason);
        }
    }

    fn check_memory_limit(&mut self, sample: &HealthSample) {
        let Some(record) = self.workers.get(sample.worker) else { return };
        let hard = self.kinds.recycle_limits_of(record.tag.kind, &self.config).max_rss_hard;
        let Some((memory, limit)) = sample.memory.zip(hard) else { return };
        if memory > limit
            && !matches!(record.state, WorkerState::Forking | WorkerState::Killed { .. })
        {
            let worker = record.tag;
            self.log_event(LogEvent::MemoryLimitExceeded { worker, memory, limit });
            self.workers.kill(sample.worker, ExitCause::MemoryLimit, &mut self.actions);
        }
    }

    /// Returns the limit that a serving worker has reached.
    fn recycle_reason(&self, now: Instant, sample: &HealthSample) -> Option<RecycleReason> {
        let record = self.workers.get(sample.worker)?;
        let limits = self.kinds.recycle_limits_of(record.tag.kind, &self.config);
        if limits == RecycleLimits::default() {
            return None;
        }
        self.slots.index_of_holder(sample.worker)?;
        // A worker that reaches a limit as soon as it serves would otherwise be replaced as fast as it boots.
        let is_proven =
            record.time_since_ready(now).is_some_and(|time| time >= self.config.min_uptime);
        if !record.is_serving() || self.workers.is_slot_full(record.tag.slot) || !is_proven {
            return None;
        }
        limit_reached(&limits, record, now.duration_since(record.forked_at), sample)
    }

    /// Forks the successor of one worker, if nothing else is being replaced.
    fn recycle_worker(&mut self, now: Instant, worker: WorkerId, limit: RecycleReason) {
        let Some(index) = self.slots.index_of_holder(worker) else { return };
        let is_busy = self.phase != ClusterPhase::Running
            || self.reload.is_reloading()
            || self.upgrade.is_upgrading()
            || self.backoff.fork_allowance() != ForkAllowance::All
            || self.slots.iter().any(|entry| entry.successor.is_some())
            || self.health.is_recycling_paused(now);
        if is_busy {
            return;
        }
        if let Some(record) = self.workers.get_mut(worker) {
            record.recycle_reason = Some(limit);
            let worker = record.tag;
            self.log_event(LogEvent::Recycling { worker, limit });
        }
        let generation = self.slots[index].generation;
        self.slots[index].successor = Some(self.request_fork(now, index, generation));
    }
}

/// Compares the heartbeat with the last one, and logs or aborts a worker that has stalled for too long.
fn check_stall(
    record: &mut WorkerRecord,
    now: Instant,
    gap: Duration,
    sample: &HealthSample,
    config: &SupervisorConfig,
    actions: &mut Vec<Action>,
) {
    if !matches!(record.state, WorkerState::Serving | WorkerState::Draining { .. }) {
        return;
    }
    let (worker, heartbeat) = (record.tag, &mut record.heartbeat);
    if sample.is_sleeping || heartbeat.counter != Some(sample.heartbeat) {
        if heartbeat.is_stall_logged {
            let stalled_for = heartbeat.stalled_for;
            actions.push(Action::Log(LogEvent::Recovered { worker, stalled_for }));
        }
        heartbeat.counter = Some(sample.heartbeat);
        heartbeat.stalled_for = Duration::ZERO;
        (heartbeat.is_stall_logged, heartbeat.is_late) = (false, false);
        return;
    }
    heartbeat.stalled_for += gap.min(MAX_SAMPLE_GAP);
    if gap > MAX_SAMPLE_GAP {
        return;
    }
    let stalled_for = heartbeat.stalled_for;
    heartbeat.is_late = stalled_for >= LATE_HEARTBEAT_THRESHOLD;
    let current_request = sample.current_request.clone();
    if config.stall_timeout.is_some_and(|limit| stalled_for >= limit) {
        record.state = WorkerState::Aborted { deadline: now + CORE_DUMP_TIMEOUT };
        let event = LogEvent::StallTimedOut { worker, stalled_for, current_request };
        actions.extend([Action::Log(event), Action::Abort(sample.worker)]);
    } else if config.stall_warn.is_some_and(|limit| stalled_for >= limit)
        && !heartbeat.is_stall_logged
    {
        heartbeat.is_stall_logged = true;
        let event = LogEvent::Stalled { worker, stalled_for, current_request };
        actions.push(Action::Log(event));
    }
}

/// Returns the first recycling limit that the worker has reached. Requests and age have up to 20 % jitter.
fn limit_reached(
    limits: &RecycleLimits,
    record: &WorkerRecord,
    age: Duration,
    sample: &HealthSample,
) -> Option<RecycleReason> {
    let share = 1.0 - record.recycle_jitter / 5.0;
    let memory = sample.memory.filter(|memory| limits.max_rss.is_some_and(|max| *memory > max));
    if let Some(memory) = memory {
        return Some(RecycleReason::Memory(memory));
    }
    if limits.max_requests.is_some_and(|max| sample.requests as f64 >= max as f64 * share) {
        return Some(RecycleReason::Requests(sample.requests));
    }
    limits
        .max_lifetime
        .is_some_and(|max| age >= max.mul_f64(share))
        .then_some(RecycleReason::Lifetime(age))
}
