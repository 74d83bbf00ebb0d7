//! A cache that all workers share, in memory of a fixed size.

mod cache_entry;
mod cache_set;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::live_processes::Members;
use super::{SharedCounter, registry};
use crate::error::{Error, Result};
use cache_entry::Entry;
use cache_set::{Set, WAYS};

/// Bytes of a key and its value together, at most.
const LARGEST: usize = 16 << 20;

/// Bytes to bytes, for all workers, with expiry: what one worker has computed or fetched, the others have too.
///
/// **Size.** `entries` (rounded up to a multiple of 8) entries are reserved, each with room for `bytes` bytes
/// of key and value together, and takes about 64 bytes more. Room that was never used takes no memory. For
/// large and small values make two caches.
///
/// **Eviction.** A key has eight places by its hash. If all are taken by others, one that has expired gives
/// way, or else one that was not read of late (CLOCK). So an entry may be evicted before the cache is full.
///
/// **Death.** [`get`](SharedCache::get) never waits for a writer, alive or dead: an entry under change is a
/// miss, and no mix of two values is ever returned. What a killed worker left half written is cleared by the
/// next writer that comes by.
///
/// What happens is counted as `NAME_hits`, `NAME_misses`, `NAME_evictions`, and `NAME_repairs`: half written
/// entries that were cleared.
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
pub struct SharedCache(&'static Inner);

/// Why a [`SharedCache`] was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheWriteError {
    /// Key and value together are larger than an entry. What the key had before is removed.
    #[error("key and value are larger than an entry of the cache")]
    TooLarge,
    /// Another worker was stopped while writing near this key and was waited for in vain, for 2 ms; or there
    /// are more than 1024 processes. What the key had before may still be there.
    #[error("another worker is writing there and does not finish")]
    Busy,
}

struct Inner {
    members: &'static Members,
    words: &'static [AtomicU64],
    sets: usize,
    /// Of key and value together.
    bytes: usize,
    /// The same in all workers, as it is made before the fork; random, so that nobody can choose keys that
    /// fall into one set.
    hasher: RandomState,
    hits: SharedCounter,
    misses: SharedCounter,
    evictions: SharedCounter,
    repairs: SharedCounter,
}

impl SharedCache {
    /// Declares a cache for so many entries, of up to `bytes` bytes of key and value together, before the
    /// cluster serves.
    ///
    /// # Errors
    /// A number is zero, or `bytes` more than 16 MiB; the name is taken or no name for a metric, this is a
    /// worker, or there is not so much memory.
    pub fn new(name: &str, entries: usize, bytes: usize) -> Result<SharedCache> {
        let name = registry::name(name)?;
        let sets = entries.div_ceil(WAYS);
        let words = sets.checked_mul(cache_set::words(bytes.min(LARGEST)));
        let words = words.filter(|_| sets > 0 && (1..=LARGEST).contains(&bytes)).ok_or_else(|| {
            Error::config(format!(
                "the cache {name:?} of {entries} entries of {bytes} bytes makes no sense: none may be 0, and \
                 an entry has {LARGEST} bytes at most"
            ))
        })?;
        let words = prefork_os::shared_memory::create_shared_words(words)
            .map_err(|e| Error::system(format!("get memory for the cache {name:?}"), e))?;
        let counter = |what: &str| SharedCounter::new(&format!("{name}_{what}"));
        let inner = Inner {
            members: Members::get()?,
            words,
            sets,
            bytes,
            hasher: RandomState::new(),
            hits: counter("hits")?,
            misses: counter("misses")?,
            evictions: counter("evictions")?,
            repairs: counter("repairs")?,
        };
        Ok(SharedCache(Box::leak(Box::new(inner))))
    }

    /// The value of a key, unless it has expired. Takes no lock and makes no system call.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get_at(key, prefork_os::system::monotonic_ns())
    }

    /// Stores a value, in place of what the key had, until `ttl` has passed, or for as long as there is room.
    /// Time in which the machine sleeps does not count.
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

    /// Removes a key; tells whether it was there.
    ///
    /// # Errors
    /// [`CacheWriteError::Busy`].
    pub fn remove(&self, key: &[u8]) -> Result<bool, CacheWriteError> {
        let hash = self.0.hasher.hash_one(key);
        Ok(self.writing(hash)?.remove(hash, key))
    }

    /// Removes everything, set by set: what others insert meanwhile may stay.
    ///
    /// # Errors
    /// [`CacheWriteError::Busy`]: some of it may be left.
    pub fn clear(&self) -> Result<(), CacheWriteError> {
        (0..self.0.sets).try_for_each(|set| self.writing(set as u64).map(|set| set.clear()))
    }

    /// How many entries it holds that have not expired. Looks at all of them.
    pub fn len(&self) -> usize {
        self.len_at(prefork_os::system::monotonic_ns())
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries it can hold at most.
    pub fn capacity(&self) -> usize {
        self.0.sets * WAYS
    }
}

/// The same with the time as an argument.
impl SharedCache {
    fn get_at(&self, key: &[u8], now: u64) -> Option<Vec<u8>> {
        let hash = self.0.hasher.hash_one(key);
        let found = self.set(hash).slots().find_map(|slot| slot.read(hash, key, now));
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
        let writing = self.writing(hash)?;
        if key.len().saturating_add(value.len()) > self.0.bytes {
            writing.remove(hash, key);
            return Err(CacheWriteError::TooLarge);
        }
        let ttl = ttl.map(|ttl| u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
        let expiry = ttl.map_or(u64::MAX, |ttl| now.saturating_add(ttl));
        if writing.insert(&Entry { hash, key, value, expiry }, now) {
            self.0.evictions.add(1);
        }
        Ok(())
    }

    fn len_at(&self, now: u64) -> usize {
        let slots = (0..self.0.sets).flat_map(|set| self.set(set as u64).slots());
        slots.filter(|slot| slot.is_occupied(now)).count()
    }

    fn set(&self, hash: u64) -> Set<'static> {
        let words = cache_set::words(self.0.bytes);
        let at = (hash % self.0.sets as u64) as usize * words;
        Set::new(&self.0.words[at..at + words], self.0.bytes)
    }

    fn writing(&self, hash: u64) -> Result<cache_set::Writing<'static>, CacheWriteError> {
        let writing = self.set(hash).write(self.0.members).ok_or(CacheWriteError::Busy)?;
        if writing.repaired > 0 {
            self.0.repairs.add(writing.repaired);
        }
        Ok(writing)
    }
}

impl fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedCache({} entries of {} bytes)", self.capacity(), self.0.bytes)
    }
}
