//! A block of bytes that all processes share: atomics, copies, and ranges under locks whose holder may die.

mod guard;
mod lock_error;
mod range_locks;
#[cfg(test)]
mod tests;
mod word_copy;

use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::live_processes::{PROCESS_TABLE_LAYOUT, ProcessTable};
use super::memory::{self, PieceLayout};
use super::registry::{self, DeclaredState};
use super::wait::{ChangeEpoch, LockRequest, WaitableWord, WakeOrder, block_on};
use crate::error::{Error, Result};

use guard::HeldLock;
pub use guard::{SharedBytesGuard, SharedBytesReadGuard};
pub use lock_error::LockError;
use range_locks::{LockAttempt, RangeLocks, TABLE_WORDS};

/// Words before the table of locks: the word that arms the waits for atomics, alone in its cache lines.
const HEADER_WORDS: usize = 16;

/// Bytes in shared memory that every worker reads and writes, like a `SharedArrayBuffer` of Node or `shared_memory` of Python.
///
/// Initially zero. Respawns, reloads and `scale` keep them. There are three ways to use them, which may be mixed:
///
/// - [`atomics`](SharedBytes::atomics): the block as atomic words, for lock-free data. [`wait_while`](SharedBytes::wait_while) waits until a
///   word changes.
/// - [`read_at`](SharedBytes::read_at) and [`write_at`](SharedBytes::write_at) copy bytes out and in. Without a lock, a copy of more than
///   eight bytes may mix old and new ones.
/// - [`lock`](SharedBytes::lock) and [`lock_shared`](SharedBytes::lock_shared) keep other processes, threads and tasks from a range.
///
/// ```
/// use std::sync::atomic::Ordering::SeqCst;
/// use tokio_prefork::SharedBytes;
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let frame = SharedBytes::new("frame", 1 << 20)?;
/// // In any worker:
/// frame.atomics()[0].fetch_add(1, SeqCst);
/// let mut pixels = frame.lock(4096..8192).await?;
/// pixels.write(0, b"red");
/// assert_eq!(pixels.to_vec()[..4], *b"red\0");
/// # Ok::<(), tokio_prefork::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// **Death of a lock holder.** When a process dies while it holds an exclusive lock, the lock is free again at once, and the bytes may be half
/// written. So the next one that locks any of them gets its guard in [`LockError::Poisoned`]. It can repair the bytes and call
/// [`clear_poison`](SharedBytesGuard::clear_poison). The same holds for a panic, as with [`std::sync::Mutex`]. A guard that is forgotten, or
/// alive at `std::process::exit`, counts as one of a dead holder as soon as the process is gone. A guard that is dropped is released without
/// poison, also if its task was cancelled: its client disconnected, or the graceful timeout passed.
///
/// ```
/// use tokio_prefork::{LockError, SharedBytes};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let table = SharedBytes::new("table", 64)?;
/// let rows = match table.lock(..).await {
///     Ok(rows) => rows,
///     Err(LockError::Poisoned(mut rows)) => {
///         rows.fill(0);
///         rows.clear_poison();
///         rows
///     }
///     Err(other) => return Err(other.into()),
/// };
/// # drop(rows);
/// # Ok::<(), tokio_prefork::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// **Order.** Ranges that do not overlap are independent, byte by byte. Within a process, requests that conflict are served in their order.
/// Between processes there is no order: readers that overlap all the time keep a writer of another process waiting. Up to 512 ranges can be
/// locked at the same time; further requests wait. A task that locks a range that it has locked already waits for itself forever; put
/// `tokio::time::timeout` around a lock if that may happen.
///
/// **Locks bind those who use them.** `atomics`, `read_at` and `write_at` ignore them. All accesses are atomic, so a program that mixes them
/// may read a mix of values, but nothing undefined happens.
///
/// **No slices.** There is no `&mut [u8]` of shared memory, not even under a lock: an access by `atomics` or `write_at` in another thread would
/// make it undefined behaviour. To compute in place, use the atomics with `Relaxed` loads and stores, which are ordinary moves of the CPU.
///
/// Unused bytes take no memory. The locks take 16 KiB.
#[derive(Clone, Copy)]
pub struct SharedBytes(&'static BytesMemory);

/// The memory of a block, and its locks.
struct BytesMemory {
    name: &'static str,
    /// Bytes; the last word may be longer.
    len: usize,
    words: &'static [AtomicU64],
    /// Armed while a process waits for an atomic.
    armed: &'static AtomicU64,
    locks: RangeLocks,
}

impl SharedBytes {
    /// Declares a block of `len` bytes. Call it before the cluster serves.
    ///
    /// # Errors
    /// `len` is 0, the name is taken or not a valid metric name, this is a worker process, or memory is short.
    pub fn new(name: &str, len: usize) -> Result<SharedBytes> {
        let name = registry::validate_name(name)?;
        let data_words = len.div_ceil(size_of::<u64>());
        let all_words = data_words.next_multiple_of(HEADER_WORDS) + HEADER_WORDS + TABLE_WORDS;
        if len == 0 {
            return Err(Error::config(format!(
                "cannot declare shared bytes {name:?} of length 0; give the number of bytes"
            )));
        }
        let (processes, epoch) = (ProcessTable::get_or_create()?, ChangeEpoch::get_or_create()?);
        let layout = format!("1 processes={PROCESS_TABLE_LAYOUT} len={len}");
        let layout = PieceLayout { kind: "bytes", layout: &layout, words: all_words };
        let (words, rest) = memory::allocate(name, layout)?.words.split_at(data_words);
        let (header, table) =
            rest[rest.len() - TABLE_WORDS - HEADER_WORDS..].split_at(HEADER_WORDS);
        let locks = RangeLocks::new(table, processes, epoch);
        let memory = BytesMemory { name, len, words, armed: &header[0], locks };
        let bytes = SharedBytes(Box::leak(Box::new(memory)));
        registry::register(name, DeclaredState::Bytes(bytes))?;
        Ok(bytes)
    }

    /// Returns the number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a block is never empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Returns the block as atomic words. Byte `i` is in word `i / 8`.
    ///
    /// Has `len` / 8 words, rounded up. Call [`notify_all`](SharedBytes::notify_all) after a change that others wait for. There are no views
    /// of smaller atomics: accesses of different sizes to the same memory are undefined behaviour in Rust.
    pub fn atomics(&self) -> &'static [AtomicU64] {
        self.0.words
    }

    /// Copies the bytes from `offset` on into `buffer`. Ignores locks; each word that lies in the range as a whole is read at once.
    ///
    /// # Panics
    /// The range is beyond the end of the block.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) {
        self.assert_contains(offset, buffer.len());
        word_copy::read(self.0.words, offset, buffer);
    }

    /// Copies `bytes` to `offset` and further. Ignores locks; bytes before and after stay as they are, also in the same words.
    ///
    /// # Panics
    /// The range is beyond the end of the block.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        self.assert_contains(offset, bytes.len());
        word_copy::write(self.0.words, offset, bytes);
    }

    /// Locks a range for reading and writing. Waits while any lock of another guard overlaps.
    ///
    /// The guard may be kept over an `await` and sent to other threads. Cancel safe. Works with any runtime.
    ///
    /// # Errors
    /// [`LockError::Poisoned`] with the guard, or more than 1024 processes use shared state.
    ///
    /// # Panics
    /// The range is beyond the end of the block, or ends before it begins.
    pub async fn lock(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<SharedBytesGuard, LockError<SharedBytesGuard>> {
        let held = self.wait_for_lock(self.request(range, true)).await?;
        SharedBytesGuard(held).or_poisoned()
    }

    /// Locks a range for reading. Waits while an exclusive lock overlaps; other readers may hold it, too.
    ///
    /// # Errors
    /// As [`lock`](SharedBytes::lock). A reader cannot clear the poison.
    ///
    /// # Panics
    /// As [`lock`](SharedBytes::lock).
    pub async fn lock_shared(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<SharedBytesReadGuard, LockError<SharedBytesReadGuard>> {
        let held = self.wait_for_lock(self.request(range, false)).await?;
        SharedBytesReadGuard(held).or_poisoned()
    }

    /// Locks a range for reading and writing if no lock overlaps. Returns `None` if one does.
    ///
    /// # Errors
    /// As [`lock`](SharedBytes::lock).
    ///
    /// # Panics
    /// As [`lock`](SharedBytes::lock).
    pub fn try_lock(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<Option<SharedBytesGuard>, LockError<SharedBytesGuard>> {
        match self.attempt_lock(self.request(range, true))? {
            Some(held) => SharedBytesGuard(held).or_poisoned().map(Some),
            None => Ok(None),
        }
    }

    /// Locks a range for reading if no exclusive lock overlaps. Returns `None` if one does.
    ///
    /// # Errors
    /// As [`lock`](SharedBytes::lock).
    ///
    /// # Panics
    /// As [`lock`](SharedBytes::lock).
    pub fn try_lock_shared(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<Option<SharedBytesReadGuard>, LockError<SharedBytesReadGuard>> {
        match self.attempt_lock(self.request(range, false))? {
            Some(held) => SharedBytesReadGuard(held).or_poisoned().map(Some),
            None => Ok(None),
        }
    }

    /// Like [`lock`](SharedBytes::lock), blocking the calling thread. Returns `None` if `timeout` passes.
    ///
    /// For threads of a pool and for isolated jobs, never for an event loop. `Duration::MAX` is no limit.
    ///
    /// # Errors
    /// As [`lock`](SharedBytes::lock).
    ///
    /// # Panics
    /// As [`lock`](SharedBytes::lock).
    pub fn lock_blocking(
        &self,
        range: impl RangeBounds<usize>,
        timeout: Duration,
    ) -> Result<Option<SharedBytesGuard>, LockError<SharedBytesGuard>> {
        block_on(self.lock(range), timeout).transpose()
    }

    /// Like [`lock_shared`](SharedBytes::lock_shared), blocking the calling thread. Returns `None` if `timeout` passes.
    ///
    /// # Errors
    /// As [`lock`](SharedBytes::lock).
    ///
    /// # Panics
    /// As [`lock`](SharedBytes::lock).
    pub fn lock_shared_blocking(
        &self,
        range: impl RangeBounds<usize>,
        timeout: Duration,
    ) -> Result<Option<SharedBytesReadGuard>, LockError<SharedBytesReadGuard>> {
        block_on(self.lock_shared(range), timeout).transpose()
    }

    /// Waits while word `index` of [`atomics`](SharedBytes::atomics) is `value`, and returns its other value.
    ///
    /// Returns at once if it is another one. Whoever changes the word calls [`notify_all`](SharedBytes::notify_all) afterwards. Cancel
    /// safe. Works with any runtime.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub async fn wait_while(&self, index: usize, value: u64) -> u64 {
        let word = WaitableWord::new(&self.0.words[index], self.0.armed);
        word.wait(WakeOrder::Together, |current| (current != value).then_some(current)).await
    }

    /// Like [`wait_while`](SharedBytes::wait_while), blocking the calling thread. Returns `None` if `timeout` passes.
    ///
    /// For threads of a pool and for isolated jobs, never for an event loop. `Duration::MAX` is no limit.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub fn wait_while_blocking(&self, index: usize, value: u64, timeout: Duration) -> Option<u64> {
        block_on(self.wait_while(index, value), timeout)
    }

    /// Lets all that wait for an atomic of this block look at it again. Costs one load while nobody waits.
    ///
    /// There is no way to wake only one of them: it could be in a process that is killed before it does anything, and its wake-up would be
    /// lost. [`SharedNumber::wait_and_update`](crate::SharedNumber::wait_and_update) lets one waiter pass for each change.
    pub fn notify_all(&self) {
        // The caller's change may be relaxed: it must come before the look whether anybody waits.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        WaitableWord::new(&self.0.words[0], self.0.armed).notify();
    }

    async fn wait_for_lock(&self, request: LockRequest) -> Result<HeldLock> {
        let bytes = *self;
        let attempt = |_| bytes.attempt_lock(request).transpose();
        self.0.locks.changes.wait(WakeOrder::ByRange(request), attempt).await
    }

    fn attempt_lock(&self, request: LockRequest) -> Result<Option<HeldLock>> {
        match self.0.locks.try_lock(request) {
            LockAttempt::Locked(held) => Ok(Some(HeldLock::new(*self, held))),
            LockAttempt::Unavailable => Ok(None),
            LockAttempt::TooManyProcesses => Err(Error::refused(format!(
                "cannot lock a range of the shared bytes {:?}: more than {} processes use shared state",
                self.0.name,
                super::live_processes::MAX_PROCESSES,
            ))),
        }
    }

    #[track_caller]
    fn request(&self, range: impl RangeBounds<usize>, is_exclusive: bool) -> LockRequest {
        let range = self.resolve_range(range);
        LockRequest { start: range.start as u64, end: range.end as u64, is_exclusive }
    }

    #[track_caller]
    fn resolve_range(&self, range: impl RangeBounds<usize>) -> Range<usize> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.0.len,
        };
        assert!(
            start <= end && end <= self.0.len,
            "range {start}..{end} of the shared bytes {:?}, which have {} bytes",
            self.0.name,
            self.0.len
        );
        start..end
    }

    #[track_caller]
    fn assert_contains(&self, offset: usize, len: usize) {
        let _ = self.resolve_range(offset..offset.saturating_add(len));
    }

    /// Returns how many ranges are locked, and how many are poisoned.
    pub(super) fn lock_counts(&self) -> (u64, u64) {
        let counts = self.0.locks.counts();
        (counts.locked, counts.poisoned)
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({:?}, {} bytes)", self.0.name, self.0.len)
    }
}
