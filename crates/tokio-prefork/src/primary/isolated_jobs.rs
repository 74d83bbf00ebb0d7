//! The primary's side of isolated jobs: passes requests and worker exits to each pool's scheduler, and performs its
//! orders.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Primary, PrimaryHandle};
use crate::isolated::{
    IsolatedJobRequest, IsolatedJobScheduler, IsolatedWorkerExit, RUN_JOB_KIND, SchedulerAction,
    decode_job_result, decode_with_rest, encode_with_rest,
};
use crate::messages::{AttachedConnection, Envelope, Message, MessageAddress, MessageClass};
use prefork_os::signal::Signal;
use prefork_supervisor::{Event, ExitCause, LogEvent};
use prefork_supervisor::{WorkerId, WorkerTag};

/// Maximum time that a caller can wait for its job.
const MAX_JOB_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The job schedulers of all pools of isolated workers, by the pool's name.
#[derive(Default)]
pub(crate) struct IsolatedPools(BTreeMap<&'static str, IsolatedJobScheduler>);

impl IsolatedPools {
    pub(crate) fn insert(&mut self, pool: &'static str, scheduler: IsolatedJobScheduler) {
        self.0.insert(pool, scheduler);
    }

    /// Passes a log event to every scheduler that it concerns. Returns the orders of each pool.
    fn handle_log_event(&mut self, event: &LogEvent) -> Vec<(&'static str, Vec<SchedulerAction>)> {
        let orders = self.0.iter_mut().filter_map(|(pool, scheduler)| {
            let orders = match event {
                LogEvent::Ready { worker, .. } if worker.kind == *pool => {
                    scheduler.add_idle_worker(worker.id);
                    Vec::new()
                }
                LogEvent::Exited(exit) => {
                    let is_drained = exit.cause == ExitCause::Drained && exit.status.success();
                    let signal = exit.status.signal();
                    let how = if is_drained {
                        IsolatedWorkerExit::Drained
                    } else {
                        IsolatedWorkerExit::Died { signal }
                    };
                    scheduler.handle_worker_exit(exit.worker.id, how).into_iter().collect()
                }
                LogEvent::Stopping { .. } | LogEvent::StoppingNow { .. } => scheduler.close(),
                _ => return None,
            };
            Some((*pool, orders))
        });
        orders.collect()
    }

    /// Expires jobs past their deadline, and returns the resulting actions by pool.
    fn expire_jobs(&mut self, now: Instant) -> Vec<(&'static str, Vec<SchedulerAction>)> {
        let is_due = |scheduler: &IsolatedJobScheduler| {
            scheduler.next_deadline().is_some_and(|at| at <= now)
        };
        let due = self.0.iter_mut().filter(|(_, scheduler)| is_due(scheduler));
        due.map(|(pool, scheduler)| (*pool, scheduler.expire_jobs(now))).collect()
    }

    /// Returns when the next job is past its deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(IsolatedJobScheduler::next_deadline).min()
    }
}

impl PrimaryHandle<'_> {
    /// Handles a worker's request to run a job in the pool.
    pub(crate) fn submit_isolated_job(
        &mut self,
        pool: &'static str,
        from: WorkerTag,
        message: &Message,
    ) {
        let Some(to) = message.reply_to() else { return };
        let Some((job, input)) = decode_with_rest::<IsolatedJobRequest>(message.bytes()) else {
            return;
        };
        let deadline = Instant::now() + Duration::from_millis(job.limit_ms).min(MAX_JOB_TIMEOUT);
        let Some(scheduler) = self.primary.isolated_pools.0.get_mut(pool) else { return };
        let order = scheduler.submit((from.id, job.token), to, deadline, input);
        self.primary.run_job_orders(pool, order);
    }

    /// Handles a worker's report that it no longer waits for its job.
    pub(crate) fn cancel_isolated_job(
        &mut self,
        pool: &'static str,
        from: WorkerTag,
        message: &Message,
    ) {
        let scheduler = self.primary.isolated_pools.0.get_mut(pool);
        if let Some((scheduler, token)) = scheduler.zip(message.decode().ok()) {
            scheduler.cancel_queued_job(from.id, token);
        }
    }

    /// Handles an isolated worker's report that its job has ended.
    pub(crate) fn finish_isolated_job(
        &mut self,
        pool: &'static str,
        from: WorkerTag,
        message: &Message,
    ) {
        let Some((job, answer)) = decode_job_result(message.bytes()) else { return };
        let Some(scheduler) = self.primary.isolated_pools.0.get_mut(pool) else { return };
        let order = scheduler.complete_job(from.id, job, answer);
        self.primary.run_job_orders(pool, order);
    }
}

impl Primary {
    /// Passes a log event to the schedulers, and performs what they order.
    pub(super) fn update_job_schedulers(&mut self, event: &LogEvent) {
        for (pool, orders) in self.isolated_pools.handle_log_event(event) {
            self.run_job_orders(pool, orders);
        }
    }

    /// Ends jobs that are past their deadline.
    pub(super) fn expire_isolated_jobs(&mut self) {
        for (pool, orders) in self.isolated_pools.expire_jobs(Instant::now()) {
            self.run_job_orders(pool, orders);
        }
    }

    /// Performs a scheduler's orders, then gives waiting jobs to idle workers.
    fn run_job_orders(
        &mut self,
        pool: &'static str,
        orders: impl IntoIterator<Item = SchedulerAction>,
    ) {
        for order in orders {
            self.run_job_order(pool, order);
        }
        let Some(scheduler) = self.isolated_pools.0.get_mut(pool) else { return };
        let supervisor = &self.supervisor;
        for order in scheduler.start_queued_jobs(Instant::now(), &|id| supervisor.is_serving(id)) {
            self.run_job_order(pool, order);
        }
    }

    fn run_job_order(&mut self, pool: &'static str, order: SchedulerAction) {
        match order {
            SchedulerAction::StartJob { worker, job, input } => {
                // From now on the worker's exit says nothing about whether such workers can boot.
                self.pending_events.push_back(Event::RiskyJobStarted { worker });
                if let Err(reason) = self.send_job(worker, encode_with_rest(&job, &input)) {
                    let scheduler = self.isolated_pools.0.get_mut(pool);
                    let order = scheduler.and_then(|one| one.fail_start(worker, reason));
                    if let Some(order) = order {
                        self.run_job_order(pool, order);
                    }
                }
            }
            // A caller whose channel is full does not get the answer and times out.
            SchedulerAction::SendReply { to, answer } => {
                drop(self.messages.primary_end.reply(&to, MessageClass::Reply, answer.into()));
            }
            SchedulerAction::KillWorker(worker) => {
                if let Some(process) = self.workers.get(&worker) {
                    self.event_log.log_job_timeout(process.tag);
                }
                self.workers.signal(worker, Signal::SIGKILL, &mut self.event_log);
            }
        }
    }

    fn send_job(&mut self, worker: WorkerId, payload: Bytes) -> Result<(), String> {
        let envelope = Envelope::new(
            MessageAddress::Primary,
            RUN_JOB_KIND,
            payload.into(),
            AttachedConnection::Absent,
        );
        let envelope = envelope.map_err(|e| e.to_string())?;
        // A worker that drains does not return it: the scheduler gives the job to another one.
        let sent = self.messages.primary_end.send_internal(worker, envelope);
        sent.map_err(|rejected| rejected.0.to_string())
    }
}
