//! How many processors this process may use, asked once for many workers.
//!
//! [`std::thread::available_parallelism`] opens up to six files of the control group each time. A primary that starts 1024 workers asks
//! before the forks, at most once a second, and its workers inherit the answer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prefork_os::system::monotonic_ms;

/// How long the primary uses one answer: control groups can change.
const MAX_AGE_MS: u64 = 1000;

/// The answer of the primary; 0 before it has asked.
static INHERITED: AtomicUsize = AtomicUsize::new(0);
static ASKED_MS: AtomicU64 = AtomicU64::new(0);

/// Asks the kernel, if the last answer is old. Called by the primary before it forks a worker.
pub(crate) fn refresh_before_fork() {
    let now_ms = monotonic_ms();
    let age_ms = now_ms.saturating_sub(ASKED_MS.load(Ordering::Relaxed));
    if INHERITED.load(Ordering::Relaxed) == 0 || age_ms >= MAX_AGE_MS {
        INHERITED.store(ask(), Ordering::Relaxed);
        ASKED_MS.store(now_ms, Ordering::Relaxed);
    }
}

/// Returns the number of processors: in a worker, as the primary knew it at the fork.
pub(crate) fn available() -> usize {
    match INHERITED.load(Ordering::Relaxed) {
        known if known > 0 && crate::worker::is_worker() => known,
        _ => ask(),
    }
}

fn ask() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
