//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// After this long a condition counts as never coming true. Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(4);

/// Lets other processes run before the next look.
fn pause() {
    std::thread::park_timeout(PAUSE);
}

/// Looks until there is something, for up to [`DEADLINE`].
pub fn try_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= give_up {
            return None;
        }
        pause();
    }
}

/// Looks until there is something; fails with the name of what never came.
#[track_caller]
pub fn until_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    try_for(look).unwrap_or_else(|| panic!("waited for {DEADLINE:?} in vain: {what}"))
}

/// Looks until it holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_some(what, || holds().then_some(()));
}

/// Until so long after `begun`: for what the server itself tells apart by time.
pub fn until_past(begun: Instant, span: Duration) {
    until("the passing of time", || begun.elapsed() > span);
}

/// The passing of time itself, for what is measured per second. Not a way to wait for anything.
pub fn measure_for(span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        pause();
    }
}
