//! Cache of recently requested files, bounded in bytes, entries and open descriptors.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::entry::FileEntry;
use super::root_dir::DiskWait;

/// Bytes of one half of the cache (see [`FileEntry::cost`]).
const MAX_HALF_COST: usize = 8 << 20;
/// Entries of one half of the cache.
const MAX_HALF_ENTRIES: usize = 1024;
/// Interval after which the older half is dropped: an unused entry lives for one to two of them.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

type EntryMap = HashMap<Box<[u8]>, Arc<FileEntry>>;

/// Entries by normalized path. Two halves: what is found only in the older one is dropped when the newer one is full.
#[derive(Default)]
pub(super) struct FileCache {
    halves: Mutex<CacheHalves>,
    is_purge_scheduled: AtomicBool,
}

#[derive(Default)]
struct CacheHalves {
    newer: EntryMap,
    older: EntryMap,
    newer_cost: usize,
}

impl CacheHalves {
    fn rotate(&mut self) {
        self.older = std::mem::take(&mut self.newer);
        self.newer_cost = 0;
    }
}

impl FileCache {
    /// Returns the entry of `path` if it may be used at `now`.
    pub(super) fn get(&self, path: &[u8], now: Instant, wait: DiskWait) -> Option<Arc<FileEntry>> {
        let halves = self.lock();
        let entry = halves.newer.get(path).or_else(|| halves.older.get(path))?;
        entry.is_fresh(now, wait).then(|| Arc::clone(entry))
    }

    pub(super) fn insert(&self, path: &[u8], entry: &Arc<FileEntry>) {
        let cost = entry.cost() + path.len();
        let mut halves = self.lock();
        if halves.newer_cost + cost > MAX_HALF_COST || halves.newer.len() >= MAX_HALF_ENTRIES {
            halves.rotate();
        }
        halves.older.remove(path);
        let replaced = halves.newer.insert(path.into(), Arc::clone(entry));
        let freed = replaced.map_or(0, |old| old.cost() + path.len());
        halves.newer_cost = (halves.newer_cost + cost).saturating_sub(freed);
    }

    /// Drops the entry of `path`, whose file no longer exists.
    pub(super) fn remove(&self, path: &[u8]) {
        let mut halves = self.lock();
        halves.older.remove(path);
        if let Some(entry) = halves.newer.remove(path) {
            halves.newer_cost = halves.newer_cost.saturating_sub(entry.cost() + path.len());
        }
    }

    /// Drops all entries, which closes the descriptors that no response uses.
    pub(super) fn clear(&self) {
        let mut halves = self.lock();
        *halves = CacheHalves::default();
    }

    /// Starts a task that drops old entries, unless one runs or the cache is empty. Called on a thread of the runtime.
    ///
    /// Without it the last entries would keep descriptors, and with them the space of deleted files, until the next request.
    pub(super) fn schedule_purge(self: &Arc<FileCache>) {
        if self.is_purge_scheduled.swap(true, Ordering::Relaxed) {
            return;
        }
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PURGE_INTERVAL).await;
                let mut halves = cache.lock();
                halves.rotate();
                if halves.older.is_empty() {
                    // Within the lock: the next insertion starts another one.
                    cache.is_purge_scheduled.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, CacheHalves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
