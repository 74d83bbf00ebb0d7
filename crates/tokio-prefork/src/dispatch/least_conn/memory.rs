//! The memory that workers, the primary and the eBPF program of `least-conn` share.
//!
//! The *slot table* is written by the primary and the program: which slots are healthy, which page of a slot is active,
//! and how many connections were selected. A *load page* is written by one worker. Each slot has two, so that a new
//! worker does not count on the page of the one that it replaces. Banks of pages are added with the slots and never
//! move: a worker forked long ago keeps writing to the same page.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::MAX_SLOT_LOAD;
use super::count_reconciliation::{CountReconciliation, SlotCounts};
use super::load_page::{LoadPage, LoadPageLease};
use super::program::{
    ACCEPTED_COUNT_WORD, ACTIVE_PAGE_WORD, BANK_PAGES, BANK_SLOTS, HEALTHY_WORD, OPEN_COUNT_WORD,
    PAGES_PER_SLOT, SELECTED_COUNT_WORD, SLOT_ENTRY_WORDS, SLOT_TABLE_ENTRIES, TABLE_INDEX_WORD,
    slot_table_index,
};
use prefork_os::bpf::{self, BpfArrayMap};
use prefork_os::shared_memory::{
    self, SHARED_PAGE_BYTES, SharedPage, WORDS_PER_PAGE, WritablePages,
};
use prefork_supervisor::Slot;

const SLOT_ENTRY_BYTES: usize = SLOT_ENTRY_WORDS * 8;

/// The slot table and all load pages, mapped writable into the primary.
pub(in crate::dispatch) struct LeastConnMemory {
    slot_table: SharedMap,
    page_banks: Vec<SharedMap>,
    slots: Vec<SlotPages>,
    next_serial: u64,
}

/// The primary's record of a slot's pages.
#[derive(Default)]
struct SlotPages {
    /// The serial number of the lease of each page; `None` for a free page.
    leases: [Option<u64>; PAGES_PER_SLOT],
    /// The page that the program reads.
    active: usize,
    reconciliation: CountReconciliation,
}

/// A BPF array map with its memory.
struct SharedMap {
    map: BpfArrayMap,
    pages: WritablePages,
}

impl SharedMap {
    fn create(name: &str, entry_bytes: usize, entries: usize) -> io::Result<SharedMap> {
        let pages = (entries * entry_bytes).div_ceil(SHARED_PAGE_BYTES);
        let locked_bytes = 2 * (pages * SHARED_PAGE_BYTES) as u64;
        let map = bpf::with_raised_memlock_limit(locked_bytes, || {
            bpf::create_array_map(name, entry_bytes, entries as u32)
        })?;
        Ok(SharedMap { pages: shared_memory::map_bpf_array_pages(&map, pages)?, map })
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // If this fails, some memory stays mapped, which does no harm.
        let _ = self.pages.unmap_all();
    }
}

impl LeastConnMemory {
    pub(super) fn create(slots: usize) -> io::Result<LeastConnMemory> {
        let slot_table = SharedMap::create("prefork_slots", SLOT_ENTRY_BYTES, SLOT_TABLE_ENTRIES)?;
        let mut memory = LeastConnMemory {
            slot_table,
            page_banks: Vec::new(),
            slots: Vec::new(),
            next_serial: 0,
        };
        memory.add_slots(slots)?;
        Ok(memory)
    }

    /// Makes room for `slots` slots; leaves the existing ones alone.
    pub(super) fn add_slots(&mut self, slots: usize) -> io::Result<()> {
        while self.page_banks.len() * BANK_SLOTS < slots {
            let bank = SharedMap::create("prefork_pages", BANK_PAGES * SHARED_PAGE_BYTES, 1)?;
            self.page_banks.push(bank);
        }
        for slot in self.slots.len()..slots {
            let index = slot_table_index(slot) as u64;
            self.table_word(slot, TABLE_INDEX_WORD).store(index, Relaxed);
            self.slots.push(SlotPages::default());
        }
        Ok(())
    }

    /// Returns the descriptors of the slot table and of the page banks, for the program.
    pub(super) fn map_fds(&self) -> (i32, Vec<i32>) {
        let banks = self.page_banks.iter().map(|bank| bank.map.as_raw_fd()).collect();
        (self.slot_table.map.as_raw_fd(), banks)
    }

    pub(super) fn set_health(&self, slot: usize, healthy: bool) {
        self.table_word(slot, HEALTHY_WORD).store(healthy.into(), Relaxed);
    }

    /// Returns how often the kernel's hash selected because no slot was healthy.
    #[cfg(test)]
    pub(in crate::dispatch) fn hash_fallback_count(&self) -> u64 {
        self.slot_table.pages.page(0)[SELECTED_COUNT_WORD].load(Relaxed)
    }

    /// Returns a cleared page of `slot` for a worker about to be forked.
    pub(in crate::dispatch) fn lease_page(&mut self, slot: Slot) -> LoadPageLease {
        let number = slot.0 as usize;
        let Some(pages) = self.slots.get_mut(number) else {
            return LoadPageLease::without_page(slot);
        };
        self.next_serial += 1;
        let free = (0..PAGES_PER_SLOT).find(|page| pages.leases[*page].is_none());
        // If no page is free, one belongs to a draining worker, which has stopped counting (`LoadPage::stop_counting`).
        let page = free.unwrap_or((pages.active + 1) % PAGES_PER_SLOT);
        pages.leases[page] = Some(self.next_serial);
        self.clear_page(number, page);
        LoadPageLease { slot, page: Some((page, self.next_serial)) }
    }

    /// Makes the program read the page of this worker. Connections queued for the slot stay counted.
    pub(super) fn activate_page(&mut self, lease: LoadPageLease) {
        let slot = lease.slot.0 as usize;
        let Some(page) = self.leased_page(lease) else { return };
        let before =
            self.load_page(slot, self.slots[slot].active)[ACCEPTED_COUNT_WORD].load(Relaxed);
        let after = self.load_page(slot, page)[ACCEPTED_COUNT_WORD].load(Relaxed);
        self.table_word(slot, SELECTED_COUNT_WORD).fetch_add(after.wrapping_sub(before), Relaxed);
        self.table_word(slot, ACTIVE_PAGE_WORD).store(page as u64, Relaxed);
        self.slots[slot].active = page;
    }

    /// Frees the page of a dead worker, whose connections are closed.
    pub(super) fn free_page(&mut self, lease: LoadPageLease) {
        let Some(page) = self.leased_page(lease) else { return };
        let slot = lease.slot.0 as usize;
        self.slots[slot].leases[page] = None;
        // The connections that the worker had accepted must not count as queued.
        let accepted = self.load_page(slot, page)[ACCEPTED_COUNT_WORD].load(Relaxed);
        self.clear_page(slot, page);
        if self.slots[slot].active == page {
            self.table_word(slot, SELECTED_COUNT_WORD).fetch_sub(accepted, Relaxed);
        }
    }

    /// Returns the page number, if the lease is still valid.
    fn leased_page(&self, lease: LoadPageLease) -> Option<usize> {
        let (page, serial) = lease.page?;
        let leased = self.slots.get(lease.slot.0 as usize)?.leases[page];
        (leased == Some(serial)).then_some(page)
    }

    /// Corrects how many connections count as queued for `slot`, given the depth of its accept queue. `open` stands in
    /// for the page of a worker that has none, as another image forked it.
    pub(super) fn reconcile_counts(
        &mut self,
        slot: usize,
        open: u64,
        queued: impl FnOnce() -> u64,
    ) {
        let pages = &self.slots[slot];
        let accepted = match pages.leases[pages.active] {
            Some(_) => self.load_page(slot, pages.active)[ACCEPTED_COUNT_WORD].load(Relaxed),
            None => open.min(MAX_SLOT_LOAD),
        };
        // The order of these reads matters: see `count_reconciliation`.
        let queued = queued();
        let selected = self.table_word(slot, SELECTED_COUNT_WORD).load(Relaxed);
        let counts = SlotCounts { accepted, queued, selected };
        let correction = self.slots[slot].reconciliation.compute_correction(counts);
        self.table_word(slot, SELECTED_COUNT_WORD).fetch_add(correction, Relaxed);
    }

    /// In a worker: keeps its own page writable, and unmaps everything else.
    pub(super) fn keep_only_page(mut self, lease: LoadPageLease) -> io::Result<LoadPage> {
        let Some(page) = self.leased_page(lease) else { return Ok(LoadPage::default()) };
        let slot = lease.slot.0 as usize;
        let bank = &mut self.page_banks[slot / BANK_SLOTS];
        // Stays mapped until the process ends: `keep_only_page` leaves nothing for `drop` to unmap.
        let page = bank.pages.keep_only_page(slot % BANK_SLOTS * PAGES_PER_SLOT + page)?;
        Ok(LoadPage { page: Cell::new(Some(page)) })
    }

    fn clear_page(&self, slot: usize, page: usize) {
        self.write_page(slot, page, 0, 0);
    }

    fn write_page(&self, slot: usize, page: usize, open: u64, accepted: u64) {
        let page = self.load_page(slot, page);
        page[OPEN_COUNT_WORD].store(open, Relaxed);
        page[ACCEPTED_COUNT_WORD].store(accepted, Relaxed);
    }

    fn table_word(&self, slot: usize, word: usize) -> &AtomicU64 {
        let at = slot_table_index(slot) * SLOT_ENTRY_WORDS + word;
        &self.slot_table.pages.page(at / WORDS_PER_PAGE)[at % WORDS_PER_PAGE]
    }

    fn load_page(&self, slot: usize, page: usize) -> &SharedPage {
        self.page_banks[slot / BANK_SLOTS].pages.page(slot % BANK_SLOTS * PAGES_PER_SLOT + page)
    }

    /// Writes the counts of a worker. The tests are primary and worker in one.
    #[cfg(test)]
    pub(in crate::dispatch) fn set_counts(&self, slot: usize, open: u64, accepted: u64) {
        self.write_page(slot, 0, open, accepted);
    }

    #[cfg(test)]
    pub(in crate::dispatch) fn selected_count(&self, slot: usize) -> u64 {
        self.table_word(slot, SELECTED_COUNT_WORD).load(Relaxed)
    }
}
