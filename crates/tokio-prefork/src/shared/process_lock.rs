//! A lock in a word of shared memory, for a few instructions, whose holder may be killed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::live_processes::{ProcessIdentity, ProcessTable};

/// How long to wait for a live holder, in nanoseconds. Much longer than a lock is held.
const LOCK_TIMEOUT_NS: u64 = 2_000_000;
/// Attempts to take the lock before the first system call.
const SPINS_BEFORE_SYSCALL: usize = 100;

/// A lock word: the identity of the process that holds it (see `live_processes`), or zero.
#[derive(Clone, Copy)]
pub(super) struct ProcessLock<'a>(pub(super) &'a AtomicU64);

/// From whom a [`ProcessLock`] was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockTaken {
    /// Nobody had it.
    Free,
    /// Its holder has died, so what it protects may be half changed.
    FromDeadHolder,
}

impl ProcessLock<'_> {
    /// Takes the lock. Returns `None` if a live process keeps it for more than 2 ms, because it is stopped.
    pub(super) fn acquire(
        self,
        processes: &ProcessTable,
        current: ProcessIdentity,
    ) -> Option<LockTaken> {
        let (mut attempts, mut started) = (0, None);
        loop {
            let holder = self.0.load(Ordering::Relaxed);
            if holder == 0 {
                if self.try_take(holder, current) {
                    return Some(LockTaken::Free);
                }
            } else if attempts >= SPINS_BEFORE_SYSCALL {
                if !processes.is_alive(ProcessIdentity(holder)) && self.try_take(holder, current) {
                    return Some(LockTaken::FromDeadHolder);
                }
                let now = prefork_os::system::monotonic_ns();
                if now.saturating_sub(*started.get_or_insert(now)) > LOCK_TIMEOUT_NS {
                    return None;
                }
                std::thread::yield_now();
            }
            attempts += 1;
            std::hint::spin_loop();
        }
    }

    /// Releases the lock, which this process holds.
    pub(super) fn release(self) {
        // SeqCst is also Release: the next holder sees all writes of this one.
        self.0.store(0, Ordering::SeqCst);
    }

    /// Takes the lock if it is still held by `from`. Identities are never reused, so then no other process held it meanwhile.
    fn try_take(self, from: u64, to: ProcessIdentity) -> bool {
        self.0.compare_exchange(from, to.0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}
