//! The primary's side of isolated jobs: passes requests and worker exits to each pool's scheduler, and performs its
//! actions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::{Primary, PrimaryHandle, WorkerTable};
use crate::isolated::{
    CallerMessage, CallerReply, IsolatedJobId, IsolatedJobScheduler, IsolatedWorkerExit,
    JOB_REPLY_KIND, JobEvent, JobKey, JobOutcome, JobPayload, JobStart, JobSubmission, JobValue,
    KillReason, ProcessReport, ResourceLimit, START_JOB_KIND, SavedPool, SchedulerAction,
    decode_job_message, job_envelope,
};
use crate::messages::{Envelope, Message, MessageError};
use crate::scoreboard::WorkerPages;
use prefork_os::resource_limits::resident_bytes;
use prefork_os::signal::Signal;
use prefork_supervisor::{Event, ExitCause, ExitReport, LogEvent};
use prefork_supervisor::{WorkerId, WorkerTag};

/// How long to wait before replies are sent again to callers whose message queue is full.
const REPLY_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The id of a program that has isolated pools without a cluster, as the caller of their jobs. Workers have ids from 1 on.
pub(crate) const PROGRAM_ID: WorkerId = WorkerId(0);

/// The job schedulers of all pools of isolated processes, by the pool's name.
#[derive(Default)]
pub(crate) struct JobSchedulers {
    schedulers: BTreeMap<&'static str, IsolatedJobScheduler>,
    /// What each process had written to its scoreboard page when it ended, until its exit is handled.
    last_jobs: BTreeMap<WorkerId, LastJob>,
    /// The processes that were killed because of their job, until they have exited.
    killed_with_job: BTreeSet<WorkerId>,
    /// Exits of workers that have sent messages which are not handled yet.
    exits: VecDeque<(WorkerId, IsolatedWorkerExit)>,
    /// Replies for callers whose message queue is full, in order.
    unsent_replies: VecDeque<(WorkerId, Envelope)>,
}

/// What a process of a pool tells about its last job by its scoreboard page.
#[derive(Debug, Clone, Copy, Default)]
struct LastJob {
    /// The job that it had begun last; 0 for none.
    begun: IsolatedJobId,
    /// Whether it aborted because it got no more memory.
    has_failed_allocation: bool,
}

impl JobSchedulers {
    pub(crate) fn insert(&mut self, pool: &'static str, scheduler: IsolatedJobScheduler) {
        self.schedulers.insert(pool, scheduler);
    }

    /// Returns when the primary has to look after the pools next.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let jobs = self.schedulers.values().filter_map(IsolatedJobScheduler::next_deadline);
        let retry = (!self.unsent_replies.is_empty()).then_some(now + REPLY_RETRY_INTERVAL);
        jobs.chain(retry).min()
    }

    /// Returns whether a worker has ended whose last messages are not handled yet.
    pub(super) fn has_unhandled_exits(&self) -> bool {
        !self.exits.is_empty()
    }

    /// Saves the jobs of all pools for the new image.
    pub(super) fn save<'a>(
        &'a self,
        now: Instant,
        fds: &mut Vec<BorrowedFd<'a>>,
    ) -> Vec<SavedPool> {
        self.schedulers.iter().map(|(name, scheduler)| scheduler.save(name, now, fds)).collect()
    }

    /// Continues with the jobs of a pool of the previous image. Returns them if there is no such pool.
    pub(super) fn restore(
        &mut self,
        saved: SavedPool,
        inherited_below: WorkerId,
        now: Instant,
    ) -> Option<SavedPool> {
        match self.schedulers.get_mut(&*saved.name) {
            Some(scheduler) => {
                scheduler.restore(saved, inherited_below, now);
                None
            }
            None => Some(saved),
        }
    }

    /// Forgets the callers of all jobs, which have been told how they end.
    pub(super) fn forget_callers(&mut self) {
        self.schedulers.values_mut().for_each(IsolatedJobScheduler::forget_callers);
    }

    pub(super) fn unsent_replies(&self) -> impl Iterator<Item = &(WorkerId, Envelope)> {
        self.unsent_replies.iter()
    }

    pub(super) fn push_unsent_reply(&mut self, caller: WorkerId, envelope: Envelope) {
        self.unsent_replies.push_back((caller, envelope));
    }

    /// Returns whether this is the exit of a process that was killed because of its job, and forgets it.
    pub(super) fn take_killed_with_job(&mut self, exit: &ExitReport) -> bool {
        let was_killed = self.killed_with_job.remove(&exit.worker.id);
        was_killed && exit.cause == ExitCause::Unexpected
    }

    fn names(&self) -> Vec<&'static str> {
        self.schedulers.keys().copied().collect()
    }
}

impl PrimaryHandle<'_> {
    /// Handles what a worker says about a job that it wants to be run.
    pub(crate) fn handle_job_caller(
        &mut self,
        pool: &'static str,
        from: WorkerTag,
        mut message: Message,
    ) {
        let Some((request, input)) = decode_job_message(&mut message) else { return };
        let is_alive = from.id == PROGRAM_ID || self.primary.workers.contains_key(&from.id);
        let Some(scheduler) = self.primary.isolated_pools.schedulers.get_mut(pool) else { return };
        if let CallerMessage::Submit(JobSubmission { token, .. })
        | CallerMessage::ProvideInput { token } = request
            && let Err(reason) = input.check()
        {
            let refused = scheduler.refuse_input(JobKey { caller: from.id, token }, reason);
            return self.primary.run_job_actions(pool, [refused]);
        }
        let action = match request {
            CallerMessage::Submit(job) if is_alive || job.is_detached => {
                scheduler.submit(from.id, job, input, Instant::now())
            }
            CallerMessage::ProvideInput { token } => {
                let key = JobKey { caller: from.id, token };
                scheduler.provide_input(key, input, Instant::now());
                None
            }
            // Nobody waits for it.
            CallerMessage::Submit(_) => None,
            CallerMessage::Abandon { token } => {
                scheduler.abandon(JobKey { caller: from.id, token })
            }
            CallerMessage::Detach { token } => scheduler.detach(JobKey { caller: from.id, token }),
        };
        self.primary.run_job_actions(pool, action);
    }

    /// Abandons the jobs of the program, which has ended.
    pub(crate) fn abandon_jobs_of_program(&mut self) {
        let exit = IsolatedWorkerExit::default();
        self.primary.isolated_pools.exits.push_back((PROGRAM_ID, exit));
        self.primary.handle_isolated_exits();
    }

    /// Handles what an isolated process reports about its job.
    pub(crate) fn handle_job_report(
        &mut self,
        pool: &'static str,
        from: WorkerTag,
        mut message: Message,
    ) {
        let Some((report, value)) = decode_job_message(&mut message) else { return };
        let Primary { isolated_pools, workers, .. } = &mut *self.primary;
        let Some(scheduler) = isolated_pools.schedulers.get_mut(pool) else { return };
        let (action, replacement) = match report {
            ProcessReport::Progress { job } => {
                (scheduler.report_progress(from.id, job, value), None)
            }
            ProcessReport::Ended { job, outcome } => {
                let action = scheduler.complete_job(from.id, job, outcome, value, Instant::now());
                // Between two jobs, so that the memory is what the jobs so far have left.
                let rss = process_memory(scheduler, workers, from.id);
                (action, scheduler.replace_if_used_up(from.id, rss))
            }
        };
        self.primary.run_job_actions(pool, action.into_iter().chain(replacement));
    }
}

impl Primary {
    /// Passes a log event to the schedulers that it concerns, and performs what they order.
    pub(super) fn update_job_schedulers(&mut self, event: &LogEvent) {
        match event {
            LogEvent::Ready { worker, .. } => {
                let Primary { isolated_pools, workers, .. } = self;
                let scheduler = isolated_pools.schedulers.get_mut(worker.kind);
                let Some(scheduler) = scheduler else { return };
                let rss = process_memory(scheduler, workers, worker.id);
                scheduler.add_process(worker.id, worker.slot, rss, Instant::now());
                self.run_job_actions(worker.kind, None);
            }
            LogEvent::Exited(exit) if !self.isolated_pools.schedulers.is_empty() => {
                let worker = exit.worker.id;
                let last_job = self.isolated_pools.last_jobs.remove(&worker).unwrap_or_default();
                let exit = isolated_worker_exit(exit, last_job);
                self.isolated_pools.exits.push_back((worker, exit));
                self.handle_isolated_exits();
            }
            LogEvent::Stopping { .. } | LogEvent::StoppingNow { .. } => {
                for pool in self.isolated_pools.names() {
                    let scheduler = self.isolated_pools.schedulers.get_mut(pool);
                    let actions = scheduler.map_or_else(Vec::new, IsolatedJobScheduler::close);
                    self.run_job_actions(pool, actions);
                }
            }
            _ => {}
        }
    }

    /// Gives jobs again to a process that was idle for too long, as the supervisor keeps it.
    pub(super) fn keep_idle_process(&mut self, worker: WorkerId) {
        let Some(kind) = self.workers.get(&worker).map(|process| process.tag.kind) else { return };
        if let Some(scheduler) = self.isolated_pools.schedulers.get_mut(kind) {
            scheduler.keep_idle_process(worker, Instant::now());
            self.run_job_actions(kind, None);
        }
    }

    /// Records what a process tells about its last job. Call it when it has ended, before its scoreboard pages are released.
    pub(super) fn record_last_job(&mut self, worker: WorkerId, pages: WorkerPages) {
        if !self.isolated_pools.schedulers.is_empty() {
            let begun = self.scoreboard.begun_job(pages);
            let has_failed_allocation = self.scoreboard.has_failed_allocation(pages);
            let last_job = LastJob { begun, has_failed_allocation };
            self.isolated_pools.last_jobs.insert(worker, last_job);
        }
    }

    /// Handles the exits of workers whose last messages have been handled: one of them may be the result of a job.
    fn handle_isolated_exits(&mut self) {
        for _ in 0..self.isolated_pools.exits.len() {
            let Some((worker, exit)) = self.isolated_pools.exits.pop_front() else { return };
            if self.messages.primary_end.has_pending(worker) {
                self.isolated_pools.exits.push_back((worker, exit));
            } else {
                self.handle_isolated_exit(worker, exit);
            }
        }
    }

    /// Handles the exits of workers even if some of their messages wait for a full receiver.
    pub(super) fn handle_all_isolated_exits(&mut self) {
        while let Some((worker, exit)) = self.isolated_pools.exits.pop_front() {
            self.handle_isolated_exit(worker, exit);
        }
    }

    fn handle_isolated_exit(&mut self, worker: WorkerId, exit: IsolatedWorkerExit) {
        for pool in self.isolated_pools.names() {
            let scheduler = self.isolated_pools.schedulers.get_mut(pool);
            let actions = scheduler
                .map_or_else(Vec::new, |one| one.handle_worker_exit(worker, exit, Instant::now()));
            self.run_job_actions(pool, actions);
        }
    }

    /// Ends jobs that are past their deadline, and does what had to wait.
    pub(super) fn attend_isolated_jobs(&mut self) {
        self.handle_isolated_exits();
        self.send_unsent_replies();
        let now = Instant::now();
        for pool in self.isolated_pools.names() {
            let Primary { isolated_pools, workers, scoreboard, .. } = self;
            let Some(scheduler) = isolated_pools.schedulers.get_mut(pool) else { continue };
            if scheduler.next_deadline().is_none_or(|at| at > now) {
                continue;
            }
            let begun_job = |worker: WorkerId| {
                workers.get(&worker).map_or(0, |process| scoreboard.begun_job(process.pages))
            };
            let actions = scheduler.expire_jobs(now, &begun_job);
            self.run_job_actions(pool, actions);
        }
    }

    /// Performs a scheduler's actions, then gives waiting jobs to idle processes.
    fn run_job_actions(
        &mut self,
        pool: &'static str,
        actions: impl IntoIterator<Item = SchedulerAction>,
    ) {
        for action in actions {
            self.run_job_action(pool, action);
        }
        let Some(scheduler) = self.isolated_pools.schedulers.get_mut(pool) else { return };
        let supervisor = &self.supervisor;
        let is_serving = |id| supervisor.is_serving(id);
        let started = scheduler.start_queued_jobs(Instant::now(), &is_serving);
        let wanted = supervisor.wanted_of_kind(pool).unwrap_or(0);
        let request = scheduler.request_processes(wanted);
        for action in started.into_iter().chain(request) {
            self.run_job_action(pool, action);
        }
        self.publish_isolated_pool(pool);
    }

    /// Publishes the figures of a pool, for the status.
    fn publish_isolated_pool(&self, pool: &'static str) {
        if let Some(scheduler) = self.isolated_pools.schedulers.get(pool) {
            self.scoreboard.publish_isolated_pool(&scheduler.status(pool, Instant::now()));
        }
    }

    /// Publishes the figures of all pools.
    pub(super) fn publish_isolated_pools(&self) {
        for pool in self.isolated_pools.schedulers.keys() {
            self.publish_isolated_pool(pool);
        }
    }

    fn run_job_action(&mut self, pool: &'static str, action: SchedulerAction) {
        match action {
            SchedulerAction::StartJob { worker, job, limit, input } => {
                // From now on the worker's exit says nothing about whether such workers can boot.
                self.pending_events.push_back(Event::RiskyJobStarted { worker });
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                let start = JobStart { job, limit_ms };
                if let Err(error) = self.send_job(worker, &start, &input) {
                    let scheduler = self.isolated_pools.schedulers.get_mut(pool);
                    let action = scheduler.and_then(|one| match error {
                        // The process has ended, and its exit is not handled yet.
                        MessageError::Closed => one.put_back(worker, Instant::now()),
                        error => {
                            let outcome = JobOutcome::of_send_error(&error, JobValue::Input);
                            one.fail_start(worker, outcome)
                        }
                    });
                    if let Some(action) = action {
                        self.run_job_action(pool, action);
                    }
                }
            }
            SchedulerAction::SendReply { to, event, value } => {
                self.send_job_reply(to, event, &value);
            }
            SchedulerAction::RequestProcesses(workers) => {
                self.pending_events.push_back(Event::WorkersNeeded { kind: pool, workers });
            }
            SchedulerAction::EndIdleProcess(worker) => {
                self.pending_events.push_back(Event::WorkerIdle { worker });
            }
            SchedulerAction::ReplaceProcess { worker, reason } => {
                self.pending_events.push_back(Event::WorkerUsedUp { worker, reason });
            }
            SchedulerAction::KillWorker { worker, reason } => {
                if let Some(process) = self.workers.get(&worker)
                    && reason == KillReason::TimedOut
                {
                    self.event_log.log_job_timeout(process.tag);
                }
                self.isolated_pools.killed_with_job.insert(worker);
                self.workers.signal(worker, Signal::SIGKILL, &mut self.event_log);
            }
        }
    }

    fn send_job(
        &mut self,
        worker: WorkerId,
        start: &JobStart,
        input: &JobPayload,
    ) -> Result<(), MessageError> {
        let envelope = job_envelope(START_JOB_KIND, start, input)?;
        // A worker that drains does not return it: the scheduler gives the job to another one.
        let sent = self.messages.primary_end.send_internal(worker, envelope);
        sent.map_err(|rejected| rejected.0)
    }

    /// Tells a caller how its job has ended.
    pub(super) fn send_job_outcome(&mut self, to: JobKey, outcome: JobOutcome) {
        self.send_job_reply(to, JobEvent::Ended(outcome), &JobPayload::default());
    }

    /// Sends a caller what happened to its job. A progress report is dropped if there is no room for it.
    fn send_job_reply(&mut self, to: JobKey, event: JobEvent, value: &JobPayload) {
        let is_progress = event == JobEvent::Progress;
        let reply = CallerReply { token: to.token, event };
        let envelope = job_envelope(JOB_REPLY_KIND, &reply, value);
        let error = match envelope {
            Ok(envelope) => {
                let waiting = &mut self.isolated_pools.unsent_replies;
                let waits = waiting.iter().any(|(caller, _)| *caller == to.caller);
                let sent = match waits {
                    true => Err(Box::new((MessageError::Full, envelope))),
                    false => self.messages.primary_end.send_internal(to.caller, envelope),
                };
                match sent.map_err(|rejected| *rejected) {
                    // The caller is gone.
                    Ok(()) | Err((MessageError::Closed, _)) => return,
                    Err((MessageError::Full, envelope)) => {
                        if !is_progress {
                            waiting.push_back((to.caller, envelope));
                        }
                        return;
                    }
                    Err((error, _)) => error,
                }
            }
            Err(error) => error,
        };
        if !is_progress && *value != JobPayload::default() {
            let outcome = JobOutcome::of_send_error(&error, JobValue::Output);
            self.send_job_outcome(to, outcome);
        }
    }

    /// Sends the replies that found a full queue.
    fn send_unsent_replies(&mut self) {
        let mut blocked: Vec<WorkerId> = Vec::new();
        for _ in 0..self.isolated_pools.unsent_replies.len() {
            let Some((caller, envelope)) = self.isolated_pools.unsent_replies.pop_front() else {
                return;
            };
            let sent = match blocked.contains(&caller) {
                true => Err(Box::new((MessageError::Full, envelope))),
                false => self.messages.primary_end.send_internal(caller, envelope),
            };
            if let Err((MessageError::Full, envelope)) = sent.map_err(|rejected| *rejected) {
                blocked.push(caller);
                self.isolated_pools.unsent_replies.push_back((caller, envelope));
            }
        }
    }
}

/// Returns the resident memory of a process, if the scheduler needs it.
fn process_memory(
    scheduler: &IsolatedJobScheduler,
    workers: &WorkerTable,
    worker: WorkerId,
) -> Option<u64> {
    let process = workers.get(&worker).filter(|_| scheduler.measures_memory())?;
    resident_bytes(process.pid)
}

/// Returns how a worker has ended, as far as its job is concerned.
fn isolated_worker_exit(exit: &ExitReport, last_job: LastJob) -> IsolatedWorkerExit {
    let is_drain_kill = matches!(
        exit.cause,
        ExitCause::KilledByStop | ExitCause::GracefulTimeout | ExitCause::Superseded
    );
    let (code, signal) = (exit.status.code(), exit.status.signal());
    let is_memory = exit.cause == ExitCause::MemoryLimit
        || (signal == Some(Signal::SIGABRT as i32) && last_job.has_failed_allocation);
    let is_cpu_time = signal == Some(Signal::SIGXCPU as i32);
    let exceeded = match (is_memory, is_cpu_time) {
        (true, _) => Some(ResourceLimit::Memory),
        (false, true) => Some(ResourceLimit::CpuTime),
        (false, false) => None,
    };
    IsolatedWorkerExit { begun_job: last_job.begun, is_drain_kill, code, signal, exceeded }
}
