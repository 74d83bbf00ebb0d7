//! The word of the whole cluster on which the threads of waiting processes sleep.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use prefork_os::futex::{self, FutexWait};

use crate::error::Result;
use crate::shared::memory::{self, PieceLayout};

/// Words in shared memory that tell sleeping threads to look at the words they wait for.
pub(in crate::shared) struct ChangeEpoch {
    /// Grows when a word that a process waits for has changed.
    epoch: &'static AtomicU64,
    /// The number of processes that the primary has reaped.
    pub(super) exits: &'static AtomicU64,
}

/// Created before the fork, with the first declaration that can be waited for.
static CHANGE_EPOCH: OnceLock<ChangeEpoch> = OnceLock::new();

impl ChangeEpoch {
    /// Returns the words of this cluster.
    pub(in crate::shared) fn get_or_create() -> Result<&'static ChangeEpoch> {
        if let Some(epoch) = CHANGE_EPOCH.get() {
            return Ok(epoch);
        }
        let layout = PieceLayout { kind: "change epoch", layout: "1", words: 2 };
        let words = memory::allocate("change epoch", layout)?.words;
        // If another thread was faster, its words are used and these are not.
        Ok(CHANGE_EPOCH.get_or_init(|| ChangeEpoch { epoch: &words[0], exits: &words[1] }))
    }
}

/// Returns the epoch; zero if nothing can be waited for.
pub(super) fn current() -> u64 {
    CHANGE_EPOCH.get().map_or(0, |changes| changes.epoch.load(SeqCst))
}

/// Begins a new epoch, and wakes the threads that sleep in an earlier one.
pub(super) fn advance() {
    if let Some(changes) = CHANGE_EPOCH.get() {
        changes.epoch.fetch_add(1, SeqCst);
        futex::wake_all(changes.epoch);
    }
}

/// Blocks the calling thread until the epoch is another one than `seen`, for at most `timeout`. May return early.
pub(super) fn sleep_in(seen: u64, timeout: Duration) -> FutexWait {
    CHANGE_EPOCH
        .get()
        .map_or(FutexWait::TimedOut, |changes| futex::wait(changes.epoch, seen, timeout))
}

/// Wakes the waiting threads of all processes after a process has ended, in the primary.
///
/// It may have died after a change and before the wake-up, or while it held a lock.
pub(crate) fn wake_after_exit() {
    if let Some(changes) = CHANGE_EPOCH.get() {
        changes.exits.fetch_add(1, SeqCst);
        advance();
    }
}
