//! The ratio of two servers: the median of the rounds' ratios, with an exact confidence interval.
//!
//! Both servers are measured in each round, in random order, so the ratio of a round pairs two measurements that are
//! close in time. The interval runs from the k-th smallest to the k-th largest ratio. It misses the true median with
//! a probability of at most 2 P(X < k), where X counts heads among n fair coins (W. J. Conover, *Practical
//! Nonparametric Statistics*, 3.2; H. A. David and H. N. Nagaraja, *Order Statistics*, 7.1). Nothing is assumed about
//! the distribution of the noise, and a gross outlier moves the interval no more than a small one.
//!
//! Two equal servers have a ratio above 1 as often as below, because a coin decides which of them goes first. That
//! holds whatever else the machine does meanwhile.

use serde::Serialize;

/// Most rounds of a comparison: up to here binomial probabilities are exact in `f64`.
pub(crate) const MAX_ROUNDS: usize = 1000;

/// Ratio of one server to another, over the rounds in which both were measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedRatio {
    /// Median of the rounds' ratios.
    pub median: f64,
    /// Lower end of the confidence interval of the median; `None` with too few rounds for one.
    pub low: Option<f64>,
    /// Upper end of the confidence interval of the median; `None` with too few rounds for one.
    pub high: Option<f64>,
    /// Number of rounds in which both servers were measured.
    pub rounds: usize,
}

impl PairedRatio {
    /// Summarizes pairs of values from the same round; `error_rate` is the chance that the interval misses.
    ///
    /// Returns `None` without a pair that has a ratio.
    pub(crate) fn from_pairs(
        pairs: impl IntoIterator<Item = (f64, f64)>,
        error_rate: f64,
    ) -> Option<PairedRatio> {
        // A server that answers nothing has the ratio 0, or makes the other's infinite; 0 to 0 is no ratio.
        let ratios = pairs.into_iter().map(|(own, other)| own / other);
        let mut ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
        ratios.sort_by(f64::total_cmp);
        let interval = median_interval(ratios.len(), error_rate);
        Some(PairedRatio {
            median: middle_ratio(&ratios)?,
            low: interval.map(|(low, _)| ratios[low]),
            high: interval.map(|(_, high)| ratios[high]),
            rounds: ratios.len(),
        })
    }

    /// Returns the interval, if there were enough rounds for one.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        self.low.zip(self.high)
    }

    /// Returns whether the interval excludes 1: the two servers differ.
    pub(crate) fn shows_difference(&self) -> bool {
        self.interval().is_some_and(|(low, high)| low > 1.0 || high < 1.0)
    }

    /// Returns whether the interval is within `precision` of the median, such as 0.05 for 5 %.
    ///
    /// A clear difference, of many times, is precise enough if its interval is a tenth of it on a log scale.
    pub(crate) fn is_precise(&self, precision: f64) -> bool {
        let Some((low, high)) = self.interval() else { return false };
        let size = self.median.ln().abs();
        if size.is_infinite() {
            return low == high;
        }
        let wide = (high / self.median).ln().max((self.median / low).ln());
        let clear = if self.shows_difference() { size / 10.0 } else { 0.0 };
        wide <= (1.0 + precision).ln().max(clear)
    }
}

/// Returns the median of sorted ratios, so that the median of the inverse ratios is its inverse.
fn middle_ratio(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = sorted[half - 1];
    let middle = (lower * upper).sqrt();
    Some(if middle.is_finite() { middle } else { upper })
}

/// Returns the indices of the ends of the interval among `count` sorted values; `None` if no interval is so sure.
pub(crate) fn median_interval(count: usize, error_rate: f64) -> Option<(usize, usize)> {
    let count = count.min(MAX_ROUNDS);
    // P(X = 0), then P(X <= k) for growing k.
    let mut exactly = 0.5f64.powi(count as i32);
    let mut at_most = exactly;
    let mut low = None;
    for heads in 0..count / 2 {
        if 2.0 * at_most > error_rate {
            break;
        }
        low = Some(heads);
        exactly *= (count - heads) as f64 / (heads + 1) as f64;
        at_most += exactly;
    }
    low.map(|low| (low, count - 1 - low))
}

/// Returns the fewest rounds that have an interval with this error rate.
pub(crate) fn rounds_needed(error_rate: f64) -> usize {
    (1..MAX_ROUNDS).find(|n| median_interval(*n, error_rate).is_some()).unwrap_or(MAX_ROUNDS)
}

#[cfg(test)]
#[path = "paired_ratio_tests.rs"]
mod tests;
