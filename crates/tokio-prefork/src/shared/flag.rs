//! A boolean that all processes share.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{self, PieceLayout};
use super::registry::{self, DeclaredState};
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
#[derive(Clone, Copy)]
pub struct SharedFlag(&'static AtomicU64);

impl SharedFlag {
    /// Declares a flag. Call it before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, this is a worker process, or memory is short.
    pub fn new(name: &str) -> Result<SharedFlag> {
        let name = registry::validate_name(name)?;
        let layout = PieceLayout { kind: "flag", layout: "1", words: 1 };
        let flag = SharedFlag(&memory::allocate(name, layout)?.words[0]);
        registry::register(name, DeclaredState::Flag(flag))?;
        Ok(flag)
    }

    /// Sets the flag and returns whether it was set before. Of several concurrent calls, exactly one returns `false`.
    pub fn set(&self) -> bool {
        // Release: a process that sees the flag also sees earlier writes to other shared state.
        self.0.swap(1, Ordering::AcqRel) != 0
    }

    /// Clears the flag and returns whether it was set before.
    pub fn clear(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) != 0
    }

    /// Returns whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
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
}
