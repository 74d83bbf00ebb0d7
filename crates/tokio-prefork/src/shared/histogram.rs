//! How large things are, counted by size.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::registry::{self, Thing};
use super::striped_counters::Stripes;
use crate::error::{Error, Result};

/// Bounds of one histogram.
const MOST_BOUNDS: usize = 256;

/// Observations over all workers, the dead ones too, counted in buckets with fixed bounds.
///
/// A bucket counts what is at most its bound and more than the bound before; one more bucket counts what is
/// above them all. The number of observations is the sum of the buckets, so the two always agree; a worker that
/// is killed in mid-update may be missing in [`HistogramSnapshot::sum`] with that one observation.
///
/// ```
/// use tokio_prefork::SharedHistogram;
///
/// let latency = SharedHistogram::new("latency_ms", &[1, 10, 100, 1000])?;
/// for ms in [3, 7, 70] {
///     latency.observe(ms);
/// }
/// let seen = latency.snapshot();
/// assert_eq!((seen.count(), seen.sum), (3, 80));
/// assert_eq!(seen.quantile(0.5), Some(10));
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct SharedHistogram {
    bounds: &'static [u64],
    /// A count for each bound, one for what is above, and the sum.
    stripes: Stripes,
}

/// A [`SharedHistogram`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistogramSnapshot {
    /// The upper bounds, in the unit of the observations, growing.
    pub bounds: Vec<u64>,
    /// Observations for each bound, and last those above them all.
    pub counts: Vec<u64>,
    /// The sum of all observations; it wraps at 2^64.
    pub sum: u64,
}

impl SharedHistogram {
    /// Declares a histogram with these upper bounds, before the cluster serves. The unit is the caller's.
    ///
    /// # Errors
    /// The bounds do not grow, or are none or more than 256; the name is taken or no name for a metric, this is
    /// a worker, or there is no memory.
    pub fn new(name: &str, bounds: &[u64]) -> Result<SharedHistogram> {
        let name = registry::name(name)?;
        let growing = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.is_empty() || bounds.len() > MOST_BOUNDS || !growing {
            return Err(Error::config(format!(
                "the bounds of the histogram {name:?} must grow, and be 1 to {MOST_BOUNDS}: {bounds:?}"
            )));
        }
        let stripes = Stripes::new(bounds.len() + 2)
            .map_err(|e| Error::system(format!("get memory for the histogram {name:?}"), e))?;
        let bounds = Box::leak(bounds.to_vec().into_boxed_slice());
        let histogram = SharedHistogram { bounds, stripes };
        registry::declare(name, Thing::Histogram(histogram))?;
        Ok(histogram)
    }

    /// Counts one observation.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.stripes.add([(bucket, 1), (self.bounds.len() + 1, value)]);
    }

    /// What was observed so far.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            bounds: self.bounds.to_vec(),
            counts: (0..=self.bounds.len()).map(|bucket| self.stripes.sum(bucket)).collect(),
            sum: self.stripes.sum(self.bounds.len() + 1),
        }
    }
}

impl HistogramSnapshot {
    /// How many observations there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// The least bound that at least the share `q` (0 to 1) of the observations does not exceed. `None` if
    /// there were none, or if it lies above all bounds.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let wanted = (q.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0);
        let mut below = 0.0;
        let mut buckets = self.bounds.iter().zip(&self.counts);
        buckets.find_map(|(bound, count)| {
            below += *count as f64;
            (below >= wanted).then_some(*bound)
        })
    }
}

impl fmt::Debug for SharedHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = SharedHistogram::new("histogram_bounds", &[0, 10]).expect("histogram");
        for value in [0, 1, 10, 11, u64::MAX - 21] {
            histogram.observe(value);
        }
        let seen = histogram.snapshot();
        assert_eq!((seen.counts.as_slice(), seen.count(), seen.sum), (&[1, 2, 2][..], 5, 0));
        assert_eq!(
            (seen.quantile(0.0), seen.quantile(0.6), seen.quantile(0.7)),
            (Some(0), Some(10), None)
        );
    }

    #[test]
    fn nothing_seen_has_no_quantile() {
        let histogram = SharedHistogram::new("histogram_empty", &[1]).expect("histogram");
        assert_eq!(histogram.snapshot().quantile(0.5), None);
    }

    #[test]
    fn bounds_must_grow() {
        for bounds in [&[][..], &[1, 1], &[2, 1]] {
            let error = SharedHistogram::new("histogram_bad", bounds).expect_err("bad").to_string();
            assert!(error.contains("must grow"), "{error}");
        }
    }
}
