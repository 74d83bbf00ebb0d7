//! A counter that all processes share.

use std::fmt;

use super::description::MetricDescription;
use super::registry::{self, DeclaredState};
use super::striped_counters::StripedSums;
use crate::error::Result;

/// The revision of the layout in memory.
const LAYOUT: &str = "1";

/// A count over all workers, including dead ones. The handle is `Copy`.
///
/// An addition is one atomic instruction, so a worker that is killed has added or has not. The sum survives the death of workers,
/// respawns, reloads and `scale`. Takes 4 KiB of memory.
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
pub struct SharedCounter(StripedSums);

impl SharedCounter {
    /// Declares a counter. Call it before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, another declaration contradicts it in metrics, this is a worker process, or memory is short.
    pub fn new<'a>(name: impl Into<MetricDescription<'a>>) -> Result<SharedCounter> {
        let declared = registry::validate_description(&name.into())?;
        let counter = SharedCounter(StripedSums::new(declared.key, "counter", LAYOUT, 1)?);
        registry::register_declared(declared, DeclaredState::Counter(counter))?;
        Ok(counter)
    }

    /// Adds `by`. The sum wraps at 2^64.
    pub fn add(&self, by: u64) {
        self.0.add([(0, by)]);
    }

    /// Returns the sum of all additions of all processes. Never decreases, except when it wraps.
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
    fn the_sum_wraps_at_2_to_the_64() {
        let counter = SharedCounter::new("counter_wraps").expect("counter");
        counter.add(u64::MAX);
        counter.add(2);
        assert_eq!(counter.value(), 1);
        assert_eq!(format!("{counter:?}"), "SharedCounter(1)");
    }
}
