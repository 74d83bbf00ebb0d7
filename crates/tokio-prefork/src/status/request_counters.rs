//! The requests of a worker or a cluster by method and status, and how long they took.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MAX_JSON_INTEGER;

/// The methods that are counted apart. The last entry stands for all others.
pub(crate) const METHOD_CLASSES: [&str; 8] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];

/// The classes of status codes. The first is for requests that ended before a response was known.
pub(crate) const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The upper bounds of the duration histogram, in microseconds. A last bucket counts all that took longer.
pub(crate) const DURATION_BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How many buckets the duration histogram has.
pub(crate) const REQUEST_DURATION_BUCKETS: usize = DURATION_BOUNDS_US.len() + 1;

/// Counts finished requests by method and by class of their status.
///
/// The methods are `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`, `OPTIONS` and `other`; the classes are `1xx` to `5xx`, and `none`
/// for requests that ended before their response began, because the client went away or the worker was told to end.
///
/// In JSON: `{"GET": {"2xx": 5, "4xx": 1}}`, without zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RequestsByJson", into = "RequestsByJson")]
pub struct RequestsBy([[u64; STATUS_CLASSES.len()]; METHOD_CLASSES.len()]);

type RequestsByJson = BTreeMap<String, BTreeMap<String, u64>>;

impl RequestsBy {
    pub(crate) fn from_counts(
        counts: [[u64; STATUS_CLASSES.len()]; METHOD_CLASSES.len()],
    ) -> RequestsBy {
        RequestsBy(counts)
    }

    /// Returns the counts by the positions of `METHOD_CLASSES` and `STATUS_CLASSES`.
    pub(crate) fn counts(&self) -> &[[u64; STATUS_CLASSES.len()]; METHOD_CLASSES.len()] {
        &self.0
    }

    /// Returns how many requests had this method and this class of status; 0 for names that are not counted.
    pub fn get(&self, method: &str, status: &str) -> u64 {
        let found = self.iter().find(|one| (one.0, one.1) == (method, status));
        found.map_or(0, |(_, _, count)| count)
    }

    /// Returns all methods and classes with their counts, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        METHOD_CLASSES.iter().zip(&self.0).flat_map(|(method, counts)| {
            STATUS_CLASSES.iter().zip(counts).map(move |(status, count)| (*method, *status, *count))
        })
    }

    /// Returns how many requests have finished.
    pub fn total(&self) -> u64 {
        self.iter().fold(0, |sum, (_, _, count)| bounded_sum(sum, count))
    }

    /// Returns whether no request has finished.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    pub(crate) fn sum_with(&self, other: &RequestsBy) -> RequestsBy {
        let sum = |method: usize, status: usize| {
            bounded_sum(self.0[method][status], other.0[method][status])
        };
        RequestsBy(std::array::from_fn(|method| std::array::from_fn(|status| sum(method, status))))
    }
}

impl From<RequestsBy> for RequestsByJson {
    fn from(counts: RequestsBy) -> RequestsByJson {
        let mut json = RequestsByJson::new();
        for (method, status, count) in counts.iter().filter(|(_, _, count)| *count > 0) {
            json.entry(method.to_string()).or_default().insert(status.to_string(), count);
        }
        json
    }
}

impl From<RequestsByJson> for RequestsBy {
    fn from(json: RequestsByJson) -> RequestsBy {
        let count = |method: &str, status: &str| {
            json.get(method).and_then(|counts| counts.get(status)).copied().unwrap_or(0)
        };
        RequestsBy(METHOD_CLASSES.map(|method| STATUS_CLASSES.map(|status| count(method, status))))
    }
}

/// How long finished requests took, from their head to the end of their response.
///
/// Counted in buckets with the upper bounds 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250 and 500 ms, 1, 2.5, 5 and 10 s, and one
/// for all that took longer. Empty unless the durations are measured, which the setting `request-durations` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RequestDurationsJson", into = "RequestDurationsJson")]
pub struct RequestDurations {
    counts: [u64; REQUEST_DURATION_BUCKETS],
    sum_us: u64,
}

/// The JSON form. Percentiles and the mean are for readers that do not compute them.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct RequestDurationsJson {
    count: u64,
    sum_us: u64,
    mean_us: u64,
    p50_us: Option<u64>,
    p90_us: Option<u64>,
    p99_us: Option<u64>,
    /// The upper bound in microseconds and the count of each bucket that is not empty. `None`: longer than all bounds.
    buckets: Vec<(Option<u64>, u64)>,
}

/// Returns the bucket of a duration in microseconds. A bucket includes its upper bound.
pub(crate) fn request_duration_bucket(us: u64) -> usize {
    DURATION_BOUNDS_US.partition_point(|bound| *bound < us)
}

impl RequestDurations {
    /// Builds the histogram from counts by bucket and the sum in microseconds.
    pub(crate) fn from_parts(
        counts: [u64; REQUEST_DURATION_BUCKETS],
        sum_us: u64,
    ) -> RequestDurations {
        RequestDurations { counts, sum_us }
    }

    /// Returns the counts by bucket and the sum in microseconds.
    pub(crate) fn to_parts(self) -> ([u64; REQUEST_DURATION_BUCKETS], u64) {
        (self.counts, self.sum_us)
    }

    /// Returns the buckets in ascending order: the upper bound, `None` for the last one, and how many requests it counts. The
    /// counts are not cumulative.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = DURATION_BOUNDS_US.iter().map(|us| Some(Duration::from_micros(*us)));
        bounds.chain([None]).zip(self.counts)
    }

    /// Returns how many requests were measured.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| bounded_sum(sum, *count))
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// Returns the mean; `None` if nothing was measured.
    pub fn mean(&self) -> Option<Duration> {
        self.sum_us.checked_div(self.count()).map(Duration::from_micros)
    }

    /// Returns the duration that the share `q` of the requests did not exceed: 0.99 for the 99th percentile. `None` if nothing
    /// was measured.
    ///
    /// Interpolated within its bucket, as `histogram_quantile` of Prometheus does; above all bounds it is 10 s.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total: f64 = self.counts.iter().map(|n| *n as f64).sum();
        let rank = (q.clamp(0.0, 1.0) * total).max(f64::MIN_POSITIVE);
        let (mut lower_us, mut before) = (0, 0.0);
        for (bound, count) in DURATION_BOUNDS_US.iter().zip(self.counts) {
            let count = count as f64;
            if count > 0.0 && before + count >= rank {
                let width = (bound - lower_us) as f64;
                let share = (rank - before) / count;
                return Some(Duration::from_micros(lower_us + (width * share).round() as u64));
            }
            before += count;
            lower_us = *bound;
        }
        (total > 0.0).then(|| Duration::from_micros(lower_us))
    }

    /// Returns whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(crate) fn sum_with(&self, other: &RequestDurations) -> RequestDurations {
        RequestDurations {
            counts: std::array::from_fn(|i| bounded_sum(self.counts[i], other.counts[i])),
            sum_us: bounded_sum(self.sum_us, other.sum_us),
        }
    }
}

impl From<RequestDurations> for RequestDurationsJson {
    fn from(durations: RequestDurations) -> RequestDurationsJson {
        let us = |duration: Option<Duration>| duration.map(super::duration_us);
        let bounds = DURATION_BOUNDS_US.iter().copied().map(Some).chain([None]);
        RequestDurationsJson {
            count: durations.count(),
            sum_us: durations.sum_us,
            mean_us: us(durations.mean()).unwrap_or(0),
            p50_us: us(durations.quantile(0.5)),
            p90_us: us(durations.quantile(0.9)),
            p99_us: us(durations.quantile(0.99)),
            buckets: bounds.zip(durations.counts).filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl From<RequestDurationsJson> for RequestDurations {
    fn from(json: RequestDurationsJson) -> RequestDurations {
        let mut counts = [0; REQUEST_DURATION_BUCKETS];
        for (bound, count) in json.buckets {
            let sum = &mut counts[request_duration_bucket(bound.unwrap_or(u64::MAX))];
            *sum = bounded_sum(*sum, count);
        }
        RequestDurations { counts, sum_us: json.sum_us.min(MAX_JSON_INTEGER) }
    }
}

/// Counts the lines of the access log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AccessLogCounters {
    /// Lines written.
    pub written: u64,
    /// Lines lost because the file or the reader of the log did not keep up, or could not be written.
    pub dropped: u64,
    /// Requests left out on purpose: by sampling, by a threshold of duration, or because their path is not logged.
    pub skipped: u64,
}

impl AccessLogCounters {
    pub(crate) fn sum_with(self, other: AccessLogCounters) -> AccessLogCounters {
        AccessLogCounters {
            written: bounded_sum(self.written, other.written),
            dropped: bounded_sum(self.dropped, other.dropped),
            skipped: bounded_sum(self.skipped, other.skipped),
        }
    }

    /// Returns whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        *self == AccessLogCounters::default()
    }
}

pub(crate) fn bounded_sum(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(MAX_JSON_INTEGER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_under_its_bound() {
        for (us, bucket) in [(0, 0), (100, 0), (101, 1), (1_000, 3), (1_001, 4), (10_000_000, 15)] {
            assert_eq!(request_duration_bucket(us), bucket, "{us}");
        }
        assert_eq!([10_000_001, u64::MAX].map(request_duration_bucket), [16, 16]);
        assert!(DURATION_BOUNDS_US.is_sorted());
    }

    #[test]
    fn quantiles_are_interpolated_as_prometheus_does() {
        let mut counts = [0; REQUEST_DURATION_BUCKETS];
        assert_eq!(RequestDurations::from_parts(counts, 0).quantile(0.5), None);
        counts[3] = 100;
        let durations = RequestDurations::from_parts(counts, 80_000);
        assert_eq!(durations.quantile(0.5), Some(Duration::from_micros(750)));
        assert_eq!(durations.quantile(1.0), Some(Duration::from_millis(1)));
        assert_eq!(durations.mean(), Some(Duration::from_micros(800)));
        counts[16] = 100;
        let durations = RequestDurations::from_parts(counts, 0);
        assert_eq!(durations.quantile(0.99), Some(Duration::from_secs(10)));
    }

    #[test]
    fn figures_are_read_back_from_json() {
        let mut counts = [[0; 6]; 8];
        counts[0][2] = 5;
        counts[7][0] = 1;
        let by = RequestsBy::from_counts(counts);
        let json = serde_json::to_string(&by).expect("JSON");
        assert_eq!(json, r#"{"GET":{"2xx":5},"other":{"none":1}}"#);
        assert_eq!(serde_json::from_str::<RequestsBy>(&json).expect("read"), by);
        assert_eq!((by.get("GET", "2xx"), by.get("GET", "9xx"), by.total()), (5, 0, 6));
        let mut counts = [0; REQUEST_DURATION_BUCKETS];
        (counts[0], counts[16]) = (2, 3);
        let durations = RequestDurations::from_parts(counts, 7);
        let json = serde_json::to_string(&durations).expect("JSON");
        assert_eq!(serde_json::from_str::<RequestDurations>(&json).expect("read"), durations);
    }

    #[test]
    fn sums_are_bounded() {
        let garbage = RequestDurations::from_parts([u64::MAX; REQUEST_DURATION_BUCKETS], u64::MAX);
        assert_eq!(garbage.sum_with(&garbage).count(), MAX_JSON_INTEGER);
        let garbage = RequestsBy::from_counts([[u64::MAX; 6]; 8]);
        assert_eq!(garbage.sum_with(&garbage).total(), MAX_JSON_INTEGER);
    }
}
