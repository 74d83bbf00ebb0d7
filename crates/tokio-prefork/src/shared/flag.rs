//! A yes or no for all.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry::{self, Thing};
use crate::error::{Error, Result};

/// A switch that every worker sees at once: maintenance mode, a feature, "the warm-up is done". Not set at
/// first.
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
    /// Declares a flag, before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or no name for a metric, this is a worker, or there is no memory.
    pub fn new(name: &str) -> Result<SharedFlag> {
        let name = registry::name(name)?;
        let words = prefork_os::shared_memory::create_shared_words(1)
            .map_err(|e| Error::system(format!("get memory for the flag {name:?}"), e))?;
        let flag = SharedFlag(&words[0]);
        registry::declare(name, Thing::Flag(flag))?;
        Ok(flag)
    }

    /// Sets it, and tells whether it was set before: of many who set it at the same time, exactly one is told
    /// no.
    pub fn set(&self) -> bool {
        // Release: who sees the flag also sees what was written to other shared state before.
        self.0.swap(1, Ordering::AcqRel) != 0
    }

    /// Takes it back, and tells whether it was set before.
    pub fn clear(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) != 0
    }

    /// Whether it is set.
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
    fn one_of_many_is_the_first_to_set_it() {
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
