//! When to wake for a request that is due.
//!
//! A thread runs some time after the timer that wakes it: 50 us and more on a virtual machine. So the timer is set earlier by
//! what most wake-ups take, and the rest of the time is spent polling.

/// Longest time by which to wake early: 100 us. What takes longer is other work on the processor, which comes at no fixed time.
const MAX_ADVANCE_NANOS: u64 = 100_000;
/// By how much the estimate grows after a late wake-up: 2 us.
const STEP_UP_NANOS: u64 = 2_000;
/// By how much it shrinks after an early one: 500 ns, so that four of five are early.
const STEP_DOWN_NANOS: u64 = 500;

/// Estimates how long wake-ups take.
#[derive(Debug, Default)]
pub(crate) struct WakeTime {
    /// What four of five wake-ups take at most.
    estimate: u64,
    /// When the timer expires that a wake-up will be measured by.
    expires: Option<u64>,
}

impl WakeTime {
    /// Returns when the timer must expire for a request that is due at `due`.
    pub(crate) fn set_timer(&mut self, due: u64) -> u64 {
        let expires = due.saturating_sub(self.estimate);
        self.expires = Some(expires);
        expires
    }

    /// Returns whether to poll until the request is due, rather than to sleep until the timer expires.
    pub(crate) fn is_soon(&self, due: u64, now: u64) -> bool {
        // Also after the wake-up itself has made the estimate smaller.
        due <= now + self.estimate + STEP_DOWN_NANOS
    }

    /// Learns from a wake-up by the timer.
    pub(crate) fn record_woken(&mut self, now: u64) {
        let Some(expires) = self.expires.take() else { return };
        self.estimate = match now.saturating_sub(expires) > self.estimate {
            true => (self.estimate + STEP_UP_NANOS).min(MAX_ADVANCE_NANOS),
            false => self.estimate.saturating_sub(STEP_DOWN_NANOS),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets wake-ups take these times over and over, and returns the share of those that were early enough.
    fn share_in_time(took: &[u64]) -> f64 {
        let mut wake = WakeTime::default();
        let mut in_time = 0;
        for number in 0..10_000u64 {
            let due = 1_000_000 * (number + 1);
            let woken = wake.set_timer(due) + took[number as usize % took.len()];
            wake.record_woken(woken);
            in_time += u64::from(woken <= due);
        }
        in_time as f64 / 10_000.0
    }

    #[test]
    fn most_wake_ups_are_early() {
        let share = share_in_time(&[40_000, 50_000, 60_000, 45_000, 900_000]);
        assert!((0.7..0.9).contains(&share), "{share}");
        assert!(share_in_time(&[20_000]) > 0.7);
    }

    #[test]
    fn wake_ups_that_take_too_long_are_not_waited_for() {
        let mut wake = WakeTime::default();
        for due in (0..1000).map(|number| 1_000_000_000 + number * 10_000_000) {
            let expires = wake.set_timer(due);
            assert!(due - expires <= MAX_ADVANCE_NANOS);
            wake.record_woken(expires + 5_000_000);
        }
        assert!(wake.is_soon(1_050_000, 1_000_000) && !wake.is_soon(1_200_000, 1_000_000));
    }
}
