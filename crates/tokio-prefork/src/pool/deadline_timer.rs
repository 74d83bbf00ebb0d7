//! A thread that wakes callers at the deadlines of their jobs, so that deadlines need no tokio runtime with timers.
//!
//! It starts with the first deadline that somebody waits for, and ends when there was none for ten seconds.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::job_state::contain_panic;

/// How long the thread waits for a deadline before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time of a deadline, and a number that makes it unique.
type EntryKey = (Instant, u64);

static TIMER: DeadlineTimer = DeadlineTimer {
    entries: Mutex::new(Entries {
        wakers: BTreeMap::new(),
        next_number: 0,
        wakes_at: None,
        is_running: false,
    }),
    changed: Condvar::new(),
};

struct DeadlineTimer {
    entries: Mutex<Entries>,
    /// Notified when a deadline is added that is earlier than the next wake-up of the thread.
    changed: Condvar,
}

struct Entries {
    wakers: BTreeMap<EntryKey, Waker>,
    next_number: u64,
    /// When the thread wakes up by itself. `None` while it does not sleep.
    wakes_at: Option<Instant>,
    is_running: bool,
}

/// A deadline at which a waker is called. Dropping it cancels that.
pub(super) struct DeadlineEntry(EntryKey);

impl DeadlineEntry {
    /// Calls `waker` once at `deadline`.
    pub(super) fn new(deadline: Instant, waker: Waker) -> DeadlineEntry {
        let mut entries = TIMER.lock();
        let key = (deadline, entries.next_number);
        entries.next_number += 1;
        entries.wakers.insert(key, waker);
        let starts = !std::mem::replace(&mut entries.is_running, true);
        let is_earliest = entries.wakes_at.is_some_and(|wakes_at| deadline < wakes_at);
        if is_earliest {
            entries.wakes_at = Some(deadline);
        }
        drop(entries);
        if is_earliest {
            TIMER.changed.notify_one();
        }
        if starts {
            start_thread();
        }
        DeadlineEntry(key)
    }

    /// Replaces the waker. Has no effect after the deadline.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut entries = TIMER.lock();
        let Some(known) = entries.wakers.get_mut(&self.0) else { return };
        let old = (!known.will_wake(waker)).then(|| std::mem::replace(known, waker.clone()));
        drop(entries);
        contain_panic(|| drop(old));
    }
}

impl Drop for DeadlineEntry {
    fn drop(&mut self) {
        let removed = TIMER.lock().wakers.remove(&self.0);
        contain_panic(|| drop(removed));
    }
}

fn start_thread() {
    let thread = std::thread::Builder::new().name("job-deadlines".to_string());
    if let Err(e) = thread.spawn(|| TIMER.run()) {
        // The next deadline tries again. Until then deadlines are checked when a future is polled.
        TIMER.lock().is_running = false;
        log::error!("cannot start the thread that watches the deadlines of pool jobs; error={e}");
    }
}

impl DeadlineTimer {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A waker that panics in `clone` or `will_wake` leaves no change half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut entries = self.lock();
        loop {
            let now = Instant::now();
            let later = entries.wakers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut entries.wakers, later);
            if !due.is_empty() {
                drop(entries);
                due.into_values().for_each(|waker| contain_panic(|| waker.wake()));
                entries = self.lock();
                continue;
            }
            let next = entries.wakers.first_key_value().map(|((at, _), _)| *at);
            let wakes_at = next.unwrap_or(now + IDLE_TIMEOUT);
            entries.wakes_at = Some(wakes_at);
            let span = wakes_at.saturating_duration_since(now);
            let (guard, slept) =
                self.changed.wait_timeout(entries, span).unwrap_or_else(PoisonError::into_inner);
            entries = guard;
            entries.wakes_at = None;
            if slept.timed_out() && next.is_none() && entries.wakers.is_empty() {
                entries.is_running = false;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Wake;

    use super::*;

    struct SendOnWake(Mutex<Sender<Instant>>);

    impl Wake for SendOnWake {
        fn wake(self: Arc<Self>) {
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(Instant::now());
        }
    }

    fn sending_waker() -> (Waker, Receiver<Instant>) {
        let (sender, receiver) = channel();
        (Waker::from(Arc::new(SendOnWake(Mutex::new(sender)))), receiver)
    }

    #[test]
    fn wakers_are_called_at_their_deadline_and_not_after_a_cancellation() {
        let start = Instant::now();
        let ((late, late_woken), (early, early_woken)) = (sending_waker(), sending_waker());
        let (cancelled, cancelled_woken) = sending_waker();
        let _late = DeadlineEntry::new(start + Duration::from_millis(40), late);
        let _early = DeadlineEntry::new(start + Duration::from_millis(20), early);
        drop(DeadlineEntry::new(start + Duration::from_millis(10), cancelled));
        let limit = Duration::from_secs(20);
        let early = early_woken.recv_timeout(limit).expect("woken");
        let late = late_woken.recv_timeout(limit).expect("woken");
        assert!(early >= start + Duration::from_millis(20), "{:?}", early - start);
        assert!(late >= start + Duration::from_millis(40), "{:?}", late - start);
        assert!(cancelled_woken.try_recv().is_err());
    }

    #[test]
    fn a_deadline_in_the_past_wakes_at_once() {
        let (waker, woken) = sending_waker();
        let _entry = DeadlineEntry::new(Instant::now(), waker);
        woken.recv_timeout(Duration::from_secs(20)).expect("woken");
    }
}
