//! Percentiles of the latency over time, in little memory.

use super::counters::TIMELINE_BIN_NANOS;

/// Most bins; when there are more, each two become one.
const MAX_BINS: usize = 256;
/// Buckets for each doubling of the latency: a percentile is exact to 1/16.
const BUCKETS_PER_DOUBLING: u64 = 16;
/// Latencies below it, in nanoseconds, share a bucket.
const SHORTEST_LATENCY: u64 = 1024;

/// Latencies in bins of time, which get wider as the run goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LatencyTimeline {
    /// Width of a bin in nanoseconds.
    bin_nanos: u64,
    /// Counts of each bin by latency; only as long as its slowest response needs.
    bins: Vec<Vec<u32>>,
}

/// Percentiles of one bin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BinPercentiles {
    /// Begin of the bin, in nanoseconds.
    pub(crate) from: u64,
    /// End of the bin, in nanoseconds.
    pub(crate) until: u64,
    /// Median in nanoseconds.
    pub(crate) p50: u64,
    /// 99th percentile in nanoseconds.
    pub(crate) p99: u64,
}

impl LatencyTimeline {
    pub(crate) fn new() -> LatencyTimeline {
        LatencyTimeline { bin_nanos: TIMELINE_BIN_NANOS, bins: Vec::new() }
    }

    /// Records a response, `after` nanoseconds into the measurement.
    pub(crate) fn record(&mut self, after: u64, latency: u64) {
        while after / self.bin_nanos >= MAX_BINS as u64 {
            self.merge_neighbours();
        }
        let (bin, bucket) = ((after / self.bin_nanos) as usize, bucket_of(latency));
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, Vec::new());
        }
        let counts = &mut self.bins[bin];
        if counts.len() <= bucket {
            counts.resize(bucket + 1, 0);
        }
        counts[bucket] = counts[bucket].saturating_add(1);
    }

    /// Adds the latencies of another thread.
    pub(crate) fn merge(&mut self, other: &LatencyTimeline) {
        let mut other = other.clone();
        while self.bin_nanos < other.bin_nanos {
            self.merge_neighbours();
        }
        while other.bin_nanos < self.bin_nanos {
            other.merge_neighbours();
        }
        if self.bins.len() < other.bins.len() {
            self.bins.resize(other.bins.len(), Vec::new());
        }
        for (own, counts) in self.bins.iter_mut().zip(&other.bins) {
            add_counts(own, counts);
        }
    }

    /// Returns the percentiles of each bin that has responses.
    pub(crate) fn percentiles(&self) -> Vec<BinPercentiles> {
        let bins = self.bins.iter().enumerate();
        let percentiles = |(at, counts): (usize, &Vec<u32>)| {
            let from = at as u64 * self.bin_nanos;
            Some(BinPercentiles {
                from,
                until: from + self.bin_nanos,
                p50: percentile(counts, 50)?,
                p99: percentile(counts, 99)?,
            })
        };
        bins.filter_map(percentiles).collect()
    }

    fn merge_neighbours(&mut self) {
        self.bin_nanos *= 2;
        let old = std::mem::take(&mut self.bins);
        for pair in old.chunks(2) {
            let mut sum = pair[0].clone();
            pair.get(1).into_iter().for_each(|second| add_counts(&mut sum, second));
            self.bins.push(sum);
        }
    }
}

/// Returns the latency up to which this percentage of the responses took; `None` without responses.
fn percentile(counts: &[u32], percent: u64) -> Option<u64> {
    let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let rank = (all * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += u64::from(*count);
        seen >= rank
    })?;
    Some(middle_of(bucket))
}

fn add_counts(own: &mut Vec<u32>, other: &[u32]) {
    if own.len() < other.len() {
        own.resize(other.len(), 0);
    }
    own.iter_mut().zip(other).for_each(|(own, other)| *own = own.saturating_add(*other));
}

/// Returns the bucket of a latency: its power of two, and the four bits below it.
fn bucket_of(latency: u64) -> usize {
    let latency = latency.max(SHORTEST_LATENCY);
    let power = u64::from(latency.ilog2());
    let below = (latency >> (power - 4)) - BUCKETS_PER_DOUBLING;
    let first = u64::from(SHORTEST_LATENCY.ilog2());
    ((power - first) * BUCKETS_PER_DOUBLING + below) as usize
}

/// Returns the middle of a bucket, in nanoseconds.
fn middle_of(bucket: usize) -> u64 {
    let (doublings, below) =
        (bucket as u64 / BUCKETS_PER_DOUBLING, bucket as u64 % BUCKETS_PER_DOUBLING);
    let step = (SHORTEST_LATENCY << doublings) / BUCKETS_PER_DOUBLING;
    (BUCKETS_PER_DOUBLING + below) * step + step / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_a_sixteenth() {
        for exact in [1024, 1500, 54_321, 1_000_000, 3_333_333_333, 1 << 50] {
            let found = middle_of(bucket_of(exact)) as f64 / exact as f64;
            assert!((15.0 / 16.0..=17.0 / 16.0).contains(&found), "{exact}: {found}");
        }
        assert_eq!(bucket_of(0), 0);
        let mut line = LatencyTimeline::new();
        (0..99).for_each(|_| line.record(0, 1_000_000));
        line.record(0, 50_000_000);
        (0..98).for_each(|_| line.record(TIMELINE_BIN_NANOS * 3, 1_000_000));
        (0..2).for_each(|_| line.record(TIMELINE_BIN_NANOS * 3, 50_000_000));
        let bins = line.percentiles();
        let [first, last] = [0, 1].map(|at: usize| bins[at].p99 as f64 / 1e6);
        assert_eq!(bins.len(), 2, "bins without responses have none: {bins:?}");
        assert!((0.9..1.1).contains(&first) && (46.0..54.0).contains(&last), "{bins:?}");
        assert!((900_000..1_100_000).contains(&bins[1].p50), "{bins:?}");
        assert_eq!(bins[1].from, TIMELINE_BIN_NANOS * 3);
    }

    #[test]
    fn a_long_run_has_wider_bins_and_loses_no_response() {
        let mut line = LatencyTimeline::new();
        let day = 24 * 3600 * 1_000_000_000u64;
        (0..10_000u64).for_each(|n| line.record(n * (day / 10_000), 2_000_000));
        assert!(line.bins.len() <= MAX_BINS, "{}", line.bins.len());
        let all: u64 = line.bins.iter().flatten().map(|count| u64::from(*count)).sum();
        assert_eq!(all, 10_000);
        let mut short = LatencyTimeline::new();
        short.record(0, 1);
        short.merge(&line);
        line.record(0, 1);
        assert_eq!(short, line);
        assert!(line.percentiles().last().is_some_and(|bin| bin.until >= day - day / 10_000));
    }
}
