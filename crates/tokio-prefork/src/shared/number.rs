//! A number that all processes share and change atomically, and whose changes they can wait for.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::memory::{self, PieceLayout};
use super::registry::{self, DeclaredState};
use super::wait::{ChangeEpoch, WaitableWord, WakeOrder, block_on};
use crate::error::Result;

/// A 64-bit number with the operations of [`AtomicU64`], over all workers. Initially 0. The handle is `Copy`.
///
/// For unique numbers, limits, states and semaphores. Every operation is one atomic instruction (the closures of `fetch_update` and
/// `wait_and_update`: a loop around one), so a worker that is killed has changed the number or has not. Respawns, reloads and `scale`
/// keep it. All operations are sequentially consistent, and additions wrap at 2^64. To only count, use
/// [`SharedCounter`](crate::SharedCounter), which scales better.
///
/// ```
/// use tokio_prefork::SharedNumber;
///
/// let tickets = SharedNumber::new("tickets")?;
/// // In any worker: a number that no other worker gets, before or after a crash.
/// let ticket = tickets.fetch_add(1);
/// assert_eq!((ticket, tickets.load()), (0, 1));
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
///
/// **Waiting.** Every change wakes those that wait for it, in all processes. Nothing else has to be called, and no wake-up is lost, even if
/// the process that made the change is killed right after it. A semaphore, and a wait for a version:
///
/// ```no_run
/// use tokio_prefork::SharedNumber;
///
/// # async fn run() -> tokio_prefork::Result<()> {
/// let free = SharedNumber::new("free_connections")?;
/// free.store(20);
/// free.wait_and_update(|n| n.checked_sub(1)).await;
/// // ... and when the connection is not used any more:
/// free.fetch_add(1);
///
/// let version = SharedNumber::new("configuration_version")?;
/// let mut known = version.load();
/// loop {
///     known = version.wait_while(known).await;
///     // ... read the new configuration
/// }
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct SharedNumber {
    word: &'static AtomicU64,
    changes: WaitableWord,
}

/// Defines operations that change the number and return the previous value.
macro_rules! fetch_operations {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(&self, value: u64) -> u64 {
                let previous = self.word.$name(value, SeqCst);
                self.changes.notify();
                previous
            }
        )*
    };
}

impl SharedNumber {
    /// Declares a number. Call it before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, this is a worker process, or memory is short.
    pub fn new(name: &str) -> Result<SharedNumber> {
        let name = registry::validate_name(name)?;
        ChangeEpoch::get_or_create()?;
        let layout = PieceLayout { kind: "number", layout: "1", words: 2 };
        let words = memory::allocate(name, layout)?.words;
        let number =
            SharedNumber { word: &words[0], changes: WaitableWord::new(&words[0], &words[1]) };
        registry::register(name, DeclaredState::Number(number))?;
        Ok(number)
    }

    /// Returns the value.
    pub fn load(&self) -> u64 {
        self.word.load(SeqCst)
    }

    /// Sets the value.
    pub fn store(&self, value: u64) {
        self.swap(value);
    }

    fetch_operations! {
        /// Sets the value and returns the previous one.
        swap;
        /// Adds to the value and returns the previous one. Wraps at 2^64.
        fetch_add;
        /// Subtracts from the value and returns the previous one. Wraps below 0; see [`fetch_update`](SharedNumber::fetch_update).
        fetch_sub;
        /// Sets the larger of the value and the argument, and returns the previous value.
        fetch_max;
        /// Sets the smaller of the value and the argument, and returns the previous value.
        fetch_min;
        /// Keeps the bits that are set in the argument, and returns the previous value.
        fetch_and;
        /// Sets the bits that are set in the argument, and returns the previous value.
        fetch_or;
        /// Inverts the bits that are set in the argument, and returns the previous value.
        fetch_xor;
    }

    /// Sets the value to `new` if it is `current`. Returns the previous value, as an error if it was another one.
    ///
    /// # Errors
    /// The value was not `current`. It has not changed.
    pub fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        let previous = self.word.compare_exchange(current, new, SeqCst, SeqCst)?;
        self.changes.notify();
        Ok(previous)
    }

    /// Sets the value to what `update` returns for it, and returns the previous one. Calls `update` again if another worker was faster.
    ///
    /// # Errors
    /// `update` has returned `None`: the value, which has not changed.
    pub fn fetch_update(&self, update: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        let previous = self.word.fetch_update(SeqCst, SeqCst, update)?;
        self.changes.notify();
        Ok(previous)
    }

    /// Waits while the number is `value`, and returns the other value that it has then.
    ///
    /// Returns at once if it is another one. Of several changes in a moment, only the last may be seen; a number that has changed to
    /// `value` again is waited for further. Cancel safe. Works with any runtime.
    pub async fn wait_while(&self, value: u64) -> u64 {
        self.wait_until(|current| current != value).await
    }

    /// Waits until `is_done` returns `true` for the value, and returns that value. Calls it at once and after changes.
    pub async fn wait_until(&self, mut is_done: impl FnMut(u64) -> bool) -> u64 {
        self.changes.wait(WakeOrder::Together, |value| is_done(value).then_some(value)).await
    }

    /// Waits until `update` returns a new value for the number, sets it, and returns the previous one.
    ///
    /// The waiters of a process look one after the other, the first one first. So a change that only one of them can use wakes one.
    /// Cancel safe: a dropped future has changed nothing.
    pub async fn wait_and_update(&self, mut update: impl FnMut(u64) -> Option<u64>) -> u64 {
        let number = *self;
        let attempt = |_| number.fetch_update(&mut update).ok();
        self.changes.wait(WakeOrder::OneByOne, attempt).await
    }

    /// Like [`wait_while`](SharedNumber::wait_while), blocking the calling thread. Returns `None` if `timeout` passes.
    ///
    /// For threads of a pool and for isolated jobs, never for an event loop. `Duration::MAX` is no limit.
    pub fn wait_while_blocking(&self, value: u64, timeout: Duration) -> Option<u64> {
        block_on(self.wait_while(value), timeout)
    }

    /// Like [`wait_until`](SharedNumber::wait_until), blocking the calling thread. Returns `None` if `timeout` passes.
    pub fn wait_until_blocking(
        &self,
        is_done: impl FnMut(u64) -> bool,
        timeout: Duration,
    ) -> Option<u64> {
        block_on(self.wait_until(is_done), timeout)
    }

    /// Like [`wait_and_update`](SharedNumber::wait_and_update), blocking the calling thread. Returns `None` if `timeout` passes.
    pub fn wait_and_update_blocking(
        &self,
        update: impl FnMut(u64) -> Option<u64>,
        timeout: Duration,
    ) -> Option<u64> {
        block_on(self.wait_and_update(update), timeout)
    }
}

impl fmt::Debug for SharedNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedNumber({})", self.load())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn concurrent_tickets_are_unique() {
        let tickets = SharedNumber::new("number_tickets").expect("number");
        let draw = || (0..1000).map(|_| tickets.fetch_add(1)).collect::<Vec<u64>>();
        let mut drawn = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|t| t.join().expect("thread")).collect::<Vec<u64>>()
        });
        drawn.sort_unstable();
        assert_eq!(drawn, (0..4000).collect::<Vec<u64>>());
    }

    #[test]
    fn a_semaphore_is_never_below_zero_and_all_get_through() {
        let permits = SharedNumber::new("number_permits").expect("number");
        let most = SharedNumber::new("number_permits_most").expect("number");
        permits.store(2);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let had = permits.wait_and_update_blocking(|n| n.checked_sub(1), LONG);
                        most.fetch_max(had.expect("a permit in time"));
                        permits.fetch_add(1);
                    }
                });
            }
        });
        assert_eq!((permits.load(), most.load()), (2, 2));
    }

    #[test]
    fn wait_while_returns_the_other_value_and_times_out_without_one() {
        let number = SharedNumber::new("number_wait").expect("number");
        assert_eq!(number.wait_while_blocking(0, Duration::from_millis(1)), None);
        assert_eq!(number.wait_while_blocking(1, Duration::ZERO), Some(0));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| number.wait_until_blocking(|n| n >= 3, LONG));
            (0..3).for_each(|n| assert_eq!(number.fetch_add(1), n));
            assert_eq!(waits.join().expect("thread"), Some(3));
        });
        assert_eq!(format!("{number:?}"), "SharedNumber(3)");
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Swap(u64),
        Add(u64),
        Sub(u64),
        Max(u64),
        Min(u64),
        And(u64),
        Or(u64),
        Xor(u64),
        CompareExchange(u64, u64),
        SubtractIfEnough(u64),
    }

    fn operations() -> impl Strategy<Value = Operation> {
        let value = prop_oneof![0..8u64, any::<u64>()];
        (0..10, value.clone(), value).prop_map(|(kind, a, b)| match kind {
            0 => Operation::Swap(a),
            1 => Operation::Add(a),
            2 => Operation::Sub(a),
            3 => Operation::Max(a),
            4 => Operation::Min(a),
            5 => Operation::And(a),
            6 => Operation::Or(a),
            7 => Operation::Xor(a),
            8 => Operation::CompareExchange(a, b),
            _ => Operation::SubtractIfEnough(a),
        })
    }

    proptest! {
        #[test]
        fn operations_return_the_previous_value_and_compute_as_their_names_say(
            all in prop::collection::vec(operations(), 1..40)
        ) {
            static NUMBER: std::sync::OnceLock<SharedNumber> = std::sync::OnceLock::new();
            let number = NUMBER.get_or_init(|| SharedNumber::new("number_model").expect("number"));
            number.store(0);
            let mut model = 0_u64;
            for operation in all {
                let before = model;
                let returned = match operation {
                    Operation::Swap(a) => { model = a; number.swap(a) }
                    Operation::Add(a) => { model = model.wrapping_add(a); number.fetch_add(a) }
                    Operation::Sub(a) => { model = model.wrapping_sub(a); number.fetch_sub(a) }
                    Operation::Max(a) => { model = model.max(a); number.fetch_max(a) }
                    Operation::Min(a) => { model = model.min(a); number.fetch_min(a) }
                    Operation::And(a) => { model &= a; number.fetch_and(a) }
                    Operation::Or(a) => { model |= a; number.fetch_or(a) }
                    Operation::Xor(a) => { model ^= a; number.fetch_xor(a) }
                    Operation::CompareExchange(a, b) => {
                        let done = number.compare_exchange(a, b);
                        prop_assert_eq!(done.is_ok(), a == before);
                        if a == before { model = b }
                        done.unwrap_or_else(|other| other)
                    }
                    Operation::SubtractIfEnough(a) => {
                        let done = number.fetch_update(|n| n.checked_sub(a));
                        prop_assert_eq!(done.is_ok(), a <= before);
                        model = model.checked_sub(a).unwrap_or(model);
                        done.unwrap_or_else(|other| other)
                    }
                };
                prop_assert_eq!(returned, before);
                prop_assert_eq!(number.load(), model);
            }
        }
    }
}
