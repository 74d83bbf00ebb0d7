//! Bounds how many TLS handshakes of a worker are in progress.
//!
//! A client that opens connections and completes no handshake must not keep others out. So a handshake beyond the bound is
//! not refused: the one that has waited longest is closed instead. A client that answers at once is gone from the queue
//! long before it is the oldest.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use super::connection_registry::ConnectionEntry;

/// The handshakes in progress, oldest first, and some that have ended.
#[derive(Default)]
pub(crate) struct HandshakeQueue(RefCell<VecDeque<Weak<ConnectionEntry>>>);

impl HandshakeQueue {
    /// Adds a connection that begins its handshake. Closes the oldest one if more than `max` are in progress.
    pub(crate) fn begin(&self, entry: &Rc<ConnectionEntry>, max: usize, now_ms: u64) {
        entry.conn.set_handshaking(true);
        let mut queue = self.0.borrow_mut();
        queue.push_back(Rc::downgrade(entry));
        if queue.len() <= max {
            return;
        }
        // Only now, which costs a handshake less than looking for it at its end.
        queue.retain(|one| one.upgrade().is_some_and(|entry| entry.conn.is_handshaking()));
        if queue.len() > max
            && let Some(oldest) = queue.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.evict_handshake(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::http::connection_state::CloseRequest;

    #[test]
    fn the_handshake_that_has_waited_longest_is_closed_beyond_the_bound() {
        let queue = HandshakeQueue::default();
        let entries: Vec<_> = (0..5).map(|_| ConnectionEntry::new(0)).collect();
        entries[..3].iter().for_each(|entry| queue.begin(entry, 3, 0));
        entries[0].conn.set_handshaking(false);
        queue.begin(&entries[3], 3, 0);
        let is_closed = |n: usize| entries[n].conn.close_request() == CloseRequest::Now;
        assert!((0..4).all(|n| !is_closed(n)), "only three are in progress");
        queue.begin(&entries[4], 3, 0);
        assert!(is_closed(1) && entries[1].conn.is_evicted());
        assert!([0, 2, 3, 4].into_iter().all(|n| !is_closed(n)));
    }

    #[test]
    fn ended_handshakes_do_not_pile_up_behind_a_slow_one() {
        let queue = HandshakeQueue::default();
        let slow = ConnectionEntry::new(0);
        queue.begin(&slow, 8, 0);
        for _ in 0..1000 {
            let entry = ConnectionEntry::new(0);
            queue.begin(&entry, 8, 0);
            entry.conn.set_handshaking(false);
        }
        assert!(queue.0.borrow().len() <= 8);
        assert_eq!(slow.conn.close_request(), CloseRequest::None);
    }
}
