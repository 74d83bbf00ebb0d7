//! The desk of one pool: which jobs wait, and who works on what. Pure: the time is an argument, and what is to be done is
//! returned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{IsolatedPoolConfig, JobId, Verdict, join};
use crate::messages::ReplyTo;
use prefork_supervisor::WorkerId;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Give the job to this isolated worker.
    Give { worker: WorkerId, job: JobId, input: Bytes },
    /// Tell the caller: a verdict, and the output.
    Tell { to: ReplyTo, answer: Bytes },
    /// SIGKILL: its job has run for too long.
    Kill(WorkerId),
}

/// How an isolated worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It left as asked: a job that was on its way to it was not begun.
    Left,
    Died {
        signal: Option<i32>,
    },
}

/// A job that waits.
#[derive(Debug, Clone)]
struct Waiting {
    caller: WorkerId,
    token: u64,
    to: ReplyTo,
    until: Instant,
    input: Bytes,
}

/// A job that somebody was given.
#[derive(Debug)]
struct Running {
    id: JobId,
    job: Waiting,
    until: Instant,
}

/// One pool.
#[derive(Debug)]
pub(crate) struct Desk {
    limit: Duration,
    most: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    running: BTreeMap<WorkerId, Running>,
    idle: BTreeSet<WorkerId>,
    next: JobId,
    closed: bool,
}

fn tell(to: ReplyTo, verdict: &Verdict) -> Order {
    Order::Tell { to, answer: join(verdict, b"") }
}

impl Desk {
    pub(crate) fn new(settings: &IsolatedPoolConfig) -> Desk {
        Desk {
            limit: settings.deadline,
            most: settings.queue,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            idle: BTreeSet::new(),
            next: 1,
            closed: false,
        }
    }

    /// A worker of the pool is ready.
    pub(crate) fn came(&mut self, worker: WorkerId) {
        self.idle.insert(worker);
    }

    /// A caller asks for a job, and waits until `until`.
    pub(crate) fn submit(
        &mut self,
        (caller, token): (WorkerId, u64),
        to: ReplyTo,
        until: Instant,
        input: Bytes,
    ) -> Option<Order> {
        if self.closed {
            return Some(tell(to, &Verdict::Closed));
        }
        // Whoever is idle takes one of them at once.
        if self.waiting.len() >= self.most + self.idle.len() {
            return Some(tell(to, &Verdict::Full));
        }
        self.waiting.push_back(Waiting { caller, token, to, until, input });
        None
    }

    /// Gives waiting jobs to idle workers. `serves`: whether a worker is not about to leave.
    pub(crate) fn assign(&mut self, now: Instant, serves: &dyn Fn(WorkerId) -> bool) -> Vec<Order> {
        self.idle.retain(|worker| serves(*worker));
        let mut orders = Vec::new();
        while let Some(worker) = self.idle.first().copied()
            && let Some(job) = self.waiting.pop_front()
        {
            self.idle.remove(&worker);
            let (id, input) = (self.next, job.input.clone());
            self.next += 1;
            let until = job.until.min(now + self.limit);
            self.running.insert(worker, Running { id, job, until });
            orders.push(Order::Give { worker, job: id, input });
        }
        orders
    }

    /// The worker has answered. What it says of another job than its own is late, or made up.
    pub(crate) fn done(&mut self, worker: WorkerId, id: JobId, answer: Bytes) -> Option<Order> {
        if self.running.get(&worker).is_none_or(|running| running.id != id) {
            return None;
        }
        let Running { job, .. } = self.running.remove(&worker)?;
        self.idle.insert(worker);
        Some(Order::Tell { to: job.to, answer })
    }

    /// The worker could not be given its job.
    pub(crate) fn not_given(&mut self, worker: WorkerId, why: String) -> Option<Order> {
        let Running { job, .. } = self.running.remove(&worker)?;
        self.idle.insert(worker);
        Some(tell(job.to, &Verdict::Failed(why)))
    }

    /// Nobody waits for this job any more. One that has begun goes on: its end is not far.
    pub(crate) fn gone(&mut self, caller: WorkerId, token: u64) {
        self.waiting.retain(|job| (job.caller, job.token) != (caller, token));
    }

    /// A worker of any kind has ended: one of ours, or a caller.
    pub(crate) fn ended(&mut self, worker: WorkerId, how: Ended) -> Option<Order> {
        self.waiting.retain(|job| job.caller != worker);
        self.idle.remove(&worker);
        let Running { job, .. } = self.running.remove(&worker)?;
        match how {
            Ended::Died { signal } => Some(tell(job.to, &Verdict::Died { signal })),
            Ended::Left if self.closed => Some(tell(job.to, &Verdict::Closed)),
            Ended::Left => {
                self.waiting.push_front(job);
                None
            }
        }
    }

    /// When `overdue` has something to do, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|job| job.until);
        waiting.chain(self.running.values().map(|running| running.until)).min()
    }

    /// Ends what takes too long. The process of a job that had begun is nobody's any more.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.waiting.retain(|job| {
            let late = job.until <= now;
            orders.extend(late.then(|| tell(job.to.clone(), &Verdict::TimedOut)));
            !late
        });
        self.running.retain(|worker, Running { job, until, .. }| {
            let late = *until <= now;
            if late {
                orders.push(tell(job.to.clone(), &Verdict::TimedOut));
                orders.push(Order::Kill(*worker));
            }
            !late
        });
        orders
    }

    /// The cluster stops: what has not begun will not begin.
    pub(crate) fn close(&mut self) -> Vec<Order> {
        self.closed = true;
        self.waiting.drain(..).map(|job| tell(job.to, &Verdict::Closed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{MessageSender, ReplyTo};

    const CALLER: WorkerId = WorkerId(1);
    const ONE: WorkerId = WorkerId(8);
    const OTHER: WorkerId = WorkerId(9);

    fn desk(queue: usize) -> Desk {
        Desk::new(
            &IsolatedPoolConfig::new("thumbnails", 2)
                .queue(queue)
                .deadline(Duration::from_secs(10)),
        )
    }

    fn to(id: u64) -> ReplyTo {
        ReplyTo::to_test(MessageSender::Worker(CALLER), id)
    }

    fn told(id: u64, verdict: Verdict) -> Order {
        tell(to(id), &verdict)
    }

    /// Asks for job `n`, for a second; what is done at once.
    fn ask(desk: &mut Desk, n: u64, now: Instant) -> Vec<Order> {
        let until = now + Duration::from_secs(1);
        let refused = desk.submit((CALLER, n), to(n), until, Bytes::from(n.to_string()));
        refused.into_iter().chain(desk.assign(now, &|_| true)).collect()
    }

    fn given(worker: WorkerId, job: JobId, n: u64) -> Order {
        Order::Give { worker, job, input: Bytes::from(n.to_string()) }
    }

    #[test]
    fn a_worker_has_one_job_at_a_time_and_the_others_wait_in_order() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        assert_eq!(ask(&mut desk, 1, now), [given(ONE, 1, 1)]);
        assert!(ask(&mut desk, 2, now).is_empty() && ask(&mut desk, 3, now).is_empty());
        assert_eq!(ask(&mut desk, 4, now), [told(4, Verdict::Full)]);
        let answer = join(&Verdict::Done, b"!");
        assert_eq!(desk.done(OTHER, 1, answer.clone()), None, "it has no such job");
        assert_eq!(desk.done(ONE, 7, answer.clone()), None, "nor it");
        let done = desk.done(ONE, 1, answer.clone());
        assert_eq!(done, Some(Order::Tell { to: to(1), answer }));
        assert_eq!(desk.assign(now, &|_| true), [given(ONE, 2, 2)]);
    }

    #[test]
    fn whoever_is_about_to_leave_is_given_nothing() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        desk.submit((CALLER, 1), to(1), now, Bytes::new());
        assert!(desk.assign(now, &|_| false).is_empty());
        desk.came(OTHER);
        assert!(matches!(desk.assign(now, &|_| true)[..], [Order::Give { worker: OTHER, .. }]));
    }

    #[test]
    fn the_caller_is_told_when_the_process_dies_and_nobody_else_is() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        ask(&mut desk, 1, now);
        ask(&mut desk, 2, now);
        let died = Ended::Died { signal: Some(11) };
        assert_eq!(desk.ended(ONE, died), Some(told(1, Verdict::Died { signal: Some(11) })));
        assert_eq!(desk.ended(ONE, died), None);
        desk.came(OTHER);
        assert_eq!(desk.assign(now, &|_| true), [given(OTHER, 2, 2)]);
    }

    #[test]
    fn a_job_that_was_on_its_way_to_one_that_left_is_given_to_the_next() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        ask(&mut desk, 1, now);
        ask(&mut desk, 2, now);
        assert_eq!(desk.ended(ONE, Ended::Left), None);
        desk.came(OTHER);
        assert_eq!(desk.assign(now, &|_| true), [given(OTHER, 2, 1)]);
    }

    #[test]
    fn what_is_late_is_ended_and_its_process_killed() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        ask(&mut desk, 1, now);
        ask(&mut desk, 2, now);
        let late = now + Duration::from_secs(1);
        assert_eq!((desk.deadline(), desk.overdue(now).len()), (Some(late), 0));
        let orders = desk.overdue(late);
        let [two, one] = [2, 1].map(|n| told(n, Verdict::TimedOut));
        assert_eq!(orders, [two, one, Order::Kill(ONE)]);
        assert_eq!(
            (desk.deadline(), desk.ended(ONE, Ended::Died { signal: Some(9) })),
            (None, None)
        );
    }

    #[test]
    fn a_job_runs_no_longer_than_the_pool_allows_whatever_its_caller_says() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        let until = now + Duration::from_secs(3600);
        desk.submit((CALLER, 1), to(1), until, Bytes::new());
        desk.assign(now, &|_| true);
        assert_eq!(desk.deadline(), Some(now + Duration::from_secs(10)));
    }

    #[test]
    fn nothing_is_begun_for_callers_that_are_gone() {
        let (mut desk, now) = (desk(4), Instant::now());
        for n in 1..=3 {
            ask(&mut desk, n, now);
        }
        desk.gone(OTHER, 2);
        desk.gone(CALLER, 2);
        desk.came(ONE);
        assert_eq!(desk.assign(now, &|_| true), [given(ONE, 1, 1)]);
        desk.ended(CALLER, Ended::Died { signal: Some(9) });
        desk.came(OTHER);
        assert!(desk.assign(now, &|_| true).is_empty());
    }

    #[test]
    fn a_stop_ends_what_waits_and_lets_finish_what_has_begun() {
        let (mut desk, now) = (desk(2), Instant::now());
        desk.came(ONE);
        ask(&mut desk, 1, now);
        ask(&mut desk, 2, now);
        assert_eq!(desk.close(), [told(2, Verdict::Closed)]);
        assert_eq!(ask(&mut desk, 3, now), [told(3, Verdict::Closed)]);
        let answer = join(&Verdict::Done, b"");
        assert!(desk.done(ONE, 1, answer).is_some());
    }
}
