//! The names of everything that was declared, and a reading of all of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::histogram::HistogramSnapshot;
use super::{Leadership, SharedCounter, SharedFlag, SharedGauge, SharedHistogram};
use crate::error::{Error, Result};

/// More declarations than this are a mistake: something is declared in a loop.
const MOST: usize = 4096;

/// Declared before the first fork, so every process has the same list and nobody changes it any more.
static DECLARED: Mutex<Vec<(&'static str, Thing)>> = Mutex::new(Vec::new());

/// Something that has a name.
#[derive(Clone, Copy)]
pub(super) enum Thing {
    Counter(SharedCounter),
    Gauge(SharedGauge),
    Histogram(SharedHistogram),
    Flag(SharedFlag),
    Role(Leadership),
}

/// One piece of shared state at one moment: see [`read_shared_metrics`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMetric {
    /// The name it was declared with.
    pub name: String,
    /// What it is, and what it says.
    #[serde(flatten)]
    pub value: SharedMetricValue,
}

/// What a [`SharedMetric`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum SharedMetricValue {
    /// A [`SharedCounter`].
    Counter {
        /// The sum over all workers that ever lived.
        value: u64,
    },
    /// A [`SharedGauge`].
    Gauge {
        /// The sum over the processes that live.
        value: i64,
    },
    /// A [`SharedHistogram`].
    Histogram(HistogramSnapshot),
    /// A [`SharedFlag`].
    Flag {
        /// Whether it is set.
        set: bool,
    },
    /// A [`Leadership`].
    #[serde(rename = "role")]
    Leadership {
        /// The process that leads.
        leader: Option<u32>,
    },
    /// Something that only a newer version knows.
    #[serde(other)]
    Unknown,
}

/// Everything that was declared, in that order, as it is now. Any process of the cluster may ask, the primary
/// too; it waits for nobody. Figures of one snapshot may be a moment apart.
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
    // Copied out first: reading a role or a gauge asks the kernel, and needs no lock of ours.
    let things = declared().clone();
    things
        .into_iter()
        .map(|(name, thing)| SharedMetric { name: name.to_string(), value: thing.read() })
        .collect()
}

impl Thing {
    fn read(self) -> SharedMetricValue {
        match self {
            Thing::Counter(counter) => SharedMetricValue::Counter { value: counter.value() },
            Thing::Gauge(gauge) => SharedMetricValue::Gauge { value: gauge.value() },
            Thing::Histogram(histogram) => SharedMetricValue::Histogram(histogram.snapshot()),
            Thing::Flag(flag) => SharedMetricValue::Flag { set: flag.is_set() },
            Thing::Role(role) => SharedMetricValue::Leadership { leader: role.leader_pid() },
        }
    }
}

/// Checks a name before anything is made for it, and makes it last as long as the process.
pub(super) fn name(name: &str) -> Result<&'static str> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    let fine = name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit());
    if !fine || name.len() > 128 {
        return Err(Error::config(format!(
            "{name:?} is no name for shared state: use up to 128 letters, digits, `_` and `:`, no digit first"
        )));
    }
    if prefork_os::parent_death::is_worker_process() {
        return Err(Error::config(format!(
            "shared state {name:?} is declared in a worker, where nobody would share it: declare it before \
             the cluster serves"
        )));
    }
    Ok(Box::leak(name.to_string().into_boxed_str()))
}

/// Enters something under a name that nothing else has.
pub(super) fn declare(name: &'static str, thing: Thing) -> Result<()> {
    let mut declared = declared();
    if declared.iter().any(|(taken, _)| *taken == name) {
        return Err(Error::config(format!(
            "shared state {name:?} is declared twice: declare it once and copy the handle"
        )));
    }
    if declared.len() >= MOST {
        return Err(Error::config(format!(
            "{MOST} pieces of shared state are declared, and {name:?} is one too many: declare them once, not \
             for each key or request"
        )));
    }
    declared.push((name, thing));
    Ok(())
}

fn declared() -> MutexGuard<'static, Vec<(&'static str, Thing)>> {
    // Nothing panics with the lock held; the list is whole in any case.
    DECLARED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_metrics() {
        for good in ["a", "_", "http_requests:rate5m", "A1"] {
            assert_eq!(name(good).expect("a name"), good);
        }
        for bad in ["", "1a", "a b", "a-b", "ä", &"x".repeat(129)] {
            let error = name(bad).expect_err("no name").to_string();
            assert!(error.contains("letters, digits"), "{error}");
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let first = SharedCounter::new("registry_once").expect("first");
        first.add(3);
        let error = SharedFlag::new("registry_once").expect_err("second").to_string();
        assert!(error.contains("\"registry_once\" is declared twice"), "{error}");
        let found: Vec<_> = read_shared_metrics()
            .into_iter()
            .filter(|metric| metric.name == "registry_once")
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value, SharedMetricValue::Counter { value: 3 });
    }

    #[test]
    fn a_snapshot_is_plain_json() {
        let flag = SharedFlag::new("registry_json").expect("flag");
        flag.set();
        let found = read_shared_metrics().into_iter().find(|metric| metric.name == "registry_json");
        let json = serde_json::to_string(&found).expect("json");
        assert_eq!(json, r#"{"name":"registry_json","kind":"flag","set":true}"#);
    }
}
