//! The registry of all open connections of a worker, and the enforcement of their timeouts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::http::connection_state::{CloseRequest, ConnectionPhase, ConnectionState};
use super::http::timeouts::{ConnectionTimeouts, TimeoutAction};
use super::local_state::LocalWorkerState;

/// One open connection: its state, and the waker of the task that serves it.
pub(crate) struct ConnectionEntry {
    pub(crate) conn: Arc<ConnectionState>,
    waker: RefCell<Option<Waker>>,
    /// The position in the registry.
    index: Cell<usize>,
}

impl ConnectionEntry {
    pub(crate) fn new(now_ms: u64) -> Rc<ConnectionEntry> {
        let conn = Arc::new(ConnectionState::new(now_ms));
        Rc::new(ConnectionEntry { conn, waker: RefCell::new(None), index: Cell::new(0) })
    }

    /// Registers the waker of the task that serves the connection. Called in each poll.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Closes the connection, whose TLS handshake is in progress, in favour of a newer one.
    pub(crate) fn evict_handshake(&self, now_ms: u64) {
        self.conn.set_evicted();
        self.conn.request_close(CloseRequest::Now, now_ms);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// All open connections of a worker.
#[derive(Default)]
pub(crate) struct ConnectionRegistry {
    entries: Vec<Rc<ConnectionEntry>>,
}

impl ConnectionRegistry {
    pub(crate) fn add(&mut self, entry: &Rc<ConnectionEntry>) {
        entry.index.set(self.entries.len());
        self.entries.push(Rc::clone(entry));
    }

    pub(crate) fn remove(&mut self, entry: &ConnectionEntry) {
        let index = entry.index.get();
        self.entries.swap_remove(index);
        if let Some(moved) = self.entries.get(index) {
            moved.index.set(index);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn wake_all(&self) {
        self.entries.iter().for_each(|entry| entry.wake());
    }

    /// Asks idle connections to release their sockets to be parked: at most `max` of the `scanned` entries before `index`. Returns the
    /// index to go on from, 0 at the end.
    pub(crate) fn request_parking(
        &self,
        index: usize,
        scanned: usize,
        max: usize,
        now_ms: u64,
    ) -> usize {
        // From the end, because a removed entry is replaced by the last one.
        let end = index.min(self.entries.len());
        let start = end.saturating_sub(scanned);
        let mut asked = 0;
        for (index, entry) in self.entries[..end].iter().enumerate().skip(start).rev() {
            if entry.conn.is_ready_for_parking(now_ms) {
                entry.conn.request_parking();
                entry.wake();
                asked += 1;
                if asked == max {
                    return index;
                }
            }
        }
        start
    }

    /// Closes connections and requests that exceed a timeout. Called at each heartbeat.
    pub(crate) fn enforce_timeouts(
        &self,
        now_ms: u64,
        timeouts: &ConnectionTimeouts,
    ) -> TimeoutOutcome {
        let (mut at_deadline, mut stalled, mut has_idle) = (0, 0, false);
        for entry in &self.entries {
            has_idle = has_idle || entry.conn.is_ready_for_parking(now_ms);
            let action = timeouts.expire_requests(&entry.conn, now_ms);
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
            let Some(request) = timeouts.close_request_for(&entry.conn, now_ms) else { continue };
            if request as u8 > entry.conn.close_request() as u8 {
                entry.conn.request_close(request, now_ms);
                entry.wake();
                at_deadline += usize::from(
                    request == CloseRequest::Now
                        && entry.conn.phase() != ConnectionPhase::Lingering,
                );
            }
        }
        TimeoutOutcome { at_deadline, stalled, has_idle }
    }
}

/// How many connections were closed by `enforce_timeouts`, and whether there are some to park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeoutOutcome {
    /// Closed at the drain deadline, or because an HTTP/2 client did not answer GOAWAY.
    pub(crate) at_deadline: usize,
    /// Closed because the client or the handler took too long.
    pub(crate) stalled: usize,
    /// Whether a connection is idle for long enough to be parked.
    pub(crate) has_idle: bool,
}

/// Keeps a connection registered and counted as open until dropped.
pub(crate) struct ConnectionGuard {
    state: Rc<LocalWorkerState>,
    entry: Rc<ConnectionEntry>,
    /// Whether it counts as an open connection until it is dropped: not if it is served inside of one that does, or goes on without
    /// this registration.
    is_counted: bool,
}

impl ConnectionGuard {
    /// Registers a connection that was just accepted or taken over.
    pub(crate) fn new(
        state: &Rc<LocalWorkerState>,
        entry: &Rc<ConnectionEntry>,
    ) -> ConnectionGuard {
        state.load_page.count_opened();
        ConnectionGuard::register(state, entry, true)
    }

    /// Registers a connection inside of a raw connection, which is counted already.
    pub(crate) fn nested(
        state: &Rc<LocalWorkerState>,
        entry: &Rc<ConnectionEntry>,
    ) -> ConnectionGuard {
        ConnectionGuard::register(state, entry, false)
    }

    pub(crate) fn state(&self) -> &Rc<LocalWorkerState> {
        &self.state
    }

    /// Registers a connection that was parked, which is counted already.
    pub(crate) fn counted_before(
        state: &Rc<LocalWorkerState>,
        entry: &Rc<ConnectionEntry>,
    ) -> ConnectionGuard {
        ConnectionGuard::register(state, entry, true)
    }

    /// Ends the registration of a connection that goes on without a task, and still counts as open.
    pub(crate) fn keep_counted(mut self) {
        self.is_counted = false;
    }

    fn register(
        state: &Rc<LocalWorkerState>,
        entry: &Rc<ConnectionEntry>,
        is_counted: bool,
    ) -> ConnectionGuard {
        state.connections.borrow_mut().add(entry);
        ConnectionGuard { state: Rc::clone(state), entry: Rc::clone(entry), is_counted }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.state.connections.borrow_mut().remove(&self.entry);
        if self.is_counted {
            self.state.count_closed_connection();
        } else {
            // A draining worker waits for the last connection.
            self.state.capacity_freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_connections_leave_the_registry() {
        let mut registry = ConnectionRegistry::default();
        let entries: Vec<_> = (0..3).map(|_| ConnectionEntry::new(0)).collect();
        entries.iter().for_each(|entry| registry.add(entry));
        registry.remove(&entries[0]);
        registry.remove(&entries[2]);
        assert_eq!(registry.entries.len(), 1);
        registry.remove(&entries[1]);
        assert!(registry.is_empty());
    }
}
