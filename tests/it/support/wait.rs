//! Polling for conditions, with one deadline for all tests.

use std::time::{Duration, Instant};

/// How long a condition is polled before the test fails: 30 s, as the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Time between two polls of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(4);

/// Sleeps for [`POLL_INTERVAL`].
fn pause_between_polls() {
    std::thread::park_timeout(POLL_INTERVAL);
}

/// Polls until `look` returns something, for up to [`DEADLINE`].
pub fn poll_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= give_up {
            return None;
        }
        pause_between_polls();
    }
}

/// Polls until `look` returns something; panics with `what` at the deadline.
#[track_caller]
pub fn wait_until_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll_until(look).unwrap_or_else(|| panic!("waited for {DEADLINE:?} in vain: {what}"))
}

/// Polls until the condition holds; panics with `what` at the deadline.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_until_some(what, || holds().then_some(()));
}

/// Waits until `span` has passed since `begun`, where the server itself depends on time.
pub fn wait_until_elapsed(begun: Instant, span: Duration) {
    wait_until("the passing of time", || begun.elapsed() > span);
}

/// Waits for a fixed time, to measure rates or to observe that nothing happens. Not for conditions: use [`until`].
pub fn wait_for_duration(span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        pause_between_polls();
    }
}
