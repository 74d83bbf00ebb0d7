//! The rule of the rate limiter, without a clock: a token bucket as one number (GCRA).
//!
//! The number is the *theoretical arrival time*: when the bucket would be full again if nobody asked any more.
//! One token is one `interval` of time. Whoever takes a token moves it on by one interval, and may do so as
//! long as it stays at most `burst` intervals ahead of now. So one word that only grows is the whole state, and
//! one compare-and-swap takes tokens from all workers at once: nothing can be left half done.

use std::time::Duration;

/// A rate, as nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// Between two tokens.
    interval: u64,
    /// How far the theoretical arrival time may be ahead: `burst` intervals.
    ahead: u64,
}

/// A hundred years: no sum of two such numbers and a clock overflows.
const LONGEST: u64 = 100 * 365 * 86_400 * 1_000_000_000;

impl Rule {
    /// `rate` tokens in each `per`, and up to `burst` at once. `None` if one is zero, or if a full bucket would
    /// take more than a hundred years.
    pub(super) fn new(rate: u32, per: Duration, burst: u32) -> Option<Rule> {
        let per = u64::try_from(per.as_nanos()).ok().filter(|per| (1..=LONGEST).contains(per))?;
        if rate == 0 || burst == 0 {
            return None;
        }
        // Rounded up to whole nanoseconds: never a token too many.
        let interval = per.div_ceil(u64::from(rate));
        let ahead = interval.checked_mul(u64::from(burst)).filter(|ahead| *ahead <= LONGEST)?;
        Some(Rule { interval, ahead })
    }

    /// What the state becomes if `n` tokens are taken now, or else how long to wait until they could be. `None`
    /// if they never could: the bucket does not hold so many.
    ///
    /// The state must have been read before the clock. Then no honest state is more than `ahead` in the future;
    /// one that is was written by a stray pointer, and counts as a bucket that is empty.
    pub(super) fn take(self, state: u64, now: u64, n: u32) -> Option<Result<u64, Duration>> {
        let cost = self.interval.checked_mul(u64::from(n)).filter(|cost| *cost <= self.ahead)?;
        let limit = now.saturating_add(self.ahead);
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
    fn a_full_bucket_gives_its_burst_and_then_one_for_each_interval() {
        let rule = Rule::new(10, Duration::from_secs(1), 3).expect("rule");
        let (mut state, now) = (0, 5 * SECOND);
        for _ in 0..3 {
            state = rule.take(state, now, 1).expect("fits").expect("a token");
        }
        let wait = rule.take(state, now, 1).expect("fits").expect_err("empty");
        assert_eq!(wait, Duration::from_millis(100));
        assert!(rule.take(state, now + SECOND / 10, 1).expect("fits").is_ok());
        assert_eq!(rule.take(state, now, 4), None, "more than the bucket holds");
        assert_eq!(rule.take(state, now, 0), Some(Ok(state)), "nothing is always there");
    }

    #[test]
    fn rates_that_make_no_sense_are_none() {
        let second = Duration::from_secs(1);
        assert_eq!(Rule::new(0, second, 1), None);
        assert_eq!(Rule::new(1, second, 0), None);
        assert_eq!(Rule::new(1, Duration::ZERO, 1), None);
        assert_eq!(Rule::new(1, Duration::MAX, 1), None);
        assert_eq!(Rule::new(1, Duration::from_secs(86_400), u32::MAX), None);
    }

    #[test]
    fn a_wild_state_heals_within_the_time_of_a_burst() {
        let rule = Rule::new(1, Duration::from_secs(1), 2).expect("rule");
        let wait = rule.take(u64::MAX, 7, 1).expect("fits").expect_err("empty");
        assert_eq!(wait, Duration::from_secs(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against the bucket as textbooks have it, in exact fractions of a token.
        #[test]
        fn it_is_a_token_bucket(
            interval in 1..5_000u64,
            burst in 1..20u32,
            asked in proptest::collection::vec((0..20_000u64, 0..4u32), 1..200),
        ) {
            let rule = Rule::new(1, Duration::from_nanos(interval), burst).expect("rule");
            let full = u64::from(burst) * interval;
            let (mut now, mut state, mut tokens) = (SECOND, 0, full);
            for (pause, n) in asked {
                now += pause;
                tokens = (tokens + pause).min(full);
                let cost = u64::from(n) * interval;
                match rule.take(state, now, n) {
                    None => prop_assert!(n > burst),
                    Some(Ok(after)) => {
                        prop_assert!(tokens >= cost);
                        tokens -= cost;
                        state = after;
                    }
                    Some(Err(wait)) => {
                        prop_assert_eq!(wait.as_nanos() as u64, cost - tokens);
                        let later = now + wait.as_nanos() as u64;
                        prop_assert!(rule.take(state, later, n).is_some_and(|taken| taken.is_ok()));
                    }
                }
            }
        }

        /// Workers that read the state, stop for a while, read the clock, stop, and then swap, in any order: no
        /// window of time admits more than the burst and what flows in.
        #[test]
        fn no_window_admits_too_many_however_workers_interleave(
            interval in 1..50u64,
            burst in 1..6u32,
            steps in proptest::collection::vec((0..4usize, 0..60u64), 1..300),
        ) {
            let rule = Rule::new(1, Duration::from_nanos(interval), burst).expect("rule");
            let (mut now, mut word) = (SECOND, 0);
            // What each worker has read of the state, and then of the clock.
            let mut hands: [(Option<u64>, Option<u64>); 4] = [(None, None); 4];
            let mut admitted = Vec::new();
            for (worker, pause) in steps {
                now += pause;
                hands[worker] = match hands[worker] {
                    (None, _) => (Some(word), None),
                    (seen, None) => (seen, Some(now)),
                    (Some(seen), Some(clock)) => {
                        if let Some(Ok(after)) = rule.take(seen, clock, 1) && seen == word {
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
                    let most = u64::from(burst) + (to - from) / interval;
                    prop_assert!((j - i + 1) as u64 <= most, "{} in {}", j - i + 1, to - from);
                }
            }
        }
    }
}
