//! The arithmetic of the rate limiter, without a clock: a token bucket in one number (GCRA).
//!
//! The number is the *theoretical arrival time*: when the bucket would be full again if no more tokens were taken. A token is worth
//! one interval of time. Taking a token moves the number forward by one interval, and is allowed while the number is at most `burst`
//! intervals ahead of now. So the whole state is one word that only grows, and one compare-and-swap takes tokens for all workers.

use std::time::Duration;

/// A rate with a burst, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenRate {
    /// Time per token.
    interval_ns: u64,
    /// How far the theoretical arrival time may be ahead of now: `burst` intervals.
    burst_ns: u64,
}

/// The longest time to refill a bucket: a hundred years, so that no sum with a clock overflows.
const MAX_REFILL_NS: u64 = 100 * 365 * 86_400 * 1_000_000_000;

impl TokenRate {
    /// Creates a rate of `tokens` per `per`, with up to `burst` at once.
    ///
    /// Returns `None` if a number is zero, or if an empty bucket would take more than a hundred years to refill.
    pub(super) fn new(tokens: u32, per: Duration, burst: u32) -> Option<TokenRate> {
        let per =
            u64::try_from(per.as_nanos()).ok().filter(|per| (1..=MAX_REFILL_NS).contains(per))?;
        if tokens == 0 || burst == 0 {
            return None;
        }
        // Rounded up, so that the rate is never exceeded.
        let interval_ns = per.div_ceil(u64::from(tokens));
        let burst_ns = interval_ns
            .checked_mul(u64::from(burst))
            .filter(|burst_ns| *burst_ns <= MAX_REFILL_NS)?;
        Some(TokenRate { interval_ns, burst_ns })
    }

    /// Returns the new state if `n` tokens can be taken now, or else how long to wait for them. `None` if the bucket cannot hold `n`.
    ///
    /// Read the state before the clock. Then no valid state is more than `burst_ns` ahead of now. One that is was written by a stray
    /// pointer, and counts as an empty bucket.
    pub(super) fn try_take(self, state: u64, now: u64, n: u32) -> Option<Result<u64, Duration>> {
        let cost =
            self.interval_ns.checked_mul(u64::from(n)).filter(|cost| *cost <= self.burst_ns)?;
        let limit = now.saturating_add(self.burst_ns);
        let after = state.clamp(now, limit).saturating_add(cost);
        Some(match after.checked_sub(limit) {
            None | Some(0) => Ok(after),
            Some(early) => Err(Duration::from_nanos(early)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_full_bucket_allows_its_burst_and_then_one_token_per_interval() {
        let rate = TokenRate::new(10, Duration::from_secs(1), 3).expect("rate");
        let (mut state, now) = (0, 5 * SECOND);
        for _ in 0..3 {
            state = rate.try_take(state, now, 1).expect("fits").expect("a token");
        }
        let wait = rate.try_take(state, now, 1).expect("fits").expect_err("empty");
        assert_eq!(wait, Duration::from_millis(100));
        assert!(rate.try_take(state, now + SECOND / 10, 1).expect("fits").is_ok());
        assert_eq!(rate.try_take(state, now, 4), None, "more tokens than the bucket holds");
        assert_eq!(
            rate.try_take(state, now, 0),
            Some(Ok(state)),
            "zero tokens are always available"
        );
    }

    #[test]
    fn zero_and_overflowing_rates_are_rejected() {
        let second = Duration::from_secs(1);
        assert_eq!(TokenRate::new(0, second, 1), None);
        assert_eq!(TokenRate::new(1, second, 0), None);
        assert_eq!(TokenRate::new(1, Duration::ZERO, 1), None);
        assert_eq!(TokenRate::new(1, Duration::MAX, 1), None);
        assert_eq!(TokenRate::new(1, Duration::from_secs(86_400), u32::MAX), None);
    }

    #[test]
    fn a_corrupted_state_recovers_within_the_refill_time() {
        let rate = TokenRate::new(1, Duration::from_secs(1), 2).expect("rate");
        let wait = rate.try_take(u64::MAX, 7, 1).expect("fits").expect_err("empty");
        assert_eq!(wait, Duration::from_secs(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Compares with a textbook token bucket in exact fractions of a token.
        #[test]
        fn it_matches_a_textbook_token_bucket(
            interval_ns in 1..5_000u64,
            burst in 1..20u32,
            requests in proptest::collection::vec((0..20_000u64, 0..4u32), 1..200),
        ) {
            let rate = TokenRate::new(1, Duration::from_nanos(interval_ns), burst).expect("rate");
            let full = u64::from(burst) * interval_ns;
            let (mut now, mut state, mut tokens) = (SECOND, 0, full);
            for (pause, n) in requests {
                now += pause;
                tokens = (tokens + pause).min(full);
                let cost = u64::from(n) * interval_ns;
                match rate.try_take(state, now, n) {
                    None => prop_assert!(n > burst),
                    Some(Ok(after)) => {
                        prop_assert!(tokens >= cost);
                        tokens -= cost;
                        state = after;
                    }
                    Some(Err(wait)) => {
                        prop_assert_eq!(wait.as_nanos() as u64, cost - tokens);
                        let later = now + wait.as_nanos() as u64;
                        prop_assert!(rate.try_take(state, later, n).is_some_and(|taken| taken.is_ok()));
                    }
                }
            }
        }

        /// Interleaves workers that read the state, pause, read the clock, pause, and swap.
        #[test]
        fn no_time_window_exceeds_the_rate_however_workers_interleave(
            interval_ns in 1..50u64,
            burst in 1..6u32,
            steps in proptest::collection::vec((0..4usize, 0..60u64), 1..300),
        ) {
            let rate = TokenRate::new(1, Duration::from_nanos(interval_ns), burst).expect("rate");
            let (mut now, mut word) = (SECOND, 0);
            // The state and the clock that each worker has read.
            let mut workers: [(Option<u64>, Option<u64>); 4] = [(None, None); 4];
            let mut admitted = Vec::new();
            for (worker, pause) in steps {
                now += pause;
                workers[worker] = match workers[worker] {
                    (None, _) => (Some(word), None),
                    (seen, None) => (seen, Some(now)),
                    (Some(seen), Some(clock)) => {
                        if let Some(Ok(after)) = rate.try_take(seen, clock, 1) && seen == word {
                            word = after;
                            admitted.push(clock);
                        }
                        (None, None)
                    }
                };
            }
            admitted.sort_unstable();
            for (i, from) in admitted.iter().enumerate() {
                for (j, to) in admitted.iter().enumerate().skip(i) {
                    let most = u64::from(burst) + (to - from) / interval_ns;
                    prop_assert!((j - i + 1) as u64 <= most, "{} in {}", j - i + 1, to - from);
                }
            }
        }
    }
}
