//! Guards of locked ranges, with access to their bytes.

use std::fmt;
use std::ops::Range;
use std::thread;

use super::range_locks::HeldRange;
use super::{LockError, SharedBytes, word_copy};

/// A locked range of [`SharedBytes`], for reading and writing. Released when it is dropped.
///
/// Offsets count from the start of the range. Dropped during a panic, it poisons the range. In a process that was forked from the holder,
/// it is a copy that locks nothing and must not be used.
#[must_use = "dropping the guard releases the lock"]
pub struct SharedBytesGuard(pub(super) HeldLock);

/// A locked range of [`SharedBytes`], for reading. Released when it is dropped.
///
/// Offsets count from the start of the range.
#[must_use = "dropping the guard releases the lock"]
pub struct SharedBytesReadGuard(pub(super) HeldLock);

/// A lock of this process.
pub(super) struct HeldLock {
    bytes: SharedBytes,
    held: HeldRange,
    /// Whether the lock was taken while a panic unwound, in a destructor.
    was_panicking: bool,
}

impl HeldLock {
    pub(super) fn new(bytes: SharedBytes, held: HeldRange) -> HeldLock {
        HeldLock { bytes, held, was_panicking: thread::panicking() }
    }

    fn range(&self) -> Range<usize> {
        self.held.request.start as usize..self.held.request.end as usize
    }

    fn poisoned_range(&self) -> Option<Range<usize>> {
        self.held.poisoned.as_ref().map(|bytes| bytes.start as usize..bytes.end as usize)
    }

    fn read(&self, offset: usize, buffer: &mut [u8]) {
        word_copy::read(self.bytes.0.words, self.place(offset, buffer.len()), buffer);
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        word_copy::write(self.bytes.0.words, self.place(offset, bytes.len()), bytes);
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.range().len()];
        self.read(0, &mut copy);
        copy
    }

    /// Returns where `len` bytes from `offset` of the range on are in the block.
    fn place(&self, offset: usize, len: usize) -> usize {
        let range = self.range();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= range.len()),
            "{len} bytes at offset {offset} of a locked range of {} bytes",
            range.len()
        );
        assert!(
            self.bytes.0.locks.is_held_here(&self.held),
            "the guard of a range of {:?} was inherited by a fork: the lock belongs to the parent process",
            self.bytes
        );
        range.start + offset
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let is_poisoned = self.held.is_exclusive() && thread::panicking() && !self.was_panicking;
        self.bytes.0.locks.release(&self.held, is_poisoned);
    }
}

/// Methods that both guards have.
macro_rules! reading_methods {
    ($guard:ident) => {
        impl $guard {
            pub(super) fn or_poisoned(self) -> Result<$guard, LockError<$guard>> {
                if self.is_poisoned() { Err(LockError::Poisoned(self)) } else { Ok(self) }
            }

            /// Returns the locked range of the block.
            pub fn range(&self) -> Range<usize> {
                self.0.range()
            }

            /// Returns the number of locked bytes.
            pub fn len(&self) -> usize {
                self.range().len()
            }

            /// Returns whether the range has no bytes.
            pub fn is_empty(&self) -> bool {
                self.range().is_empty()
            }

            /// Copies the bytes from `offset` of the range on into `buffer`.
            ///
            /// # Panics
            /// They are beyond the end of the range.
            pub fn read(&self, offset: usize, buffer: &mut [u8]) {
                self.0.read(offset, buffer);
            }

            /// Returns a copy of all bytes of the range.
            pub fn to_vec(&self) -> Vec<u8> {
                self.0.to_vec()
            }

            /// Returns whether a process has died or panicked while it held an exclusive lock on a part of the range.
            pub fn is_poisoned(&self) -> bool {
                self.0.held.poisoned.is_some()
            }

            /// Returns the bytes of the block that may be half written, from the first to the last.
            pub fn poisoned_range(&self) -> Option<Range<usize>> {
                self.0.poisoned_range()
            }
        }

        impl fmt::Debug for $guard {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($guard), "({:?}, {:?})"), self.0.bytes, self.range())
            }
        }
    };
}

reading_methods!(SharedBytesGuard);
reading_methods!(SharedBytesReadGuard);

impl SharedBytesGuard {
    /// Copies `bytes` to `offset` of the range and further.
    ///
    /// # Panics
    /// They are beyond the end of the range.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    /// Sets all bytes of the range to `value`.
    pub fn fill(&mut self, value: u8) {
        let piece = [value; 4096];
        for start in (0..self.len()).step_by(piece.len()) {
            self.0.write(start, &piece[..piece.len().min(self.len() - start)]);
        }
    }

    /// Marks the bytes of the range as repaired. Otherwise the next holder is told again that they are poisoned.
    pub fn clear_poison(&mut self) {
        self.0.held.poisoned = None;
    }
}
