//! The shared page in which a worker counts its connections for the eBPF program: plain writes, no system call.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::program::{ACCEPTED_COUNT_WORD, OPEN_COUNT_WORD};
use prefork_os::shared_memory::SharedPage;
use prefork_supervisor::Slot;

/// A worker's lease of its page, from before its fork until it is reaped. Kept by the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadPageLease {
    pub(super) slot: Slot,
    /// The index of the page within its slot, and the serial number of the lease. `None` where the backend needs no
    /// page.
    pub(in crate::dispatch) page: Option<(usize, u64)>,
}

impl LoadPageLease {
    pub(crate) fn without_page(slot: Slot) -> LoadPageLease {
        LoadPageLease { slot, page: None }
    }
}

/// The worker's writable mapping of its page. Writes nothing where the backend needs no page.
#[derive(Default)]
pub(crate) struct LoadPage {
    pub(super) page: Cell<Option<&'static SharedPage>>,
}

impl LoadPage {
    /// Counts a connection accepted from the slot's own socket. Call [`LoadPage::count_opened`] first, so that the slot
    /// never looks less loaded than it is.
    pub(crate) fn count_accepted(&self) {
        self.add(ACCEPTED_COUNT_WORD, 1);
    }

    /// Counts an open connection, accepted or handed over.
    pub(crate) fn count_opened(&self) {
        self.add(OPEN_COUNT_WORD, 1);
    }

    /// Counts a connection that was closed or handed over to another worker.
    pub(crate) fn count_closed(&self) {
        self.add(OPEN_COUNT_WORD, -1);
    }

    /// Stops counting: this worker drains, and another one counts for the slot.
    pub(crate) fn stop_counting(&self) {
        self.page.set(None);
    }

    fn add(&self, word: usize, by: i64) {
        // No other process writes this page, so this need not be atomic.
        if let Some(page) = self.page.get() {
            let before = page[word].load(Relaxed);
            page[word].store(before.saturating_add_signed(by), Relaxed);
        }
    }
}
