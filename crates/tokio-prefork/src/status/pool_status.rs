//! The status of a CPU pool.

use serde::{Deserialize, Serialize};

use super::MAX_JSON_INTEGER;

/// How many classes of durations the histograms of a CPU pool have.
pub(crate) const POOL_DURATION_BUCKETS: usize = 24;

/// A worker's CPU pool at one moment. All zero before its first job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Its threads; 0 before the first job, which starts them.
    pub threads: u64,
    /// How many jobs may wait.
    pub capacity: u64,
    /// How many jobs wait.
    pub depth: u64,
    /// How many jobs are running, abandoned ones included.
    pub running: u64,
    /// How much of the last second its threads spent on jobs, in percent.
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
    /// How long jobs waited before they ran, counted by powers of two: up to 16 µs, up to 32 µs, up to
    /// 64 µs, ... The 24th entry counts all that waited for more than 67 s.
    pub wait: [u64; POOL_DURATION_BUCKETS],
    /// How long jobs ran, counted in the same way.
    pub run: [u64; POOL_DURATION_BUCKETS],
}

impl PoolStatus {
    /// Returns the figures of two pools of one worker, as if the two were one pool.
    pub(crate) fn sum_with(self, other: PoolStatus) -> PoolStatus {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(MAX_JSON_INTEGER);
        let busy = |pool: PoolStatus| pool.threads.saturating_mul(pool.utilisation.min(100));
        let threads = sum(self.threads, other.threads);
        PoolStatus {
            threads,
            capacity: sum(self.capacity, other.capacity),
            depth: sum(self.depth, other.depth),
            running: sum(self.running, other.running),
            utilisation: busy(self).saturating_add(busy(other)).checked_div(threads).unwrap_or(0),
            done: sum(self.done, other.done),
            rejected: sum(self.rejected, other.rejected),
            timed_out: sum(self.timed_out, other.timed_out),
            cancelled: sum(self.cancelled, other.cancelled),
            panicked: sum(self.panicked, other.panicked),
            closed: sum(self.closed, other.closed),
            wait: std::array::from_fn(|i| sum(self.wait[i], other.wait[i])),
            run: std::array::from_fn(|i| sum(self.run[i], other.run[i])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_utilisation_of_two_pools_is_that_of_all_their_threads() {
        let pool = |threads, utilisation| PoolStatus { threads, utilisation, ..Default::default() };
        let both = pool(1, 100).sum_with(pool(3, 20));
        assert_eq!((both.threads, both.utilisation), (4, 40));
        assert_eq!(pool(0, 0).sum_with(pool(0, 0)), PoolStatus::default());
    }
}
