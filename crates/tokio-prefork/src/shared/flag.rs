//! A boolean that all processes share, and that they can wait for.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::memory::{self, PieceLayout};
use super::registry::{self, DeclaredState};
use super::wait::{ChangeEpoch, WaitableWord, WakeOrder, block_on};
use crate::error::Result;

/// A boolean that every worker sees at once: maintenance mode, a feature switch, "warm-up done". Initially clear.
///
/// ```
/// use tokio_prefork::SharedFlag;
///
/// let maintenance = SharedFlag::new("maintenance")?;
/// assert!(!maintenance.set(), "it was not set before");
/// assert!(maintenance.is_set());
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
///
/// **Waiting.** [`wait`](SharedFlag::wait) returns when any process has set the flag. [`wait_and_clear`](SharedFlag::wait_and_clear) lets
/// one waiter of all processes pass for each [`set`](SharedFlag::set), also if nobody waits yet: an auto-reset event, or tokio's
/// `Notify::notify_one`. Waiting takes no CPU time and one thread per process, whatever the number of waiters.
///
/// ```no_run
/// use tokio_prefork::SharedFlag;
///
/// # async fn run() -> tokio_prefork::Result<()> {
/// let warm = SharedFlag::new("warm")?;
/// // In the worker that has warmed the cache up:
/// warm.set();
/// // In all others:
/// warm.wait().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct SharedFlag {
    word: &'static AtomicU64,
    changes: WaitableWord,
}

impl SharedFlag {
    /// Declares a flag. Call it before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, this is a worker process, or memory is short.
    pub fn new(name: &str) -> Result<SharedFlag> {
        let name = registry::validate_name(name)?;
        ChangeEpoch::get_or_create()?;
        let layout = PieceLayout { kind: "flag", layout: "2", words: 2 };
        let words = memory::allocate(name, layout)?.words;
        let flag = SharedFlag { word: &words[0], changes: WaitableWord::new(&words[0], &words[1]) };
        registry::register(name, DeclaredState::Flag(flag))?;
        Ok(flag)
    }

    /// Sets the flag and returns whether it was set before. Of several concurrent calls, exactly one returns `false`.
    ///
    /// A process that sees the flag also sees earlier writes to other shared state.
    pub fn set(&self) -> bool {
        self.swap(1)
    }

    /// Clears the flag and returns whether it was set before.
    pub fn clear(&self) -> bool {
        self.swap(0)
    }

    fn swap(&self, value: u64) -> bool {
        let was_set = self.word.swap(value, SeqCst) != 0;
        self.changes.notify();
        was_set
    }

    /// Returns whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.word.load(SeqCst) != 0
    }

    /// Waits until the flag is set. Returns at once if it is.
    ///
    /// A flag that is set and cleared again in a moment may not be seen; use [`wait_and_clear`](SharedFlag::wait_and_clear), or count
    /// with a [`SharedNumber`](crate::SharedNumber). Cancel safe. Works with any runtime.
    pub async fn wait(&self) {
        self.changes.wait(WakeOrder::Together, |value| (value != 0).then_some(())).await;
    }

    /// Waits until the flag is clear. Returns at once if it is.
    pub async fn wait_cleared(&self) {
        self.changes.wait(WakeOrder::Together, |value| (value == 0).then_some(())).await;
    }

    /// Waits until the flag is set, and clears it. Of all waiters of all processes, one returns for each time that it is set.
    ///
    /// Cancel safe: a dropped future has not cleared the flag, and the next waiter gets it.
    pub async fn wait_and_clear(&self) {
        let flag = *self;
        let attempt = |value| (value != 0 && flag.clear()).then_some(());
        self.changes.wait(WakeOrder::OneByOne, attempt).await;
    }

    /// Like [`wait`](SharedFlag::wait), blocking the calling thread. Returns `false` if `timeout` passes.
    ///
    /// For threads of a pool and for isolated jobs, never for an event loop. `Duration::MAX` is no limit.
    pub fn wait_blocking(&self, timeout: Duration) -> bool {
        block_on(self.wait(), timeout).is_some()
    }

    /// Like [`wait_and_clear`](SharedFlag::wait_and_clear), blocking the calling thread. Returns `false` if `timeout` passes.
    pub fn wait_and_clear_blocking(&self, timeout: Duration) -> bool {
        block_on(self.wait_and_clear(), timeout).is_some()
    }
}

impl fmt::Debug for SharedFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedFlag({})", self.is_set())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn exactly_one_of_many_threads_sets_the_flag_first() {
        let flag = SharedFlag::new("flag_first").expect("flag");
        let set = || (0..100).filter(|_| !flag.set()).count();
        let first = std::thread::scope(|scope| {
            let threads = [scope.spawn(set), scope.spawn(set)];
            threads.into_iter().map(|t| t.join().expect("thread")).sum::<usize>()
        });
        assert_eq!(first, 1);
        assert!(flag.clear() && !flag.clear() && !flag.is_set());
    }

    #[test]
    fn a_blocking_wait_ends_with_the_flag_or_the_timeout() {
        let flag = SharedFlag::new("flag_blocking").expect("flag");
        assert!(!flag.wait_blocking(Duration::ZERO));
        assert!(!flag.wait_blocking(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| flag.wait_blocking(Duration::MAX));
            flag.set();
            assert!(waits.join().expect("thread"));
        });
        assert!(flag.wait_blocking(Duration::ZERO));
    }

    #[test]
    fn each_set_lets_one_of_many_waiters_pass() {
        let flag = SharedFlag::new("flag_auto_reset").expect("flag");
        std::thread::scope(|scope| {
            let waits: Vec<_> =
                (0..4).map(|_| scope.spawn(|| flag.wait_and_clear_blocking(LONG))).collect();
            for done in 1..=waits.len() {
                assert!(!flag.set(), "it is clear again after each waiter");
                assert!(crate::shared::wait::block_on(flag.wait_cleared(), LONG).is_some());
                assert!(waits.iter().filter(|thread| thread.is_finished()).count() <= done);
            }
            assert!(waits.into_iter().all(|thread| thread.join().expect("thread")));
        });
        assert!(!flag.is_set());
    }
}
