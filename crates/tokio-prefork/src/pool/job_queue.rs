//! A bounded queue of jobs that wait for a thread.

use std::collections::VecDeque;

/// How many lanes a queue has: one for each priority.
const LANES: usize = 3;

/// Identifies an entry of the queue, to remove it. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueuedJobId {
    lane: usize,
    number: u64,
}

/// What happens to an entry for which the queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenQueueFull {
    /// The entry is returned.
    Refuse,
    /// The entry waits beside the queue until there is room.
    WaitForRoom,
}

/// The waiting jobs. Those of a lower lane number run first; within a lane the oldest.
pub(super) struct JobQueue<E> {
    waiting: Lanes<E>,
    /// Entries that wait for room. While there is one, the queue refuses others, so that none overtakes it.
    waiting_for_room: Lanes<E>,
    next_number: u64,
    capacity: usize,
    newest_first: bool,
}

/// Entries by lane, each lane sorted by number.
struct Lanes<E>([VecDeque<(u64, E)>; LANES]);

impl<E> Lanes<E> {
    fn new() -> Lanes<E> {
        Lanes(std::array::from_fn(|_| VecDeque::new()))
    }

    fn len(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    fn push(&mut self, id: QueuedJobId, entry: E) {
        self.0[id.lane].push_back((id.number, entry));
    }

    fn pop(&mut self, newest: bool) -> Option<(QueuedJobId, E)> {
        let lane = self.0.iter().position(|lane| !lane.is_empty())?;
        let entries = &mut self.0[lane];
        let popped = if newest { entries.pop_back() } else { entries.pop_front() };
        popped.map(|(number, entry)| (QueuedJobId { lane, number }, entry))
    }

    fn remove(&mut self, id: QueuedJobId) -> Option<E> {
        let lane = &mut self.0[id.lane];
        let at = lane.binary_search_by_key(&id.number, |(number, _)| *number).ok()?;
        lane.remove(at).map(|(_, entry)| entry)
    }

    fn find(&self, is_wanted: impl Fn(&E) -> bool) -> Option<QueuedJobId> {
        let mut lanes = self.0.iter().enumerate();
        lanes.find_map(|(lane, entries)| {
            let (number, _) = entries.iter().find(|(_, entry)| is_wanted(entry))?;
            Some(QueuedJobId { lane, number: *number })
        })
    }

    fn drain(&mut self) -> impl Iterator<Item = E> {
        self.0.iter_mut().flat_map(|lane| lane.drain(..)).map(|(_, entry)| entry)
    }
}

impl<E> JobQueue<E> {
    /// Creates a queue of up to `capacity` entries.
    ///
    /// With `newest_first` the newest entry is popped first while the queue is more than half full: under overload the oldest
    /// callers have most likely given up.
    pub(super) fn new(capacity: usize, newest_first: bool) -> JobQueue<E> {
        let (waiting, waiting_for_room) = (Lanes::new(), Lanes::new());
        JobQueue { waiting, waiting_for_room, next_number: 0, capacity, newest_first }
    }

    /// Returns the number of entries, without those that wait for room.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of all entries.
    pub(super) fn len_with_waiting_for_room(&self) -> usize {
        self.waiting.len() + self.waiting_for_room.len()
    }

    /// Appends an entry to `lane` and returns its id, or returns the entry if the queue is full.
    ///
    /// Each of the `idle` threads takes an entry at once, so that many more fit.
    pub(super) fn push(
        &mut self,
        entry: E,
        lane: usize,
        idle: usize,
        when_full: WhenQueueFull,
    ) -> Result<QueuedJobId, E> {
        let is_full = self.waiting_for_room.len() > 0
            || self.waiting.len() >= self.capacity.saturating_add(idle);
        if is_full && when_full == WhenQueueFull::Refuse {
            return Err(entry);
        }
        let id = QueuedJobId { lane: lane.min(LANES - 1), number: self.next_number };
        self.next_number += 1;
        let lanes = if is_full { &mut self.waiting_for_room } else { &mut self.waiting };
        lanes.push(id, entry);
        Ok(id)
    }

    /// Removes and returns the next entry to run.
    pub(super) fn pop(&mut self) -> Option<E> {
        let newest = self.newest_first && self.waiting.len() > self.capacity / 2;
        let popped = self.waiting.pop(newest).or_else(|| self.waiting_for_room.pop(false));
        self.fill_room();
        popped.map(|(_, entry)| entry)
    }

    /// Removes the entry with this id, if it still waits.
    pub(super) fn remove(&mut self, id: QueuedJobId) -> Option<E> {
        let removed = self.waiting.remove(id).or_else(|| self.waiting_for_room.remove(id));
        self.fill_room();
        removed
    }

    /// Removes the first entry for which `is_wanted` is true.
    pub(super) fn remove_where(&mut self, is_wanted: impl Fn(&E) -> bool) -> Option<E> {
        let id =
            self.waiting.find(&is_wanted).or_else(|| self.waiting_for_room.find(&is_wanted))?;
        self.remove(id)
    }

    /// Removes all entries, oldest first within each lane.
    pub(super) fn drain_all(&mut self) -> Vec<E> {
        self.waiting.drain().chain(self.waiting_for_room.drain()).collect()
    }

    /// Moves entries that wait for room into the queue.
    fn fill_room(&mut self) {
        while self.waiting.len() < self.capacity {
            let Some((id, entry)) = self.waiting_for_room.pop(false) else { return };
            self.waiting.push(id, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: usize = 1;

    fn push<E>(queue: &mut JobQueue<E>, entry: E, idle: usize) -> Result<QueuedJobId, E> {
        queue.push(entry, NORMAL, idle, WhenQueueFull::Refuse)
    }

    fn pop_all<E>(queue: &mut JobQueue<E>) -> Vec<E> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn the_oldest_entry_is_popped_first_and_the_capacity_holds() {
        let mut queue = JobQueue::new(2, false);
        assert!(push(&mut queue, 'a', 0).is_ok() && push(&mut queue, 'b', 0).is_ok());
        assert_eq!(push(&mut queue, 'c', 0), Err('c'));
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some('a'), Some('b'), None));
    }

    #[test]
    fn idle_threads_add_capacity() {
        let mut queue = JobQueue::new(0, false);
        assert!(push(&mut queue, 'a', 1).is_ok());
        assert_eq!(push(&mut queue, 'b', 1), Err('b'));
    }

    #[test]
    fn with_newest_first_the_newest_entry_is_popped_while_more_than_half_full() {
        let mut queue = JobQueue::new(4, true);
        for entry in ['a', 'b', 'c', 'd'] {
            assert!(push(&mut queue, entry, 0).is_ok());
        }
        let order = pop_all(&mut queue);
        assert_eq!(order, ['d', 'c', 'a', 'b'], "the oldest first once the queue is half full");
    }

    #[test]
    fn an_entry_can_be_removed_from_anywhere_only_once() {
        let mut queue = JobQueue::new(8, true);
        let ids: Vec<QueuedJobId> =
            (0..8).map(|entry| push(&mut queue, entry, 0).expect("room")).collect();
        assert_eq!((queue.remove(ids[3]), queue.remove(ids[3])), (Some(3), None));
        assert_eq!(queue.pop(), Some(7));
        assert_eq!((queue.remove(ids[7]), queue.len()), (None, 6));
        assert_eq!(queue.drain_all(), [0, 1, 2, 4, 5, 6]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn entries_that_wait_for_room_keep_their_order_and_are_not_overtaken() {
        let mut queue = JobQueue::new(1, false);
        assert!(push(&mut queue, 0, 0).is_ok());
        let wait = |queue: &mut JobQueue<i32>, entry| {
            queue.push(entry, NORMAL, 0, WhenQueueFull::WaitForRoom).expect("never refused")
        };
        let ids: Vec<QueuedJobId> = (1..5).map(|entry| wait(&mut queue, entry)).collect();
        assert_eq!((queue.len(), queue.len_with_waiting_for_room()), (1, 5));
        // An idle thread adds room, but others are first.
        assert_eq!(push(&mut queue, 9, 1), Err(9));
        assert_eq!(queue.remove(ids[1]), Some(2));
        assert_eq!(queue.pop(), Some(0));
        assert_eq!(queue.remove(ids[0]), Some(1), "it has moved into the queue");
        assert_eq!(pop_all(&mut queue), [3, 4]);
        let mut without_room = JobQueue::new(0, false);
        wait(&mut without_room, 1);
        assert_eq!(pop_all(&mut without_room), [1]);
    }

    #[test]
    fn lower_lanes_are_popped_first() {
        let mut queue = JobQueue::new(8, false);
        for (entry, lane) in [('a', 2), ('b', 1), ('c', 0), ('d', 1), ('e', 0)] {
            assert!(queue.push(entry, lane, 0, WhenQueueFull::Refuse).is_ok());
        }
        assert_eq!(pop_all(&mut queue), ['c', 'e', 'b', 'd', 'a']);
    }
}
