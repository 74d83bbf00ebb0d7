//! A bounded queue of jobs that wait for a thread.

use std::collections::VecDeque;

/// Identifies an entry of the queue, to remove it. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueuedJobId(u64);

/// The waiting jobs, oldest first.
pub(super) struct JobQueue<E> {
    /// Sorted by `QueuedJobId`.
    waiting: VecDeque<(QueuedJobId, E)>,
    next_ticket: u64,
    capacity: usize,
    newest_first: bool,
}

impl<E> JobQueue<E> {
    /// Creates a queue of up to `capacity` entries.
    ///
    /// With `newest_first` the newest entry is popped first while the queue is more than half full: under overload the oldest
    /// callers have most likely given up.
    pub(super) fn new(capacity: usize, newest_first: bool) -> JobQueue<E> {
        JobQueue { waiting: VecDeque::new(), next_ticket: 0, capacity, newest_first }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Appends an entry and returns its id, or returns the entry if the queue is full.
    ///
    /// Each of the `idle` threads takes an entry at once, so that many more fit.
    pub(super) fn push(&mut self, entry: E, idle: usize) -> Result<QueuedJobId, E> {
        if self.waiting.len() >= self.capacity.saturating_add(idle) {
            return Err(entry);
        }
        let queued_job = QueuedJobId(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push_back((queued_job, entry));
        Ok(queued_job)
    }

    /// Removes and returns the next entry to run.
    pub(super) fn pop(&mut self) -> Option<E> {
        let entry = match self.newest_first && self.waiting.len() > self.capacity / 2 {
            true => self.waiting.pop_back(),
            false => self.waiting.pop_front(),
        };
        entry.map(|(_, entry)| entry)
    }

    /// Removes the entry with id `queued_job`, if it still waits.
    pub(super) fn remove(&mut self, queued_job: QueuedJobId) -> Option<E> {
        let at =
            self.waiting.binary_search_by_key(&queued_job, |(queued_job, _)| *queued_job).ok()?;
        self.waiting.remove(at).map(|(_, entry)| entry)
    }

    /// Removes all entries, oldest first.
    pub(super) fn drain_all(&mut self) -> Vec<E> {
        self.waiting.drain(..).map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_is_popped_first_and_the_capacity_holds() {
        let mut queue = JobQueue::new(2, false);
        assert!(queue.push('a', 0).is_ok() && queue.push('b', 0).is_ok());
        assert_eq!(queue.push('c', 0), Err('c'));
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some('a'), Some('b'), None));
    }

    #[test]
    fn idle_threads_add_capacity() {
        let mut queue = JobQueue::new(0, false);
        assert!(queue.push('a', 1).is_ok());
        assert_eq!(queue.push('b', 1), Err('b'));
    }

    #[test]
    fn with_newest_first_the_newest_entry_is_popped_while_more_than_half_full() {
        let mut queue = JobQueue::new(4, true);
        for entry in ['a', 'b', 'c', 'd'] {
            assert!(queue.push(entry, 0).is_ok());
        }
        let order: Vec<char> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ['d', 'c', 'a', 'b'], "the oldest first once the queue is half full");
    }

    #[test]
    fn an_entry_can_be_removed_from_anywhere_only_once() {
        let mut queue = JobQueue::new(8, true);
        let tickets: Vec<QueuedJobId> =
            (0..8).map(|entry| queue.push(entry, 0).expect("room")).collect();
        assert_eq!((queue.remove(tickets[3]), queue.remove(tickets[3])), (Some(3), None));
        assert_eq!(queue.pop(), Some(7));
        assert_eq!((queue.remove(tickets[7]), queue.len()), (None, 6));
        assert_eq!(queue.drain_all(), [0, 1, 2, 4, 5, 6]);
        assert_eq!(queue.len(), 0);
    }
}
