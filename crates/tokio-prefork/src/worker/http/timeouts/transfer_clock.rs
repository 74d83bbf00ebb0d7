//! Measures how long, and how fast, a client sends a request body or takes a response.
//!
//! The clock runs only while the worker waits for the client. A handler that does not read, or has nothing to send,
//! stops it, so a slow handler never costs its client the connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Waiting time over which a minimum rate is measured: a shorter window would punish a single lost packet.
const RATE_WINDOW_MS: u64 = 5_000;

/// The limits on a client in one direction. `None` disables a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TransferLimits {
    /// The longest wait without any byte, in milliseconds.
    pub(crate) idle_ms: Option<u64>,
    /// The lowest rate while the worker waits, in bytes per second.
    pub(crate) min_rate: Option<u64>,
}

/// Measures one direction of one exchange. The task that moves the bytes updates it; the heartbeat reads it.
#[derive(Debug, Default)]
pub(crate) struct TransferClock {
    /// When the wait started or bytes last moved in it, plus one; 0 while the worker does not wait for the client.
    idle_since: AtomicU64,
    /// Up to when the wait is included in `waited_ms`.
    counted_to: AtomicU64,
    /// Waiting time in the current rate window.
    waited_ms: AtomicU64,
    /// Bytes moved in the current rate window.
    moved_bytes: AtomicU64,
}

impl TransferClock {
    /// Starts the clock: the worker waits for the client. No effect if it already runs.
    pub(crate) fn start(&self, now_ms: u64) {
        if self.idle_since.load(Relaxed) == 0 {
            self.idle_since.store(now_ms + 1, Relaxed);
            self.counted_to.store(now_ms, Relaxed);
        }
    }

    /// Records that bytes moved, and stops the clock.
    pub(crate) fn record_and_stop(&self, bytes: u64, now_ms: u64) {
        // Only one thread moves the bytes, so this needs no locked instruction.
        self.moved_bytes.store(self.moved_bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
        self.stop(now_ms);
    }

    /// Records that bytes moved, and lets the clock run on.
    pub(crate) fn record_and_continue(&self, bytes: u64, now_ms: u64) {
        self.record_and_stop(bytes, now_ms);
        self.start(now_ms);
    }

    /// Stops the clock: the worker no longer waits for the client.
    pub(crate) fn stop(&self, now_ms: u64) {
        if self.idle_since.load(Relaxed) != 0 {
            self.add_wait(now_ms);
            self.idle_since.store(0, Relaxed);
        }
    }

    /// Resets the clock for the next message.
    pub(crate) fn reset(&self) {
        self.idle_since.store(0, Relaxed);
        self.start_rate_window();
    }

    /// Whether the clock runs.
    pub(crate) fn is_waiting(&self) -> bool {
        self.idle_since.load(Relaxed) != 0
    }

    /// Whether a limit may be exceeded at `now_ms`, so that counting the bytes moved by now is worth a system call.
    pub(crate) fn may_be_stalled(&self, limits: TransferLimits, now_ms: u64) -> bool {
        let since = self.idle_since.load(Relaxed);
        let idle = now_ms.saturating_sub(since.saturating_sub(1));
        let more = now_ms.saturating_sub(self.counted_to.load(Relaxed));
        let waited = self.waited_ms.load(Relaxed).wrapping_add(more);
        let is_idle = limits.idle_ms.is_some_and(|most| idle >= most);
        since != 0 && (is_idle || limits.min_rate.is_some() && waited >= RATE_WINDOW_MS)
    }

    /// Whether the client exceeds a limit at `now_ms`. Starts a new rate window when the current one ends.
    pub(crate) fn is_stalled(&self, limits: TransferLimits, now_ms: u64) -> bool {
        let since = self.idle_since.load(Relaxed);
        if since == 0 {
            return false;
        }
        let idle = now_ms.saturating_sub(since - 1);
        if limits.idle_ms.is_some_and(|most| idle >= most) {
            return true;
        }
        let Some(min_rate) = limits.min_rate else { return false };
        self.add_wait(now_ms);
        let waited = self.waited_ms.load(Relaxed);
        if waited < RATE_WINDOW_MS {
            return false;
        }
        let moved = self.moved_bytes.load(Relaxed);
        let is_slow = moved.saturating_mul(1000) < min_rate.saturating_mul(waited);
        self.start_rate_window();
        is_slow
    }

    /// Adds the wait since the last call to the rate window.
    fn add_wait(&self, now_ms: u64) {
        let counted = self.counted_to.swap(now_ms, Relaxed);
        let more = now_ms.saturating_sub(counted);
        self.waited_ms.store(self.waited_ms.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn start_rate_window(&self) {
        self.waited_ms.store(0, Relaxed);
        self.moved_bytes.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_LIMIT: TransferLimits = TransferLimits { idle_ms: Some(60_000), min_rate: None };
    const RATE_LIMIT: TransferLimits = TransferLimits { idle_ms: None, min_rate: Some(100) };

    #[test]
    fn only_waiting_for_the_client_counts() {
        let clock = TransferClock::default();
        assert!(!clock.is_stalled(IDLE_LIMIT, 1_000_000), "the clock is stopped");
        clock.start(1_000_000);
        clock.start(1_050_000);
        assert!(!clock.is_stalled(IDLE_LIMIT, 1_059_999));
        assert!(clock.is_stalled(IDLE_LIMIT, 1_060_000));
        clock.record_and_stop(1, 1_060_000);
        assert!(!clock.is_stalled(IDLE_LIMIT, 9_000_000), "the handler does not read");
        clock.start(9_000_000);
        clock.record_and_continue(1, 9_050_000);
        assert!(!clock.is_stalled(IDLE_LIMIT, 9_109_999));
        assert!(clock.is_stalled(IDLE_LIMIT, 9_110_000));
        assert!(!clock.is_stalled(TransferLimits::default(), u64::MAX));
    }

    #[test]
    fn rate_is_measured_over_windows_of_waiting_time() {
        let clock = TransferClock::default();
        let mut now = 0;
        // Exactly the minimum rate never stalls; pauses of the handler do not count.
        for _ in 0..60 {
            clock.start(now);
            now += 1_000;
            clock.record_and_stop(100, now);
            now += 500_000;
            clock.start(now);
            assert!(!clock.is_stalled(RATE_LIMIT, now));
            clock.stop(now);
        }
        // One fast window does not excuse the slow ones after it.
        clock.record_and_stop(1 << 30, now);
        clock.start(now);
        assert!(!clock.is_stalled(RATE_LIMIT, now + RATE_WINDOW_MS));
        assert!(!clock.is_stalled(RATE_LIMIT, now + 2 * RATE_WINDOW_MS - 1));
        assert!(clock.is_stalled(RATE_LIMIT, now + 2 * RATE_WINDOW_MS));
    }

    #[test]
    fn reset_starts_a_new_rate_window() {
        let clock = TransferClock::default();
        clock.start(0);
        clock.reset();
        assert!(!clock.is_waiting() && !clock.is_stalled(RATE_LIMIT, 100_000));
        clock.start(100_000);
        assert!(!clock.is_stalled(RATE_LIMIT, 104_999));
        assert!(clock.is_stalled(RATE_LIMIT, 105_000));
    }
}
