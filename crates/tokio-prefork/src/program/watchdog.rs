//! Whether a program makes progress: it says so itself (`WATCHDOG=1`), or answers its probe.

use std::time::{Duration, Instant};

/// Decides when a program counts as frozen. Without anything to go by it never does.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// How long a sign of life counts; `None` disables the watchdog.
    interval: Option<Duration>,
    last_sign: Instant,
    /// Whether the program takes part: it has said `WATCHDOG=1` once, or it is probed.
    is_active: bool,
}

impl Watchdog {
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Watchdog {
        Watchdog { interval, last_sign: now, is_active: false }
    }

    /// Records a sign of life. From the first one on, the program is expected to give more.
    pub(super) fn record_sign(&mut self, now: Instant) {
        self.is_active = true;
        self.last_sign = now;
    }

    /// Makes the program count as frozen until its next sign of life.
    pub(super) fn trigger(&mut self, now: Instant) {
        self.is_active = true;
        self.last_sign =
            self.interval.and_then(|interval| now.checked_sub(interval)).unwrap_or(self.last_sign);
    }

    pub(super) fn is_frozen(&self, now: Instant) -> bool {
        let limit = self.interval.filter(|_| self.is_active);
        limit.is_some_and(|limit| now.duration_since(self.last_sign) >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_that_has_given_a_sign_of_life_is_expected_to_give_more() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut watchdog = Watchdog::new(Some(Duration::from_secs(2)), now);
        assert!(!watchdog.is_frozen(after(100)));
        watchdog.record_sign(after(100));
        assert!(!watchdog.is_frozen(after(101)) && watchdog.is_frozen(after(102)));
        watchdog.record_sign(after(103));
        assert!(!watchdog.is_frozen(after(104)));
        watchdog.trigger(after(104));
        assert!(watchdog.is_frozen(after(104)));
        let mut off = Watchdog::new(None, now);
        off.record_sign(now);
        assert!(!off.is_frozen(after(1000)));
    }
}
