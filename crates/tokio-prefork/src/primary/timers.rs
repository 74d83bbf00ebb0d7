//! The timers of the application in the primary. Pure: the time is an argument.
//!
//! A timer runs at its time or later, never earlier. The event loop bounds its wait by the earliest one, so timers need
//! no thread and no signal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// The shortest interval of a repeating timer. With a shorter one the loop would do nothing else.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The delay of a timer whose time the clock cannot represent.
const FAR_FUTURE: Duration = Duration::from_secs(365 * 86_400);

/// Identifies a timer of [`PrimaryHandle::after`](crate::PrimaryHandle::after) or
/// [`PrimaryHandle::every`](crate::PrimaryHandle::every), to cancel it.
///
/// An id is never used again in the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(u64);

impl fmt::Display for TimerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One timer; `T` is its callback.
#[derive(Debug)]
struct Timer<T> {
    due: Instant,
    /// `None` for a timer that runs once.
    interval: Option<Duration>,
    /// `None` while the callback runs.
    callback: Option<T>,
}

/// All timers that have not run or run again.
#[derive(Debug)]
pub(super) struct Timers<T> {
    last_id: u64,
    timers: BTreeMap<TimerId, Timer<T>>,
    by_due: BTreeSet<(Instant, TimerId)>,
}

impl<T> Default for Timers<T> {
    fn default() -> Timers<T> {
        Timers { last_id: 0, timers: BTreeMap::new(), by_due: BTreeSet::new() }
    }
}

impl<T> Timers<T> {
    /// Adds a timer that runs once, `delay` from now.
    pub(super) fn add_once(&mut self, now: Instant, delay: Duration, callback: T) -> TimerId {
        self.add_timer(add_delay(now, delay), None, callback)
    }

    /// Adds a timer that runs each `interval`, for the first time after one.
    pub(super) fn add_repeating(
        &mut self,
        now: Instant,
        interval: Duration,
        callback: T,
    ) -> TimerId {
        let interval = interval.max(MIN_INTERVAL);
        self.add_timer(add_delay(now, interval), Some(interval), callback)
    }

    fn add_timer(&mut self, due: Instant, interval: Option<Duration>, callback: T) -> TimerId {
        self.last_id += 1;
        let id = TimerId(self.last_id);
        self.timers.insert(id, Timer { due, interval, callback: Some(callback) });
        self.by_due.insert((due, id));
        id
    }

    /// Removes a timer, and returns whether it existed.
    pub(super) fn cancel(&mut self, id: TimerId) -> bool {
        let Some(timer) = self.timers.remove(&id) else { return false };
        self.by_due.remove(&(timer.due, id));
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    /// Returns when the next timer is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// Returns the timers that are due, earliest first. Timers that are added from now on are not among them, so a
    /// callback that adds a timer without delay cannot hold up the loop.
    pub(super) fn due_timers(&self, now: Instant) -> Vec<TimerId> {
        self.by_due.iter().take_while(|(due, _)| *due <= now).map(|(_, id)| *id).collect()
    }

    /// Takes the callback of a timer in order to run it. Returns `None` if the timer was cancelled meanwhile.
    ///
    /// A timer that runs once is removed. A repeating one is due again after its interval; times that have passed
    /// already are skipped.
    pub(super) fn start_callback(&mut self, now: Instant, id: TimerId) -> Option<T> {
        let timer = self.timers.get_mut(&id)?;
        let callback = timer.callback.take()?;
        self.by_due.remove(&(timer.due, id));
        match timer.interval {
            None => drop(self.timers.remove(&id)),
            Some(interval) => {
                let next = add_delay(timer.due, interval);
                timer.due = if next > now { next } else { add_delay(now, interval) };
                self.by_due.insert((timer.due, id));
            }
        }
        Some(callback)
    }

    /// Returns the callback of a repeating timer after it has run. It is dropped if it has cancelled its own timer.
    pub(super) fn finish_callback(&mut self, id: TimerId, callback: T) {
        if let Some(timer) = self.timers.get_mut(&id) {
            timer.callback = Some(callback);
        }
    }
}

fn add_delay(now: Instant, delay: Duration) -> Instant {
    now.checked_add(delay).unwrap_or(now + FAR_FUTURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs everything that is due at `now`, and returns the callbacks in their order.
    fn run_due(timers: &mut Timers<&'static str>, now: Instant) -> Vec<&'static str> {
        let mut ran = Vec::new();
        for id in timers.due_timers(now) {
            let Some(callback) = timers.start_callback(now, id) else { continue };
            ran.push(callback);
            timers.finish_callback(id, callback);
        }
        ran
    }

    #[test]
    fn timers_run_in_the_order_of_their_times_and_once() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        timers.add_once(now, ms(20), "late");
        timers.add_once(now, ms(10), "early");
        timers.add_once(now, ms(10), "early too");
        assert_eq!(timers.next_due(), Some(now + ms(10)));
        assert_eq!(run_due(&mut timers, now + ms(9)), [""; 0]);
        assert_eq!(run_due(&mut timers, now + ms(30)), ["early", "early too", "late"]);
        assert!(timers.is_empty() && timers.next_due().is_none());
    }

    #[test]
    fn a_repeating_timer_keeps_its_rhythm_and_skips_missed_times() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        timers.add_repeating(now, ms(10), "tick");
        assert_eq!(run_due(&mut timers, now + ms(13)), ["tick"]);
        assert_eq!(timers.next_due(), Some(now + ms(20)));
        assert_eq!(run_due(&mut timers, now + ms(95)), ["tick"]);
        assert_eq!(timers.next_due(), Some(now + ms(105)));
    }

    #[test]
    fn a_cancelled_timer_does_not_run_any_more() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let once = timers.add_once(now, ms(1), "once");
        let repeating = timers.add_repeating(now, ms(1), "repeating");
        assert!(timers.cancel(once) && !timers.cancel(once));
        // Cancelled by its own callback: what comes back is dropped.
        let callback = timers.start_callback(now + ms(1), repeating).expect("due");
        assert!(timers.cancel(repeating));
        timers.finish_callback(repeating, callback);
        assert!(timers.is_empty() && timers.due_timers(now + ms(100)).is_empty());
    }

    #[test]
    fn intervals_and_delays_are_bounded() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        timers.add_repeating(now, Duration::ZERO, "often");
        assert_eq!(timers.next_due(), Some(now + MIN_INTERVAL));
        let never = timers.add_once(now, Duration::MAX, "never");
        assert!(!timers.due_timers(now + Duration::from_secs(86_400)).contains(&never));
    }
}
