//! Waiting in the kernel until a word of shared memory changes (futex), across processes.
//!
//! The calls do without `FUTEX_PRIVATE_FLAG`: the kernel then identifies a word by its memory and not by its address, so every
//! process that maps the memory can wait and wake. `futex_waitv`, which waits for several words, needs Linux 5.16.

use std::ptr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::libc;

/// Why [`wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FutexWait {
    /// A wake-up, a different word or a signal ended the wait. Read the word again.
    Woken,
    /// The time has passed.
    TimedOut,
}

/// Blocks the calling thread while the lower 32 bits of `word` are those of `expected`, for at most `timeout`.
///
/// The kernel compares and blocks atomically, so a [`wake_all`] after a change is not missed. May return early.
pub fn wait(word: &AtomicU64, expected: u64, timeout: Duration) -> FutexWait {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: the address is that of a live, aligned atomic of 32 bits, which the kernel only reads. `timeout` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            lower_half(word),
            libc::FUTEX_WAIT,
            expected as u32,
            &raw const timeout,
            ptr::null::<u32>(),
            0,
        )
    };
    let timed_out =
        result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT);
    if timed_out { FutexWait::TimedOut } else { FutexWait::Woken }
}

/// Wakes all threads of all processes that are in [`wait`] for `word`. Returns how many. Change the word before.
pub fn wake_all(word: &AtomicU64) -> usize {
    // SAFETY: the kernel uses the address only to find the waiting threads.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex,
            lower_half(word),
            libc::FUTEX_WAKE,
            i32::MAX,
            ptr::null::<libc::timespec>(),
            ptr::null::<u32>(),
            0,
        )
    };
    usize::try_from(woken).unwrap_or(0)
}

/// Returns the address of the lower 32 bits, on which the kernel waits.
fn lower_half(word: &AtomicU64) -> *const u32 {
    let halves: *const u32 = word.as_ptr().cast_const().cast();
    halves.wrapping_add(usize::from(cfg!(target_endian = "big")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Instant;

    use super::*;
    use crate::shared_memory::create_shared_words;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn wait_returns_at_once_if_the_word_has_changed_and_after_the_timeout_if_not() {
        let word = AtomicU64::new(7);
        let started = Instant::now();
        assert_eq!(wait(&word, 6, LONG), FutexWait::Woken);
        assert!(started.elapsed() < LONG);
        // The upper half does not count.
        while wait(&word, 7 + (1 << 32), Duration::from_millis(5)) != FutexWait::TimedOut {
            assert!(started.elapsed() < LONG, "no timeout");
        }
    }

    #[test]
    fn wake_all_reaches_a_thread_that_waits_through_shared_memory() {
        let word = &create_shared_words(1).expect("words")[0];
        let waiter = std::thread::spawn(move || {
            while word.load(SeqCst) == 0 {
                wait(word, 0, LONG);
            }
        });
        let started = Instant::now();
        word.store(1, SeqCst);
        while !waiter.is_finished() {
            wake_all(word);
            assert!(started.elapsed() < LONG, "not woken");
            std::thread::yield_now();
        }
        waiter.join().expect("thread");
    }
}
