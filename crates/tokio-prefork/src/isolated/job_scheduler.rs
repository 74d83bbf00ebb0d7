//! Schedules the jobs of one pool of isolated processes. Without I/O or clock: the time is an argument, and actions are returned.
//!
//! Laws: a job begins at most once, and each job that is not abandoned gets exactly one outcome. A process records the id of the
//! job that it begins in its scoreboard page. When it has ended, that word tells whether its job had begun; only a job that had not
//! is given to another process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::pool_counts::IsolatedJobCounts;
use super::pool_processes::PoolProcesses;
use super::room_waiters::{RoomWaiter, RoomWaiters};
use super::waiting_jobs::{JobKey, WaitingJob, WaitingJobs};
use super::{
    IsolatedJobId, IsolatedPoolConfig, JobEvent, JobOutcome, JobPayload, JobSubmission, JobValue,
    OnAbandon, ResourceLimit,
};
use crate::status::IsolatedPoolStatus;
use crate::transfer::MAX_PAYLOAD_HEAD_BYTES;
use prefork_supervisor::{RecycleReason, Slot, WorkerId};

/// How often a job is given to a process that ends before the job begins.
const MAX_FAILED_STARTS: u32 = 3;

/// An action for the primary to perform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SchedulerAction {
    /// Send the job to this process.
    StartJob { worker: WorkerId, job: IsolatedJobId, limit: Duration, input: JobPayload },
    /// Tell the caller what happened to its job.
    SendReply { to: JobKey, event: JobEvent, value: JobPayload },
    /// Kill the process with SIGKILL.
    KillWorker { worker: WorkerId, reason: KillReason },
    /// Start processes, so that there are this many.
    RequestProcesses(u32),
    /// End this process, which has been idle for too long, or call `keep_idle_process`. It gets no job until then.
    EndIdleProcess(WorkerId),
    /// Replace this process, which gets no more jobs.
    ReplaceProcess { worker: WorkerId, reason: RecycleReason },
}

/// Why a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// Its job has exceeded its time.
    TimedOut,
    /// Nobody waits for its job any more.
    Abandoned,
}

/// How an isolated process has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct IsolatedWorkerExit {
    /// The job that it had begun last; 0 for none.
    pub(crate) begun_job: IsolatedJobId,
    /// Whether the primary ended it for a reason that is not its job: a stop, a reload, an upgrade.
    pub(crate) is_drain_kill: bool,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The limit of its pool that ended it, if one did.
    pub(crate) exceeded: Option<ResourceLimit>,
}

/// A job that was sent to a process.
#[derive(Debug)]
pub(super) struct RunningJob {
    pub(super) id: IsolatedJobId,
    pub(super) job: WaitingJob,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    pub(super) end: PlannedEnd,
}

/// What ends a running job, if that is certain already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum PlannedEnd {
    /// It ends by itself.
    None,
    /// Its process is being killed, and its outcome is `TimedOut`, once it is known whether it had begun.
    TimedOut,
    /// Its process is being killed, and the job is counted already.
    Settled,
}

/// The jobs and processes of one pool.
#[derive(Debug)]
pub(crate) struct IsolatedJobScheduler {
    pub(super) limit: Duration,
    max_queued: usize,
    max_queued_bytes: usize,
    max_payload_bytes: usize,
    on_abandon: OnAbandon,
    pub(super) waiting: WaitingJobs,
    pub(super) room_waiters: RoomWaiters,
    pub(super) running: BTreeMap<WorkerId, RunningJob>,
    pub(super) processes: PoolProcesses,
    pub(super) last_id: IsolatedJobId,
    /// The first worker of this image: see `restore`.
    pub(super) inherited_below: WorkerId,
    is_closed: bool,
    pub(super) counts: IsolatedJobCounts,
}

impl IsolatedJobScheduler {
    pub(crate) fn new(config: &IsolatedPoolConfig) -> IsolatedJobScheduler {
        IsolatedJobScheduler {
            limit: config.deadline,
            max_queued: config.queue,
            max_queued_bytes: config.queue_bytes,
            max_payload_bytes: config.max_payload_bytes,
            on_abandon: config.on_abandon,
            waiting: WaitingJobs::default(),
            room_waiters: RoomWaiters::default(),
            running: BTreeMap::new(),
            processes: PoolProcesses::new(config),
            last_id: 0,
            inherited_below: WorkerId(0),
            is_closed: false,
            counts: IsolatedJobCounts::default(),
        }
    }

    /// Returns whether `add_process` and `replace_if_used_up` need the resident memory of the process.
    pub(crate) fn measures_memory(&self) -> bool {
        self.processes.measures_memory()
    }

    /// Adds a process of the pool that is ready.
    pub(crate) fn add_process(
        &mut self,
        worker: WorkerId,
        slot: Slot,
        rss: Option<u64>,
        now: Instant,
    ) {
        self.processes.add(worker, slot, rss, now);
    }

    /// Gives jobs again to a process that was to end because it was idle.
    pub(crate) fn keep_idle_process(&mut self, worker: WorkerId, now: Instant) {
        self.processes.keep(worker, now);
    }

    /// Takes a process out of use that has reached a limit between two jobs. `rss` is its resident memory.
    pub(crate) fn replace_if_used_up(
        &mut self,
        worker: WorkerId,
        rss: Option<u64>,
    ) -> Option<SchedulerAction> {
        let reason = self.processes.take_used_up(worker, rss)?;
        Some(SchedulerAction::ReplaceProcess { worker, reason })
    }

    /// Requests more processes for the jobs that wait. `wanted` is how many there should be at present.
    pub(crate) fn request_processes(&self, wanted: u32) -> Option<SchedulerAction> {
        let needed = self.processes.needed_count(self.waiting.len(), wanted);
        needed.map(SchedulerAction::RequestProcesses)
    }

    /// Queues a job. Returns a reply if it is refused.
    pub(crate) fn submit(
        &mut self,
        caller: WorkerId,
        submission: JobSubmission,
        input: JobPayload,
        now: Instant,
    ) -> Option<SchedulerAction> {
        let key = JobKey { caller, token: submission.token };
        self.counts.submitted += 1;
        if self.is_closed {
            return Some(self.refuse(key, JobOutcome::Closed));
        }
        let deadline = submission.limit_ms.map(|ms| add_limit(now, Duration::from_millis(ms)));
        let JobSubmission { priority, is_detached, waits_for_room, .. } = submission;
        let size = input.size();
        let waiter = RoomWaiter { key, priority, is_detached, size, submitted: now, deadline };
        // Room that appears belongs to those that wait for it.
        if self.has_room(size) && (!waits_for_room || self.room_waiters.is_empty()) {
            self.queue(waiter, input, now);
            return (waits_for_room && is_detached).then(|| accept(key));
        }
        if waits_for_room {
            self.room_waiters.push(waiter);
            return None;
        }
        Some(self.refuse(key, JobOutcome::Full))
    }

    /// Handles the input of a job that has waited for room. It is dropped if the place is not kept for it any more.
    pub(crate) fn provide_input(&mut self, key: JobKey, input: JobPayload, now: Instant) {
        if let Some(waiter) = self.room_waiters.take_granted(key) {
            self.queue(waiter, input, now);
        }
    }

    /// Refuses a job whose input cannot be passed on: a new one, or one that has waited for room.
    pub(crate) fn refuse_input(&mut self, key: JobKey, reason: String) -> SchedulerAction {
        if self.room_waiters.take_granted(key).is_none() {
            self.counts.submitted += 1;
        }
        self.refuse(key, JobOutcome::Transfer { value: JobValue::Input, reason })
    }

    fn queue(&mut self, waiter: RoomWaiter, input: JobPayload, now: Instant) {
        let RoomWaiter { key, priority, is_detached, submitted, deadline, .. } = waiter;
        let deadline = deadline.unwrap_or_else(|| add_limit(now, self.limit));
        let failed_starts = 0;
        let job =
            WaitingJob { key, priority, is_detached, submitted, deadline, failed_starts, input };
        self.waiting.push_back(job);
    }

    /// Returns whether an input of this size may wait. Each process that is idle or can be started takes a job at once, so
    /// that many more fit.
    fn has_room(&self, size: usize) -> bool {
        let jobs = self.waiting.len() + self.room_waiters.len().1;
        let bytes = self.waiting.bytes() + self.room_waiters.granted_bytes();
        let has_bytes = jobs == 0 || bytes.saturating_add(size) <= self.max_queued_bytes;
        let takers = self.processes.idle_count() + self.processes.startable_count();
        jobs < self.max_queued.saturating_add(takers) && has_bytes
    }

    /// Gives the room in the queue to the jobs that wait for it.
    fn grant_room(&mut self, now: Instant) -> Vec<SchedulerAction> {
        let mut actions = Vec::new();
        while let Some(waiter) = self.room_waiters.first()
            && self.has_room(waiter.size)
        {
            self.room_waiters.grant_first(add_limit(now, self.limit));
            let (to, event, value) = (waiter.key, JobEvent::SendInput, JobPayload::default());
            actions.push(SchedulerAction::SendReply { to, event, value });
        }
        actions
    }

    /// Gives queued jobs to idle processes, and room in the queue to those that wait for it. `is_serving` tells whether a process is not about to exit.
    pub(crate) fn start_queued_jobs(
        &mut self,
        now: Instant,
        is_serving: &dyn Fn(WorkerId) -> bool,
    ) -> Vec<SchedulerAction> {
        self.processes.retain_serving(is_serving);
        let mut actions = Vec::new();
        let first_own = self.inherited_below;
        for worker in self.processes.idle_by_slot() {
            let may_run = |caller| worker >= first_own || caller < first_own;
            let Some(job) = self.waiting.pop(&may_run) else { continue };
            self.processes.make_busy(worker);
            actions.push(self.start(worker, job, now));
        }
        actions.extend(self.grant_room(now));
        actions
    }

    fn start(&mut self, worker: WorkerId, job: WaitingJob, now: Instant) -> SchedulerAction {
        self.last_id += 1;
        let (id, input) = (self.last_id, job.input.clone());
        let deadline = job.deadline.min(add_limit(now, self.limit));
        self.counts.record_wait(job.submitted, now);
        let running = RunningJob { id, job, started: now, deadline, end: PlannedEnd::None };
        self.running.insert(worker, running);
        let limit = deadline.saturating_duration_since(now);
        SchedulerAction::StartJob { worker, job: id, limit, input }
    }

    /// Passes on what a job reports. A report of any job but the current one of the process is dropped.
    pub(crate) fn report_progress(
        &mut self,
        worker: WorkerId,
        id: IsolatedJobId,
        value: JobPayload,
    ) -> Option<SchedulerAction> {
        let running = self.running.get(&worker)?;
        let is_wanted = running.id == id
            && running.end == PlannedEnd::None
            && !running.job.is_detached
            && !self.is_too_large(&value);
        let to = running.job.key;
        is_wanted.then_some(SchedulerAction::SendReply { to, event: JobEvent::Progress, value })
    }

    /// Handles the end of a job in its process. A report of any job but its current one is dropped.
    pub(crate) fn complete_job(
        &mut self,
        worker: WorkerId,
        id: IsolatedJobId,
        outcome: JobOutcome,
        value: JobPayload,
        now: Instant,
    ) -> Option<SchedulerAction> {
        if self.running.get(&worker).is_none_or(|running| running.id != id) {
            return None;
        }
        let RunningJob { job, started, end, .. } = self.running.remove(&worker)?;
        if end == PlannedEnd::None {
            self.processes.finish_job(worker, now);
        }
        if end == PlannedEnd::Settled {
            return None;
        }
        self.counts.record_run(started, now);
        if self.is_too_large(&value) {
            let (size, most) = (value.size(), self.max_payload_bytes);
            let outcome = JobOutcome::TooLarge { value: JobValue::Output, size, most };
            return self.end_job(&job, outcome, JobPayload::default());
        }
        self.end_job(&job, outcome, value)
    }

    /// Returns whether a process has sent more than its library allows: it has lost control of its memory, and the caller would
    /// copy the value.
    fn is_too_large(&self, value: &JobPayload) -> bool {
        value.size() > self.max_payload_bytes.saturating_add(MAX_PAYLOAD_HEAD_BYTES)
    }

    /// Gives a job to another process, as its own has ended before the job was sent. That one gets no more jobs.
    pub(crate) fn put_back(&mut self, worker: WorkerId, now: Instant) -> Option<SchedulerAction> {
        self.processes.remove(worker);
        let running = self.running.remove(&worker)?;
        self.end_running(running, IsolatedWorkerExit::default(), now)
    }

    /// Ends a job that could not be sent to its process.
    pub(crate) fn fail_start(
        &mut self,
        worker: WorkerId,
        outcome: JobOutcome,
    ) -> Option<SchedulerAction> {
        let RunningJob { job, started, .. } = self.running.remove(&worker)?;
        self.processes.make_idle(worker, started);
        self.end_job(&job, outcome, JobPayload::default())
    }

    /// Handles that nobody waits for a job any more: a queued one is removed.
    pub(crate) fn abandon(&mut self, key: JobKey) -> Option<SchedulerAction> {
        if self.waiting.remove(key).is_some() || self.room_waiters.remove(key) {
            self.counts.abandoned += 1;
            return None;
        }
        let worker = self.running.iter().find(|(_, running)| running.job.key == key);
        let worker = worker.map(|(worker, _)| *worker)?;
        self.abandon_running(worker)
    }

    /// Lets a job run although nobody waits for it.
    pub(crate) fn detach(&mut self, key: JobKey) -> Option<SchedulerAction> {
        let running = self.running.values_mut().map(|running| &mut running.job);
        if let Some(job) = running.into_iter().find(|job| job.key == key) {
            job.is_detached = true;
        } else if let Some(job) = self.waiting.get_mut(key) {
            job.is_detached = true;
        } else {
            self.room_waiters.detach(key);
            return None;
        }
        Some(accept(key))
    }

    fn abandon_running(&mut self, worker: WorkerId) -> Option<SchedulerAction> {
        let running = self.running.get_mut(&worker)?;
        if running.end == PlannedEnd::Settled {
            return None;
        }
        let is_killed = running.end != PlannedEnd::None;
        match self.on_abandon {
            OnAbandon::Finish if !is_killed => {
                running.job.is_detached = true;
                None
            }
            _ => {
                running.end = PlannedEnd::Settled;
                self.counts.abandoned += 1;
                let reason = KillReason::Abandoned;
                (!is_killed).then_some(SchedulerAction::KillWorker { worker, reason })
            }
        }
    }

    /// Handles the exit of any worker: a process of the pool, or a caller.
    pub(crate) fn handle_worker_exit(
        &mut self,
        worker: WorkerId,
        exit: IsolatedWorkerExit,
        now: Instant,
    ) -> Vec<SchedulerAction> {
        self.counts.abandoned += self.waiting.remove_caller(worker);
        self.counts.abandoned += self.room_waiters.remove_caller(worker);
        let is_abandoned =
            |running: &RunningJob| running.job.key.caller == worker && !running.job.is_detached;
        let abandoned = self.running.iter().filter(|(_, running)| is_abandoned(running));
        let abandoned: Vec<WorkerId> = abandoned.map(|(worker, _)| *worker).collect();
        let mut actions: Vec<_> =
            abandoned.into_iter().filter_map(|worker| self.abandon_running(worker)).collect();
        self.processes.remove(worker);
        if let Some(running) = self.running.remove(&worker) {
            actions.extend(self.end_running(running, exit, now));
        }
        actions
    }

    /// Handles the end of a job's process.
    fn end_running(
        &mut self,
        running: RunningJob,
        exit: IsolatedWorkerExit,
        now: Instant,
    ) -> Option<SchedulerAction> {
        let RunningJob { id, mut job, started, end, .. } = running;
        let has_begun = exit.begun_job == id;
        let outcome = match end {
            PlannedEnd::Settled => return None,
            PlannedEnd::TimedOut => JobOutcome::TimedOut { has_begun },
            PlannedEnd::None if has_begun && exit.is_drain_kill => JobOutcome::Cut,
            PlannedEnd::None if has_begun => match exit.exceeded {
                Some(limit) => JobOutcome::LimitExceeded { limit },
                None => JobOutcome::Died { code: exit.code, signal: exit.signal },
            },
            PlannedEnd::None if self.is_closed => JobOutcome::Closed,
            PlannedEnd::None => {
                job.failed_starts += 1;
                if job.failed_starts < MAX_FAILED_STARTS {
                    self.waiting.push_front(job);
                    return None;
                }
                let reason = "the processes that it was given to ended before it began".to_string();
                JobOutcome::Transfer { value: JobValue::Input, reason }
            }
        };
        if has_begun {
            self.counts.record_run(started, now);
        }
        self.end_job(&job, outcome, JobPayload::default())
    }

    /// Returns when `expire_jobs` has to be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let running = self.running.values().filter(|running| running.end == PlannedEnd::None);
        let others = [
            self.waiting.next_deadline(),
            self.room_waiters.next_deadline(),
            self.processes.next_idle_deadline(),
        ];
        running.map(|running| running.deadline).chain(others.into_iter().flatten()).min()
    }

    /// Ends the jobs past their deadline, and kills the processes that run them; ends idle processes. `begun_job` returns the job that a process has
    /// begun last.
    pub(crate) fn expire_jobs(
        &mut self,
        now: Instant,
        begun_job: &dyn Fn(WorkerId) -> IsolatedJobId,
    ) -> Vec<SchedulerAction> {
        let mut actions = Vec::new();
        for job in self.waiting.take_expired(now) {
            let outcome = JobOutcome::TimedOut { has_begun: false };
            actions.extend(self.end_job(&job, outcome, JobPayload::default()));
        }
        for waiter in self.room_waiters.take_expired(now) {
            actions.extend(self.end_room_waiter(waiter, JobOutcome::TimedOut { has_begun: false }));
        }
        let mut begun = Vec::new();
        for (worker, running) in &mut self.running {
            if running.deadline > now || running.end != PlannedEnd::None {
                continue;
            }
            running.end = PlannedEnd::TimedOut;
            let reason = KillReason::TimedOut;
            actions.push(SchedulerAction::KillWorker { worker: *worker, reason });
            // It is certain that it has begun. Else its process may begin it before the signal arrives.
            if begun_job(*worker) == running.id {
                running.end = PlannedEnd::Settled;
                begun.push((running.job.clone(), running.started));
            }
        }
        for (job, started) in begun {
            self.counts.record_run(started, now);
            let outcome = JobOutcome::TimedOut { has_begun: true };
            actions.extend(self.end_job(&job, outcome, JobPayload::default()));
        }
        while let Some(worker) = self.processes.take_overdue(now) {
            actions.push(SchedulerAction::EndIdleProcess(worker));
        }
        actions
    }

    /// Refuses queued and new jobs, because the cluster stops.
    pub(crate) fn close(&mut self) -> Vec<SchedulerAction> {
        self.is_closed = true;
        let waiting = self.waiting.take_all();
        let room_waiters = self.room_waiters.take_all();
        let mut actions = Vec::new();
        for job in waiting {
            actions.extend(self.end_job(&job, JobOutcome::Closed, JobPayload::default()));
        }
        for waiter in room_waiters {
            actions.extend(self.end_room_waiter(waiter, JobOutcome::Closed));
        }
        actions
    }

    /// Forgets the callers of all jobs, which have been told, and the jobs that have not started.
    pub(crate) fn forget_callers(&mut self) {
        self.counts.closed += self.waiting.take_all().len() as u64;
        self.counts.closed += self.room_waiters.take_all().len() as u64;
        self.running.values_mut().for_each(|running| running.job.is_detached = true);
    }

    /// Returns the figures of the pool, which has this name.
    pub(crate) fn status(&self, name: &str, now: Instant) -> IsolatedPoolStatus {
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let running = || self.running.values().filter(|one| one.end != PlannedEnd::Settled);
        let oldest = running().map(|running| running.started).min();
        let age_ms = |started| now.saturating_duration_since(started).as_millis();
        IsolatedPoolStatus {
            processes: number(self.processes.idle_count() + running().count()),
            running: number(running().count()),
            oldest_run_ms: oldest.map(|at| u64::try_from(age_ms(at)).unwrap_or(u64::MAX)),
            depth: number(self.waiting.len() + self.room_waiters.len().1),
            waiting_for_room: number(self.room_waiters.len().0),
            capacity: number(self.max_queued),
            queued_bytes: number(self.waiting.bytes()),
            ..self.counts.status(name)
        }
    }

    /// Counts the end of a job. Returns the reply, if anybody waits for it.
    fn end_job(
        &mut self,
        job: &WaitingJob,
        outcome: JobOutcome,
        value: JobPayload,
    ) -> Option<SchedulerAction> {
        self.counts.count_outcome(&outcome);
        let event = JobEvent::Ended(outcome);
        (!job.is_detached).then_some(SchedulerAction::SendReply { to: job.key, event, value })
    }

    fn end_room_waiter(
        &mut self,
        waiter: RoomWaiter,
        outcome: JobOutcome,
    ) -> Option<SchedulerAction> {
        let reply = self.refuse(waiter.key, outcome);
        (!waiter.is_detached).then_some(reply)
    }

    fn refuse(&mut self, to: JobKey, outcome: JobOutcome) -> SchedulerAction {
        self.counts.count_outcome(&outcome);
        let (event, value) = (JobEvent::Ended(outcome), JobPayload::default());
        SchedulerAction::SendReply { to, event, value }
    }
}

/// Tells the caller of a detached job that it may forget it.
fn accept(to: JobKey) -> SchedulerAction {
    SchedulerAction::SendReply { to, event: JobEvent::Accepted, value: JobPayload::default() }
}

/// Returns the time `limit` from now. A limit that is too long for the clock counts as thirty days.
pub(super) fn add_limit(now: Instant, limit: Duration) -> Instant {
    const MAX_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
    now + limit.min(MAX_LIMIT)
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
