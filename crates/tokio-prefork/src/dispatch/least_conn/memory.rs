//! The memory that workers, the primary and the program of `least-conn` share, and who may write what.
//!
//! The *desk* is the primary's and the program's: which slots are healthy, which seat counts, and how many
//! connections were selected. A *page* is a worker's own: each slot has two seats, so that a successor does not count
//! on the page of the holder it will replace. Banks of pages are added as slots are, and never moved: a worker
//! forked long ago goes on writing where it always has.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::count_reconciliation::{Drift, Look};
use super::load_page::{Lease, SlotMeter};
use super::program::{
    ACCEPTED, BANK, BANK_PAGES, HEALTHY, NUMBER, OPEN, PLACE_WORDS, PLACES, SEAT, SEATS, SELECTED,
    place,
};
use prefork_os::bpf::{self, BpfArrayMap};
use prefork_os::shared_memory::{
    self, SHARED_PAGE_BYTES, SharedPage, WORDS_PER_PAGE, WritablePages,
};
use prefork_supervisor::Slot;

const PLACE_BYTES: usize = PLACE_WORDS * 8;

/// All of it, as the primary has it.
pub(in crate::dispatch) struct Memory {
    desk: Shared,
    banks: Vec<Shared>,
    slots: Vec<Seats>,
    serial: u64,
}

/// What the primary knows of a slot's pages.
#[derive(Default)]
struct Seats {
    /// Whose each is, by serial number.
    taken: [Option<u64>; SEATS],
    /// Which one counts.
    holder: usize,
    drift: Drift,
}

struct Shared {
    map: BpfArrayMap,
    pages: WritablePages,
}

impl Shared {
    fn create(name: &str, bytes: usize, entries: usize) -> io::Result<Shared> {
        let (count, pages) = (entries as u32, (entries * bytes).div_ceil(SHARED_PAGE_BYTES));
        let room = 2 * (pages * SHARED_PAGE_BYTES) as u64;
        let map =
            bpf::with_raised_memlock_limit(room, || bpf::create_array_map(name, bytes, count))?;
        Ok(Shared { pages: shared_memory::map_bpf_array_pages(&map, pages)?, map })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It fails for no reason that could matter: the worst is some memory that stays.
        let _ = self.pages.unmap_all();
    }
}

impl Memory {
    pub(in crate::dispatch) fn create(slots: usize) -> io::Result<Memory> {
        let desk = Shared::create("prefork_desk", PLACE_BYTES, PLACES)?;
        let mut memory = Memory { desk, banks: Vec::new(), slots: Vec::new(), serial: 0 };
        memory.grow(slots)?;
        Ok(memory)
    }

    /// Room for `slots` slots; nothing happens to those that are there.
    pub(in crate::dispatch) fn grow(&mut self, slots: usize) -> io::Result<()> {
        while self.banks.len() * BANK < slots {
            self.banks.push(Shared::create("prefork_pages", BANK_PAGES * SHARED_PAGE_BYTES, 1)?);
        }
        for slot in self.slots.len()..slots {
            self.word(slot, NUMBER).store(place(slot) as u64, Relaxed);
            self.slots.push(Seats::default());
        }
        Ok(())
    }

    /// The descriptors of desk and banks, for the program.
    pub(in crate::dispatch) fn maps(&self) -> (i32, Vec<i32>) {
        let banks = self.banks.iter().map(|bank| bank.map.as_raw_fd()).collect();
        (self.desk.map.as_raw_fd(), banks)
    }

    pub(in crate::dispatch) fn set_health(&self, slot: usize, healthy: bool) {
        self.word(slot, HEALTHY).store(healthy.into(), Relaxed);
    }

    /// How often no slot was healthy and the hash chose.
    #[cfg(test)]
    pub(in crate::dispatch) fn by_hash(&self) -> u64 {
        self.desk.pages.page(0)[SELECTED].load(Relaxed)
    }

    /// A cleared page of `slot` for a worker about to be forked.
    pub(in crate::dispatch) fn lease(&mut self, slot: Slot) -> Lease {
        let number = slot.0 as usize;
        let Some(seats) = self.slots.get_mut(number) else { return Lease { slot, seat: None } };
        self.serial += 1;
        let free = (0..SEATS).find(|seat| seats.taken[*seat].is_none());
        // If nobody has left, somebody drains: whoever drains has given up its page (`SlotMeter::leave`).
        let seat = free.unwrap_or((seats.holder + 1) % SEATS);
        seats.taken[seat] = Some(self.serial);
        self.clear(number, seat);
        Lease { slot, seat: Some((seat, self.serial)) }
    }

    /// From now on the page of this worker counts. What waits for the slot waits on.
    pub(in crate::dispatch) fn hold(&mut self, lease: Lease) {
        let slot = lease.slot.0 as usize;
        let Some(seat) = self.seat(lease) else { return };
        let before = self.page(slot, self.slots[slot].holder)[ACCEPTED].load(Relaxed);
        let after = self.page(slot, seat)[ACCEPTED].load(Relaxed);
        self.word(slot, SELECTED).fetch_add(after.wrapping_sub(before), Relaxed);
        self.word(slot, SEAT).store(seat as u64, Relaxed);
        self.slots[slot].holder = seat;
    }

    /// Takes the page of a dead worker back. Its connections are gone with it.
    pub(in crate::dispatch) fn retire(&mut self, lease: Lease) {
        let Some(seat) = self.seat(lease) else { return };
        let slot = lease.slot.0 as usize;
        self.slots[slot].taken[seat] = None;
        // What it had accepted is not to be added to what waits.
        let accepted = self.page(slot, seat)[ACCEPTED].load(Relaxed);
        self.clear(slot, seat);
        if self.slots[slot].holder == seat {
            self.word(slot, SELECTED).fetch_sub(accepted, Relaxed);
        }
    }

    /// The seat, if the lease is still good.
    fn seat(&self, lease: Lease) -> Option<usize> {
        let (seat, serial) = lease.seat?;
        let taken = self.slots.get(lease.slot.0 as usize)?.taken[seat];
        (taken == Some(serial)).then_some(seat)
    }

    /// Makes what waits for `slot` true again, given the length of its queue. `open` is what is known of a worker
    /// that has no page: one that another image forked.
    pub(in crate::dispatch) fn correct(
        &mut self,
        slot: usize,
        open: u64,
        queued: impl FnOnce() -> u64,
    ) {
        let seats = &self.slots[slot];
        let accepted = match seats.taken[seats.holder] {
            Some(_) => self.page(slot, seats.holder)[ACCEPTED].load(Relaxed),
            None => open.min(crate::dispatch::kernel_selector::CAP),
        };
        // In this order: see `drift`.
        let queued = queued();
        let selected = self.word(slot, SELECTED).load(Relaxed);
        let by = self.slots[slot].drift.correct(Look { accepted, queued, selected });
        self.word(slot, SELECTED).fetch_add(by, Relaxed);
    }

    /// In a worker: keeps its own page writable, and gives up everything else.
    pub(in crate::dispatch) fn give_up_all_but(mut self, lease: Lease) -> io::Result<SlotMeter> {
        let Some(seat) = self.seat(lease) else { return Ok(SlotMeter::default()) };
        let slot = lease.slot.0 as usize;
        // Kept by this process until it ends; `keep_only` leaves nothing for `drop` to give up.
        let page = self.banks[slot / BANK].pages.keep_only_page(slot % BANK * SEATS + seat)?;
        Ok(SlotMeter { page: Cell::new(Some(page)) })
    }

    fn clear(&self, slot: usize, seat: usize) {
        let page = self.page(slot, seat);
        page[OPEN].store(0, Relaxed);
        page[ACCEPTED].store(0, Relaxed);
    }

    fn word(&self, slot: usize, word: usize) -> &AtomicU64 {
        let at = place(slot) * PLACE_WORDS + word;
        &self.desk.pages.page(at / WORDS_PER_PAGE)[at % WORDS_PER_PAGE]
    }

    fn page(&self, slot: usize, seat: usize) -> &SharedPage {
        self.banks[slot / BANK].pages.page(slot % BANK * SEATS + seat)
    }

    /// A meter in this process, and what was selected: the tests are primary and worker in one.
    #[cfg(test)]
    pub(in crate::dispatch) fn pretend(&self, slot: usize, seat: usize, open: u64, accepted: u64) {
        let page = self.page(slot, seat);
        page[OPEN].store(open, Relaxed);
        page[ACCEPTED].store(accepted, Relaxed);
    }

    #[cfg(test)]
    pub(in crate::dispatch) fn selected(&self, slot: usize) -> u64 {
        self.word(slot, SELECTED).load(Relaxed)
    }
}
