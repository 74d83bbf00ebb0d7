//! A cache of bytes that all processes share, in memory of a fixed size.

mod cache_entry;
mod cache_set;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::live_processes::{PROCESS_TABLE_LAYOUT, ProcessTable};
use super::memory::{self, PieceLayout};
use super::shared_hasher::{HASH_KEY_WORDS, SharedHasher};
use super::{SharedCounter, registry};
use crate::error::{Error, Result};
use cache_entry::NewEntry;
use cache_set::{CacheSet, ENTRIES_PER_SET};

/// The revision of the layout in memory.
const LAYOUT_REVISION: u32 = 1;
/// The most bytes of a key and its value together: 16 MiB.
const MAX_ENTRY_BYTES: usize = 16 << 20;

/// A cache from bytes to bytes with expiry. Values that one worker stores, all workers can read.
///
/// **Size.** Reserves `entries` entries (rounded up to a multiple of 8), each for up to `bytes` bytes of key and value together plus
/// about 64 bytes. Unused room takes no memory. For large and small values use two caches.
///
/// **Eviction.** The hash of a key selects a set of eight entries. If all are taken, an expired one is replaced, or else one that was
/// not read recently (CLOCK). So an entry may be evicted before the cache is full.
///
/// **Death of a worker.** [`get`](SharedCache::get) never waits for a writer: an entry during a change is a miss, and a mix of two
/// values is never returned. The next writer clears what a killed one left half written.
///
/// Counted as `NAME_hits`, `NAME_misses`, `NAME_evictions`, and `NAME_repairs` (half-written entries that were cleared).
///
/// ```
/// use std::time::Duration;
/// use tokio_prefork::SharedCache;
///
/// let pages = SharedCache::new("pages", 10_000, 4096)?;
/// let _ = pages.insert(b"/", b"<h1>hello</h1>", Some(Duration::from_secs(60)));
/// assert_eq!(pages.get(b"/").as_deref(), Some(&b"<h1>hello</h1>"[..]));
/// assert_eq!(pages.remove(b"/"), Ok(true));
/// assert_eq!(pages.get(b"/"), None);
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct SharedCache(&'static CacheMemory);

/// Why a [`SharedCache`] was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheWriteError {
    /// Key and value together are larger than an entry. The previous value of the key is removed.
    #[error("cannot store in the cache: key and value are larger than an entry")]
    TooLarge,
    /// Another worker was stopped while it wrote near this key, for more than 2 ms, or there are more than 1024 processes. The
    /// previous value of the key may still be there.
    #[error(
        "cannot change the cache: another worker is writing there and does not finish; try again later"
    )]
    Busy,
}

/// The memory of a cache, and its counters.
struct CacheMemory {
    processes: &'static ProcessTable,
    words: &'static [AtomicU64],
    sets: usize,
    /// Bytes of key and value together.
    bytes: usize,
    /// Random, so that clients cannot choose keys of one set; created before the fork, so the same in all workers.
    hasher: SharedHasher,
    hits: SharedCounter,
    misses: SharedCounter,
    evictions: SharedCounter,
    repairs: SharedCounter,
}

impl SharedCache {
    /// Declares a cache of `entries` entries, each for up to `bytes` bytes of key and value together. Call it before the cluster serves.
    ///
    /// # Errors
    /// A number is zero, or `bytes` more than 16 MiB; the name is taken or not a valid metric name, this is a worker process, or memory
    /// is short.
    pub fn new(name: &str, entries: usize, bytes: usize) -> Result<SharedCache> {
        let name = registry::validate_name(name)?;
        let sets = entries.div_ceil(ENTRIES_PER_SET);
        let words = sets.checked_mul(cache_set::set_words(bytes.min(MAX_ENTRY_BYTES)));
        let words = words.and_then(|words| words.checked_add(HASH_KEY_WORDS));
        let words = words.filter(|_| sets > 0 && (1..=MAX_ENTRY_BYTES).contains(&bytes)).ok_or_else(|| {
            Error::config(format!(
                "cannot declare the cache {name:?} of {entries} entries of {bytes} bytes: no number may be 0, and an entry has at \
                 most {MAX_ENTRY_BYTES} bytes"
            ))
        })?;
        let processes = ProcessTable::get_or_create()?;
        let layout =
            format!("{LAYOUT_REVISION} processes={PROCESS_TABLE_LAYOUT} sets={sets} bytes={bytes}");
        let piece = memory::allocate(name, PieceLayout { kind: "cache", layout: &layout, words })?;
        let counter = |what: &str| SharedCounter::new(&format!("{name}_{what}"));
        let memory = CacheMemory {
            processes,
            words: &piece.words[HASH_KEY_WORDS..],
            sets,
            bytes,
            hasher: SharedHasher::new(piece)?,
            hits: counter("hits")?,
            misses: counter("misses")?,
            evictions: counter("evictions")?,
            repairs: counter("repairs")?,
        };
        Ok(SharedCache(Box::leak(Box::new(memory))))
    }

    /// Returns the value of `key`, unless it has expired. Takes no lock and makes no system call.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get_at(key, prefork_os::system::monotonic_ns())
    }

    /// Stores a value in place of the previous one of `key`, until `ttl` has passed; without `ttl`, until it is evicted.
    ///
    /// Time during which the machine is suspended does not count.
    ///
    /// # Errors
    /// See [`CacheWriteError`].
    pub fn insert(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<(), CacheWriteError> {
        self.insert_at(key, value, ttl, prefork_os::system::monotonic_ns())
    }

    /// Removes a key. Returns whether it was there.
    ///
    /// # Errors
    /// [`CacheWriteError::Busy`].
    pub fn remove(&self, key: &[u8]) -> Result<bool, CacheWriteError> {
        let hash = self.0.hasher.hash_one(key);
        Ok(self.lock_set(hash)?.remove(hash, key))
    }

    /// Removes all entries, set by set. Entries that are inserted meanwhile may stay.
    ///
    /// # Errors
    /// [`CacheWriteError::Busy`]; then some entries may be left.
    pub fn clear(&self) -> Result<(), CacheWriteError> {
        (0..self.0.sets).try_for_each(|set| self.lock_set(set as u64).map(|set| set.clear()))
    }

    /// Returns the number of entries that have not expired. Reads all entries.
    pub fn len(&self) -> usize {
        self.len_at(prefork_os::system::monotonic_ns())
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the most entries that the cache can hold.
    pub fn capacity(&self) -> usize {
        self.0.sets * ENTRIES_PER_SET
    }
}

/// The same methods with the time as an argument.
impl SharedCache {
    fn get_at(&self, key: &[u8], now: u64) -> Option<Vec<u8>> {
        let hash = self.0.hasher.hash_one(key);
        let found = self.set(hash).entries().find_map(|entry| entry.read_value(hash, key, now));
        let counter = if found.is_some() { &self.0.hits } else { &self.0.misses };
        counter.add(1);
        found
    }

    fn insert_at(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
        now: u64,
    ) -> Result<(), CacheWriteError> {
        let hash = self.0.hasher.hash_one(key);
        let writer = self.lock_set(hash)?;
        if key.len().saturating_add(value.len()) > self.0.bytes {
            writer.remove(hash, key);
            return Err(CacheWriteError::TooLarge);
        }
        let ttl = ttl.map(|ttl| u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
        let expiry = ttl.map_or(u64::MAX, |ttl| now.saturating_add(ttl));
        if writer.insert(&NewEntry { hash, key, value, expiry }, now) {
            self.0.evictions.add(1);
        }
        Ok(())
    }

    fn len_at(&self, now: u64) -> usize {
        let entries_of_set = (0..self.0.sets).flat_map(|set| self.set(set as u64).entries());
        entries_of_set.filter(|entry| entry.is_occupied(now)).count()
    }

    fn set(&self, hash: u64) -> CacheSet<'static> {
        let words = cache_set::set_words(self.0.bytes);
        let at = (hash % self.0.sets as u64) as usize * words;
        CacheSet::new(&self.0.words[at..at + words], self.0.bytes)
    }

    fn lock_set(&self, hash: u64) -> Result<cache_set::CacheSetWriter<'static>, CacheWriteError> {
        let writer =
            self.set(hash).lock_for_writing(self.0.processes).ok_or(CacheWriteError::Busy)?;
        if writer.repaired > 0 {
            self.0.repairs.add(writer.repaired);
        }
        Ok(writer)
    }
}

impl fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedCache({} entries of {} bytes)", self.capacity(), self.0.bytes)
    }
}
