//! Decides which worker gets the next connection under `round-robin`. Pure.
//!
//! Each worker has a queue of connections that it has not taken yet; these can be moved to another worker at any time.
//! The order is strictly that of worker ids, over all workers that can take a connection. A full queue is waited for,
//! as otherwise a worker that is slightly faster would get more of a burst. A worker that leaves a connection in its
//! queue for [`QUEUED_CONNECTION_TIMEOUT`] while another one could take it loses all connections in its queue. Instead
//! it gets a probe, and is passed over until it has read that.

use std::time::{Duration, Instant};

use prefork_supervisor::WorkerId;

/// Maximum number of connections in the queue of one worker: enough to keep it busy until the primary's loop comes back
/// to it.
pub(super) const MAX_QUEUED_PER_WORKER: usize = 8;

/// How long the first connection of a queue waits before it moves to another worker, if one can take it.
pub(super) const QUEUED_CONNECTION_TIMEOUT: Duration = Duration::from_millis(20);

/// How long to wait before trying again to move connections that no other worker could take.
const MOVE_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The queue of one worker, as far as the primary knows.
#[derive(Debug)]
struct WorkerQueueState {
    id: WorkerId,
    /// Whether the worker can take a connection now: it serves, has capacity and its event loop runs.
    can_take: bool,
    /// Connections in the queue, at most: the worker takes them without notice.
    length: usize,
    /// When the oldest connection in the queue became the oldest, as far as the primary knows.
    since: Instant,
    /// Whether the worker has left connections in its queue, which now begins with a probe.
    is_slow: bool,
    /// Whether `length` is exact: counted in this iteration of the loop, with nothing added since.
    is_counted: bool,
}

impl WorkerQueueState {
    fn has_room(&self) -> bool {
        self.can_take && self.length < MAX_QUEUED_PER_WORKER
    }

    /// Returns whether the worker takes part in the rotation: it has room, or may have some soon.
    fn is_in_rotation(&self, now: Instant) -> bool {
        self.can_take
            && (self.length < MAX_QUEUED_PER_WORKER || now < self.since + QUEUED_CONNECTION_TIMEOUT)
    }
}

/// The queues of all workers, and which worker got the last connection.
#[derive(Debug, Default)]
pub(super) struct RoundRobinPolicy {
    /// In the order of worker ids.
    queues: Vec<WorkerQueueState>,
    last: Option<WorkerId>,
}

impl RoundRobinPolicy {
    /// Records whether a worker can take connections. Returns `true` for a new worker, whose queue has to be counted.
    pub(super) fn update_worker(&mut self, id: WorkerId, can_take: bool, now: Instant) -> bool {
        match self.queues.binary_search_by_key(&id, |queue| queue.id) {
            Ok(at) => {
                (self.queues[at].can_take, self.queues[at].is_counted) = (can_take, false);
                false
            }
            Err(at) => {
                let new = WorkerQueueState {
                    id,
                    can_take,
                    length: 0,
                    since: now,
                    is_slow: false,
                    is_counted: false,
                };
                self.queues.insert(at, new);
                true
            }
        }
    }

    /// Returns how many workers are known.
    pub(super) fn worker_count(&self) -> usize {
        self.queues.len()
    }

    fn queue_mut(&mut self, id: WorkerId) -> Option<&mut WorkerQueueState> {
        self.queues.iter_mut().find(|queue| queue.id == id)
    }

    /// Removes a worker that is dead or has shut its queue down.
    pub(super) fn remove_worker(&mut self, id: WorkerId) {
        self.queues.retain(|queue| queue.id != id);
    }

    /// Removes all workers for which `alive` is false.
    pub(super) fn retain_workers(&mut self, alive: impl Fn(WorkerId) -> bool) {
        self.queues.retain(|queue| alive(queue.id));
    }

    /// Records the length of a queue, as the kernel counts it, including the probe.
    pub(super) fn set_queue_length(&mut self, id: WorkerId, count: usize, now: Instant) {
        let Some(queue) = self.queue_mut(id) else { return };
        queue.is_counted = true;
        // The probe is read first: while it is there, so is everything else.
        queue.is_slow = queue.is_slow && count > queue.length;
        let length = count - usize::from(queue.is_slow);
        if length < queue.length {
            queue.since = now;
        }
        queue.length = length;
    }

    /// Returns the position of the queue after the one chosen last.
    fn next_in_rotation(&self) -> usize {
        let last = self.last.unwrap_or(WorkerId(0));
        self.queues.partition_point(|queue| queue.id <= last)
    }

    /// Chooses the worker for the next connection and counts it; `None` if the next worker in order has no room yet.
    pub(super) fn choose_next(&mut self, now: Instant) -> Option<WorkerId> {
        let (is_preferred, at) = (self.preferred_filter(), self.next_in_rotation());
        let is_next =
            |queue: &&mut WorkerQueueState| is_preferred(queue) && queue.is_in_rotation(now);
        let (before, after) = self.queues.split_at_mut(at);
        let queue = after.iter_mut().find(is_next).or_else(|| before.iter_mut().find(is_next))?;
        if !queue.has_room() {
            return None;
        }
        if queue.length == 0 {
            queue.since = now;
        }
        queue.length += 1;
        queue.is_counted = false;
        self.last = Some(queue.id);
        self.last
    }

    /// Returns the filter for the queues to consider: slow ones only if there are no others.
    fn preferred_filter(&self) -> fn(&WorkerQueueState) -> bool {
        let has_fast = self.queues.iter().any(|queue| queue.can_take && !queue.is_slow);
        if has_fast { |queue| !queue.is_slow } else { |_| true }
    }

    /// Returns how many connections can be queued in strict order.
    pub(super) fn free_capacity(&self, now: Instant) -> usize {
        let (is_preferred, at) = (self.preferred_filter(), self.next_in_rotation());
        let (before, after) = self.queues.split_at(at);
        let in_order = after.iter().chain(before);
        let considered = in_order.filter(|queue| is_preferred(queue) && queue.is_in_rotation(now));
        let rooms: Vec<usize> =
            considered.map(|queue| MAX_QUEUED_PER_WORKER.saturating_sub(queue.length)).collect();
        // Whole rounds, and in the last one the queues before the one that is full first.
        let least = rooms.iter().enumerate().min_by_key(|(_, room)| **room);
        least.map_or(0, |(ahead, room)| room * rooms.len() + ahead)
    }

    /// Returns the workers whose queues must be counted before a decision: slow ones, and those that seem full.
    pub(super) fn uncounted_workers(&self) -> Vec<WorkerId> {
        let must_count = |queue: &&WorkerQueueState| {
            !queue.is_counted && (queue.is_slow || queue.length >= MAX_QUEUED_PER_WORKER)
        };
        self.queues.iter().filter(must_count).map(|queue| queue.id).collect()
    }

    /// Returns the workers that could take connections if their queues were not full.
    pub(super) fn full_workers(&self) -> Vec<WorkerId> {
        let is_preferred = self.preferred_filter();
        let full = self.queues.iter().filter(|queue| queue.can_take && is_preferred(queue));
        full.filter(|queue| queue.length >= MAX_QUEUED_PER_WORKER).map(|queue| queue.id).collect()
    }

    /// Returns the workers with connections in their queues that they should have taken by now.
    pub(super) fn overdue_workers(&self, now: Instant) -> Vec<WorkerId> {
        let unread = self.queues.iter().filter(|queue| queue.length > 0);
        unread
            .filter(|queue| !queue.can_take || now >= queue.since + QUEUED_CONNECTION_TIMEOUT)
            .map(|queue| queue.id)
            .collect()
    }

    /// Whether the connections in the queue of `id` should move to other workers. Needs a current count.
    pub(super) fn should_move_connections(&self, id: WorkerId, now: Instant) -> bool {
        let late = |queue: &WorkerQueueState| {
            queue.length > 0 && (!queue.can_take || now >= queue.since + QUEUED_CONNECTION_TIMEOUT)
        };
        let other = |queue: &WorkerQueueState| queue.id != id && !queue.is_slow && queue.has_room();
        self.queues.iter().find(|queue| queue.id == id).is_some_and(late)
            && self.queues.iter().any(other)
    }

    /// Records that the primary has emptied the queue of `id` and sent a probe.
    pub(super) fn record_reclaimed(&mut self, id: WorkerId) {
        if let Some(queue) = self.queue_mut(id) {
            queue.length = 0;
            queue.is_slow = true;
        }
    }

    /// Returns when `overdue_workers` may change.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let queues = self.queues.iter().filter(|queue| queue.length > 0);
        queues
            .map(|queue| match queue.can_take && now < queue.since + QUEUED_CONNECTION_TIMEOUT {
                true => queue.since + QUEUED_CONNECTION_TIMEOUT,
                false => now + MOVE_RETRY_INTERVAL,
            })
            .min()
    }
}

#[cfg(test)]
mod tests;
