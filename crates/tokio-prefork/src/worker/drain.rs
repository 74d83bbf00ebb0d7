//! The state of a drain: accept no more, finish open requests, and close what is left at the deadline.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;

use crate::channel::HandoverMode;
use prefork_os::system::monotonic_ms;

/// How often to check whether the drain deadline has moved, as it does when the primary dies.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How to drain. Times are in milliseconds on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainOrder {
    /// When connections that are still open are closed.
    pub(crate) deadline_ms: u64,
    /// How long a connection may stay idle before it is closed.
    pub(crate) linger_ms: u64,
    /// Whether the listening sockets close for good, so that the worker has to empty their accept queues first.
    pub(crate) closing: bool,
    /// Whether connections between two requests are handed over to another worker.
    pub(crate) hand_over: HandoverMode,
}

impl DrainOrder {
    pub(crate) fn new(
        grace: Duration,
        linger: Duration,
        closing: bool,
        hand_over: HandoverMode,
    ) -> DrainOrder {
        let deadline_ms = monotonic_ms() + grace.as_millis() as u64;
        DrainOrder { deadline_ms, linger_ms: linger.as_millis() as u64, closing, hand_over }
    }

    /// Whether connections that can be handed over keep their full keep-alive time, because a worker may still take
    /// them.
    ///
    /// Shortly before the deadline they close like all others.
    pub(crate) fn keeps_transferable_open(&self, now_ms: u64) -> bool {
        self.hand_over != HandoverMode::Never
            && now_ms.saturating_add(self.linger_ms) < self.deadline_ms
    }
}

/// Whether and how this worker drains.
#[derive(Default)]
pub(crate) struct DrainState {
    order: Cell<Option<DrainOrder>>,
    /// Notified when a drain starts or changes.
    changed: Notify,
    /// Whether the primary passes no more connections.
    is_released: Cell<bool>,
}

impl DrainState {
    /// Starts to drain, or shortens the drain under way. Returns whether it starts now.
    pub(crate) fn begin(&self, order: DrainOrder) -> bool {
        let is_first = self.order.get().is_none();
        let order = match self.order.get() {
            None => order,
            Some(earlier) => DrainOrder {
                deadline_ms: earlier.deadline_ms.min(order.deadline_ms),
                linger_ms: earlier.linger_ms.min(order.linger_ms),
                closing: earlier.closing,
                hand_over: match earlier.hand_over {
                    HandoverMode::Never => HandoverMode::Never,
                    // The primary knows more by now.
                    _ => order.hand_over,
                },
            },
        };
        self.order.set(Some(order));
        self.changed.notify_waiters();
        is_first
    }

    /// Records that the primary passes no more connections, or is gone.
    pub(crate) fn set_released(&self) {
        self.is_released.set(true);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.is_released.get()
    }

    /// Returns how to drain, once a drain has started.
    pub(crate) fn current_order(&self) -> Option<DrainOrder> {
        self.order.get()
    }

    /// Waits until the drain deadline has passed. The deadline may move to an earlier time meanwhile.
    pub(crate) async fn wait_for_deadline(&self) {
        self.wait_started().await;
        while let Some(order) = self.order.get() {
            let left = Duration::from_millis(order.deadline_ms.saturating_sub(monotonic_ms()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(DEADLINE_CHECK_INTERVAL)).await;
        }
    }

    /// Waits until a drain has started.
    pub(crate) async fn wait_started(&self) {
        let changed = self.changed.notified();
        if self.order.get().is_none() {
            changed.await;
        }
    }
}
