//! Waits for the end of a burst of changes.

use std::time::{Duration, Instant};

/// How long nothing may change before a burst counts as over. `git checkout` and editors pause for less between two files.
const QUIET_TIME: Duration = Duration::from_millis(100);

/// How long a burst may last before it is looked at anyway: something may write all the time.
const MAX_BURST: Duration = Duration::from_secs(3);

/// The changes that were not looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Debounce {
    burst: Option<Burst>,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// Records that something has changed.
    pub(crate) fn record_change(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |burst| burst.first);
        self.burst = Some(Burst { first, last: now });
    }

    /// Returns when the burst is over, if nothing else changes. `None` without a change.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Burst { first, last } = self.burst?;
        Some((last + QUIET_TIME).min(first + MAX_BURST))
    }

    /// Forgets the burst if it is over, and returns whether it was.
    pub(crate) fn take_finished(&mut self, now: Instant) -> bool {
        let is_finished = self.deadline().is_some_and(|deadline| deadline <= now);
        if is_finished {
            self.burst = None;
        }
        is_finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_is_one_change_when_it_has_been_quiet() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        assert!(debounce.deadline().is_none() && !debounce.take_finished(start));
        for n in 0..1000 {
            debounce.record_change(start + ms(n));
            assert!(!debounce.take_finished(start + ms(n)), "{n}");
        }
        let end = start + ms(999) + QUIET_TIME;
        assert_eq!(debounce.deadline(), Some(end));
        assert!(!debounce.take_finished(end - ms(1)));
        assert!(debounce.take_finished(end));
        assert!(!debounce.take_finished(end), "only once");
    }

    #[test]
    fn changes_without_end_are_looked_at_from_time_to_time() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        let finished: Vec<u64> = (0..10_000)
            .step_by(50)
            .filter(|n| {
                debounce.record_change(start + ms(*n));
                debounce.take_finished(start + ms(*n))
            })
            .collect();
        assert_eq!(finished, [3000, 6050, 9100]);
    }
}
