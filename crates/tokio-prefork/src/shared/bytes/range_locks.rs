//! The table of locked ranges of a block of shared bytes, in shared memory.
//!
//! A lock is an entry with its holder's identity (see `live_processes`), which the kernel knows to be alive or dead. Kernel locks on the
//! ranges themselves would not do: those of a process do not exclude its threads and tasks from each other, those of an open file are
//! inherited by forks, and neither tells that a holder has died.
//!
//! An entry comes into being and changes hands by the store of one word, its owner, after all others. So the table is consistent
//! whenever a process is killed. A short lock keeps two processes from taking conflicting ranges at the same time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::shared::live_processes::{ProcessIdentity, ProcessTable};
use crate::shared::process_lock::ProcessLock;
use crate::shared::wait::{ChangeEpoch, LockRequest, WaitableWord};

/// The number of ranges that can be locked or poisoned at the same time.
const MAX_ENTRIES: usize = 512;
/// Words before the entries.
const HEADER_WORDS: usize = 16;
const WORDS_PER_ENTRY: usize = 4;
/// Words of the whole table.
pub(super) const TABLE_WORDS: usize = HEADER_WORDS + MAX_ENTRIES * WORDS_PER_ENTRY;

/// The lock of the table.
const LOCK_WORD: usize = 0;
/// Set by a process that has found the table locked for long.
const CONTENDED_WORD: usize = 1;
/// The number of released locks, and the word that arms it.
const CHANGES_WORD: usize = 2;
const ARMED_WORD: usize = 3;
/// One more than the last entry that was ever used.
const USED_ENTRIES_WORD: usize = 4;

/// The owner of a free entry.
const FREE: u64 = 0;
/// The owner of a range that a process was changing when it died. No identity, because epochs do not get that far.
const POISONED: u64 = u64::MAX;
/// The mode of an entry.
const SHARED: u64 = 1;
const EXCLUSIVE: u64 = 2;

/// The table of one block.
#[derive(Clone, Copy)]
pub(super) struct RangeLocks {
    words: &'static [AtomicU64],
    processes: &'static ProcessTable,
    pub(super) changes: WaitableWord,
}

/// A lock that this process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldRange {
    entry: usize,
    owner: ProcessIdentity,
    pub(super) request: LockRequest,
    /// The bytes of it that may be half changed.
    pub(super) poisoned: Option<Range<u64>>,
}

impl HeldRange {
    pub(super) fn is_exclusive(&self) -> bool {
        self.request.is_exclusive
    }
}

/// The outcome of an attempt to lock a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LockAttempt {
    Locked(HeldRange),
    /// Another lock conflicts, or the table is full or locked by a stopped process. A change of the table will be announced.
    Unavailable,
    /// More than 1024 processes use shared state.
    TooManyProcesses,
}

/// How many ranges are locked and poisoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RangeCounts {
    pub(super) locked: u64,
    pub(super) poisoned: u64,
}

/// The four words of an entry.
#[derive(Clone, Copy)]
struct Entry<'a> {
    owner: &'a AtomicU64,
    start: &'a AtomicU64,
    end: &'a AtomicU64,
    mode: &'a AtomicU64,
}

impl RangeLocks {
    pub(super) fn new(
        words: &'static [AtomicU64],
        processes: &'static ProcessTable,
        epoch: &ChangeEpoch,
    ) -> RangeLocks {
        let changes = WaitableWord::with_exits(&words[CHANGES_WORD], &words[ARMED_WORD], epoch);
        RangeLocks { words, processes, changes }
    }

    /// Locks a range unless that conflicts with a lock of a live process. An empty range conflicts with none.
    pub(super) fn try_lock(&self, request: LockRequest) -> LockAttempt {
        let Some(owner) = self.processes.current_process() else {
            return LockAttempt::TooManyProcesses;
        };
        if !self.lock_table(owner) {
            return LockAttempt::Unavailable;
        }
        let held = self.take_range(request, owner);
        self.unlock_table();
        held.map_or(LockAttempt::Unavailable, LockAttempt::Locked)
    }

    /// Releases a lock. What is poisoned of it stays so; `is_poisoned` adds all of it.
    pub(super) fn release(&self, held: &HeldRange, is_poisoned: bool) {
        // In a child of the holder this is a copy, which holds no lock.
        if !self.processes.is_current(held.owner) {
            return;
        }
        let entry = self.entry(held.entry);
        if is_poisoned {
            entry.owner.store(POISONED, SeqCst);
        } else if let (Some(left), true) = (&held.poisoned, held.is_exclusive()) {
            entry.start.store(left.start, SeqCst);
            entry.end.store(left.end, SeqCst);
            entry.owner.store(POISONED, SeqCst);
        } else {
            entry.owner.store(FREE, SeqCst);
        }
        self.announce_change();
    }

    /// Returns whether the lock belongs to this process, and not to one that this one was forked from.
    pub(super) fn is_held_here(&self, held: &HeldRange) -> bool {
        self.processes.is_current(held.owner)
    }

    pub(super) fn counts(&self) -> RangeCounts {
        let mut counts = RangeCounts { locked: 0, poisoned: 0 };
        for entry in self.used_entries() {
            match entry.owner.load(SeqCst) {
                FREE => {}
                POISONED => counts.poisoned += 1,
                owner if self.processes.is_alive(ProcessIdentity(owner)) => counts.locked += 1,
                _ => counts.poisoned += u64::from(entry.mode.load(SeqCst) == EXCLUSIVE),
            }
        }
        counts
    }

    /// Makes a dead process the holder of a lock of this one.
    #[cfg(test)]
    pub(super) fn give_to_dead_process(&self, held: &HeldRange) {
        let dead = held.owner.0 + crate::shared::live_processes::MAX_PROCESSES as u64;
        self.entry(held.entry).owner.store(dead, SeqCst);
    }

    fn lock_table(&self, owner: ProcessIdentity) -> bool {
        let lock = ProcessLock(&self.words[LOCK_WORD]);
        if lock.acquire(self.processes, owner).is_some() {
            return true;
        }
        // The holder sees this when it goes on, and announces a change. If it has just gone on, the lock is free.
        self.words[CONTENDED_WORD].store(1, SeqCst);
        lock.acquire(self.processes, owner).is_some()
    }

    fn unlock_table(&self) {
        ProcessLock(&self.words[LOCK_WORD]).release();
        let contended = &self.words[CONTENDED_WORD];
        if contended.load(SeqCst) != 0 {
            contended.store(0, SeqCst);
            self.announce_change();
        }
    }

    fn announce_change(&self) {
        self.words[CHANGES_WORD].fetch_add(1, SeqCst);
        self.changes.notify();
    }

    /// Makes an entry for the range. The table is locked.
    fn take_range(&self, request: LockRequest, owner: ProcessIdentity) -> Option<HeldRange> {
        for entry in self.used_entries().filter(|entry| entry.is_held()) {
            if entry.request().conflicts_with(&request) && !self.release_if_dead(entry) {
                return None;
            }
        }
        let index = self.find_free_entry()?;
        let entry = self.entry(index);
        let poisoned = self.find_poisoned(&request);
        entry.write(&request, owner.0);
        self.words[USED_ENTRIES_WORD].fetch_max(index as u64 + 1, SeqCst);
        // From here on the new entry stands for what it covers: if its owner dies, all of it is poisoned.
        if request.is_exclusive {
            self.cut_poisoned(&request);
        }
        Some(HeldRange { entry: index, owner, request, poisoned })
    }

    /// Frees or poisons the entry of a dead process. Returns whether the process is dead.
    fn release_if_dead(&self, entry: Entry<'_>) -> bool {
        let owner = entry.owner.load(SeqCst);
        if self.processes.is_alive(ProcessIdentity(owner)) {
            // It may have released it meanwhile; then its change is announced.
            return false;
        }
        let left = if entry.mode.load(SeqCst) == EXCLUSIVE { POISONED } else { FREE };
        let _ = entry.owner.compare_exchange(owner, left, SeqCst, SeqCst);
        true
    }

    /// Returns the bytes of the range from the first poisoned one to the last.
    fn find_poisoned(&self, request: &LockRequest) -> Option<Range<u64>> {
        let poisoned = self.used_entries().filter(|entry| entry.is_poisoned());
        let parts = poisoned.filter_map(|entry| entry.overlap_with(request));
        parts.reduce(|one, other| one.start.min(other.start)..one.end.max(other.end))
    }

    /// Takes the range out of all poisoned entries.
    fn cut_poisoned(&self, request: &LockRequest) {
        for index in 0..self.used_count() {
            let entry = self.entry(index);
            if !entry.is_poisoned() || entry.overlap_with(request).is_none() {
                continue;
            }
            let (start, end) = (entry.start.load(SeqCst), entry.end.load(SeqCst));
            match (start < request.start, end > request.end) {
                (false, false) => entry.owner.store(FREE, SeqCst),
                (true, false) => entry.end.store(request.start, SeqCst),
                (false, true) => entry.start.store(request.end, SeqCst),
                (true, true) => {
                    // If no entry is free, the whole range stays poisoned.
                    let Some(free) = self.find_free_entry() else { continue };
                    let rest = LockRequest { start: request.end, end, is_exclusive: true };
                    self.entry(free).write(&rest, POISONED);
                    self.words[USED_ENTRIES_WORD].fetch_max(free as u64 + 1, SeqCst);
                    entry.end.store(request.start, SeqCst);
                }
            }
        }
    }

    /// Returns a free entry, after freeing those of dead processes if there is none.
    fn find_free_entry(&self) -> Option<usize> {
        let find = || (0..MAX_ENTRIES).find(|index| self.entry(*index).owner.load(SeqCst) == FREE);
        find().or_else(|| {
            for entry in self.used_entries().filter(|entry| entry.is_held()) {
                self.release_if_dead(entry);
            }
            self.merge_poisoned();
            find()
        })
    }

    /// Makes one entry of all poisoned ones, from the first byte to the last. More bytes than before may be poisoned.
    fn merge_poisoned(&self) {
        let mut poisoned = self.used_entries().filter(|entry| entry.is_poisoned());
        let Some(first) = poisoned.next() else { return };
        for other in poisoned {
            first.start.fetch_min(other.start.load(SeqCst), SeqCst);
            first.end.fetch_max(other.end.load(SeqCst), SeqCst);
            other.owner.store(FREE, SeqCst);
        }
    }

    fn used_count(&self) -> usize {
        (self.words[USED_ENTRIES_WORD].load(SeqCst) as usize).min(MAX_ENTRIES)
    }

    fn used_entries(&self) -> impl Iterator<Item = Entry<'static>> {
        let locks = *self;
        (0..self.used_count()).map(move |index| locks.entry(index))
    }

    fn entry(&self, index: usize) -> Entry<'static> {
        let words = &self.words[HEADER_WORDS + index * WORDS_PER_ENTRY..][..WORDS_PER_ENTRY];
        Entry { owner: &words[0], start: &words[1], end: &words[2], mode: &words[3] }
    }
}

impl Entry<'_> {
    /// Fills a free entry. The owner is last, so that the entry is free until it is complete.
    fn write(self, request: &LockRequest, owner: u64) {
        self.start.store(request.start, SeqCst);
        self.end.store(request.end, SeqCst);
        self.mode.store(if request.is_exclusive { EXCLUSIVE } else { SHARED }, SeqCst);
        self.owner.store(owner, SeqCst);
    }

    fn is_held(self) -> bool {
        !matches!(self.owner.load(SeqCst), FREE | POISONED)
    }

    fn is_poisoned(self) -> bool {
        self.owner.load(SeqCst) == POISONED
    }

    fn request(self) -> LockRequest {
        LockRequest {
            start: self.start.load(SeqCst),
            end: self.end.load(SeqCst),
            is_exclusive: self.mode.load(SeqCst) != SHARED,
        }
    }

    fn overlap_with(self, request: &LockRequest) -> Option<Range<u64>> {
        let start = self.start.load(SeqCst).max(request.start);
        let end = self.end.load(SeqCst).min(request.end);
        (start < end).then_some(start..end)
    }
}
