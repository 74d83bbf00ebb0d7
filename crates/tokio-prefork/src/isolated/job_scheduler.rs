//! Schedules the jobs of one pool of isolated workers. Without I/O or clock: the time is an argument, and actions are returned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{IsolatedJobId, IsolatedJobOutcome, IsolatedPoolConfig, encode_with_rest};
use crate::messages::ReplyTo;
use prefork_supervisor::WorkerId;

/// An action for the primary to perform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SchedulerAction {
    /// Send the job to this isolated worker.
    StartJob { worker: WorkerId, job: IsolatedJobId, input: Bytes },
    /// Send the outcome and the output to the caller.
    SendReply { to: ReplyTo, answer: Bytes },
    /// Kill the worker with SIGKILL, because its job has exceeded its time.
    KillWorker(WorkerId),
}

/// How an isolated worker exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsolatedWorkerExit {
    /// It exited as requested. A job that was on its way to it has not started.
    Drained,
    Died {
        signal: Option<i32>,
    },
}

/// A job that waits for a worker.
#[derive(Debug, Clone)]
struct QueuedJob {
    caller: WorkerId,
    token: u64,
    to: ReplyTo,
    deadline: Instant,
    input: Bytes,
}

/// A job that was sent to a worker.
#[derive(Debug)]
struct RunningJob {
    id: IsolatedJobId,
    job: QueuedJob,
    deadline: Instant,
}

/// The jobs and workers of one pool.
#[derive(Debug)]
pub(crate) struct IsolatedJobScheduler {
    limit: Duration,
    max_queued: usize,
    /// In order of arrival.
    waiting: VecDeque<QueuedJob>,
    running: BTreeMap<WorkerId, RunningJob>,
    idle: BTreeSet<WorkerId>,
    next: IsolatedJobId,
    closed: bool,
}

fn reply_with_outcome(to: ReplyTo, verdict: &IsolatedJobOutcome) -> SchedulerAction {
    SchedulerAction::SendReply { to, answer: encode_with_rest(verdict, b"") }
}

impl IsolatedJobScheduler {
    pub(crate) fn new(config: &IsolatedPoolConfig) -> IsolatedJobScheduler {
        IsolatedJobScheduler {
            limit: config.deadline,
            max_queued: config.queue,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            idle: BTreeSet::new(),
            next: 1,
            closed: false,
        }
    }

    /// Adds a worker of the pool that is ready.
    pub(crate) fn add_idle_worker(&mut self, worker: WorkerId) {
        self.idle.insert(worker);
    }

    /// Queues a job whose caller waits until `deadline`. Returns a reply if it is rejected.
    pub(crate) fn submit(
        &mut self,
        (caller, token): (WorkerId, u64),
        to: ReplyTo,
        deadline: Instant,
        input: Bytes,
    ) -> Option<SchedulerAction> {
        if self.closed {
            return Some(reply_with_outcome(to, &IsolatedJobOutcome::Closed));
        }
        // Each idle worker takes a job at once, so that many more fit.
        if self.waiting.len() >= self.max_queued + self.idle.len() {
            return Some(reply_with_outcome(to, &IsolatedJobOutcome::Full));
        }
        self.waiting.push_back(QueuedJob { caller, token, to, deadline, input });
        None
    }

    /// Gives queued jobs to idle workers. `is_serving` tells whether a worker is not about to exit.
    pub(crate) fn start_queued_jobs(
        &mut self,
        now: Instant,
        is_serving: &dyn Fn(WorkerId) -> bool,
    ) -> Vec<SchedulerAction> {
        self.idle.retain(|worker| is_serving(*worker));
        let mut actions = Vec::new();
        while let Some(worker) = self.idle.first().copied()
            && let Some(job) = self.waiting.pop_front()
        {
            self.idle.remove(&worker);
            let (id, input) = (self.next, job.input.clone());
            self.next += 1;
            let deadline = job.deadline.min(now + self.limit);
            self.running.insert(worker, RunningJob { id, job, deadline });
            actions.push(SchedulerAction::StartJob { worker, job: id, input });
        }
        actions
    }

    /// Handles the result of a worker. A result of any job but its current one is dropped.
    pub(crate) fn complete_job(
        &mut self,
        worker: WorkerId,
        id: IsolatedJobId,
        answer: Bytes,
    ) -> Option<SchedulerAction> {
        if self.running.get(&worker).is_none_or(|running| running.id != id) {
            return None;
        }
        let RunningJob { job, .. } = self.running.remove(&worker)?;
        self.idle.insert(worker);
        Some(SchedulerAction::SendReply { to: job.to, answer })
    }

    /// Fails a job that could not be sent to its worker.
    pub(crate) fn fail_start(&mut self, worker: WorkerId, why: String) -> Option<SchedulerAction> {
        let RunningJob { job, .. } = self.running.remove(&worker)?;
        self.idle.insert(worker);
        Some(reply_with_outcome(job.to, &IsolatedJobOutcome::Failed(why)))
    }

    /// Removes a queued job whose caller no longer waits. A running one continues.
    pub(crate) fn cancel_queued_job(&mut self, caller: WorkerId, token: u64) {
        self.waiting.retain(|job| (job.caller, job.token) != (caller, token));
    }

    /// Handles the exit of any worker: one of the pool, or a caller.
    pub(crate) fn handle_worker_exit(
        &mut self,
        worker: WorkerId,
        how: IsolatedWorkerExit,
    ) -> Option<SchedulerAction> {
        self.waiting.retain(|job| job.caller != worker);
        self.idle.remove(&worker);
        let RunningJob { job, .. } = self.running.remove(&worker)?;
        match how {
            IsolatedWorkerExit::Died { signal } => {
                Some(reply_with_outcome(job.to, &IsolatedJobOutcome::Died { signal }))
            }
            IsolatedWorkerExit::Drained if self.closed => {
                Some(reply_with_outcome(job.to, &IsolatedJobOutcome::Closed))
            }
            IsolatedWorkerExit::Drained => {
                self.waiting.push_front(job);
                None
            }
        }
    }

    /// Returns when `expire_jobs` has to be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|job| job.deadline);
        waiting.chain(self.running.values().map(|running| running.deadline)).min()
    }

    /// Fails the jobs past their deadline, and kills the workers that run them.
    pub(crate) fn expire_jobs(&mut self, now: Instant) -> Vec<SchedulerAction> {
        let mut actions = Vec::new();
        self.waiting.retain(|job| {
            let late = job.deadline <= now;
            actions.extend(
                late.then(|| reply_with_outcome(job.to.clone(), &IsolatedJobOutcome::TimedOut)),
            );
            !late
        });
        self.running.retain(|worker, RunningJob { job, deadline, .. }| {
            let late = *deadline <= now;
            if late {
                actions.push(reply_with_outcome(job.to.clone(), &IsolatedJobOutcome::TimedOut));
                actions.push(SchedulerAction::KillWorker(*worker));
            }
            !late
        });
        actions
    }

    /// Rejects queued and new jobs, because the cluster stops.
    pub(crate) fn close(&mut self) -> Vec<SchedulerAction> {
        self.closed = true;
        self.waiting
            .drain(..)
            .map(|job| reply_with_outcome(job.to, &IsolatedJobOutcome::Closed))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{MessageSender, ReplyTo};

    const CALLER: WorkerId = WorkerId(1);
    const FIRST_WORKER: WorkerId = WorkerId(8);
    const SECOND_WORKER: WorkerId = WorkerId(9);

    fn create_scheduler(queue: usize) -> IsolatedJobScheduler {
        IsolatedJobScheduler::new(
            &IsolatedPoolConfig::new("thumbnails", 2)
                .queue(queue)
                .deadline(Duration::from_secs(10)),
        )
    }

    fn reply_to(id: u64) -> ReplyTo {
        ReplyTo::to_test(MessageSender::Worker(CALLER), id)
    }

    fn reply_action(id: u64, verdict: IsolatedJobOutcome) -> SchedulerAction {
        reply_with_outcome(reply_to(id), &verdict)
    }

    /// Submits job `n` with a deadline in one second. Returns the actions.
    fn submit_job(
        scheduler: &mut IsolatedJobScheduler,
        n: u64,
        now: Instant,
    ) -> Vec<SchedulerAction> {
        let deadline = now + Duration::from_secs(1);
        let refused =
            scheduler.submit((CALLER, n), reply_to(n), deadline, Bytes::from(n.to_string()));
        refused.into_iter().chain(scheduler.start_queued_jobs(now, &|_| true)).collect()
    }

    fn start_action(worker: WorkerId, job: IsolatedJobId, n: u64) -> SchedulerAction {
        SchedulerAction::StartJob { worker, job, input: Bytes::from(n.to_string()) }
    }

    #[test]
    fn a_worker_runs_one_job_at_a_time_and_others_are_queued_in_order() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        assert_eq!(submit_job(&mut scheduler, 1, now), [start_action(FIRST_WORKER, 1, 1)]);
        assert!(
            submit_job(&mut scheduler, 2, now).is_empty()
                && submit_job(&mut scheduler, 3, now).is_empty()
        );
        assert_eq!(submit_job(&mut scheduler, 4, now), [reply_action(4, IsolatedJobOutcome::Full)]);
        let answer = encode_with_rest(&IsolatedJobOutcome::Done, b"!");
        assert_eq!(
            scheduler.complete_job(SECOND_WORKER, 1, answer.clone()),
            None,
            "another worker"
        );
        assert_eq!(scheduler.complete_job(FIRST_WORKER, 7, answer.clone()), None, "another job");
        let done = scheduler.complete_job(FIRST_WORKER, 1, answer.clone());
        assert_eq!(done, Some(SchedulerAction::SendReply { to: reply_to(1), answer }));
        assert_eq!(scheduler.start_queued_jobs(now, &|_| true), [start_action(FIRST_WORKER, 2, 2)]);
    }

    #[test]
    fn a_worker_about_to_exit_gets_no_job() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        scheduler.submit((CALLER, 1), reply_to(1), now, Bytes::new());
        assert!(scheduler.start_queued_jobs(now, &|_| false).is_empty());
        scheduler.add_idle_worker(SECOND_WORKER);
        assert!(matches!(
            scheduler.start_queued_jobs(now, &|_| true)[..],
            [SchedulerAction::StartJob { worker: SECOND_WORKER, .. }]
        ));
    }

    #[test]
    fn only_the_caller_of_the_job_is_notified_when_its_process_dies() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        submit_job(&mut scheduler, 1, now);
        submit_job(&mut scheduler, 2, now);
        let died = IsolatedWorkerExit::Died { signal: Some(11) };
        assert_eq!(
            scheduler.handle_worker_exit(FIRST_WORKER, died),
            Some(reply_action(1, IsolatedJobOutcome::Died { signal: Some(11) }))
        );
        assert_eq!(scheduler.handle_worker_exit(FIRST_WORKER, died), None);
        scheduler.add_idle_worker(SECOND_WORKER);
        assert_eq!(
            scheduler.start_queued_jobs(now, &|_| true),
            [start_action(SECOND_WORKER, 2, 2)]
        );
    }

    #[test]
    fn a_job_that_did_not_start_before_its_worker_drained_is_given_to_another() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        submit_job(&mut scheduler, 1, now);
        submit_job(&mut scheduler, 2, now);
        assert_eq!(scheduler.handle_worker_exit(FIRST_WORKER, IsolatedWorkerExit::Drained), None);
        scheduler.add_idle_worker(SECOND_WORKER);
        assert_eq!(
            scheduler.start_queued_jobs(now, &|_| true),
            [start_action(SECOND_WORKER, 2, 1)]
        );
    }

    #[test]
    fn jobs_past_their_deadline_fail_and_their_process_is_killed() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        submit_job(&mut scheduler, 1, now);
        submit_job(&mut scheduler, 2, now);
        let late = now + Duration::from_secs(1);
        assert_eq!((scheduler.next_deadline(), scheduler.expire_jobs(now).len()), (Some(late), 0));
        let actions = scheduler.expire_jobs(late);
        let [two, one] = [2, 1].map(|n| reply_action(n, IsolatedJobOutcome::TimedOut));
        assert_eq!(actions, [two, one, SchedulerAction::KillWorker(FIRST_WORKER)]);
        assert_eq!(
            (
                scheduler.next_deadline(),
                scheduler
                    .handle_worker_exit(FIRST_WORKER, IsolatedWorkerExit::Died { signal: Some(9) })
            ),
            (None, None)
        );
    }

    #[test]
    fn the_deadline_of_the_pool_limits_the_timeout_of_the_caller() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        let deadline = now + Duration::from_secs(3600);
        scheduler.submit((CALLER, 1), reply_to(1), deadline, Bytes::new());
        scheduler.start_queued_jobs(now, &|_| true);
        assert_eq!(scheduler.next_deadline(), Some(now + Duration::from_secs(10)));
    }

    #[test]
    fn jobs_of_callers_that_are_gone_do_not_start() {
        let (mut scheduler, now) = (create_scheduler(4), Instant::now());
        for n in 1..=3 {
            submit_job(&mut scheduler, n, now);
        }
        scheduler.cancel_queued_job(SECOND_WORKER, 2);
        scheduler.cancel_queued_job(CALLER, 2);
        scheduler.add_idle_worker(FIRST_WORKER);
        assert_eq!(scheduler.start_queued_jobs(now, &|_| true), [start_action(FIRST_WORKER, 1, 1)]);
        scheduler.handle_worker_exit(CALLER, IsolatedWorkerExit::Died { signal: Some(9) });
        scheduler.add_idle_worker(SECOND_WORKER);
        assert!(scheduler.start_queued_jobs(now, &|_| true).is_empty());
    }

    #[test]
    fn a_stop_rejects_queued_jobs_and_lets_running_ones_finish() {
        let (mut scheduler, now) = (create_scheduler(2), Instant::now());
        scheduler.add_idle_worker(FIRST_WORKER);
        submit_job(&mut scheduler, 1, now);
        submit_job(&mut scheduler, 2, now);
        assert_eq!(scheduler.close(), [reply_action(2, IsolatedJobOutcome::Closed)]);
        assert_eq!(
            submit_job(&mut scheduler, 3, now),
            [reply_action(3, IsolatedJobOutcome::Closed)]
        );
        let answer = encode_with_rest(&IsolatedJobOutcome::Done, b"");
        assert!(scheduler.complete_job(FIRST_WORKER, 1, answer).is_some());
    }
}
