//! The jobs that wait, in order: pure, with a bound.

use std::collections::VecDeque;

/// A place in the queue, to leave it by. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// What waits.
pub(super) struct Queue<E> {
    /// Sorted by place.
    waiting: VecDeque<(Place, E)>,
    next: u64,
    capacity: usize,
    newest_first: bool,
}

impl<E> Queue<E> {
    /// Holds `capacity` entries. With `newest_first` the newest one goes first while it is more than half full:
    /// under overload the oldest callers have most likely given up.
    pub(super) fn new(capacity: usize, newest_first: bool) -> Queue<E> {
        Queue { waiting: VecDeque::new(), next: 0, capacity, newest_first }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts an entry at the end, if there is room. Whoever is `idle` takes one at once, which therefore counts
    /// as gone already.
    pub(super) fn push(&mut self, entry: E, idle: usize) -> Result<Place, E> {
        if self.waiting.len() >= self.capacity.saturating_add(idle) {
            return Err(entry);
        }
        let place = Place(self.next);
        self.next += 1;
        self.waiting.push_back((place, entry));
        Ok(place)
    }

    /// The next entry to run.
    pub(super) fn pop(&mut self) -> Option<E> {
        let entry = match self.newest_first && self.waiting.len() > self.capacity / 2 {
            true => self.waiting.pop_back(),
            false => self.waiting.pop_front(),
        };
        entry.map(|(_, entry)| entry)
    }

    /// Takes an entry out, if it still waits.
    pub(super) fn remove(&mut self, place: Place) -> Option<E> {
        let at = self.waiting.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        self.waiting.remove(at).map(|(_, entry)| entry)
    }

    /// Takes all out, oldest first.
    pub(super) fn take_all(&mut self) -> Vec<E> {
        self.waiting.drain(..).map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_the_bound_holds() {
        let mut queue = Queue::new(2, false);
        assert!(queue.push('a', 0).is_ok() && queue.push('b', 0).is_ok());
        assert_eq!(queue.push('c', 0), Err('c'));
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some('a'), Some('b'), None));
    }

    #[test]
    fn idle_threads_are_room() {
        let mut queue = Queue::new(0, false);
        assert!(queue.push('a', 1).is_ok());
        assert_eq!(queue.push('b', 1), Err('b'));
    }

    #[test]
    fn under_overload_the_newest_may_go_first() {
        let mut queue = Queue::new(4, true);
        for entry in ['a', 'b', 'c', 'd'] {
            assert!(queue.push(entry, 0).is_ok());
        }
        let order: Vec<char> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ['d', 'c', 'a', 'b'], "from half on, the oldest again");
    }

    #[test]
    fn an_entry_can_leave_from_anywhere_and_only_once() {
        let mut queue = Queue::new(8, true);
        let places: Vec<Place> = (0..8).map(|entry| queue.push(entry, 0).expect("room")).collect();
        assert_eq!((queue.remove(places[3]), queue.remove(places[3])), (Some(3), None));
        assert_eq!(queue.pop(), Some(7));
        assert_eq!((queue.remove(places[7]), queue.len()), (None, 6));
        assert_eq!(queue.take_all(), [0, 1, 2, 4, 5, 6]);
        assert_eq!(queue.len(), 0);
    }
}
