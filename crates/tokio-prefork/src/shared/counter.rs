//! A number that only grows.

use std::fmt;

use super::registry::{self, Thing};
use super::striped_counters::Stripes;
use crate::error::{Error, Result};

/// A count over all workers, the dead ones too. Copy the handle wherever it is needed.
///
/// An addition is one atomic instruction: a worker that is killed has added or has not. Nothing that was added
/// is lost by its death, and a respawn, a reload and a `scale` go on with the same sum. Takes 4 KiB.
///
/// ```
/// use tokio_prefork::SharedCounter;
///
/// let orders = SharedCounter::new("orders_total")?;
/// // ... Cluster::new(config).serve(move |worker| ...), and in any worker:
/// orders.add(1);
/// assert_eq!(orders.value(), 1);
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct SharedCounter(Stripes);

impl SharedCounter {
    /// Declares a counter, before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or no name for a metric, this is a worker, or there is no memory.
    pub fn new(name: &str) -> Result<SharedCounter> {
        let name = registry::name(name)?;
        let stripes = Stripes::new(1)
            .map_err(|e| Error::system(format!("get memory for the counter {name:?}"), e))?;
        let counter = SharedCounter(stripes);
        registry::declare(name, Thing::Counter(counter))?;
        Ok(counter)
    }

    /// Adds. The sum wraps at 2^64.
    pub fn add(&self, by: u64) {
        self.0.add([(0, by)]);
    }

    /// The sum of all that was added by anybody. A later reading is never smaller, until the sum wraps.
    pub fn value(&self) -> u64 {
        self.0.sum(0)
    }
}

impl fmt::Debug for SharedCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedCounter({})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_and_wraps() {
        let counter = SharedCounter::new("counter_wraps").expect("counter");
        counter.add(u64::MAX);
        counter.add(2);
        assert_eq!(counter.value(), 1);
        assert_eq!(format!("{counter:?}"), "SharedCounter(1)");
    }
}
