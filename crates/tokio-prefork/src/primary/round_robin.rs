//! Runs the acceptor of `round-robin` in the primary's event loop.
//!
//! Each iteration accepts a bounded number of connections, and never more than the workers have room for; all others
//! stay in the kernel's queue. Signals, messages and control requests are handled in between, however many connections
//! come. While new connections are the only events, the loop handles nothing else: see [`poll_and_dispatch`].

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::{Primary, WorkerProcess};
use crate::dispatch::round_robin::{
    AcceptorContext, ConnectionQueue, ReceivingWorkers, RoundRobinAcceptor,
};
use crate::listener::{Listener, ListenerSet};
use crate::scoreboard::Scoreboard;
use prefork_os::poll::PollSet;
use prefork_supervisor::{Event, Supervisor, WorkerId};

/// How many times in a row new connections are handled before all other events.
const MAX_CONSECUTIVE_STEPS: u32 = 64;

/// The parts of the primary that determine which workers can take a connection.
pub(super) struct QueueWorkers<'a> {
    pub(super) workers: &'a BTreeMap<WorkerId, WorkerProcess>,
    pub(super) scoreboard: &'a Scoreboard,
    pub(super) supervisor: &'a Supervisor,
}

impl ReceivingWorkers for QueueWorkers<'_> {
    /// During a stop, and when the last workers leave, draining workers take the connections that are left; what they do
    /// not take before they exit comes back.
    fn for_each(&self, visit: &mut dyn FnMut(WorkerId, &ConnectionQueue, bool)) {
        let now_ms = prefork_os::system::monotonic_ms();
        let are_last = self.supervisor.is_stopping() || self.supervisor.is_emptying();
        for (id, worker) in self.workers {
            let Some(queue) = &worker.queue else { continue };
            let load = self.scoreboard.worker_load(worker.pages, now_ms);
            let has_capacity = match are_last {
                true => load.has_fresh_heartbeat,
                false => load.can_accept && !worker.released && self.supervisor.is_serving(*id),
            };
            let is_reachable =
                worker.channel.is_some() && !self.supervisor.is_stopped_by_signal(*id);
            visit(*id, queue, has_capacity && is_reachable);
        }
    }

    fn queue(&self, worker: WorkerId) -> Option<&ConnectionQueue> {
        self.workers.get(&worker)?.queue.as_ref()
    }
}

impl Primary {
    /// Dispatches new connections and chooses what to poll. Returns how long to wait if nothing becomes ready.
    pub(super) fn dispatch_round_robin(&mut self, now: Instant) -> Option<Duration> {
        self.round_robin.clear_poll_targets();
        let has_queues = self.workers.values().any(|worker| worker.queue.is_some());
        let fails = has_queues && self.round_robin.all_listeners_fail(&self.listeners.listeners);
        self.scoreboard.set_cannot_accept(fails);
        if !has_queues && self.round_robin.held_connections().next().is_none() {
            return None;
        }
        let Primary { round_robin, workers, scoreboard, supervisor, listeners, .. } = self;
        let are_accepting = !self.upgrade.is_exec_scheduled() && !supervisor.is_emptying();
        let listeners = acceptable_listeners(listeners, are_accepting);
        let workers = QueueWorkers { workers, scoreboard, supervisor };
        round_robin.step(&AcceptorContext { workers: &workers, listeners }, now);
        for id in self.round_robin.take_broken_queues() {
            self.report_broken_queue(id);
        }
        self.settle_held_connections(now);
        let listeners = acceptable_listeners(&self.listeners, are_accepting);
        self.round_robin.prepare_poll(listeners, now)
    }

    /// Disposes of held connections that no worker will take: after the last exit, or after a reload to another policy.
    fn settle_held_connections(&mut self, now: Instant) {
        if self.supervisor.is_stopping() {
            if self.workers.is_empty() {
                let held = self.round_robin.drain_held().count();
                self.round_robin.count_lost(held, "no worker is left to take them");
            }
        } else if self.current_config().is_some_and(|c| !c.dispatch.accepts_in_primary())
            && !self.workers.values().any(|worker| worker.queue.is_some() && !worker.released)
        {
            // Workers that accept themselves get it like a connection of another worker.
            let state = self.state_of_accepted();
            for connection in self.round_robin.drain_held() {
                self.handover.push(connection.fd, state.clone(), now);
            }
        }
    }

    /// Returns whether a worker other than `leaving` can take the connections in its queue.
    pub(super) fn has_other_queue_worker(&self, leaving: WorkerId) -> bool {
        self.workers.iter().any(|(id, worker)| {
            let takes_connections = worker.queue.is_some() && !worker.released;
            *id != leaving && takes_connections && self.supervisor.is_serving(*id)
        })
    }

    /// Takes unread connections out of the worker's queue, for other workers.
    pub(super) fn reclaim_queue(&mut self, id: WorkerId) {
        let queue = self.workers.get(&id).and_then(|worker| worker.queue.as_ref());
        queue.into_iter().for_each(|queue| self.round_robin.reclaim_connections_from(id, queue));
    }

    fn report_broken_queue(&mut self, id: WorkerId) {
        let queue = self.workers.get_mut(&id).and_then(|worker| worker.queue.take());
        self.round_robin.remove_worker(id, queue);
        let reason = "it has closed its queue of connections".to_string();
        self.pending_events.push_back(Event::ProtocolError { worker: id, reason });
    }
}

/// Returns the listening sockets to accept from.
///
/// None right before the exec of an upgrade, as such connections would have to be held until after it, and none while
/// the last workers leave.
pub(super) fn acceptable_listeners(listeners: &ListenerSet, are_accepting: bool) -> &[Listener] {
    if are_accepting { &listeners.listeners } else { &[] }
}

/// The deadlines of [`poll_and_dispatch`].
pub(super) struct PollDeadlines {
    /// How long to wait before the next step of the acceptor.
    pub(super) next_step: Option<Duration>,
    /// The deadline of the primary's other work.
    pub(super) until: Option<Instant>,
    /// The time until which to busy-poll.
    pub(super) busy_poll_until: Option<Instant>,
    pub(super) now: Instant,
}

/// Polls `set` and what the acceptor needs. While new connections are the only events, dispatches them without
/// returning, up to `until`. Returns one flag for each descriptor of `set`.
pub(super) fn poll_and_dispatch<'fd>(
    acceptor: &mut RoundRobinAcceptor,
    context: &AcceptorContext<'fd>,
    mut set: PollSet<'fd>,
    deadlines: PollDeadlines,
) -> io::Result<Vec<bool>> {
    let PollDeadlines { mut next_step, until, busy_poll_until, mut now } = deadlines;
    let others = set.len();
    for _ in 0..MAX_CONSECUTIVE_STEPS {
        set.replace_fds_after(others, acceptor.watched_fds(context));
        let left = until.map(|at| at.saturating_duration_since(now));
        let timeout = left.into_iter().chain(next_step).min();
        let ready = set.wait_busy_polling(busy_poll_until, timeout)?;
        let own_ready = || (others..set.len()).filter(|at| set.is_ready(*at));
        let is_alone = own_ready().count() == ready;
        acceptor.record_ready(own_ready().map(|at| at - others));
        if ready == 0 || !is_alone {
            break;
        }
        set.clear_ready();
        now = Instant::now();
        acceptor.step(context, now);
        if !acceptor.is_settled() {
            break;
        }
        next_step = acceptor.prepare_poll(context.listeners, now);
        if until.is_some_and(|at| at <= now) {
            break;
        }
    }
    set.replace_fds_after(others, []);
    Ok(set.ready_flags())
}
