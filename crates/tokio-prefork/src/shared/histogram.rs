//! A histogram that all processes share.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::description::MetricDescription;
use super::registry::{self, DeclaredState};
use super::striped_counters::StripedSums;
use crate::error::{Error, Result};

/// The revision of the layout in memory.
const LAYOUT_REVISION: u32 = 1;
/// The most bounds of one histogram.
const MAX_BOUNDS: usize = 256;

/// Observations of all workers, including dead ones, counted in buckets with fixed bounds.
///
/// A bucket counts the observations that are at most its bound and above the previous one; the last bucket counts those above all
/// bounds. The number of observations is the sum of the buckets, so the two always agree. A worker that is killed during an update
/// may leave that observation out of [`HistogramSnapshot::sum`].
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
    /// One count per bound, one for what is above all bounds, and the sum.
    stripes: StripedSums,
}

/// The values of a [`SharedHistogram`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistogramSnapshot {
    /// The upper bounds, in the unit of the observations, ascending.
    pub bounds: Vec<u64>,
    /// The observations per bound, and last those above all bounds.
    pub counts: Vec<u64>,
    /// The sum of all observations. Wraps at 2^64.
    pub sum: u64,
}

impl SharedHistogram {
    /// Declares a histogram with these upper bounds, in a unit of your choice. Call it before the cluster serves.
    ///
    /// # Errors
    /// The bounds are not ascending, are empty, or more than 256; the name is taken or not a valid metric name, this is a worker
    /// process, or memory is short.
    pub fn new<'a>(
        name: impl Into<MetricDescription<'a>>,
        bounds: &[u64],
    ) -> Result<SharedHistogram> {
        let declared = registry::validate_description(&name.into())?;
        let name = declared.key;
        let growing = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.is_empty() || bounds.len() > MAX_BOUNDS || !growing {
            return Err(Error::config(format!(
                "cannot declare the histogram {name:?} with the bounds {bounds:?}: use 1 to {MAX_BOUNDS} bounds in ascending order"
            )));
        }
        let layout = format!("{LAYOUT_REVISION} bounds={:016x}", fingerprint(bounds));
        let stripes = StripedSums::new(name, "histogram", &layout, bounds.len() + 2)?;
        let bounds = Box::leak(bounds.to_vec().into_boxed_slice());
        let histogram = SharedHistogram { bounds, stripes };
        registry::register_declared(declared, DeclaredState::Histogram(histogram))?;
        Ok(histogram)
    }

    /// Counts one observation.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.stripes.add([(bucket, 1), (self.bounds.len() + 1, value)]);
    }

    /// Reads the histogram.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            bounds: self.bounds.to_vec(),
            counts: (0..=self.bounds.len()).map(|bucket| self.stripes.sum(bucket)).collect(),
            sum: self.stripes.sum(self.bounds.len() + 1),
        }
    }
}

/// Returns a number that differs for other bounds (FNV-1a), as counts by other bounds mean something else.
fn fingerprint(bounds: &[u64]) -> u64 {
    let bytes = bounds.iter().flat_map(|bound| bound.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl HistogramSnapshot {
    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Returns the smallest bound that at least the share `q` (0 to 1) of the observations does not exceed.
    ///
    /// `None` without observations, or if it is above all bounds.
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
    fn a_bucket_includes_its_bound() {
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
    fn an_empty_histogram_has_no_quantile() {
        let histogram = SharedHistogram::new("histogram_empty", &[1]).expect("histogram");
        assert_eq!(histogram.snapshot().quantile(0.5), None);
    }

    #[test]
    fn bounds_must_be_ascending() {
        for bounds in [&[][..], &[1, 1], &[2, 1]] {
            let error = SharedHistogram::new("histogram_bad", bounds).expect_err("bad").to_string();
            assert!(error.contains("ascending"), "{error}");
        }
    }
}
