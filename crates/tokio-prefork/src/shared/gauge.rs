//! A gauge that all processes share, without the values of dead ones.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::description::MetricDescription;
use super::live_processes::{MAX_PROCESSES, PROCESS_TABLE_LAYOUT, ProcessIdentity, ProcessTable};
use super::memory::{self, PieceLayout};
use super::registry::{self, DeclaredState};
use crate::error::Result;

/// Words per process: its identity, its value, and padding to a cache line.
const WORDS_PER_PROCESS: usize = 8;

/// Held while a thread of this process claims its words of a gauge.
static FIRST_USE_LOCK: Mutex<()> = Mutex::new(());

/// The sum of one value per live process: open streams, running jobs, bytes in buffers.
///
/// Each worker has a value of its own, which no longer counts when the worker dies. So a worker that is killed with three open
/// streams does not leave three streams behind. Up to 1024 processes can have a value at the same time; those beyond are not
/// counted. Takes 64 bytes per process.
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
    processes: &'static ProcessTable,
    words: &'static [AtomicU64],
}

/// Subtracts an addition to a [`SharedGauge`] when it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard subtracts the addition"]
pub struct GaugeGuard {
    gauge: SharedGauge,
    by: i64,
}

impl SharedGauge {
    /// Declares a gauge. Call it before the cluster serves.
    ///
    /// # Errors
    /// The name is taken or not a valid metric name, another declaration contradicts it in metrics, this is a worker process, or memory is short.
    pub fn new<'a>(name: impl Into<MetricDescription<'a>>) -> Result<SharedGauge> {
        let declared = registry::validate_description(&name.into())?;
        let processes = ProcessTable::get_or_create()?;
        let words = MAX_PROCESSES * WORDS_PER_PROCESS;
        let piece = memory::allocate(
            declared.key,
            PieceLayout { kind: "gauge", layout: PROCESS_TABLE_LAYOUT, words },
        )?;
        let gauge = SharedGauge { processes, words: piece.words };
        registry::register_declared(declared, DeclaredState::Gauge(gauge))?;
        Ok(gauge)
    }

    /// Adds `by`, which may be negative, to the value of this process.
    pub fn add(&self, by: i64) {
        if let Some(value_word) = self.own_value_word() {
            value_word.fetch_add(by as u64, Ordering::Relaxed);
        }
    }

    /// Sets the value of this process.
    pub fn set(&self, value: i64) {
        if let Some(value_word) = self.own_value_word() {
            value_word.store(value as u64, Ordering::Relaxed);
        }
    }

    /// Adds `by` until the guard is dropped, also when a handler panics or its client disconnects.
    pub fn add_scoped(&self, by: i64) -> GaugeGuard {
        self.add(by);
        GaugeGuard { gauge: *self, by }
    }

    /// Returns the sum over all live processes. Makes one system call per process, of about half a microsecond.
    pub fn value(&self) -> i64 {
        let values = self.processes.live_processes().filter_map(|owner| {
            let [owner_word, value_word] = self.process_words(owner);
            // Acquire: the value belongs to this process, not to an earlier one with the same row.
            (owner_word.load(Ordering::Acquire) == owner.0)
                .then(|| value_word.load(Ordering::Relaxed))
        });
        values.fold(0, u64::wrapping_add) as i64
    }

    fn own_value_word(&self) -> Option<&'static AtomicU64> {
        let own = self.processes.current_process()?;
        let [owner_word, value_word] = self.process_words(own);
        if owner_word.load(Ordering::Relaxed) != own.0 {
            let _guard = FIRST_USE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
            if owner_word.load(Ordering::Relaxed) != own.0 {
                // Killed between the two stores, this process does not count: the words still belong to the dead one.
                value_word.store(0, Ordering::Relaxed);
                owner_word.store(own.0, Ordering::Release);
            }
        }
        Some(value_word)
    }

    fn process_words(&self, owner: ProcessIdentity) -> [&'static AtomicU64; 2] {
        let at = owner.row() * WORDS_PER_PROCESS;
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
    fn a_scoped_addition_is_subtracted_and_values_may_be_negative() {
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
    fn the_value_of_a_dead_process_does_not_count() {
        let gauge = SharedGauge::new("gauge_row").expect("gauge");
        let own = gauge.processes.current_process().expect("a row");
        let [owner_word, value_word] = gauge.process_words(own);
        owner_word.store(own.0 - MAX_PROCESSES as u64, Ordering::Relaxed);
        value_word.store(99, Ordering::Relaxed);
        assert_eq!(gauge.value(), 0, "the value of a dead process was counted");
        gauge.add(1);
        assert_eq!(gauge.value(), 1);
    }
}
