//! One connection as the worker sees it, and the table of all of them.
//!
//! hyper has no idle timeout of its own, arms its header timeout only with a timer (one allocation a request),
//! and closes idle connections without looking whether a request is on its way. So the worker watches: `Wire`
//! (the bytes) and `answer` (the requests) keep a phase in `Conn`, and once a beat `Registry::tend` compares
//! phases with limits. A connection whose time is up is told so by its order; what that means stands in
//! `Wire::poll_read`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::Waker;

use crate::config::Config;
use crate::worker::drain::Order;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Accepted; nothing received yet.
    Fresh = 0,
    /// Some bytes of a request head have arrived.
    Head = 1,
    /// Requests are being answered.
    Busy = 2,
    /// Between requests.
    Idle = 3,
    /// Our side is closed; we read on so that the last response is not lost to a reset.
    Closing = 4,
}

/// What a connection has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Told {
    /// Nothing.
    Nothing = 0,
    /// End as soon as nothing waits to be read.
    Finish = 1,
    /// End now.
    Cut = 2,
}

/// The state of one connection. Atomics only because an upgraded connection may be `Send`; there is one
/// thread, so all accesses are relaxed.
#[derive(Debug)]
pub(super) struct Conn {
    phase: AtomicU8,
    told: AtomicU8,
    /// When the phase began, or when bytes last moved in it.
    since_ms: AtomicU64,
    /// Requests being answered: HTTP/2 has several at once.
    requests: AtomicU32,
    /// The peer has ended, or will after this response: nothing of it can be lost by closing.
    peer_done: AtomicBool,
    /// Handed over to the application after a 101 response.
    upgraded: AtomicBool,
    /// The last write did not go through: the peer reads slowly.
    blocked: AtomicBool,
}

impl Conn {
    pub(super) fn new(now_ms: u64) -> Conn {
        Conn {
            phase: AtomicU8::new(Phase::Fresh as u8),
            told: AtomicU8::new(Told::Nothing as u8),
            since_ms: AtomicU64::new(now_ms),
            requests: AtomicU32::new(0),
            peer_done: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Fresh,
            1 => Phase::Head,
            2 => Phase::Busy,
            3 => Phase::Idle,
            _ => Phase::Closing,
        }
    }

    pub(super) fn enter(&self, phase: Phase, now_ms: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.since_ms.store(now_ms, Relaxed);
    }

    /// Bytes arrived.
    pub(super) fn received(&self, now_ms: u64) {
        if matches!(self.phase(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Head, now_ms);
        }
    }

    /// Bytes were written, or could not be.
    pub(super) fn sent(&self, blocked: bool, now_ms: u64) {
        self.blocked.store(blocked, Relaxed);
        if self.phase() == Phase::Idle {
            self.since_ms.store(now_ms, Relaxed);
        }
    }

    pub(super) fn request_begun(&self, now_ms: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.enter(Phase::Busy, now_ms);
    }

    pub(super) fn request_over(&self, now_ms: u64) {
        if self.requests.fetch_sub(1, Relaxed) == 1 && self.phase() == Phase::Busy {
            self.enter(Phase::Idle, now_ms);
        }
    }

    pub(super) fn told(&self) -> Told {
        match self.told.load(Relaxed) {
            0 => Told::Nothing,
            1 => Told::Finish,
            _ => Told::Cut,
        }
    }

    pub(super) fn tell(&self, told: Told) {
        self.told.store(told as u8, Relaxed);
    }

    pub(super) fn peer_done(&self) -> bool {
        self.peer_done.load(Relaxed)
    }

    pub(super) fn set_peer_done(&self) {
        self.peer_done.store(true, Relaxed);
    }

    pub(super) fn upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    pub(super) fn set_upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// What this connection has to be told at `now_ms`, if anything.
    fn judge(&self, now_ms: u64, limits: &Limits) -> Option<Told> {
        let age = now_ms.saturating_sub(self.since_ms.load(Relaxed));
        if limits.deadline_ms.is_some_and(|deadline| deadline <= now_ms) {
            return Some(Told::Cut);
        }
        match self.phase() {
            Phase::Head if age >= limits.header_ms => Some(Told::Finish),
            Phase::Fresh if age >= limits.header_ms.min(limits.idle_ms) => Some(Told::Finish),
            Phase::Idle if age >= limits.idle_ms && !self.blocked.load(Relaxed) => {
                Some(Told::Finish)
            }
            Phase::Closing if age >= LINGER_MS => Some(Told::Cut),
            Phase::Fresh | Phase::Head | Phase::Busy | Phase::Idle | Phase::Closing => None,
        }
    }
}

/// How long we read on after we closed our side, at most.
const LINGER_MS: u64 = 2000;

/// The limits in force, in milliseconds.
pub(super) struct Limits {
    header_ms: u64,
    idle_ms: u64,
    deadline_ms: Option<u64>,
}

impl Limits {
    pub(super) fn new(config: &Config, drain: Option<Order>) -> Limits {
        let keep_alive = config.keep_alive_timeout.as_millis() as u64;
        Limits {
            header_ms: config.header_timeout.as_millis() as u64,
            idle_ms: drain.map_or(keep_alive, |order| order.linger_ms.min(keep_alive)),
            deadline_ms: drain.map(|order| order.deadline_ms),
        }
    }
}

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

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn wake_all(&self) {
        self.entries.iter().for_each(|entry| entry.wake());
    }

    /// Tells every connection whose time is up. Returns how many were cut.
    pub(super) fn tend(&self, now_ms: u64, limits: &Limits) -> usize {
        let mut cut = 0;
        for entry in &self.entries {
            let Some(verdict) = entry.conn.judge(now_ms, limits) else { continue };
            if verdict as u8 > entry.conn.told() as u8 {
                entry.conn.tell(verdict);
                entry.wake();
                cut += usize::from(verdict == Told::Cut && entry.conn.phase() != Phase::Closing);
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(drain: Option<Order>) -> Limits {
        Limits::new(&Config::default(), drain)
    }

    #[test]
    fn each_phase_has_its_limit() {
        let conn = Conn::new(0);
        assert_eq!(conn.judge(9_999, &limits(None)), None);
        assert_eq!(conn.judge(10_000, &limits(None)), Some(Told::Finish));
        conn.received(10_000);
        assert_eq!(conn.judge(19_999, &limits(None)), None);
        assert_eq!(conn.judge(20_000, &limits(None)), Some(Told::Finish));
        conn.request_begun(20_000);
        assert_eq!(conn.judge(1_000_000, &limits(None)), None);
        conn.request_over(20_000);
        assert_eq!(conn.judge(84_999, &limits(None)), None);
        assert_eq!(conn.judge(85_000, &limits(None)), Some(Told::Finish));
    }

    #[test]
    fn draining_shortens_idleness_and_has_an_end() {
        let order = Order { deadline_ms: 30_000, linger_ms: 1000, closing: false };
        let conn = Conn::new(0);
        conn.request_begun(0);
        assert_eq!(conn.judge(29_999, &limits(Some(order))), None);
        assert_eq!(conn.judge(30_000, &limits(Some(order))), Some(Told::Cut));
        conn.request_over(5_000);
        assert_eq!(conn.judge(5_999, &limits(Some(order))), None);
        assert_eq!(conn.judge(6_000, &limits(Some(order))), Some(Told::Finish));
    }

    #[test]
    fn the_table_forgets_what_is_gone() {
        let mut table = Registry::default();
        let entries: Vec<_> = (0..3).map(|_| Entry::new(0)).collect();
        entries.iter().for_each(|entry| table.add(entry));
        table.remove(&entries[0]);
        table.remove(&entries[2]);
        assert_eq!(table.len(), 1);
        table.remove(&entries[1]);
        assert!(table.is_empty());
    }
}
