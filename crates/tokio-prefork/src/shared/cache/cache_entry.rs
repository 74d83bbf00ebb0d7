//! One entry of the cache, protected by a sequence lock: its sequence number is odd during a write.
//!
//! Only the holder of the set's lock writes. Readers never wait: after a few attempts, an odd or changing number is a miss. So a
//! writer that dies in the middle leaves an entry that is not read, and the next lock holder clears it.

use std::sync::atomic::{AtomicU64, Ordering, fence};

const SEQUENCE_WORD: usize = 0;
const HASH_WORD: usize = 1;
const LENGTHS_WORD: usize = 2;
const EXPIRY_WORD: usize = 3;
/// Whether the entry was read since the clock hand last passed.
const USED_WORD: usize = 4;
/// Words before the key.
const ENTRY_HEADER_WORDS: usize = 5;

/// Set in the lengths of an entry that holds a value, so that zeroed memory holds none.
const OCCUPIED_BIT: u64 = 1 << 63;

/// Attempts to read an entry that is being changed.
const MAX_READ_ATTEMPTS: usize = 8;

/// An entry to store.
pub(super) struct NewEntry<'a> {
    pub(super) hash: u64,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// In monotonic nanoseconds; `u64::MAX` for never.
    pub(super) expiry: u64,
}

/// The words of one entry.
#[derive(Clone, Copy)]
pub(super) struct CacheEntry<'a>(pub(super) &'a [AtomicU64]);

/// Returns the words of an entry that holds up to `bytes` bytes of key and value together.
pub(super) const fn entry_words(bytes: usize) -> usize {
    // One more, because the value starts at a word boundary.
    ENTRY_HEADER_WORDS + bytes.div_ceil(8) + 1
}

impl CacheEntry<'_> {
    /// Returns the value, if this entry has the key and has not expired.
    pub(super) fn read_value(self, hash: u64, key: &[u8], now: u64) -> Option<Vec<u8>> {
        for _ in 0..MAX_READ_ATTEMPTS {
            // Acquire: the reads below see what was written before this number.
            let sequence = self.0[SEQUENCE_WORD].load(Ordering::Acquire);
            if sequence % 2 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let found = self.read_unvalidated(hash, key, now);
            // The reads above finish before the number is read again.
            fence(Ordering::Acquire);
            if self.load_word(SEQUENCE_WORD) == sequence {
                if found.is_some() && self.load_word(USED_WORD) == 0 {
                    self.store_word(USED_WORD, 1);
                }
                return found;
            }
        }
        None
    }

    /// Returns the apparent value. During a write it may be arbitrary, but never out of bounds.
    fn read_unvalidated(self, hash: u64, key: &[u8], now: u64) -> Option<Vec<u8>> {
        if self.load_word(HASH_WORD) != hash || self.load_word(EXPIRY_WORD) <= now {
            return None;
        }
        let (key_length, length) = self.lengths()?;
        let data = &self.0[ENTRY_HEADER_WORDS..];
        if key_length != key.len() || !equals_bytes(data, key) {
            return None;
        }
        let mut value = Vec::with_capacity(length.next_multiple_of(8));
        for word in &data[key_length.div_ceil(8)..][..length.div_ceil(8)] {
            value.extend(word.load(Ordering::Relaxed).to_ne_bytes());
        }
        value.truncate(length);
        Some(value)
    }

    /// Returns the lengths of key and value, if they are set and in bounds.
    fn lengths(self) -> Option<(usize, usize)> {
        let lengths = self.load_word(LENGTHS_WORD);
        let (key, value) = ((lengths >> 32) as usize & 0x7fff_ffff, lengths as u32 as usize);
        let fits = key.div_ceil(8) + value.div_ceil(8) <= self.0.len() - ENTRY_HEADER_WORDS;
        (lengths & OCCUPIED_BIT != 0 && fits).then_some((key, value))
    }

    /// Returns whether the entry has this key, expired or not. Only for the lock holder.
    pub(super) fn has_key(self, hash: u64, key: &[u8]) -> bool {
        let has_key_length = self.lengths().is_some_and(|(length, _)| length == key.len());
        self.load_word(HASH_WORD) == hash
            && has_key_length
            && equals_bytes(&self.0[ENTRY_HEADER_WORDS..], key)
    }

    /// Returns whether the entry is empty or expired. Only for the lock holder.
    pub(super) fn is_free(self, now: u64) -> bool {
        self.lengths().is_none() || self.load_word(EXPIRY_WORD) <= now
    }

    /// Returns whether the entry holds a value that has not expired.
    pub(super) fn is_occupied(self, now: u64) -> bool {
        !self.is_free(now)
    }

    /// Clears the mark that the entry was read, and returns whether it was set.
    pub(super) fn clear_used_mark(self) -> bool {
        let used = self.load_word(USED_WORD) != 0;
        self.store_word(USED_WORD, 0);
        used
    }

    /// Stores an entry, which must fit. Only for the lock holder.
    pub(super) fn write(self, entry: &NewEntry<'_>) {
        self.write_sequenced(|| {
            self.store_word(HASH_WORD, entry.hash);
            self.store_word(EXPIRY_WORD, entry.expiry);
            self.store_word(
                LENGTHS_WORD,
                OCCUPIED_BIT | (entry.key.len() as u64) << 32 | entry.value.len() as u64,
            );
            self.store_word(USED_WORD, 0);
            let (key, value) = self.0[ENTRY_HEADER_WORDS..].split_at(entry.key.len().div_ceil(8));
            store_bytes(key, entry.key);
            store_bytes(value, entry.value);
        });
    }

    /// Empties the entry. Only for the lock holder.
    pub(super) fn clear(self) {
        self.write_sequenced(|| self.store_word(LENGTHS_WORD, 0));
    }

    /// Clears the entry if a writer died in the middle, and returns whether it did. Only for the lock holder.
    pub(super) fn repair(self) -> bool {
        let is_torn = self.load_word(SEQUENCE_WORD) % 2 == 1;
        if is_torn {
            self.clear();
        }
        is_torn
    }

    /// Leaves the entry as a writer that dies in the middle does.
    #[cfg(test)]
    pub(super) fn write_half_for_test(self) {
        self.store_word(SEQUENCE_WORD, self.load_word(SEQUENCE_WORD) | 1);
        self.store_word(ENTRY_HEADER_WORDS, 0xdead);
    }

    fn write_sequenced(self, write: impl FnOnce()) {
        let odd = self.load_word(SEQUENCE_WORD) | 1;
        self.store_word(SEQUENCE_WORD, odd);
        // A reader that sees one of the writes below also sees the odd number.
        fence(Ordering::Release);
        write();
        // Release: a reader that sees the even number sees all writes.
        self.0[SEQUENCE_WORD].store(odd.wrapping_add(1), Ordering::Release);
    }

    fn load_word(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn store_word(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }
}

/// Packs up to eight bytes into a word, padded with zeros.
fn pack_word(chunk: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..chunk.len()].copy_from_slice(chunk);
    u64::from_ne_bytes(eight)
}

fn store_bytes(to: &[AtomicU64], bytes: &[u8]) {
    for (to, chunk) in to.iter().zip(bytes.chunks(8)) {
        to.store(pack_word(chunk), Ordering::Relaxed);
    }
}

fn equals_bytes(words: &[AtomicU64], bytes: &[u8]) -> bool {
    let mut pairs = words.iter().zip(bytes.chunks(8));
    pairs.all(|(have, chunk)| have.load(Ordering::Relaxed) == pack_word(chunk))
}
