//! The ratio of a run to an earlier run, with a confidence interval. Rounds of different runs form no pairs.
//!
//! The ratio is the Hodges-Lehmann estimate: each value of this run is divided by each value of the earlier run, and the
//! median of all these ratios is taken (J. L. Hodges and E. L. Lehmann, *Annals of Mathematical Statistics* 34, 1963). The
//! interval runs from the k-th smallest to the k-th largest of them; k comes from the exact distribution of the Mann-Whitney
//! statistic. A factor is outside the interval if the Mann-Whitney test finds a difference between this run and the earlier
//! one multiplied by that factor (M. Hollander, D. A. Wolfe and E. Chicken, *Nonparametric Statistical Methods*, 4.3). The
//! noise may have any distribution, if it is the same in both runs.

use serde::Serialize;

/// Most values of each run for which the distribution is computed exactly: all its counts fit in 128 bits.
const MAX_EXACT_VALUES: usize = 64;

/// Ratio of this run to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct UnpairedRatio {
    /// Median of the ratios of all values of this run to all values of the earlier run.
    pub median: f64,
    /// Lower end of its confidence interval; `None` with too few rounds for one.
    pub low: Option<f64>,
    /// Upper end of its confidence interval; `None` with too few rounds for one.
    pub high: Option<f64>,
    /// Number of values of the earlier run.
    pub rounds_before: usize,
    /// Number of values of this run.
    pub rounds_now: usize,
}

impl UnpairedRatio {
    /// Compares the values of this run with those of an earlier one; `error_rate` is the chance that the interval misses.
    ///
    /// Returns `None` if one of the runs has no value.
    pub(crate) fn from_values(
        now: &[f64],
        before: &[f64],
        error_rate: f64,
    ) -> Option<UnpairedRatio> {
        // Nothing lost in both runs is no change.
        let ratio = |own: f64, other: f64| if own == other { 1.0 } else { own / other };
        let ratios = now.iter().flat_map(|own| before.iter().map(move |other| ratio(*own, *other)));
        let mut ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
        ratios.sort_by(f64::total_cmp);
        let interval = interval_ends(now.len(), before.len(), error_rate)
            .filter(|(_, high)| *high < ratios.len());
        let half = ratios.len() / 2;
        let upper = *ratios.get(half)?;
        let lower = if ratios.len().is_multiple_of(2) { ratios[half - 1] } else { upper };
        let middle = (lower * upper).sqrt();
        Some(UnpairedRatio {
            median: if middle.is_finite() { middle } else { upper },
            low: interval.map(|(low, _)| ratios[low]),
            high: interval.map(|(_, high)| ratios[high]),
            rounds_before: before.len(),
            rounds_now: now.len(),
        })
    }

    /// Returns the interval, if there were enough rounds for one.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        self.low.zip(self.high)
    }

    /// Returns whether the interval excludes 1: something changed.
    pub(crate) fn shows_change(&self) -> bool {
        self.interval().is_some_and(|(low, high)| low > 1.0 || high < 1.0)
    }
}

/// Returns the indices of the ends of the interval among the sorted ratios; `None` if no interval is so sure.
fn interval_ends(now: usize, before: usize, error_rate: f64) -> Option<(usize, usize)> {
    if now == 0 || before == 0 {
        return None;
    }
    let low = match now.max(before) <= MAX_EXACT_VALUES {
        true => exact_quantile(now, before, error_rate / 2.0)?,
        false => normal_quantile_of_statistic(now, before, error_rate / 2.0)?,
    };
    let last = now * before - 1;
    (low < last - low).then_some((low, last - low))
}

/// Returns the largest statistic that is reached or undercut with a probability of at most `tail`; `None` if there is none.
fn exact_quantile(now: usize, before: usize, tail: f64) -> Option<usize> {
    let counts = statistic_counts(now, before);
    let all: u128 = counts.iter().sum();
    let mut at_most = 0;
    let mut low = None;
    for (statistic, count) in counts.iter().enumerate() {
        at_most += count;
        if at_most as f64 > tail * all as f64 {
            break;
        }
        low = Some(statistic);
    }
    low
}

/// Returns how many arrangements of `now` and `before` values have each value of the Mann-Whitney statistic.
///
/// These are the coefficients of a Gaussian binomial: the product of (1 - q^(before + i)) / (1 - q^i) for i from 1 to `now`.
fn statistic_counts(now: usize, before: usize) -> Vec<u128> {
    let (few, many) = (now.min(before), now.max(before));
    let mut counts = vec![0u128; now * before + 1];
    counts[0] = 1;
    for factor in 1..=few {
        // Before the division coefficients may be negative; modulo 2^128 the end is exact.
        for at in (many + factor..counts.len()).rev() {
            counts[at] = counts[at].wrapping_sub(counts[at - many - factor]);
        }
        for at in factor..counts.len() {
            counts[at] = counts[at].wrapping_add(counts[at - factor]);
        }
    }
    counts
}

/// Returns the same from the normal distribution, which has longer tails than the statistic.
fn normal_quantile_of_statistic(now: usize, before: usize, tail: f64) -> Option<usize> {
    let (now, before) = (now as f64, before as f64);
    let mean = now * before / 2.0;
    let deviation = (now * before * (now + before + 1.0) / 12.0).sqrt();
    let low = (mean - 0.5 - normal_deviate(tail) * deviation).floor();
    (low >= 0.0).then_some(low as usize)
}

/// Returns the deviate that the normal distribution exceeds with this probability, up to one half; never too low.
fn normal_deviate(tail: f64) -> f64 {
    // Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23; its error is below 4.5e-4.
    let root = (-2.0 * tail.ln()).sqrt();
    let above = 2.515_517 + root * (0.802_853 + root * 0.010_328);
    let below = 1.0 + root * (1.432_788 + root * (0.189_269 + root * 0.001_308));
    root - above / below + 4.5e-4
}

/// Returns the fewest rounds, the same in both runs, that have an interval with this error rate.
pub(crate) fn rounds_needed(error_rate: f64) -> usize {
    let most = MAX_EXACT_VALUES;
    (1..most).find(|n| interval_ends(*n, *n, error_rate).is_some()).unwrap_or(most)
}

#[cfg(test)]
#[path = "unpaired_ratio_tests.rs"]
mod tests;
