//! What a worker tells the program of `least-conn`: plain writes to a page of its own, no system call.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::program::{ACCEPTED, OPEN};
use prefork_os::shared_memory::SharedPage;
use prefork_supervisor::Slot;

/// A worker's page, from before its fork until it is reaped. The primary keeps one for each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(in crate::dispatch) slot: Slot,
    /// Seat and serial number; `None` where no page is needed.
    pub(in crate::dispatch) seat: Option<(usize, u64)>,
}

/// A worker's side. Where nobody reads it, it writes nothing.
#[derive(Default)]
pub(crate) struct SlotMeter {
    pub(in crate::dispatch) page: Cell<Option<&'static SharedPage>>,
}

impl SlotMeter {
    /// A connection came out of the slot's own queue. If it is open, `opened` comes first: seen in between, the slot is
    /// more loaded than it is, and not less.
    pub(crate) fn accepted(&self) {
        self.add(ACCEPTED, 1);
    }

    /// A connection is open, whichever way it came: out of a queue, or handed over.
    pub(crate) fn opened(&self) {
        self.add(OPEN, 1);
    }

    /// A connection is gone, whichever way it came.
    pub(crate) fn closed(&self) {
        self.add(OPEN, -1);
    }

    /// No longer takes connections: another worker counts for the slot, and this one writes nothing any more.
    pub(crate) fn leave(&self) {
        self.page.set(None);
    }

    fn add(&self, word: usize, by: i64) {
        // Nobody else writes this page, so this needs not be one step.
        if let Some(page) = self.page.get() {
            let before = page[word].load(Relaxed);
            page[word].store(before.saturating_add_signed(by), Relaxed);
        }
    }
}
