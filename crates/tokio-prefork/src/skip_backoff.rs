//! Skips attempts that have failed repeatedly.

/// How many misses in a row are counted: after more of them, 2^6 - 2 attempts are skipped each time.
const MAX_COUNTED_MISSES: u32 = 6;

/// Decides whether to make an attempt. After n misses in a row, 2^n - 2 attempts are skipped; one hit resets the count.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SkipBackoff {
    misses: u32,
    to_skip: u32,
}

impl SkipBackoff {
    /// Returns whether to make this attempt. If not, it counts as skipped.
    pub(crate) fn should_try(&mut self) -> bool {
        let should_try = self.to_skip == 0;
        self.to_skip = self.to_skip.saturating_sub(1);
        should_try
    }

    /// Records a miss.
    pub(crate) fn record_miss(&mut self) {
        self.misses = (self.misses + 1).min(MAX_COUNTED_MISSES);
        self.to_skip = (1 << self.misses) - 2;
    }

    /// Records a hit.
    pub(crate) fn record_hit(&mut self) {
        *self = SkipBackoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_miss_doubles_the_skipped_attempts_and_a_hit_resets_them() {
        let mut backoff = SkipBackoff::default();
        let mut skips = Vec::new();
        for _ in 0..8 {
            backoff.record_miss();
            let mut skipped = 0;
            while !backoff.should_try() {
                skipped += 1;
            }
            skips.push(skipped);
        }
        assert_eq!(skips, [0, 2, 6, 14, 30, 62, 62, 62]);
        backoff.record_miss();
        backoff.record_hit();
        assert!(backoff.should_try() && backoff.should_try());
    }
}
