//! Accepts connections in the primary and moves them into the queues of the workers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::policy::{MAX_QUEUED_PER_WORKER, RoundRobinPolicy};
use super::{ConnectionQueue, QueuedConnection};
use crate::listener::Listener;
use crate::primary::event_log;
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_supervisor::WorkerId;

/// How many connections are accepted before the primary handles its other events.
const MAX_ACCEPTS_PER_STEP: usize = 64;

/// How long accepting pauses when the process or the system is out of file descriptors or memory.
const EXHAUSTED_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The first pause of a listening socket after a persistent error. Doubles with each error in a row.
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest pause of a listening socket after a persistent error.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// How many errors in a row make a listening socket count as failing.
const FAILURES_UNTIL_ERROR: u32 = 3;

/// How often to look for a worker that can take a connection: a full worker does not report that it has capacity again.
const CAPACITY_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// How often to look for room if all workers are busy and a queue reported as writable had no room.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The workers that take connections out of queues, as the primary knows them.
pub(crate) trait ReceivingWorkers {
    /// Calls `visit` for each worker with a queue, with whether it can take a connection now.
    fn for_each(&self, visit: &mut dyn FnMut(WorkerId, &ConnectionQueue, bool));

    /// Whether the worker still has a queue.
    fn queue(&self, worker: WorkerId) -> Option<&ConnectionQueue>;
}

/// What the acceptor reads in one step.
pub(crate) struct AcceptorContext<'a> {
    pub(crate) workers: &'a dyn ReceivingWorkers,
    /// The listening sockets to accept from; empty while accepting pauses.
    pub(crate) listeners: &'a [Listener],
}

/// Consecutive errors of a listening socket that do not concern a single connection.
#[derive(Debug, Clone, Copy)]
struct AcceptFailures {
    count: u32,
    retry_at: Instant,
}

/// What the primary polls for new connections.
#[derive(Debug, Default, PartialEq, Eq)]
enum PollTarget {
    #[default]
    Nothing,
    /// The listening sockets.
    Listeners,
    /// Room in the queues of these workers.
    QueueRoom(Vec<WorkerId>),
}

/// The primary's side of `round-robin`.
#[derive(Debug, Default)]
pub(crate) struct RoundRobinAcceptor {
    policy: RoundRobinPolicy,
    /// Connections accepted or taken back that are in no worker's queue, oldest first.
    held: VecDeque<QueuedConnection>,
    poll_target: PollTarget,
    /// Listening sockets with connections, by index.
    ready_listeners: Vec<usize>,
    /// Listening sockets that are polled, by index, in the order of the poll set.
    polled_listeners: Vec<usize>,
    /// Listening sockets with errors, by descriptor.
    failures: BTreeMap<i32, AcceptFailures>,
    /// Rotates the order of the listening sockets, so that none is always the last.
    rotation: usize,
    /// Whether poll reported room in a queue that had none.
    is_room_report_wrong: bool,
    /// Accepting pauses until this time.
    paused_until: Option<Instant>,
    /// Whether exhaustion of descriptors was logged and has not ended since.
    is_exhausted: bool,
    /// Number of connections that had to be closed.
    lost_count: u64,
    /// Workers that have shut their queues down.
    broken_queues: Vec<WorkerId>,
}

impl RoundRobinAcceptor {
    /// Takes unread connections out of the worker's queue, for other workers. They come before all others.
    pub(crate) fn reclaim_connections_from(&mut self, worker: WorkerId, queue: &ConnectionQueue) {
        self.drain_queue(queue);
        queue.push_probe();
        self.policy.record_reclaimed(worker);
    }

    fn drain_queue(&mut self, queue: &ConnectionQueue) {
        let (unread, lost) = queue.reclaim_unread();
        unread.into_iter().rev().for_each(|connection| self.held.push_front(connection));
        self.count_lost(lost, "no descriptor left (raise LimitNOFILE)");
    }

    /// Counts connections that had to be closed, and logs the total each time it has doubled.
    pub(crate) fn count_lost(&mut self, count: usize, why: &str) {
        let before = self.lost_count;
        self.lost_count += count as u64;
        if before.checked_ilog2() != self.lost_count.checked_ilog2() {
            event_log::log_lost_connections(self.lost_count, why);
        }
    }

    /// Removes a worker that is dead or has shut its queue down, and reclaims the connections in its queue.
    pub(crate) fn remove_worker(&mut self, worker: WorkerId, queue: Option<ConnectionQueue>) {
        self.policy.remove_worker(worker);
        queue.iter().for_each(|queue| self.drain_queue(queue));
    }

    /// Returns the connections that are in no queue.
    pub(crate) fn held_connections(&self) -> impl Iterator<Item = &QueuedConnection> {
        self.held.iter()
    }

    /// Removes the connections that are in no queue.
    pub(crate) fn drain_held(&mut self) -> impl Iterator<Item = QueuedConnection> {
        self.held.drain(..)
    }

    /// Adds a connection that an earlier image of the primary has accepted.
    pub(crate) fn restore_held(&mut self, connection: QueuedConnection) {
        self.held.push_back(connection);
    }

    /// Returns the workers that have shut their queues down since the last call.
    pub(crate) fn take_broken_queues(&mut self) -> Vec<WorkerId> {
        std::mem::take(&mut self.broken_queues)
    }

    /// Clears the poll targets: no worker has a queue.
    pub(crate) fn clear_poll_targets(&mut self) {
        self.poll_target = PollTarget::Nothing;
    }

    /// Accepts the connections that workers have room for, and distributes all that are held.
    pub(crate) fn step(&mut self, context: &AcceptorContext<'_>, now: Instant) {
        self.update_workers(context, now);
        self.move_overdue_connections(context, now);
        self.count_queue_lengths(context, now);
        self.paused_until = self.paused_until.filter(|until| *until > now);
        if self.paused_until.is_none() && self.held.is_empty() {
            self.accept(context.listeners, now);
        }
        self.distribute(context, now);
        if self.policy.free_capacity(now) == 0 {
            self.count_queue_lengths(context, now);
        }
    }

    /// Whether all connections are in queues, and no queue was found broken.
    pub(crate) fn is_settled(&self) -> bool {
        self.broken_queues.is_empty() && self.held.is_empty()
    }

    fn update_workers(&mut self, context: &AcceptorContext<'_>, now: Instant) {
        let mut count = 0;
        context.workers.for_each(&mut |id, queue, can_take| {
            if self.policy.update_worker(id, can_take, now) {
                self.policy.set_queue_length(id, queue.unread_count(), now);
            }
            count += 1;
        });
        if self.policy.worker_count() != count {
            self.policy.retain_workers(|id| context.workers.queue(id).is_some());
        }
    }

    fn move_overdue_connections(&mut self, context: &AcceptorContext<'_>, now: Instant) {
        for id in self.policy.overdue_workers(now) {
            let Some(queue) = context.workers.queue(id) else { continue };
            self.policy.set_queue_length(id, queue.unread_count(), now);
            if self.policy.should_move_connections(id, now) {
                self.reclaim_connections_from(id, queue);
            }
        }
    }

    fn count_queue_lengths(&mut self, context: &AcceptorContext<'_>, now: Instant) {
        for id in self.policy.uncounted_workers() {
            let length = context.workers.queue(id).map_or(0, ConnectionQueue::unread_count);
            self.policy.set_queue_length(id, length, now);
        }
    }

    /// Accepts until the kernel's queues are empty or the workers' queues are full.
    ///
    /// Finding a queue empty costs one more `accept4` per batch. Predicting the length of the queue instead saved 8 %
    /// of the system calls of sequential connections, but no more than 2 % of the CPU time, so it was not worth its
    /// code.
    fn accept(&mut self, listeners: &[Listener], now: Instant) {
        let mut left = self.policy.free_capacity(now).min(MAX_ACCEPTS_PER_STEP);
        let mut ready = std::mem::take(&mut self.ready_listeners);
        self.rotation = self.rotation.wrapping_add(1);
        let first = self.rotation.checked_rem(ready.len()).unwrap_or(0);
        ready.rotate_left(first);
        for index in ready.drain(..) {
            let Some(listener) = listeners.get(index) else { continue };
            let is_unix = listener.is_unix();
            while left > 0 {
                let accepted = prefork_os::socket::accept_connection(listener);
                self.record_accept_outcome(listener, &accepted, now);
                match accepted {
                    Ok(fd) => {
                        self.is_exhausted = false;
                        self.held.push_back(QueuedConnection { fd, is_unix });
                        left -= 1;
                    }
                    // The client has closed the connection already.
                    Err(e) if prefork_os::socket::is_accepted_connection_error(&e) => left -= 1,
                    Err(e) if !prefork_os::socket::is_resource_exhaustion(&e) => break,
                    Err(e) => {
                        self.paused_until = Some(now + EXHAUSTED_RETRY_INTERVAL);
                        if !std::mem::replace(&mut self.is_exhausted, true) {
                            event_log::log_out_of_descriptors(&listener.local.to_string(), &e);
                        }
                        return;
                    }
                }
            }
        }
        // Reuses the allocation.
        self.ready_listeners = ready;
    }

    /// Makes a listening socket with a persistent error pause, longer each time.
    fn record_accept_outcome(
        &mut self,
        listener: &Listener,
        outcome: &io::Result<OwnedFd>,
        now: Instant,
    ) {
        let key = listener.socket.as_raw_fd();
        let error = match outcome {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => e,
            _ if self.failures.is_empty() => return,
            _ => {
                let before = self.failures.remove(&key);
                if before.is_some_and(|failures| failures.count >= FAILURES_UNTIL_ERROR) {
                    event_log::log_accept_recovered(&listener.local.to_string());
                }
                return;
            }
        };
        if prefork_os::socket::is_accepted_connection_error(error)
            || prefork_os::socket::is_resource_exhaustion(error)
        {
            return;
        }
        let before = self.failures.get(&key).map_or(0, |failures| failures.count);
        let count = before.saturating_add(1);
        let pause = ACCEPT_RETRY_MIN.saturating_mul(1 << count.min(16)).min(ACCEPT_RETRY_MAX);
        self.failures.insert(key, AcceptFailures { count, retry_at: now + pause });
        if count == FAILURES_UNTIL_ERROR {
            event_log::log_accept_error(&listener.local.to_string(), error);
        }
    }

    /// Whether every listening socket fails.
    pub(crate) fn all_listeners_fail(&self, listeners: &[Listener]) -> bool {
        let fails = |listener: &Listener| {
            let failures = self.failures.get(&listener.socket.as_raw_fd());
            failures.is_some_and(|failures| failures.count >= FAILURES_UNTIL_ERROR)
        };
        !listeners.is_empty() && listeners.iter().all(fails)
    }

    /// Chooses the listening sockets to poll: those that do not pause. Returns when the first pause ends.
    fn choose_polled_listeners(&mut self, listeners: &[Listener], now: Instant) -> Option<Instant> {
        let failures = &self.failures;
        let paused_until = |listener: &Listener| {
            let retry_at = failures.get(&listener.socket.as_raw_fd()).map(|one| one.retry_at);
            retry_at.filter(|at| *at > now)
        };
        let active = listeners.iter().enumerate().filter(|(_, one)| paused_until(one).is_none());
        self.polled_listeners.clear();
        self.polled_listeners.extend(active.map(|(index, _)| index));
        listeners.iter().filter_map(paused_until).min()
    }

    /// Moves held connections into the queues of the workers, in the order of the policy.
    fn distribute(&mut self, context: &AcceptorContext<'_>, now: Instant) {
        let mut batches: Vec<(WorkerId, Vec<QueuedConnection>)> = Vec::new();
        while !self.held.is_empty() {
            // The lengths are counted before each choice: the order must not depend on which queue was counted when.
            for id in self.policy.uncounted_workers() {
                let batch = batches.iter().find(|batch| batch.0 == id);
                let in_batch = batch.map_or(0, |batch| batch.1.len());
                let unread = context.workers.queue(id).map_or(0, ConnectionQueue::unread_count);
                self.policy.set_queue_length(id, unread + in_batch, now);
            }
            let Some(id) = self.policy.choose_next(now) else { break };
            let connection = self.held.pop_front();
            match batches.iter_mut().find(|batch| batch.0 == id) {
                Some(batch) => batch.1.extend(connection),
                None => batches.push((id, connection.into_iter().collect())),
            }
        }
        // In reverse, so that connections without room return to the front in their old order.
        for (id, mut batch) in batches.into_iter().rev() {
            let queue = context.workers.queue(id);
            let pushed = queue.map_or(Ok(0), |queue| queue.push(batch.iter()));
            self.broken_queues.extend(pushed.is_err().then_some(id));
            let pushed = pushed.unwrap_or(0);
            if pushed == batch.len() {
                continue;
            }
            if let Some(queue) = queue {
                // The kernel decides which queue has room.
                let length = queue.unread_count().max(MAX_QUEUED_PER_WORKER);
                self.policy.set_queue_length(id, length, now);
            }
            batch.drain(pushed..).rev().for_each(|connection| self.held.push_front(connection));
        }
    }

    /// Chooses the descriptors to poll. Returns how long to wait before the next step if nothing becomes ready.
    pub(crate) fn prepare_poll(
        &mut self,
        listeners: &[Listener],
        now: Instant,
    ) -> Option<Duration> {
        self.poll_target = PollTarget::Nothing;
        let is_accepting = !listeners.is_empty();
        let is_room_report_wrong = std::mem::take(&mut self.is_room_report_wrong);
        let pause_end = self.choose_polled_listeners(listeners, now);
        let deadlines = self.policy.next_deadline(now).into_iter();
        let deadline = deadlines.chain(self.paused_until).chain(pause_end).min();
        let recheck = if self.policy.free_capacity(now) > 0 {
            if is_accepting && self.paused_until.is_none() {
                self.poll_target = PollTarget::Listeners;
            }
            None
        } else {
            match self.policy.full_workers() {
                full if full.is_empty() => {
                    (is_accepting || !self.held.is_empty()).then_some(CAPACITY_CHECK_INTERVAL)
                }
                _ if is_room_report_wrong => Some(BUSY_CHECK_INTERVAL),
                full => {
                    self.poll_target = PollTarget::QueueRoom(full);
                    Some(CAPACITY_CHECK_INTERVAL)
                }
            }
        };
        deadline.map(|at| at.saturating_duration_since(now)).into_iter().chain(recheck).min()
    }

    /// Returns the descriptors to poll.
    pub(crate) fn watched_fds<'a>(&self, context: &AcceptorContext<'a>) -> Vec<WatchedFd<'a>> {
        match &self.poll_target {
            PollTarget::Nothing => Vec::new(),
            PollTarget::Listeners => {
                let polled = self.polled_listeners.iter();
                let polled = polled.filter_map(|index| context.listeners.get(*index));
                polled.map(|listener| WatchedFd::readable(listener.as_fd())).collect()
            }
            PollTarget::QueueRoom(workers) => {
                let queues = workers.iter().filter_map(|id| context.workers.queue(*id));
                queues
                    .map(|queue| WatchedFd::new(queue.ends()[0], PollInterest::Writable))
                    .collect()
            }
        }
    }

    /// Records which of the watched descriptors are ready, by their positions.
    pub(crate) fn record_ready(&mut self, ready: impl Iterator<Item = usize>) {
        match self.poll_target {
            PollTarget::Nothing => {}
            PollTarget::Listeners => {
                let polled = &self.polled_listeners;
                self.ready_listeners.clear();
                self.ready_listeners.extend(ready.filter_map(|position| polled.get(position)));
            }
            // Read only if the queues still have no room.
            PollTarget::QueueRoom(_) => self.is_room_report_wrong = ready.count() > 0,
        }
    }
}
