//! One entry of the cache, in a sequence lock: the number is odd while somebody writes.
//!
//! Only the holder of the set's lock writes. A reader never waits for one: an odd or changed number is tried
//! a few times and then taken for "not there". So a writer that died in the middle leaves an entry that nobody
//! reads, and the next holder of the lock clears it.

use std::sync::atomic::{AtomicU64, Ordering, fence};

const SEQUENCE: usize = 0;
const HASH: usize = 1;
const LENGTHS: usize = 2;
const EXPIRY: usize = 3;
/// Whether it was read since the clock last came by.
const USED: usize = 4;
/// Words before the key.
const HEAD: usize = 5;

/// Set in the lengths of an entry that holds something; the zeroed memory of the beginning holds nothing.
const OCCUPIED: u64 = 1 << 63;

/// How often a reader looks at an entry that changes under its eyes.
const LOOKS: usize = 8;

/// What is to be stored.
pub(super) struct Entry<'a> {
    pub(super) hash: u64,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// In monotonic nanoseconds; `u64::MAX` for never.
    pub(super) expiry: u64,
}

/// The words of one entry.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a>(pub(super) &'a [AtomicU64]);

/// Words that a slot needs for keys and values of `bytes` bytes together.
pub(super) const fn words(bytes: usize) -> usize {
    // One more, as the value begins at a word of its own.
    HEAD + bytes.div_ceil(8) + 1
}

impl Slot<'_> {
    /// The value, if this entry has the key and has not expired.
    pub(super) fn read(self, hash: u64, key: &[u8], now: u64) -> Option<Vec<u8>> {
        for _ in 0..LOOKS {
            // Acquire: what is read below was written before this number.
            let sequence = self.0[SEQUENCE].load(Ordering::Acquire);
            if sequence % 2 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let found = self.look(hash, key, now);
            // The loads above are done before the number is read again.
            fence(Ordering::Acquire);
            if self.get(SEQUENCE) == sequence {
                if found.is_some() && self.get(USED) == 0 {
                    self.put(USED, 1);
                }
                return found;
            }
        }
        None
    }

    /// What seems to be there. While somebody writes this may be anything, but never out of bounds.
    fn look(self, hash: u64, key: &[u8], now: u64) -> Option<Vec<u8>> {
        if self.get(HASH) != hash || self.get(EXPIRY) <= now {
            return None;
        }
        let (key_length, length) = self.lengths()?;
        let data = &self.0[HEAD..];
        if key_length != key.len() || !same(data, key) {
            return None;
        }
        let mut value = Vec::with_capacity(length.next_multiple_of(8));
        for word in &data[key_length.div_ceil(8)..][..length.div_ceil(8)] {
            value.extend(word.load(Ordering::Relaxed).to_ne_bytes());
        }
        value.truncate(length);
        Some(value)
    }

    /// The lengths of key and value, if there are any that fit.
    fn lengths(self) -> Option<(usize, usize)> {
        let lengths = self.get(LENGTHS);
        let (key, value) = ((lengths >> 32) as usize & 0x7fff_ffff, lengths as u32 as usize);
        let fits = key.div_ceil(8) + value.div_ceil(8) <= self.0.len() - HEAD;
        (lengths & OCCUPIED != 0 && fits).then_some((key, value))
    }

    /// Whether it has this key, expired or not. For the holder of the lock.
    pub(super) fn has(self, hash: u64, key: &[u8]) -> bool {
        let long = self.lengths().is_some_and(|(length, _)| length == key.len());
        self.get(HASH) == hash && long && same(&self.0[HEAD..], key)
    }

    /// Whether nothing is lost by writing over it. For the holder of the lock.
    pub(super) fn is_free(self, now: u64) -> bool {
        self.lengths().is_none() || self.get(EXPIRY) <= now
    }

    /// Whether it holds something.
    pub(super) fn is_occupied(self, now: u64) -> bool {
        !self.is_free(now)
    }

    /// Whether it was read since this was last asked.
    pub(super) fn forget_use(self) -> bool {
        let used = self.get(USED) != 0;
        self.put(USED, 0);
        used
    }

    /// For the holder of the lock. The entry must fit.
    pub(super) fn write(self, entry: &Entry<'_>) {
        self.change(|| {
            self.put(HASH, entry.hash);
            self.put(EXPIRY, entry.expiry);
            self.put(LENGTHS, OCCUPIED | (entry.key.len() as u64) << 32 | entry.value.len() as u64);
            self.put(USED, 0);
            let (key, value) = self.0[HEAD..].split_at(entry.key.len().div_ceil(8));
            copy(key, entry.key);
            copy(value, entry.value);
        });
    }

    /// For the holder of the lock.
    pub(super) fn clear(self) {
        self.change(|| self.put(LENGTHS, 0));
    }

    /// Clears it if somebody died while writing. For the holder of the lock.
    pub(super) fn repair(self) -> bool {
        let torn = self.get(SEQUENCE) % 2 == 1;
        if torn {
            self.clear();
        }
        torn
    }

    /// Leaves the number odd, as somebody who dies while writing does.
    #[cfg(test)]
    pub(super) fn tear(self) {
        self.put(SEQUENCE, self.get(SEQUENCE) | 1);
        self.put(HEAD, 0xdead);
    }

    fn change(self, write: impl FnOnce()) {
        let odd = self.get(SEQUENCE) | 1;
        self.put(SEQUENCE, odd);
        // Whoever sees one of the writes below also sees the odd number.
        fence(Ordering::Release);
        write();
        // Release: whoever sees the even number sees all of it.
        self.0[SEQUENCE].store(odd.wrapping_add(1), Ordering::Release);
    }

    fn get(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn put(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }
}

/// Up to eight bytes, filled up with zeros.
fn word(chunk: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..chunk.len()].copy_from_slice(chunk);
    u64::from_ne_bytes(eight)
}

fn copy(to: &[AtomicU64], bytes: &[u8]) {
    for (to, chunk) in to.iter().zip(bytes.chunks(8)) {
        to.store(word(chunk), Ordering::Relaxed);
    }
}

fn same(words: &[AtomicU64], bytes: &[u8]) -> bool {
    let mut pairs = words.iter().zip(bytes.chunks(8));
    pairs.all(|(have, chunk)| have.load(Ordering::Relaxed) == word(chunk))
}
