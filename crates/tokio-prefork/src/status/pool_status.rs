//! The status of a CPU pool.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{JobDurations, MAX_JSON_INTEGER};

/// The name of the pool that each worker has, [`Worker::pool`](crate::Worker::pool).
pub(crate) const DEFAULT_POOL_NAME: &str = "default";

/// A CPU pool at one moment, or all pools of one name in several workers. All zero before the first job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Its name; `default` for [`Worker::pool`](crate::Worker::pool).
    pub name: String,
    /// Its threads.
    pub threads: u64,
    /// How many jobs may wait.
    pub capacity: u64,
    /// How many jobs wait.
    pub depth: u64,
    /// How many jobs are running, abandoned ones included.
    pub running: u64,
    /// How much of the last one to three seconds its threads spent on jobs, in percent.
    pub utilisation: u64,
    /// Jobs that ended and whose result was delivered.
    pub done: u64,
    /// Jobs refused because the queue was full.
    pub rejected: u64,
    /// Jobs whose deadline passed, waiting or running.
    pub timed_out: u64,
    /// Jobs whose caller went away, waiting or running.
    pub cancelled: u64,
    /// Jobs that panicked.
    pub panicked: u64,
    /// Jobs submitted after the pool was closed, or still waiting when it ended.
    pub closed: u64,
    /// How long jobs waited before they ran.
    pub wait: JobDurations,
    /// How long jobs ran, abandoned ones included.
    pub run: JobDurations,
}

impl PoolStatus {
    /// Returns the time within which the share `q` of all jobs began, counted from their submission: 0.99 for the 99th
    /// percentile. `None` before the first job. See [`JobDurations::quantile`].
    pub fn wait_quantile(&self, q: f64) -> Option<Duration> {
        self.wait.quantile(q)
    }

    /// Returns the time that the share `q` of all jobs took at most, without their wait. `None` before the first job has
    /// ended. See [`JobDurations::quantile`].
    pub fn run_quantile(&self, q: f64) -> Option<Duration> {
        self.run.quantile(q)
    }

    /// Returns the figures of two pools as if the two were one.
    pub(crate) fn sum_with(self, other: &PoolStatus) -> PoolStatus {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(MAX_JSON_INTEGER);
        let busy = |pool: &PoolStatus| pool.threads.saturating_mul(pool.utilisation.min(100));
        let threads = sum(self.threads, other.threads);
        let busy = busy(&self).saturating_add(busy(other));
        PoolStatus {
            name: self.name,
            threads,
            capacity: sum(self.capacity, other.capacity),
            depth: sum(self.depth, other.depth),
            running: sum(self.running, other.running),
            utilisation: busy.checked_div(threads).unwrap_or(0),
            done: sum(self.done, other.done),
            rejected: sum(self.rejected, other.rejected),
            timed_out: sum(self.timed_out, other.timed_out),
            cancelled: sum(self.cancelled, other.cancelled),
            panicked: sum(self.panicked, other.panicked),
            closed: sum(self.closed, other.closed),
            wait: self.wait.sum_with(&other.wait),
            run: self.run.sum_with(&other.run),
        }
    }
}

/// Adds pools to a list with one entry for each name.
pub(crate) fn add_pools(sums: &mut Vec<PoolStatus>, pools: impl IntoIterator<Item = PoolStatus>) {
    for pool in pools {
        match sums.iter_mut().find(|sum| sum.name == pool.name) {
            Some(sum) => *sum = std::mem::take(sum).sum_with(&pool),
            None => sums.push(pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_utilisation_of_two_pools_is_that_of_all_their_threads() {
        let pool = |threads, utilisation| PoolStatus { threads, utilisation, ..Default::default() };
        let both = pool(1, 100).sum_with(&pool(3, 20));
        assert_eq!((both.threads, both.utilisation), (4, 40));
        assert_eq!(pool(0, 0).sum_with(&pool(0, 0)), PoolStatus::default());
    }

    #[test]
    fn pools_of_one_name_are_added() {
        let pool = |name: &str, done| PoolStatus { name: name.into(), done, ..Default::default() };
        let mut sums = vec![pool("default", 1)];
        add_pools(&mut sums, [pool("images", 2), pool("default", 3), pool("images", 4)]);
        assert_eq!(sums, [pool("default", 4), pool("images", 6)]);
    }
}
