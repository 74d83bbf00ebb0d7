//! The deadline of one request, which its handler may move.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prefork_os::system::monotonic_ms;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// When the request it belongs to has to be over: its handler is dropped then. In the extensions of each request while
/// [`Config::request_timeout`](crate::Config::request_timeout) is set, and absent otherwise.
///
/// ```
/// # use std::time::Duration;
/// # use tokio_prefork::RequestDeadline;
/// fn export<B>(request: &hyper::Request<B>) {
///     if let Some(deadline) = request.extensions().get::<RequestDeadline>() {
///         deadline.extend(Duration::from_secs(600));
///     }
/// }
/// ```
///
/// Cheap to clone; all clones are the same deadline. Deadlines are looked at ten times a second.
#[derive(Clone)]
pub struct RequestDeadline(Arc<AtomicU64>);

impl RequestDeadline {
    /// `timeout` from `now_ms` on, on the monotonic clock.
    pub(crate) fn after(timeout: Duration, now_ms: u64) -> RequestDeadline {
        RequestDeadline(Arc::new(AtomicU64::new(later(now_ms, timeout))))
    }

    /// Gives the request at least `by` from now on. Never moves the deadline to an earlier time, and has no effect on a
    /// deadline that was disabled or has passed and was acted upon.
    pub fn extend(&self, by: Duration) {
        self.0.fetch_max(later(monotonic_ms(), by), Relaxed);
    }

    /// How much time is left: zero once the deadline has passed, `None` if it was disabled.
    pub fn remaining(&self) -> Option<Duration> {
        match self.0.load(Relaxed) {
            NEVER => None,
            at => Some(Duration::from_millis(at.saturating_sub(monotonic_ms()))),
        }
    }

    /// Lets the request take as long as it wants.
    pub fn disable(&self) {
        self.0.store(NEVER, Relaxed);
    }

    pub(crate) fn has_passed(&self, now_ms: u64) -> bool {
        now_ms >= self.0.load(Relaxed)
    }
}

fn later(now_ms: u64, by: Duration) -> u64 {
    let by = u64::try_from(by.as_millis()).unwrap_or(NEVER);
    // The last value but one: only `disable` means never.
    now_ms.saturating_add(by).min(NEVER - 1)
}

impl fmt::Debug for RequestDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestDeadline").field("remaining", &self.remaining()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_only_ever_moved_back() {
        let now = monotonic_ms();
        let deadline = RequestDeadline::after(Duration::from_secs(100), now);
        let handlers = deadline.clone();
        assert!(!deadline.has_passed(now + 99_999) && deadline.has_passed(now + 100_000));
        handlers.extend(Duration::from_secs(1));
        assert!(deadline.has_passed(now + 100_000), "an extension never shortens");
        handlers.extend(Duration::from_secs(1000));
        assert!(!deadline.has_passed(now + 999_999));
        assert!(handlers.remaining().is_some_and(|left| left > Duration::from_secs(900)));
        handlers.disable();
        assert!(!deadline.has_passed(u64::MAX - 1) && handlers.remaining().is_none());
        handlers.extend(Duration::MAX);
        assert!(handlers.remaining().is_none(), "it stays disabled");
    }

    #[test]
    fn it_may_cross_threads() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<RequestDeadline>();
    }
}
