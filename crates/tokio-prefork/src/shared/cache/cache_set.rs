//! Eight entries, one of which a key is in or nowhere, and the lock of those who write them.
//!
//! The lock is one word: the owner (see `members`) or zero. Who finds an owner that is dead takes the lock over
//! from it, clears what it had begun, and goes on. Readers do not look at the lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cache_entry::{self, Entry, Slot};
use crate::shared::live_processes::{Members, Owner};

pub(super) const WAYS: usize = 8;
/// Words before the entries, a pair of cache lines: the lock, and the hand of the clock.
const HEAD: usize = 16;
const LOCK: usize = 0;
const HAND: usize = 1;

/// How long a writer waits for one that lives and is not done, in nanoseconds: much longer than a write takes
/// that runs. One that was stopped in the middle (by a debugger, or for want of a processor) costs no more.
const PATIENCE: u64 = 2_000_000;
/// Looks at the lock before the kernel is asked for anything.
const SPINS: usize = 100;

/// The words of one set.
#[derive(Clone, Copy)]
pub(super) struct Set<'a> {
    words: &'a [AtomicU64],
    slot: usize,
}

/// The right to write, until it is dropped.
pub(super) struct Writing<'a> {
    set: Set<'a>,
    /// How many entries somebody left half written that died.
    pub(super) repaired: u64,
}

/// Words of a set whose entries take up to `bytes` bytes.
pub(super) const fn words(bytes: usize) -> usize {
    (HEAD + WAYS * cache_entry::words(bytes)).next_multiple_of(HEAD)
}

impl<'a> Set<'a> {
    pub(super) fn new(words: &'a [AtomicU64], bytes: usize) -> Set<'a> {
        Set { words, slot: cache_entry::words(bytes) }
    }

    pub(super) fn slots(self) -> impl Iterator<Item = Slot<'a>> {
        (0..WAYS).map(move |way| self.slot(way))
    }

    fn slot(self, way: usize) -> Slot<'a> {
        Slot(&self.words[HEAD + way * self.slot..][..self.slot])
    }

    /// Waits for the right to write; `None` if another writer keeps it for too long.
    pub(super) fn write(self, members: &Members) -> Option<Writing<'a>> {
        let own = members.own()?;
        let (mut looks, mut began) = (0, None);
        loop {
            let holder = self.words[LOCK].load(Ordering::Relaxed);
            if holder == 0 {
                if self.change_hands(holder, own) {
                    return Some(Writing { set: self, repaired: 0 });
                }
            } else if looks >= SPINS {
                if !members.lives(Owner(holder)) && self.change_hands(holder, own) {
                    // Killed here, we are the dead holder, and the next one repairs.
                    let repaired = self.slots().filter(|slot| slot.repair()).count() as u64;
                    return Some(Writing { set: self, repaired });
                }
                let now = prefork_os::system::monotonic_ns();
                if now.saturating_sub(*began.get_or_insert(now)) > PATIENCE {
                    return None;
                }
                std::thread::yield_now();
            }
            looks += 1;
            std::hint::spin_loop();
        }
    }

    /// A dead owner never comes back, and no owner is used twice: if the word is still `from`, nothing happened
    /// in between.
    fn change_hands(self, from: u64, to: Owner) -> bool {
        let taken =
            self.words[LOCK].compare_exchange(from, to.0, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }

    /// Leaves the lock with somebody.
    #[cfg(test)]
    pub(super) fn leave_with(self, owner: u64) {
        self.words[LOCK].store(owner, Ordering::Relaxed);
    }
}

impl Writing<'_> {
    /// Stores an entry; tells whether another one that had not expired gave way.
    pub(super) fn insert(&self, entry: &Entry<'_>, now: u64) -> bool {
        let (slot, evicts) = self.place(entry.hash, entry.key, now);
        slot.write(entry);
        evicts
    }

    pub(super) fn remove(&self, hash: u64, key: &[u8]) -> bool {
        let found = self.set.slots().find(|slot| slot.has(hash, key));
        found.inspect(|slot| slot.clear()).is_some()
    }

    pub(super) fn clear(&self) {
        self.set.slots().for_each(Slot::clear);
    }

    /// Where a key goes: where it is; else where nothing is or what is there has expired; else the CLOCK
    /// decides, which passes over what was read since it last came by.
    fn place(&self, hash: u64, key: &[u8], now: u64) -> (Slot<'_>, bool) {
        if let Some(same) = self.set.slots().find(|slot| slot.has(hash, key)) {
            return (same, false);
        }
        if let Some(free) = self.set.slots().find(|slot| slot.is_free(now)) {
            return (free, false);
        }
        let hand = &self.set.words[HAND];
        let mut way = hand.load(Ordering::Relaxed) as usize % WAYS;
        // Once round clears all marks, unless readers set them again: then the next one has to go.
        for _ in 0..WAYS {
            if !self.set.slot(way).forget_use() {
                break;
            }
            way = (way + 1) % WAYS;
        }
        hand.store((way + 1) as u64 % WAYS as u64, Ordering::Relaxed);
        (self.set.slot(way), true)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Release: the next holder sees all that this one wrote.
        self.set.words[LOCK].store(0, Ordering::Release);
    }
}
