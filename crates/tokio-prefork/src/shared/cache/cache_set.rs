//! One set of the cache: eight entries that a key can be in, and the lock of their writers.
//!
//! The lock is one word: the identity of its holder (see `live_processes`) or zero. A writer that finds a dead holder takes over the
//! lock, clears the entry that was half written, and continues. Readers ignore the lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cache_entry::{self, CacheEntry, NewEntry};
use crate::shared::live_processes::ProcessTable;
use crate::shared::process_lock::{LockTaken, ProcessLock};

/// Entries per set: the places that a key can be in.
pub(super) const ENTRIES_PER_SET: usize = 8;
/// Words before the entries, a pair of cache lines: the lock, and the hand of the clock.
const SET_HEADER_WORDS: usize = 16;
const LOCK_WORD: usize = 0;
const CLOCK_HAND_WORD: usize = 1;

/// The words of one set.
#[derive(Clone, Copy)]
pub(super) struct CacheSet<'a> {
    words: &'a [AtomicU64],
    entry_words: usize,
}

/// The lock of a set, until it is dropped.
pub(super) struct CacheSetWriter<'a> {
    set: CacheSet<'a>,
    /// Number of half-written entries of a dead writer that were cleared.
    pub(super) repaired: u64,
}

/// Returns the words of a set whose entries hold up to `bytes` bytes.
pub(super) const fn set_words(bytes: usize) -> usize {
    (SET_HEADER_WORDS + ENTRIES_PER_SET * cache_entry::entry_words(bytes))
        .next_multiple_of(SET_HEADER_WORDS)
}

impl<'a> CacheSet<'a> {
    pub(super) fn new(words: &'a [AtomicU64], bytes: usize) -> CacheSet<'a> {
        CacheSet { words, entry_words: cache_entry::entry_words(bytes) }
    }

    pub(super) fn entries(self) -> impl Iterator<Item = CacheEntry<'a>> {
        (0..ENTRIES_PER_SET).map(move |way| self.entry_at(way))
    }

    fn entry_at(self, way: usize) -> CacheEntry<'a> {
        CacheEntry(&self.words[SET_HEADER_WORDS + way * self.entry_words..][..self.entry_words])
    }

    /// Waits for the lock. Returns `None` if another writer keeps it for too long.
    pub(super) fn lock_for_writing(self, processes: &ProcessTable) -> Option<CacheSetWriter<'a>> {
        let current = processes.current_process()?;
        let repaired = match self.lock().acquire(processes, current)? {
            LockTaken::Free => 0,
            // If this process is killed here, it is the dead holder, and the next one repairs.
            LockTaken::FromDeadHolder => self.entries().filter(|slot| slot.repair()).count() as u64,
        };
        Some(CacheSetWriter { set: self, repaired })
    }

    fn lock(self) -> ProcessLock<'a> {
        ProcessLock(&self.words[LOCK_WORD])
    }

    /// Makes a process the lock holder.
    #[cfg(test)]
    pub(super) fn set_lock_holder(self, owner: u64) {
        self.words[LOCK_WORD].store(owner, Ordering::Relaxed);
    }
}

impl CacheSetWriter<'_> {
    /// Stores an entry. Returns whether it evicted another one that had not expired.
    pub(super) fn insert(&self, entry: &NewEntry<'_>, now: u64) -> bool {
        let (slot, evicts) = self.choose_entry(entry.hash, entry.key, now);
        slot.write(entry);
        evicts
    }

    pub(super) fn remove(&self, hash: u64, key: &[u8]) -> bool {
        let found = self.set.entries().find(|slot| slot.has_key(hash, key));
        found.inspect(|slot| slot.clear()).is_some()
    }

    pub(super) fn clear(&self) {
        self.set.entries().for_each(CacheEntry::clear);
    }

    /// Chooses the entry for a key: the one that has it; else a free or expired one; else the CLOCK algorithm decides.
    ///
    /// CLOCK skips the entries that were read since its hand last passed.
    fn choose_entry(&self, hash: u64, key: &[u8], now: u64) -> (CacheEntry<'_>, bool) {
        if let Some(same) = self.set.entries().find(|slot| slot.has_key(hash, key)) {
            return (same, false);
        }
        if let Some(free) = self.set.entries().find(|slot| slot.is_free(now)) {
            return (free, false);
        }
        let hand = &self.set.words[CLOCK_HAND_WORD];
        let mut way = hand.load(Ordering::Relaxed) as usize % ENTRIES_PER_SET;
        // One round clears all marks. If readers set them again meanwhile, the next entry is evicted.
        for _ in 0..ENTRIES_PER_SET {
            if !self.set.entry_at(way).clear_used_mark() {
                break;
            }
            way = (way + 1) % ENTRIES_PER_SET;
        }
        hand.store((way + 1) as u64 % ENTRIES_PER_SET as u64, Ordering::Relaxed);
        (self.set.entry_at(way), true)
    }
}

impl Drop for CacheSetWriter<'_> {
    fn drop(&mut self) {
        self.set.lock().release();
    }
}
