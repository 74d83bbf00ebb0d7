//! How long a client keeps us waiting for bytes it has to send or to take, and how fast it moves them.
//!
//! The clock runs only while the client is what is waited for: a handler that does not read, or has nothing to send,
//! stops it. So a slow handler never costs its client the connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Waiting time over which a minimum rate is judged: shorter ones would punish a single lost packet.
const RATE_WINDOW_MS: u64 = 5_000;

/// What a client is held to in one direction. `None` disables a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TransferLimit {
    /// The longest wait without a byte, in milliseconds.
    pub(crate) idle_ms: Option<u64>,
    /// The fewest bytes per second while we wait.
    pub(crate) min_rate: Option<u64>,
}

/// One direction of one exchange. Written by the task that moves the bytes, judged by the heartbeat.
#[derive(Debug, Default)]
pub(crate) struct TransferClock {
    /// When the wait began or the last bytes moved in it, plus one; 0 while the client is not waited for.
    idle_since: AtomicU64,
    /// From when on the wait is not yet part of `waited_ms`.
    counted_to: AtomicU64,
    /// Waiting time in this rate window.
    waited_ms: AtomicU64,
    /// Bytes that moved in this rate window.
    moved: AtomicU64,
}

impl TransferClock {
    /// Nothing moves until the client does something. Does nothing while the clock already runs.
    pub(crate) fn wait(&self, now_ms: u64) {
        if self.idle_since.load(Relaxed) == 0 {
            self.idle_since.store(now_ms + 1, Relaxed);
            self.counted_to.store(now_ms, Relaxed);
        }
    }

    /// Bytes moved, and we no longer wait.
    pub(crate) fn moved(&self, bytes: u64, now_ms: u64) {
        // One thread moves the bytes, so no locked instruction.
        self.moved.store(self.moved.load(Relaxed).wrapping_add(bytes), Relaxed);
        self.stop(now_ms);
    }

    /// Bytes moved, and we wait on.
    pub(crate) fn progressed(&self, bytes: u64, now_ms: u64) {
        self.moved(bytes, now_ms);
        self.wait(now_ms);
    }

    /// The client is not waited for any more.
    pub(crate) fn stop(&self, now_ms: u64) {
        if self.idle_since.load(Relaxed) != 0 {
            self.count(now_ms);
            self.idle_since.store(0, Relaxed);
        }
    }

    /// Begins anew, for the next message.
    pub(crate) fn reset(&self) {
        self.idle_since.store(0, Relaxed);
        self.next_window();
    }

    /// Whether the client is waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.idle_since.load(Relaxed) != 0
    }

    /// Whether `limit` may be broken at `now_ms`, so that it is worth finding out how many bytes have moved by now.
    pub(crate) fn is_due(&self, limit: TransferLimit, now_ms: u64) -> bool {
        let since = self.idle_since.load(Relaxed);
        let idle = now_ms.saturating_sub(since.saturating_sub(1));
        let more = now_ms.saturating_sub(self.counted_to.load(Relaxed));
        let waited = self.waited_ms.load(Relaxed).wrapping_add(more);
        let is_idle = limit.idle_ms.is_some_and(|most| idle >= most);
        since != 0 && (is_idle || limit.min_rate.is_some() && waited >= RATE_WINDOW_MS)
    }

    /// Whether the client breaks `limit` at `now_ms`. Begins a new rate window when one is over.
    pub(crate) fn is_stalled(&self, limit: TransferLimit, now_ms: u64) -> bool {
        let since = self.idle_since.load(Relaxed);
        if since == 0 {
            return false;
        }
        let idle = now_ms.saturating_sub(since - 1);
        if limit.idle_ms.is_some_and(|most| idle >= most) {
            return true;
        }
        let Some(min_rate) = limit.min_rate else { return false };
        self.count(now_ms);
        let waited = self.waited_ms.load(Relaxed);
        if waited < RATE_WINDOW_MS {
            return false;
        }
        let moved = self.moved.load(Relaxed);
        let is_slow = moved.saturating_mul(1000) < min_rate.saturating_mul(waited);
        self.next_window();
        is_slow
    }

    /// Adds the wait so far to the rate window.
    fn count(&self, now_ms: u64) {
        let counted = self.counted_to.swap(now_ms, Relaxed);
        let more = now_ms.saturating_sub(counted);
        self.waited_ms.store(self.waited_ms.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn next_window(&self) {
        self.waited_ms.store(0, Relaxed);
        self.moved.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: TransferLimit = TransferLimit { idle_ms: Some(60_000), min_rate: None };
    const RATE: TransferLimit = TransferLimit { idle_ms: None, min_rate: Some(100) };

    #[test]
    fn only_the_wait_for_the_client_counts() {
        let clock = TransferClock::default();
        assert!(!clock.is_stalled(IDLE, 1_000_000), "nobody waits");
        clock.wait(1_000_000);
        clock.wait(1_050_000);
        assert!(!clock.is_stalled(IDLE, 1_059_999));
        assert!(clock.is_stalled(IDLE, 1_060_000));
        clock.moved(1, 1_060_000);
        assert!(!clock.is_stalled(IDLE, 9_000_000), "the handler does not read");
        clock.wait(9_000_000);
        clock.progressed(1, 9_050_000);
        assert!(!clock.is_stalled(IDLE, 9_109_999));
        assert!(clock.is_stalled(IDLE, 9_110_000));
        assert!(!clock.is_stalled(TransferLimit::default(), u64::MAX));
    }

    #[test]
    fn a_rate_is_judged_over_windows_of_waiting_time() {
        let clock = TransferClock::default();
        let mut now = 0;
        // 100 bytes each second are just enough, for ever; pauses of the handler do not count.
        for _ in 0..60 {
            clock.wait(now);
            now += 1_000;
            clock.moved(100, now);
            now += 500_000;
            clock.wait(now);
            assert!(!clock.is_stalled(RATE, now));
            clock.stop(now);
        }
        // What was fast once is not fast for ever.
        clock.moved(1 << 30, now);
        clock.wait(now);
        assert!(!clock.is_stalled(RATE, now + RATE_WINDOW_MS));
        assert!(!clock.is_stalled(RATE, now + 2 * RATE_WINDOW_MS - 1));
        assert!(clock.is_stalled(RATE, now + 2 * RATE_WINDOW_MS));
    }

    #[test]
    fn a_new_message_has_a_new_window() {
        let clock = TransferClock::default();
        clock.wait(0);
        clock.reset();
        assert!(!clock.is_waiting() && !clock.is_stalled(RATE, 100_000));
        clock.wait(100_000);
        assert!(!clock.is_stalled(RATE, 104_999));
        assert!(clock.is_stalled(RATE, 105_000));
    }
}
