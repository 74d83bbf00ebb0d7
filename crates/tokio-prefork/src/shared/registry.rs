//! The registry of all declared shared state, by name.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::histogram::HistogramSnapshot;
use super::{
    Leadership, SharedBytes, SharedCounter, SharedFlag, SharedGauge, SharedHistogram, SharedNumber,
};
use crate::error::{Error, Result};

/// The most pieces of shared state. More are a mistake, such as a declaration in a loop.
const MAX_DECLARATIONS: usize = 4096;

/// All declared state, in order of declaration. Complete before the first fork, so every process has the same list.
static DECLARED: Mutex<Vec<(&'static str, DeclaredState)>> = Mutex::new(Vec::new());

/// A handle of declared shared state.
#[derive(Clone, Copy)]
pub(super) enum DeclaredState {
    Counter(SharedCounter),
    Gauge(SharedGauge),
    Histogram(SharedHistogram),
    Flag(SharedFlag),
    Number(SharedNumber),
    Bytes(SharedBytes),
    Leadership(Leadership),
}

/// The value of one piece of shared state: see [`read_shared_metrics`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMetric {
    /// The name that it was declared with.
    pub name: String,
    /// Its type and value.
    #[serde(flatten)]
    pub value: SharedMetricValue,
}

/// The type and value of a [`SharedMetric`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum SharedMetricValue {
    /// A [`SharedCounter`].
    Counter {
        /// The sum over all workers, including dead ones.
        value: u64,
    },
    /// A [`SharedGauge`].
    Gauge {
        /// The sum over all live processes.
        value: i64,
    },
    /// A [`SharedHistogram`].
    Histogram(HistogramSnapshot),
    /// A [`SharedFlag`].
    Flag {
        /// Whether it is set.
        set: bool,
    },
    /// A [`SharedNumber`].
    Number {
        /// Its value.
        value: u64,
    },
    /// [`SharedBytes`].
    Bytes {
        /// The number of bytes.
        len: u64,
        /// How many ranges of it are locked.
        locked: u64,
        /// How many ranges of it are poisoned: a process died while it changed them.
        poisoned: u64,
    },
    /// A [`Leadership`].
    #[serde(rename = "role")]
    Leadership {
        /// The pid of the leader.
        leader: Option<u32>,
    },
    /// A type that only newer versions know.
    #[serde(other)]
    Unknown,
}

/// Reads all declared shared state, in order of declaration.
///
/// May be called in every process of the cluster, including the primary, and never waits. The values are read one after the
/// other, so they may differ in age.
///
/// ```
/// use tokio_prefork::shared::{SharedMetricValue, read_shared_metrics};
/// use tokio_prefork::SharedCounter;
///
/// let orders = SharedCounter::new("orders")?;
/// orders.add(2);
/// let found = read_shared_metrics().into_iter().find(|metric| metric.name == "orders");
/// assert_eq!(found.map(|metric| metric.value), Some(SharedMetricValue::Counter { value: 2 }));
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
pub fn read_shared_metrics() -> Vec<SharedMetric> {
    // Copied, because reading a gauge or a leadership makes system calls, which should not hold the lock.
    let declared_states = lock_declared().clone();
    declared_states
        .into_iter()
        .map(|(name, state)| SharedMetric { name: name.to_string(), value: state.read() })
        .collect()
}

impl DeclaredState {
    fn read(self) -> SharedMetricValue {
        match self {
            DeclaredState::Counter(counter) => {
                SharedMetricValue::Counter { value: counter.value() }
            }
            DeclaredState::Gauge(gauge) => SharedMetricValue::Gauge { value: gauge.value() },
            DeclaredState::Histogram(histogram) => {
                SharedMetricValue::Histogram(histogram.snapshot())
            }
            DeclaredState::Flag(flag) => SharedMetricValue::Flag { set: flag.is_set() },
            DeclaredState::Number(number) => SharedMetricValue::Number { value: number.load() },
            DeclaredState::Bytes(bytes) => {
                let (locked, poisoned) = bytes.lock_counts();
                SharedMetricValue::Bytes { len: bytes.len() as u64, locked, poisoned }
            }
            DeclaredState::Leadership(role) => {
                SharedMetricValue::Leadership { leader: role.leader_pid() }
            }
        }
    }
}

/// Checks a name before memory is allocated for it, and leaks it to make it `'static`.
pub(super) fn validate_name(name: &str) -> Result<&'static str> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    let is_valid = name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit());
    if !is_valid || name.len() > 128 {
        return Err(Error::config(format!(
            "cannot declare shared state {name:?}: the name is not valid; use up to 128 letters, digits, `_` and `:`, no digit \
             first"
        )));
    }
    if prefork_os::parent_death::is_worker_process() {
        return Err(Error::config(format!(
            "cannot declare shared state {name:?} in a worker, where no other process would share it; declare it before \
             the cluster serves"
        )));
    }
    Ok(Box::leak(name.to_string().into_boxed_str()))
}

/// Adds state under a name that is not taken.
///
/// With the feature `testing`, a name may be taken again: tests in one process each declare the state of the program, and
/// each gets its own. A cluster refuses to serve then, see [`refuse_repeated_declarations`].
pub(super) fn register(name: &'static str, state: DeclaredState) -> Result<()> {
    let mut declared = lock_declared();
    if let Some(taken) = declared.iter_mut().find(|(taken, _)| *taken == name) {
        #[cfg(feature = "testing")]
        {
            taken.1 = state;
            lock_repeated().insert(name);
            return Ok(());
        }
        #[cfg(not(feature = "testing"))]
        return Err(repeated_declaration_error(taken.0));
    }
    if declared.len() >= MAX_DECLARATIONS {
        return Err(Error::config(format!(
            "cannot declare shared state {name:?}: {MAX_DECLARATIONS} pieces are declared already; declare state once, not for \
             each key or request"
        )));
    }
    declared.push((name, state));
    Ok(())
}

fn repeated_declaration_error(name: &str) -> Error {
    Error::config(format!(
        "cannot declare shared state {name:?}: declared twice; declare it once and copy the handle"
    ))
}

/// Returns an error if state was declared twice under one name, in a process that is about to serve.
#[cfg(feature = "testing")]
pub(crate) fn refuse_repeated_declarations() -> Result<()> {
    lock_repeated().first().map_or(Ok(()), |name| Err(repeated_declaration_error(name)))
}

/// The names that were declared more than once.
#[cfg(feature = "testing")]
fn lock_repeated() -> MutexGuard<'static, std::collections::BTreeSet<&'static str>> {
    static REPEATED: Mutex<std::collections::BTreeSet<&'static str>> =
        Mutex::new(std::collections::BTreeSet::new());
    // No code panics with the lock held.
    REPEATED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_declared() -> MutexGuard<'static, Vec<(&'static str, DeclaredState)>> {
    // No code panics with the lock held.
    DECLARED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_are_metric_names() {
        for good in ["a", "_", "http_requests:rate5m", "A1"] {
            assert_eq!(validate_name(good).expect("a name"), good);
        }
        for bad in ["", "1a", "a b", "a-b", "ä", &"x".repeat(129)] {
            let error = validate_name(bad).expect_err("no name").to_string();
            assert!(error.contains("letters, digits"), "{error}");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn a_repeated_declaration_is_new_state_and_refused_by_a_cluster() {
        let first = SharedCounter::new("registry_twice").expect("first");
        first.add(3);
        let second = SharedCounter::new("registry_twice").expect("second");
        assert_eq!((first.value(), second.value()), (3, 0));
        let error = refuse_repeated_declarations().expect_err("declared twice").to_string();
        assert!(error.contains("declared twice"), "{error}");
    }

    #[cfg(not(feature = "testing"))]
    #[test]
    fn a_name_can_be_declared_once() {
        let first = SharedCounter::new("registry_once").expect("first");
        first.add(3);
        let error = SharedFlag::new("registry_once").expect_err("second").to_string();
        assert!(error.contains("\"registry_once\": declared twice"), "{error}");
        let found: Vec<_> = read_shared_metrics()
            .into_iter()
            .filter(|metric| metric.name == "registry_once")
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value, SharedMetricValue::Counter { value: 3 });
    }

    #[test]
    fn a_metric_is_serialized_as_flat_json() {
        let flag = SharedFlag::new("registry_json").expect("flag");
        flag.set();
        let found = read_shared_metrics().into_iter().find(|metric| metric.name == "registry_json");
        let json = serde_json::to_string(&found).expect("json");
        assert_eq!(json, r#"{"name":"registry_json","kind":"flag","set":true}"#);
    }
}
