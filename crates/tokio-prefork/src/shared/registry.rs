//! The registry of all declared shared state, by name.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::description::{Declared, MetricDescription};
use super::histogram::HistogramSnapshot;
use super::{
    Leadership, SharedBytes, SharedCounter, SharedFlag, SharedGauge, SharedHistogram, SharedNumber,
};
use crate::error::{Error, Result};

/// The most pieces of shared state. More are a mistake, such as a declaration in a loop.
const MAX_DECLARATIONS: usize = 4096;

/// All declared state, in order of declaration. Complete before the first fork, so every process has the same list.
static DECLARED: Mutex<Vec<(&'static Declared, DeclaredState)>> = Mutex::new(Vec::new());

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
    /// The labels that it was declared with: [`MetricDescription::label`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// The help that it was declared with; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
    /// What metrics multiply its values by; `None` for 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<MetricScale>,
    /// Its type and value.
    #[serde(flatten)]
    pub value: SharedMetricValue,
}

impl SharedMetric {
    /// Creates the metric of a flag that is not set, with this name.
    pub fn new(name: &str) -> SharedMetric {
        SharedMetric {
            name: name.to_string(),
            labels: Vec::new(),
            help: String::new(),
            scale: None,
            value: SharedMetricValue::Flag { set: false },
        }
    }

    /// Returns the name with the labels, if it has any: `jobs_total{queue="mail"}`.
    pub fn name_and_labels(&self) -> String {
        let labels = self.labels.iter().map(|(name, value)| format!("{name}={value:?}"));
        match self.labels.is_empty() {
            true => self.name.clone(),
            false => format!("{}{{{}}}", self.name, labels.collect::<Vec<_>>().join(",")),
        }
    }
}

/// A positive number by which values are multiplied: see [`MetricDescription::scale`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MetricScale(pub f64);

/// It is never NaN when it comes from a declaration.
impl Eq for MetricScale {}

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
        .map(|(declared, state)| SharedMetric {
            name: declared.name.clone(),
            labels: declared.labels.clone(),
            help: declared.help.clone(),
            scale: (declared.scale != 1.0).then_some(MetricScale(declared.scale)),
            value: state.read(),
        })
        .collect()
}

impl DeclaredState {
    fn kind(self) -> MetricKind {
        match self {
            DeclaredState::Counter(_) => MetricKind::Counter,
            DeclaredState::Histogram(_) => MetricKind::Histogram,
            DeclaredState::Gauge(_)
            | DeclaredState::Flag(_)
            | DeclaredState::Number(_)
            | DeclaredState::Leadership(_) => MetricKind::Gauge,
            DeclaredState::Bytes(_) => MetricKind::NotExposed,
        }
    }

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
    check_name(name)?;
    Ok(Box::leak(name.to_string().into_boxed_str()))
}

/// Checks a description before memory is allocated for it, and leaks it to make it `'static`.
pub(super) fn validate_description(
    description: &MetricDescription<'_>,
) -> Result<&'static Declared> {
    Ok(Box::leak(Box::new(description.check()?)))
}

/// Checks a name, and that this process is not a worker.
pub(super) fn check_name(name: &str) -> Result<()> {
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
    Ok(())
}

/// Adds state without labels and help under a name that is not taken: see [`register_declared`].
pub(super) fn register(name: &'static str, state: DeclaredState) -> Result<()> {
    let (labels, help) = (Vec::new(), String::new());
    let declared = Declared { key: name, name: name.to_string(), help, labels, scale: 1.0 };
    register_declared(Box::leak(Box::new(declared)), state)
}

/// Adds state under a name that is not taken.
///
/// With the feature `testing`, a name may be taken again: tests in one process each declare the state of the program, and
/// each gets its own. A cluster refuses to serve then, see [`refuse_repeated_declarations`].
pub(super) fn register_declared(new: &'static Declared, state: DeclaredState) -> Result<()> {
    let mut declared = lock_declared();
    if let Some(taken) = declared.iter_mut().find(|(taken, _)| taken.key == new.key) {
        #[cfg(feature = "testing")]
        {
            *taken = (new, state);
            lock_repeated().insert(new.key);
            return Ok(());
        }
        #[cfg(not(feature = "testing"))]
        return Err(repeated_declaration_error(taken.0.key));
    }
    let name = new.key;
    if declared.len() >= MAX_DECLARATIONS {
        return Err(Error::config(format!(
            "cannot declare shared state {name:?}: {MAX_DECLARATIONS} pieces are declared already; declare state once, not for \
             each key or request"
        )));
    }
    if let Some(conflict) = declared
        .iter()
        .find_map(|(old, old_state)| metric_conflict((new, state.kind()), (old, old_state.kind())))
    {
        return Err(Error::config(format!("cannot declare shared state {name:?}: {conflict}")));
    }
    declared.push((new, state));
    Ok(())
}

/// What a piece of state is in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    NotExposed,
}

/// Returns why two declarations cannot both be exposed as metrics.
fn metric_conflict(new: (&Declared, MetricKind), old: (&Declared, MetricKind)) -> Option<String> {
    let (taken, is_same_kind) = (old.0.key, new.1 == old.1);
    let names_of = |labels: &[(String, String)]| -> Vec<String> {
        labels.iter().map(|label| label.0.clone()).collect()
    };
    if is_same_kind && new.0.name == old.0.name && new.1 != MetricKind::NotExposed {
        if names_of(&new.0.labels) != names_of(&old.0.labels) {
            return Some(format!("{taken:?} has other labels; all series of a name have the same"));
        }
        if !new.0.help.is_empty() && !old.0.help.is_empty() && new.0.help != old.0.help {
            return Some(format!("{taken:?} has another help text; all series of a name share it"));
        }
        return (new.0.scale != old.0.scale)
            .then(|| format!("{taken:?} has another scale; all series of a name have the same"));
    }
    let taken_names = exposed_names(old.0, old.1);
    let clash = exposed_names(new.0, new.1).into_iter().find(|name| taken_names.contains(name));
    clash.map(|name| format!("in metrics it would have the name {name:?}, as {taken:?} has"))
}

/// Returns the names that metrics of this kind have in either text format.
fn exposed_names(declared: &Declared, kind: MetricKind) -> Vec<String> {
    let name = &declared.name;
    let suffixed = |suffixes: &[&str], base: &str| -> Vec<String> {
        suffixes.iter().map(|suffix| format!("{base}{suffix}")).collect()
    };
    match kind {
        MetricKind::Counter => {
            suffixed(&["", "_total", "_created"], name.strip_suffix("_total").unwrap_or(name))
        }
        MetricKind::Gauge => vec![name.clone()],
        MetricKind::Histogram => suffixed(&["", "_bucket", "_sum", "_count", "_created"], name),
        MetricKind::NotExposed => Vec::new(),
    }
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

fn lock_declared() -> MutexGuard<'static, Vec<(&'static Declared, DeclaredState)>> {
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

    #[test]
    fn series_of_one_name_have_the_same_labels_help_and_scale() {
        let jobs = MetricDescription::new("registry_jobs").help("Jobs.");
        SharedCounter::new(jobs.label("queue", "mail")).expect("first");
        SharedCounter::new(jobs.label("queue", "images")).expect("second");
        for (bad, reason) in [
            (jobs, "other labels"),
            (jobs.label("color", "red"), "other labels"),
            (jobs.label("queue", "x").help("Other."), "another help"),
            (jobs.label("queue", "x").scale(2.0), "another scale"),
        ] {
            let error = SharedCounter::new(bad).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
        let read: Vec<_> = read_shared_metrics()
            .into_iter()
            .filter(|metric| metric.name == "registry_jobs")
            .map(|metric| (metric.labels[0].1.clone(), metric.help))
            .collect();
        assert_eq!(read, [("mail".into(), "Jobs.".into()), ("images".into(), "Jobs.".into())]);
    }

    #[test]
    fn names_that_collide_in_metrics_are_refused() {
        SharedCounter::new("registry_clash").expect("counter");
        SharedHistogram::new("registry_took", &[1]).expect("histogram");
        for gauge in ["registry_clash_total", "registry_took_count"] {
            let error = SharedGauge::new(gauge).expect_err("refused").to_string();
            assert!(error.contains("in metrics"), "{error}");
        }
        let error = SharedCounter::new("registry_clash_total").expect_err("refused").to_string();
        assert!(error.contains("as \"registry_clash\" has"), "{error}");
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
