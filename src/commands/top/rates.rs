//! Rates: the differences of two samples, divided by the time between them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sample::Sample;
use tokio_prefork::WorkerId;
use tokio_prefork::shared::SharedMetricValue;
use tokio_prefork::status::{ClusterStatus, RequestDurations, WorkerStatus};

/// How far two clocks may differ before a status counts as one of another image: 1 s.
const MAX_CLOCK_DIFFERENCE: f64 = 1.0;

/// Rates between two samples. `None`, or no entry, where a counter has no earlier value or began anew.
#[derive(Debug, Default)]
pub(super) struct Rates {
    pub(super) totals: TotalRates,
    pub(super) workers: BTreeMap<WorkerId, WorkerRates>,
    /// Jobs that ended, by the name of their CPU pool.
    pub(super) pool_jobs: BTreeMap<String, f64>,
    /// Jobs that ended, by the name of their isolated pool.
    pub(super) isolated_jobs: BTreeMap<String, f64>,
    /// By the name of the shared counter or histogram.
    pub(super) shared: BTreeMap<String, f64>,
}

/// Rates of the whole cluster, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct TotalRates {
    pub(super) requests: Option<f64>,
    pub(super) client_errors: Option<f64>,
    pub(super) server_errors: Option<f64>,
    pub(super) bytes_in: Option<f64>,
    pub(super) bytes_out: Option<f64>,
    pub(super) accepted: Option<f64>,
    /// The median and the 99th percentile of the requests that finished between the samples; `None` without any, or if the
    /// durations are not measured.
    pub(super) durations: Option<[Duration; 2]>,
}

/// Rates of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct WorkerRates {
    /// Requests per second.
    pub(super) requests: Option<f64>,
    /// Percent of one CPU.
    pub(super) cpu_percent: Option<f64>,
    /// The longest delay of a heartbeat between the samples, in milliseconds, rounded up to a power of two.
    pub(super) lag_ms: Option<u64>,
}

impl Rates {
    /// Computes the rates between two samples of the same cluster.
    pub(super) fn between(before: &Sample, after: &Sample) -> Rates {
        let seconds = elapsed_seconds(before, after);
        let rate = |old, new| per_second(old, new, seconds);
        let (old, new) = (&before.status, &after.status);
        // Nobody counts the requests of a foreign program.
        let counts_requests = new.primary.program.is_none();
        let request_rate = |old, new| rate(old, new).filter(|_| counts_requests);
        let totals = TotalRates {
            requests: request_rate(old.totals.requests, new.totals.requests),
            client_errors: request_rate(old.totals.responses[3], new.totals.responses[3]),
            server_errors: request_rate(old.totals.responses[4], new.totals.responses[4]),
            bytes_in: request_rate(old.totals.bytes_in, new.totals.bytes_in),
            bytes_out: request_rate(old.totals.bytes_out, new.totals.bytes_out),
            accepted: request_rate(old.totals.accepted, new.totals.accepted),
            durations: new_quantiles(&old.durations, &new.durations),
        };
        let workers = new.workers.iter().filter_map(|worker| {
            let earlier = find_worker(old, worker)?;
            let rates = WorkerRates {
                requests: request_rate(earlier.counters.requests, worker.counters.requests),
                cpu_percent: cpu_percent(before, after, worker.id),
                lag_ms: longest_new_delay(&earlier.loop_lag, &worker.loop_lag),
            };
            Some((worker.id, rates))
        });
        let rates_of = |old: BTreeMap<String, u64>, new: BTreeMap<String, u64>| {
            let known = new.into_iter().filter_map(|(name, value)| {
                let rate = rate(*old.get(&name)?, value)?;
                Some((name, rate))
            });
            known.collect()
        };
        Rates {
            totals,
            workers: workers.collect(),
            pool_jobs: rates_of(ended_pool_jobs(old), ended_pool_jobs(new)),
            isolated_jobs: rates_of(ended_isolated_jobs(old), ended_isolated_jobs(new)),
            shared: rates_of(shared_counts(old), shared_counts(new)),
        }
    }
}

/// Returns the seconds between two samples. The primary's own clock is exact however late a reply arrives; it begins anew with
/// an upgrade, and then the times of arrival have to do.
fn elapsed_seconds(before: &Sample, after: &Sample) -> f64 {
    let by_arrival = after.received_at.saturating_duration_since(before.received_at).as_secs_f64();
    let uptimes = [before, after].map(|sample| sample.status.primary.uptime_ms);
    let by_primary = uptimes[1].saturating_sub(uptimes[0]) as f64 / 1000.0;
    match uptimes[1] > uptimes[0] && (by_primary - by_arrival).abs() < MAX_CLOCK_DIFFERENCE {
        true => by_primary,
        false => by_arrival,
    }
}

/// Returns how fast a counter grew; `None` if it began anew or no time has passed.
fn per_second(before: u64, after: u64, seconds: f64) -> Option<f64> {
    let grown = after.checked_sub(before)?;
    (seconds > 0.0).then(|| grown as f64 / seconds)
}

/// Returns the earlier status of the same process.
fn find_worker<'a>(before: &'a ClusterStatus, worker: &WorkerStatus) -> Option<&'a WorkerStatus> {
    before.workers.iter().find(|earlier| earlier.id == worker.id && earlier.pid == worker.pid)
}

fn cpu_percent(before: &Sample, after: &Sample, id: WorkerId) -> Option<f64> {
    let (before, after) = (before.usage.get(&id)?, after.usage.get(&id)?);
    let elapsed = after.read_at.saturating_duration_since(before.read_at);
    let used = after.cpu_time.checked_sub(before.cpu_time)?;
    (elapsed > Duration::ZERO).then(|| 100.0 * used.as_secs_f64() / elapsed.as_secs_f64())
}

/// Returns the bound of the highest bucket that has grown; the buckets are powers of two of a millisecond.
fn longest_new_delay(before: &[u64], after: &[u64]) -> Option<u64> {
    let mut buckets = before.iter().zip(after).enumerate().rev();
    buckets.find(|(_, (before, after))| after > before).map(|(bucket, _)| 1u64 << bucket.min(62))
}

/// Returns the median and the 99th percentile of the durations that were added.
fn new_quantiles(before: &RequestDurations, after: &RequestDurations) -> Option<[Duration; 2]> {
    let growth = before.buckets().zip(after.buckets());
    let growth: Option<Vec<(Option<Duration>, u64)>> =
        growth.map(|((_, old), (bound, new))| Some((bound, new.checked_sub(old)?))).collect();
    let growth = growth?;
    Some([quantile(&growth, 0.5)?, quantile(&growth, 0.99)?])
}

/// Returns the duration that this share did not exceed, interpolated within its bucket; above all bounds it is the highest one.
fn quantile(buckets: &[(Option<Duration>, u64)], share: f64) -> Option<Duration> {
    let total: f64 = buckets.iter().map(|(_, count)| *count as f64).sum();
    let wanted = (share * total).max(1.0);
    let (mut lower, mut sum) = (Duration::ZERO, 0.0);
    for (bound, count) in buckets {
        let (Some(upper), count) = (*bound, *count as f64) else { break };
        if count > 0.0 && sum + count >= wanted {
            return Some(lower + (upper - lower).mul_f64((wanted - sum) / count));
        }
        (lower, sum) = (upper, sum + count);
    }
    (total > 0.0).then_some(lower)
}

fn ended_pool_jobs(status: &ClusterStatus) -> BTreeMap<String, u64> {
    let pools = status.pools.iter();
    pools.map(|pool| (pool.name.clone(), pool.done.saturating_add(pool.panicked))).collect()
}

fn ended_isolated_jobs(status: &ClusterStatus) -> BTreeMap<String, u64> {
    status.isolated.iter().map(|pool| (pool.name.clone(), pool.ended())).collect()
}

fn shared_counts(status: &ClusterStatus) -> BTreeMap<String, u64> {
    let counts = status.shared.iter().filter_map(|metric| match &metric.value {
        SharedMetricValue::Counter { value } => Some((metric.name.clone(), *value)),
        SharedMetricValue::Histogram(histogram) => Some((metric.name.clone(), histogram.count())),
        _ => None,
    });
    counts.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::test_support::{sample, sample_at};
    use super::*;
    use crate::commands::top::process_usage::ProcessUsage;

    #[test]
    fn rates_are_growth_by_the_clock_of_the_primary() {
        let began = Instant::now();
        let before = sample_at(began, 10_000, |status| {
            status.totals.requests = 100;
            status.totals.bytes_out = 0;
            status.workers[0].counters.requests = 40;
        });
        // The reply took 600 ms longer than the one before.
        let after = sample_at(began + Duration::from_millis(2600), 12_000, |status| {
            status.totals.requests = 300;
            status.totals.bytes_out = 4096;
            status.workers[0].counters.requests = 60;
        });
        let rates = Rates::between(&before, &after);
        assert_eq!((rates.totals.requests, rates.totals.bytes_out), (Some(100.0), Some(2048.0)));
        assert_eq!(rates.workers[&after.status.workers[0].id].requests, Some(10.0));
    }

    #[test]
    fn counters_that_began_anew_have_no_rate() {
        let before = sample(|status| {
            status.totals.requests = 500;
            status.workers[0].counters.requests = 500;
        });
        let after = sample(|status| {
            status.primary.uptime_ms += 1000;
            status.totals.requests = 3;
            status.workers[0].pid = Some(1);
        });
        let rates = Rates::between(&before, &after);
        assert_eq!(rates.totals.requests, None);
        assert!(!rates.workers.contains_key(&after.status.workers[0].id), "another process");
    }

    #[test]
    fn after_an_upgrade_the_time_of_arrival_counts() {
        let began = Instant::now();
        let before = sample_at(began, 90_000, |status| status.totals.requests = 100);
        let after = sample_at(began + Duration::from_secs(2), 500, |status| {
            status.totals.requests = 120;
        });
        assert_eq!(Rates::between(&before, &after).totals.requests, Some(10.0));
    }

    #[test]
    fn two_samples_of_one_moment_have_no_rate() {
        let began = Instant::now();
        let [before, after] = [(); 2].map(|()| sample_at(began, 10_000, |_| {}));
        assert_eq!(Rates::between(&before, &after).totals, TotalRates::default());
    }

    #[test]
    fn cpu_is_a_share_of_the_time_between_the_readings() {
        let began = Instant::now();
        let [mut before, mut after] = [(); 2].map(|()| sample(|_| {}));
        let id = after.status.workers[0].id;
        let usage = |ms: u64, cpu_ms| ProcessUsage {
            read_at: began + Duration::from_millis(ms),
            cpu_time: Duration::from_millis(cpu_ms),
            resident_bytes: 1,
        };
        before.usage.insert(id, usage(0, 1000));
        after.usage.insert(id, usage(2000, 4000));
        assert_eq!(Rates::between(&before, &after).workers[&id].cpu_percent, Some(150.0));
    }

    #[test]
    fn percentiles_are_those_of_the_requests_between_the_samples() {
        let durations = |buckets: &str| -> RequestDurations {
            let json = format!(r#"{{"count":0,"sum_us":0,"buckets":{buckets}}}"#);
            serde_json::from_str(&json).expect("durations")
        };
        let before = durations("[[1000,900]]");
        let after = durations("[[1000,900],[2500,98],[100000,2]]");
        let [p50, p99] = new_quantiles(&before, &after).expect("quantiles");
        assert!(p50 > Duration::from_millis(1) && p50 < Duration::from_micros(2500), "{p50:?}");
        assert_eq!(p99, Duration::from_millis(75));
        assert_eq!(new_quantiles(&after, &after), None);
        assert_eq!(new_quantiles(&after, &before), None, "began anew");
        let longest = durations("[[1000,900],[null,5]]");
        assert_eq!(new_quantiles(&before, &longest), Some([Duration::from_secs(10); 2]));
    }

    #[test]
    fn the_lag_is_the_longest_delay_between_the_samples() {
        assert_eq!(longest_new_delay(&[5, 0, 1, 7], &[9, 1, 1, 7]), Some(2));
        assert_eq!(longest_new_delay(&[5, 0], &[5, 0]), None);
    }
}
