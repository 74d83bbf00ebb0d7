//! The table of all open connections of a worker.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::conn::{Conn, Phase, Told};
use super::limits::Limits;
use super::state::State;

/// One entry of the table: the state, and how to wake the task that serves it.
pub(super) struct Entry {
    pub(super) conn: Arc<Conn>,
    waker: RefCell<Option<Waker>>,
    key: Cell<usize>,
}

impl Entry {
    pub(super) fn new(now_ms: u64) -> Rc<Entry> {
        let conn = Arc::new(Conn::new(now_ms));
        Rc::new(Entry { conn, waker: RefCell::new(None), key: Cell::new(0) })
    }

    /// Called by the serving task in each poll.
    pub(super) fn watch(&self, waker: &Waker) {
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
pub(super) struct Registry {
    entries: Vec<Rc<Entry>>,
}

impl Registry {
    pub(super) fn add(&mut self, entry: &Rc<Entry>) {
        entry.key.set(self.entries.len());
        self.entries.push(Rc::clone(entry));
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        let key = entry.key.get();
        self.entries.swap_remove(key);
        if let Some(moved) = self.entries.get(key) {
            moved.key.set(key);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn wake_all(&self) {
        self.entries.iter().for_each(|entry| entry.wake());
    }

    /// Tells every connection whose time is up. Returns how many were cut.
    pub(super) fn tend(&self, now_ms: u64, limits: &Limits) -> usize {
        let mut cut = 0;
        for entry in &self.entries {
            let Some(verdict) = limits.judge(&entry.conn, now_ms) else { continue };
            if verdict as u8 > entry.conn.told() as u8 {
                entry.conn.tell(verdict);
                entry.wake();
                cut += usize::from(verdict == Told::Cut && entry.conn.phase() != Phase::Closing);
            }
        }
        cut
    }
}

/// Keeps the connection in the worker's books; gone when this is dropped.
pub(super) struct Guard {
    state: Rc<State>,
    entry: Rc<Entry>,
}

impl Guard {
    /// For a connection that was just accepted or taken over.
    pub(super) fn new(state: &Rc<State>, entry: &Rc<Entry>) -> Guard {
        state.conns.borrow_mut().add(entry);
        state.meter.opened();
        Guard { state: Rc::clone(state), entry: Rc::clone(entry) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.conns.borrow_mut().remove(&self.entry);
        self.state.row.closed();
        self.state.meter.closed();
        self.state.note_closed();
        self.state.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_forgets_what_is_gone() {
        let mut table = Registry::default();
        let entries: Vec<_> = (0..3).map(|_| Entry::new(0)).collect();
        entries.iter().for_each(|entry| table.add(entry));
        table.remove(&entries[0]);
        table.remove(&entries[2]);
        assert_eq!(table.entries.len(), 1);
        table.remove(&entries[1]);
        assert!(table.is_empty());
    }
}
