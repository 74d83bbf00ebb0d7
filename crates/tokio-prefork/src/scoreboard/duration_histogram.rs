//! Histograms of durations by powers of two of a millisecond: up to 1 ms, up to 2 ms, up to 4 ms, ... and the rest.

use std::time::Duration;

/// How many buckets a histogram has. The last one counts all durations above 2^14 ms.
pub(crate) const DURATION_BUCKETS: usize = 16;

/// Returns the bucket of a duration. A duration between two powers of two belongs to the larger.
pub(crate) fn duration_bucket(duration: Duration) -> usize {
    let millis = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let up = millis.clamp(1, 1 << DURATION_BUCKETS).next_power_of_two();
    (up.trailing_zeros() as usize).min(DURATION_BUCKETS - 1)
}

/// Returns the upper bound of a bucket, in milliseconds; 2^15 for the last one, which has no bound.
fn bucket_bound_ms(bucket: usize) -> u64 {
    1 << bucket
}

/// Returns the upper bound of a percentile, in milliseconds; `None` for an empty histogram.
pub(crate) fn duration_quantile(buckets: &[u64; DURATION_BUCKETS], percent: u32) -> Option<u64> {
    // Wide enough for anything that may stand in a page.
    let total: u128 = buckets.iter().map(|n| u128::from(*n)).sum();
    let wanted = (total * u128::from(percent)).div_ceil(100).max(1);
    let mut seen = 0;
    let bucket = buckets.iter().position(|n| {
        seen += u128::from(*n);
        seen >= wanted
    });
    bucket.map(bucket_bound_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_under_the_next_power_of_two() {
        let bucket_of_ms = |millis| duration_bucket(Duration::from_millis(millis));
        let cases = [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1000, 10), (16_384, 14)];
        for (millis, bucket) in cases {
            assert_eq!(bucket_of_ms(millis), bucket, "{millis}");
        }
        assert_eq!([16_385, 40_000, u64::MAX].map(bucket_of_ms), [15, 15, 15]);
        for (micros, bucket) in [(1000, 0), (1001, 1), (2001, 2), (16_384_001, 15)] {
            assert_eq!(duration_bucket(Duration::from_micros(micros)), bucket, "{micros} us");
        }
        for millis in 1..=16_384 {
            let bucket = bucket_of_ms(millis);
            assert!(
                millis <= bucket_bound_ms(bucket)
                    && (bucket == 0 || millis > bucket_bound_ms(bucket - 1))
            );
        }
    }

    #[test]
    fn quantiles_are_bounds_of_what_was_counted() {
        let mut buckets = [0; DURATION_BUCKETS];
        assert_eq!(duration_quantile(&buckets, 50), None);
        buckets[3] = 1;
        assert_eq!([0, 50, 99, 100].map(|p| duration_quantile(&buckets, p)), [Some(8); 4]);
        buckets[0] = 98;
        buckets[15] = 1;
        let got = [50, 98, 99, 100].map(|p| duration_quantile(&buckets, p));
        assert_eq!(got, [Some(1), Some(1), Some(8), Some(1 << 15)]);
        assert_eq!(duration_quantile(&[u64::MAX; DURATION_BUCKETS], 50), Some(128));
    }
}
