//! The table of all open connections of a worker.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::http::connection_state::{CloseRequest, ConnectionPhase, ConnectionState};
use super::http::timeouts::{ConnectionTimeouts, TimeoutAction};
use super::local_state::LocalWorkerState;

/// One entry of the table: the state, and how to wake the task that serves it.
pub(crate) struct ConnectionEntry {
    pub(crate) conn: Arc<ConnectionState>,
    waker: RefCell<Option<Waker>>,
    key: Cell<usize>,
}

impl ConnectionEntry {
    pub(crate) fn new(now_ms: u64) -> Rc<ConnectionEntry> {
        let conn = Arc::new(ConnectionState::new(now_ms));
        Rc::new(ConnectionEntry { conn, waker: RefCell::new(None), key: Cell::new(0) })
    }

    /// Called by the serving task in each poll.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// All open connections of the worker.
#[derive(Default)]
pub(crate) struct ConnectionRegistry {
    entries: Vec<Rc<ConnectionEntry>>,
}

impl ConnectionRegistry {
    pub(crate) fn add(&mut self, entry: &Rc<ConnectionEntry>) {
        entry.key.set(self.entries.len());
        self.entries.push(Rc::clone(entry));
    }

    pub(crate) fn remove(&mut self, entry: &ConnectionEntry) {
        let key = entry.key.get();
        self.entries.swap_remove(key);
        if let Some(moved) = self.entries.get(key) {
            moved.key.set(key);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn wake_all(&self) {
        self.entries.iter().for_each(|entry| entry.wake());
    }

    /// Tells every connection whose time is up.
    pub(crate) fn enforce_timeouts(
        &self,
        now_ms: u64,
        limits: &ConnectionTimeouts,
    ) -> TimedOutConnections {
        let (mut cut, mut stalled) = (0, 0);
        for entry in &self.entries {
            let action = limits.expire_requests(&entry.conn, now_ms);
            if action == Some(TimeoutAction::Close)
                && entry.conn.close_request() != CloseRequest::Now
            {
                entry.conn.request_close(CloseRequest::Now, now_ms);
                entry.wake();
                stalled += 1;
                continue;
            }
            if action == Some(TimeoutAction::WakeTask) || entry.conn.needs_half_close_check() {
                entry.wake();
            }
            let Some(verdict) = limits.close_request_for(&entry.conn, now_ms) else { continue };
            if verdict as u8 > entry.conn.close_request() as u8 {
                entry.conn.request_close(verdict, now_ms);
                entry.wake();
                cut += usize::from(
                    verdict == CloseRequest::Now
                        && entry.conn.phase() != ConnectionPhase::Lingering,
                );
            }
        }
        TimedOutConnections { cut, stalled }
    }
}

/// How many connections were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimedOutConnections {
    /// At the end of the grace time of a drain, or as an HTTP/2 client did not answer GOAWAY.
    pub(crate) cut: usize,
    /// As their clients, or their handlers, took too long.
    pub(crate) stalled: usize,
}

/// Keeps the connection in the worker's tracker; gone when this is dropped.
pub(crate) struct ConnectionGuard {
    state: Rc<LocalWorkerState>,
    entry: Rc<ConnectionEntry>,
}

impl ConnectionGuard {
    /// For a connection that was just accepted or taken over.
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        entry: &Rc<ConnectionEntry>,
    ) -> ConnectionGuard {
        state.connections.borrow_mut().add(entry);
        state.load_page.count_opened();
        ConnectionGuard { state: Rc::clone(state), entry: Rc::clone(entry) }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.state.connections.borrow_mut().remove(&self.entry);
        self.state.row.closed();
        self.state.load_page.count_closed();
        self.state.wake_acceptors_if_least_loaded();
        self.state.capacity_freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_forgets_what_is_gone() {
        let mut table = ConnectionRegistry::default();
        let entries: Vec<_> = (0..3).map(|_| ConnectionEntry::new(0)).collect();
        entries.iter().for_each(|entry| table.add(entry));
        table.remove(&entries[0]);
        table.remove(&entries[2]);
        assert_eq!(table.entries.len(), 1);
        table.remove(&entries[1]);
        assert!(table.is_empty());
    }
}
