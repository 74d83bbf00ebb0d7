//! `RequestDeadline`: the deadline of one request, which its handler can extend.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prefork_os::system::monotonic_ms;

/// The stored value of a disabled deadline.
const DISABLED_DEADLINE: u64 = u64::MAX;

/// The time at which a request times out and its handler is dropped; the handler can extend it.
///
/// Every request carries one in its extensions if [`Config::request_timeout`](crate::Config::request_timeout) is set.
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
/// Clones are cheap and share the same deadline. Deadlines are checked ten times per second.
#[derive(Clone)]
pub struct RequestDeadline(Arc<AtomicU64>);

impl RequestDeadline {
    /// Creates a deadline `timeout` after `now_ms` on the monotonic clock.
    pub(crate) fn after(timeout: Duration, now_ms: u64) -> RequestDeadline {
        RequestDeadline(Arc::new(AtomicU64::new(deadline_after(now_ms, timeout))))
    }

    /// Moves the deadline to at least `by` from now, never to an earlier time.
    ///
    /// Has no effect if the deadline is disabled, or if the request has already timed out.
    pub fn extend(&self, by: Duration) {
        self.0.fetch_max(deadline_after(monotonic_ms(), by), Relaxed);
    }

    /// Returns the time left: zero once the deadline has passed, `None` if it is disabled.
    pub fn remaining(&self) -> Option<Duration> {
        match self.0.load(Relaxed) {
            DISABLED_DEADLINE => None,
            at => Some(Duration::from_millis(at.saturating_sub(monotonic_ms()))),
        }
    }

    /// Disables the deadline: the request may take any time.
    pub fn disable(&self) {
        self.0.store(DISABLED_DEADLINE, Relaxed);
    }

    pub(crate) fn has_passed(&self, now_ms: u64) -> bool {
        now_ms >= self.0.load(Relaxed)
    }
}

fn deadline_after(now_ms: u64, by: Duration) -> u64 {
    let by = u64::try_from(by.as_millis()).unwrap_or(DISABLED_DEADLINE);
    // At most the largest value below DISABLED_DEADLINE: only `disable` disables.
    now_ms.saturating_add(by).min(DISABLED_DEADLINE - 1)
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
    fn extend_never_moves_a_deadline_to_an_earlier_time() {
        let now = monotonic_ms();
        let deadline = RequestDeadline::after(Duration::from_secs(100), now);
        let clone = deadline.clone();
        assert!(!deadline.has_passed(now + 99_999) && deadline.has_passed(now + 100_000));
        clone.extend(Duration::from_secs(1));
        assert!(deadline.has_passed(now + 100_000), "an extension never shortens");
        clone.extend(Duration::from_secs(1000));
        assert!(!deadline.has_passed(now + 999_999));
        assert!(clone.remaining().is_some_and(|left| left > Duration::from_secs(900)));
        clone.disable();
        assert!(!deadline.has_passed(u64::MAX - 1) && clone.remaining().is_none());
        clone.extend(Duration::MAX);
        assert!(clone.remaining().is_none(), "it stays disabled");
    }

    #[test]
    fn deadline_is_send_and_sync() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<RequestDeadline>();
    }
}
