//! How long jobs waited or ran: a histogram with mean, maximum and percentiles.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MAX_JSON_INTEGER;

/// How many classes of durations are counted.
pub(crate) const JOB_DURATION_BUCKETS: usize = 48;

/// The upper bound of the first bucket, in microseconds.
const FIRST_BOUND_US: u64 = 8;

/// How long many jobs waited or ran, with a resolution of microseconds.
///
/// Durations are counted in 48 buckets of growing width: up to 8 µs, 12 µs, 16 µs, 24 µs, 32 µs, ... 67 s, and longer. Mean and
/// maximum are exact. A percentile is interpolated within its bucket, so it is off by at most half of its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "JobDurationsJson", into = "JobDurationsJson")]
pub struct JobDurations {
    counts: [u64; JOB_DURATION_BUCKETS],
    sum_us: u64,
    max_us: u64,
}

/// The JSON form. Percentiles and the mean are for readers that do not compute them.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct JobDurationsJson {
    count: u64,
    sum_us: u64,
    mean_us: u64,
    max_us: u64,
    p50_us: Option<u64>,
    p90_us: Option<u64>,
    p99_us: Option<u64>,
    /// The upper bound in microseconds and the count of each bucket that is not empty. `None`: longer than all bounds.
    buckets: Vec<(Option<u64>, u64)>,
}

impl Default for JobDurations {
    fn default() -> JobDurations {
        JobDurations::from_parts([0; JOB_DURATION_BUCKETS], 0, 0)
    }
}

impl JobDurations {
    /// Builds the histogram from counts by bucket, and sum and maximum in microseconds.
    pub(crate) fn from_parts(
        counts: [u64; JOB_DURATION_BUCKETS],
        sum_us: u64,
        max_us: u64,
    ) -> JobDurations {
        JobDurations { counts, sum_us, max_us }
    }

    /// Returns the counts by bucket, and sum and maximum in microseconds.
    pub(crate) fn to_parts(&self) -> ([u64; JOB_DURATION_BUCKETS], u64, u64) {
        (self.counts, self.sum_us, self.max_us)
    }

    /// Returns the upper bounds in microseconds with the counts of the buckets, not cumulative. The last bucket has no bound.
    #[cfg(feature = "admin")]
    pub(crate) fn buckets_us(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bound = |bucket| (bucket < JOB_DURATION_BUCKETS - 1).then(|| bucket_bound_us(bucket));
        self.counts.iter().enumerate().map(move |(bucket, count)| (bound(bucket), *count))
    }

    /// Adds one duration.
    pub(crate) fn record(&mut self, duration: Duration) {
        let us = duration_us(duration);
        let count = &mut self.counts[duration_bucket(us)];
        *count = count.saturating_add(1);
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// Returns how many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0u64, |sum, n| sum.saturating_add(*n)).min(MAX_JSON_INTEGER)
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// Returns the mean; `None` if nothing was counted.
    pub fn mean(&self) -> Option<Duration> {
        self.sum_us.checked_div(self.count()).map(Duration::from_micros)
    }

    /// Returns the longest duration; `None` if nothing was counted.
    pub fn max(&self) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_micros(self.max_us))
    }

    /// Returns the duration that the share `q` of all durations did not exceed: 0.5 for the median, 0.99 for the 99th
    /// percentile, 1.0 for the maximum. `None` if nothing was counted. Values outside of 0 to 1 count as 0 or 1.
    ///
    /// ```
    /// # use tokio_prefork::pool::{Pool, PoolConfig};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let pool = Pool::new(PoolConfig::default());
    /// assert_eq!(pool.status().run.quantile(0.99), None);
    /// pool.run(|| std::thread::sleep(std::time::Duration::from_millis(20))).await.unwrap();
    /// assert!(pool.status().run.quantile(0.99).unwrap().as_millis() >= 20);
    /// # });
    /// ```
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let total: f64 = self.counts.iter().map(|n| *n as f64).sum();
        // NaN counts as 0.
        let rank = (q.clamp(0.0, 1.0) * total).ceil().max(1.0);
        let mut before = 0.0;
        for (bucket, count) in self.counts.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && before + count >= rank {
                return Some(self.interpolate(bucket, (rank - before) / count));
            }
            before += count;
        }
        None
    }

    /// Returns the duration at this share of the way through a bucket.
    fn interpolate(&self, bucket: usize, share: f64) -> Duration {
        let lower = if bucket == 0 { 0 } else { bucket_bound_us(bucket - 1) };
        let upper = match bucket == JOB_DURATION_BUCKETS - 1 {
            true => self.max_us,
            false => bucket_bound_us(bucket).min(self.max_us),
        };
        let width = upper.saturating_sub(lower) as f64;
        Duration::from_micros(lower.min(upper) + (width * share).round() as u64)
    }

    /// Returns both histograms as one.
    pub(crate) fn sum_with(&self, other: &JobDurations) -> JobDurations {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(MAX_JSON_INTEGER);
        JobDurations {
            counts: std::array::from_fn(|i| sum(self.counts[i], other.counts[i])),
            sum_us: sum(self.sum_us, other.sum_us),
            max_us: self.max_us.max(other.max_us),
        }
    }
}

impl From<JobDurations> for JobDurationsJson {
    fn from(durations: JobDurations) -> JobDurationsJson {
        let us = |duration: Option<Duration>| duration.map(duration_us);
        let counts = durations.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let bound = |bucket| (bucket < JOB_DURATION_BUCKETS - 1).then(|| bucket_bound_us(bucket));
        JobDurationsJson {
            count: durations.count(),
            sum_us: durations.sum_us,
            mean_us: us(durations.mean()).unwrap_or(0),
            max_us: durations.max_us,
            p50_us: us(durations.quantile(0.5)),
            p90_us: us(durations.quantile(0.9)),
            p99_us: us(durations.quantile(0.99)),
            buckets: counts.map(|(bucket, count)| (bound(bucket), *count)).collect(),
        }
    }
}

impl From<JobDurationsJson> for JobDurations {
    fn from(json: JobDurationsJson) -> JobDurations {
        let mut counts = [0u64; JOB_DURATION_BUCKETS];
        for (bound, count) in json.buckets {
            let count_of_bucket = &mut counts[duration_bucket(bound.unwrap_or(u64::MAX))];
            *count_of_bucket = count_of_bucket.saturating_add(count).min(MAX_JSON_INTEGER);
        }
        let [sum_us, max_us] = [json.sum_us, json.max_us].map(|us| us.min(MAX_JSON_INTEGER));
        JobDurations { counts, sum_us, max_us }
    }
}

/// Returns a duration in whole microseconds.
pub(crate) fn duration_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the bucket of a duration in microseconds. A duration between two bounds belongs to the larger.
pub(crate) fn duration_bucket(us: u64) -> usize {
    if us <= FIRST_BOUND_US {
        return 0;
    }
    // Each power of two has two buckets of equal width.
    let below = us - 1;
    let (power, first_power) = (below.ilog2(), FIRST_BOUND_US.ilog2());
    let half = (below >> (power - 1)) & 1;
    ((2 * (power - first_power) + 1) as usize + half as usize).min(JOB_DURATION_BUCKETS - 1)
}

/// Returns the upper bound of a bucket in microseconds. The last bucket has none.
fn bucket_bound_us(bucket: usize) -> u64 {
    let power_of_two = FIRST_BOUND_US << (bucket / 2);
    if bucket.is_multiple_of(2) { power_of_two } else { power_of_two / 2 * 3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = u64>) -> JobDurations {
        let mut histogram = JobDurations::default();
        durations.into_iter().for_each(|us| histogram.record(Duration::from_micros(us)));
        histogram
    }

    fn quantile_us(histogram: &JobDurations, q: f64) -> u64 {
        duration_us(histogram.quantile(q).expect("not empty"))
    }

    #[test]
    fn a_duration_is_counted_under_the_next_bound() {
        let bounds: Vec<u64> = (0..6).map(bucket_bound_us).collect();
        assert_eq!(bounds, [8, 12, 16, 24, 32, 48]);
        assert_eq!(bucket_bound_us(JOB_DURATION_BUCKETS - 2), 67_108_864);
        for us in (0..5_000).chain([67_108_863, 67_108_864]) {
            let bucket = duration_bucket(us);
            assert!(us <= bucket_bound_us(bucket), "{us}");
            assert!(bucket == 0 || us > bucket_bound_us(bucket - 1), "{us}");
        }
        let longest = [67_108_865, u64::MAX].map(duration_bucket);
        assert_eq!(longest, [JOB_DURATION_BUCKETS - 1; 2]);
    }

    #[test]
    fn nothing_counted_has_no_mean_and_no_percentile() {
        let none = JobDurations::default();
        assert_eq!((none.mean(), none.max(), none.quantile(0.5)), (None, None, None));
        assert_eq!((none.count(), none.sum()), (0, Duration::ZERO));
    }

    #[test]
    fn a_single_duration_is_every_percentile() {
        let one = of([20_000]);
        for q in [-1.0, 0.0, 0.5, 0.99, 1.0, 2.0, f64::NAN] {
            assert_eq!(quantile_us(&one, q), 20_000, "{q}");
        }
        assert_eq!((one.mean(), one.max()), (one.quantile(0.5), one.quantile(0.5)));
    }

    #[test]
    fn percentiles_of_a_uniform_distribution_are_close() {
        let uniform = of(1..=100_000);
        for (q, wanted) in [(0.1, 10_000), (0.5, 50_000), (0.9, 90_000), (0.99, 99_000)] {
            let got = quantile_us(&uniform, q);
            assert!(got.abs_diff(wanted) * 50 < wanted, "p{q}: {got} instead of {wanted}");
        }
        assert_eq!(quantile_us(&uniform, 1.0), 100_000);
        assert_eq!(uniform.mean(), Some(Duration::from_micros(50_000)));
    }

    #[test]
    fn rare_long_jobs_are_seen_in_the_high_percentiles_only() {
        let mixed = of(std::iter::repeat_n(100, 980).chain(std::iter::repeat_n(2_000_000, 20)));
        assert!(quantile_us(&mixed, 0.5) <= 128 && quantile_us(&mixed, 0.98) <= 128);
        assert!(quantile_us(&mixed, 0.99) > 1_500_000);
        assert_eq!(quantile_us(&mixed, 1.0), 2_000_000);
    }

    #[test]
    fn durations_beyond_the_last_bound_reach_up_to_the_maximum() {
        let hour = 3_600_000_000;
        let long = of([hour, hour]);
        assert_eq!(quantile_us(&long, 1.0), hour);
        assert!(quantile_us(&long, 0.5) > 67_108_864 && quantile_us(&long, 0.5) < hour);
        let longest = of([u64::MAX]);
        assert_eq!(longest.max(), Some(Duration::from_micros(u64::MAX)));
    }

    #[test]
    fn percentiles_never_fall_with_q() {
        let histogram = of((0..3_000u64).map(|n| n * n * 7 % 1_000_003));
        let all: Vec<u64> =
            (0..=100).map(|n| quantile_us(&histogram, f64::from(n) / 100.0)).collect();
        assert!(all.is_sorted(), "{all:?}");
        assert_eq!(Some(Duration::from_micros(all[100])), histogram.max());
    }

    #[test]
    fn two_histograms_add_up_and_corrupted_figures_are_bounded() {
        let both = of([10, 20]).sum_with(&of([1_000]));
        assert_eq!(both, of([10, 20, 1_000]));
        let garbage =
            JobDurations::from_parts([u64::MAX; JOB_DURATION_BUCKETS], u64::MAX, u64::MAX);
        let garbage = garbage.sum_with(&garbage);
        assert_eq!((garbage.count(), garbage.sum_us), (MAX_JSON_INTEGER, MAX_JSON_INTEGER));
        assert!(garbage.quantile(0.99).is_some());
    }

    #[test]
    fn json_shows_percentiles_and_is_read_back() {
        let histogram = of([5, 10, 11, 100_000_000]);
        let json = serde_json::to_value(&histogram).expect("JSON");
        assert_eq!((&json["count"], &json["max_us"]), (&4.into(), &100_000_000.into()));
        assert_eq!(json["buckets"], serde_json::json!([[8, 1], [12, 2], [null, 1]]));
        let read: JobDurations = serde_json::from_value(json).expect("read");
        assert_eq!(read, histogram);
        let empty: JobDurations = serde_json::from_str("{}").expect("read");
        assert_eq!(empty, JobDurations::default());
    }
}
