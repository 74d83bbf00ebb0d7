//! The metrics of CPU pools and of pools of isolated processes, by pool.

use super::super::family::{HistogramValue, Labels, MetricFamily, MetricUnit, label, labels};
use crate::status::{ClusterStatus, IsolatedPoolStatus, JobDurations, PoolStatus};

/// Every how many buckets of `JobDurations` one is exposed: each bound is four times the one before.
const BUCKETS_PER_BOUND: usize = 4;

pub(super) fn families_of(status: &ClusterStatus) -> Vec<MetricFamily> {
    let mut all = pool_families(&status.pools);
    all.extend(isolated_families(&status.isolated));
    all
}

fn pool_families(pools: &[PoolStatus]) -> Vec<MetricFamily> {
    let gauge = |figure: fn(&PoolStatus) -> f64| -> Vec<(Labels, f64)> {
        pools.iter().map(|pool| (label("pool", &*pool.name), figure(pool))).collect()
    };
    let jobs = pools.iter().flat_map(|pool| {
        [
            ("done", pool.done),
            ("rejected", pool.rejected),
            ("timed_out", pool.timed_out),
            ("cancelled", pool.cancelled),
            ("panicked", pool.panicked),
            ("closed", pool.closed),
        ]
        .map(|(outcome, count)| (labels([("pool", &*pool.name), ("outcome", outcome)]), count))
    });
    let times = |figure: fn(&PoolStatus) -> &JobDurations| {
        let series = pools.iter();
        series.map(|pool| (label("pool", &*pool.name), job_durations(figure(pool)))).collect()
    };
    vec![
        MetricFamily::counters(
            "prefork_pool_jobs",
            "Jobs of CPU pools that have ended, by outcome.",
            jobs.collect(),
        ),
        MetricFamily::gauges(
            "prefork_pool_threads",
            "Threads of CPU pools.",
            gauge(|pool| pool.threads as f64),
        ),
        MetricFamily::gauges(
            "prefork_pool_jobs_running",
            "Jobs of CPU pools that run.",
            gauge(|pool| pool.running as f64),
        ),
        MetricFamily::gauges(
            "prefork_pool_jobs_waiting",
            "Jobs of CPU pools that wait for a thread.",
            gauge(|pool| pool.depth as f64),
        ),
        MetricFamily::gauges(
            "prefork_pool_queue_limit",
            "How many jobs of CPU pools may wait.",
            gauge(|pool| pool.capacity as f64),
        ),
        MetricFamily::gauges(
            "prefork_pool_utilisation_ratio",
            "How much of the last one to three seconds the threads of CPU pools spent on jobs, from 0 to 1.",
            gauge(|pool| pool.utilisation as f64 / 100.0),
        ),
        MetricFamily::durations(
            "prefork_pool_job_wait",
            "How long jobs of CPU pools waited for a thread.",
            times(|pool| &pool.wait),
        ),
        MetricFamily::durations(
            "prefork_pool_job_run",
            "How long jobs of CPU pools ran.",
            times(|pool| &pool.run),
        ),
    ]
}

fn isolated_families(pools: &[IsolatedPoolStatus]) -> Vec<MetricFamily> {
    let gauge = |figure: fn(&IsolatedPoolStatus) -> u64| -> Vec<(Labels, f64)> {
        pools.iter().map(|pool| (label("pool", &*pool.name), figure(pool) as f64)).collect()
    };
    let jobs = pools.iter().flat_map(|pool| {
        [
            ("done", pool.done),
            ("failed", pool.failed),
            ("panicked", pool.panicked),
            ("died", pool.died),
            ("timed_out", pool.timed_out),
            ("cut", pool.cut),
            ("refused", pool.refused),
            ("closed", pool.closed),
            ("abandoned", pool.abandoned),
            ("lost", pool.lost),
        ]
        .map(|(outcome, count)| (labels([("pool", &*pool.name), ("outcome", outcome)]), count))
    });
    let times = |figure: fn(&IsolatedPoolStatus) -> &JobDurations| {
        let series = pools.iter();
        series.map(|pool| (label("pool", &*pool.name), job_durations(figure(pool)))).collect()
    };
    vec![
        MetricFamily::counters(
            "prefork_isolated_jobs",
            "Jobs of isolated pools that have ended, by outcome.",
            jobs.collect(),
        ),
        MetricFamily::gauges(
            "prefork_isolated_processes",
            "Processes of isolated pools that are ready or run a job.",
            gauge(|pool| pool.processes),
        ),
        MetricFamily::gauges(
            "prefork_isolated_jobs_running",
            "Jobs of isolated pools that run.",
            gauge(|pool| pool.running),
        ),
        MetricFamily::gauges(
            "prefork_isolated_jobs_waiting",
            "Jobs of isolated pools that wait for a process.",
            gauge(|pool| pool.depth),
        ),
        MetricFamily::gauges(
            "prefork_isolated_queue_limit",
            "How many jobs of isolated pools may wait.",
            gauge(|pool| pool.capacity),
        ),
        MetricFamily::gauges(
            "prefork_isolated_queue_inputs",
            "Size of the inputs of jobs of isolated pools that wait.",
            gauge(|pool| pool.queued_bytes),
        )
        .in_unit(MetricUnit::Bytes),
        MetricFamily::durations(
            "prefork_isolated_job_wait",
            "How long jobs of isolated pools waited for a process.",
            times(|pool| &pool.wait),
        ),
        MetricFamily::durations(
            "prefork_isolated_job_run",
            "How long jobs of isolated pools ran.",
            times(|pool| &pool.run),
        ),
    ]
}

fn job_durations(durations: &JobDurations) -> HistogramValue {
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for (n, (bound_us, count)) in durations.buckets_us().enumerate() {
        let bound = bound_us.map_or(f64::INFINITY, |us| us as f64 / 1e6);
        match buckets.last_mut() {
            // The counts up to the next exposed bound belong to it.
            Some(last) if n % BUCKETS_PER_BOUND != 1 => {
                *last = (bound, last.1.saturating_add(count));
            }
            _ => buckets.push((bound, count)),
        }
    }
    HistogramValue { buckets, sum: durations.sum().as_micros() as f64 / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_of_jobs_are_exposed_with_fewer_bounds() {
        let mut durations = JobDurations::default();
        for us in [1, 8, 9, 32, 33, 100_000_000] {
            durations.record(Duration::from_micros(us));
        }
        let histogram = job_durations(&durations);
        let bounds: Vec<f64> = histogram.buckets.iter().map(|bucket| bucket.0).collect();
        assert_eq!(bounds[..3], [0.000_008, 0.000_032, 0.000_128]);
        assert!(bounds.is_sorted() && bounds.len() == 13, "{bounds:?}");
        assert_eq!(bounds[12], f64::INFINITY);
        let counts: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.1).collect();
        assert_eq!((counts[0], counts[1], counts[2], counts[12]), (2, 2, 1, 1));
        assert_eq!(histogram.count(), 6);
    }
}
