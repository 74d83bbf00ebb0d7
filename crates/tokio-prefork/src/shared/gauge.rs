//! A number that goes up and down, and forgets the dead.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::live_processes::{Members, Owner, ROWS};
use super::registry::{self, Thing};
use crate::error::{Error, Result};

/// Words of a process's part: its owner, the value, and the rest of the cache line.
const PART: usize = 8;

/// Threads of this process that use a gauge for the first time.
static FIRST_USE: Mutex<()> = Mutex::new(());

/// The sum of what each living process says: open streams, jobs under way, bytes in a buffer.
///
/// Each worker has a part of its own. What a worker said is forgotten at the moment of its death, so one that
/// was killed with three streams open does not leave three streams behind for ever. Up to 1024 processes can
/// have a part at the same time; what others say is not counted. Takes 64 bytes for each process.
///
/// ```
/// use tokio_prefork::SharedGauge;
///
/// let streams = SharedGauge::new("open_streams")?;
/// {
///     let _open = streams.add_scoped(1);
///     assert_eq!(streams.value(), 1);
/// }
/// streams.set(5);
/// streams.add(-2);
/// assert_eq!(streams.value(), 3);
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct SharedGauge {
    members: &'static Members,
    words: &'static [AtomicU64],
}

/// Keeps an addition to a [`SharedGauge`] until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it takes the addition back"]
pub struct GaugeGuard {
    gauge: SharedGauge,
    by: i64,
}

impl SharedGauge {
    /// Declares a gauge, before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or no name for a metric, this is a worker, or there is no memory.
    pub fn new(name: &str) -> Result<SharedGauge> {
        let name = registry::name(name)?;
        let words = prefork_os::shared_memory::create_shared_words(ROWS * PART)
            .map_err(|e| Error::system(format!("get memory for the gauge {name:?}"), e))?;
        let gauge = SharedGauge { members: Members::get()?, words };
        registry::declare(name, Thing::Gauge(gauge))?;
        Ok(gauge)
    }

    /// Adds to this process's part; a negative number takes away.
    pub fn add(&self, by: i64) {
        if let Some(part) = self.own_part() {
            part.fetch_add(by as u64, Ordering::Relaxed);
        }
    }

    /// What this process's part is from now on, whatever it was.
    pub fn set(&self, value: i64) {
        if let Some(part) = self.own_part() {
            part.store(value as u64, Ordering::Relaxed);
        }
    }

    /// Adds, and takes it back when the hold is dropped: also when a handler panics or its client leaves.
    pub fn add_scoped(&self, by: i64) -> GaugeGuard {
        self.add(by);
        GaugeGuard { gauge: *self, by }
    }

    /// The sum over all processes that live. Asks the kernel once for each (half a microsecond or so).
    pub fn value(&self) -> i64 {
        let parts = self.members.living().filter_map(|owner| {
            let [whose, part] = self.part(owner);
            // Acquire: the value is that of this owner, not of one before it in the same row.
            (whose.load(Ordering::Acquire) == owner.0).then(|| part.load(Ordering::Relaxed))
        });
        parts.fold(0, u64::wrapping_add) as i64
    }

    fn own_part(&self) -> Option<&'static AtomicU64> {
        let own = self.members.own()?;
        let [whose, part] = self.part(own);
        if whose.load(Ordering::Relaxed) != own.0 {
            let _one = FIRST_USE.lock().unwrap_or_else(PoisonError::into_inner);
            if whose.load(Ordering::Relaxed) != own.0 {
                // Killed here, the part is still the dead owner's, and is not counted.
                part.store(0, Ordering::Relaxed);
                whose.store(own.0, Ordering::Release);
            }
        }
        Some(part)
    }

    fn part(&self, owner: Owner) -> [&'static AtomicU64; 2] {
        let at = owner.row() * PART;
        [&self.words[at], &self.words[at + 1]]
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.add(self.by.wrapping_neg());
    }
}

impl fmt::Debug for SharedGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedGauge({})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_taken_back_and_negative_is_fine() {
        let gauge = SharedGauge::new("gauge_hold").expect("gauge");
        let hold = gauge.add_scoped(4);
        gauge.add(-6);
        assert_eq!(gauge.value(), -2);
        drop(hold);
        assert_eq!(gauge.value(), -6);
        gauge.set(2);
        assert_eq!(gauge.value(), 2);
    }

    #[test]
    fn a_row_that_was_somebody_elses_begins_with_nothing() {
        let gauge = SharedGauge::new("gauge_row").expect("gauge");
        let own = gauge.members.own().expect("a row");
        let [whose, part] = gauge.part(own);
        whose.store(own.0 - ROWS as u64, Ordering::Relaxed);
        part.store(99, Ordering::Relaxed);
        assert_eq!(gauge.value(), 0, "the one before is dead");
        gauge.add(1);
        assert_eq!(gauge.value(), 1);
    }
}
