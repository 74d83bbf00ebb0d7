//! Draining: stop accepting, finish, and a deadline after which what is left is cut.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;

use crate::channel::HandOver;
use prefork_os::system::monotonic_ms;

/// What was ordered, in milliseconds on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainOrder {
    /// What is still open then is cut.
    pub(crate) deadline_ms: u64,
    /// A connection that has been idle for this long may be closed.
    pub(crate) linger_ms: u64,
    /// Nobody will listen any more: empty the accept queue first.
    pub(crate) closing: bool,
    /// Connections that stand between two requests go to another worker, if there is one.
    pub(crate) hand_over: HandOver,
}

impl DrainOrder {
    pub(crate) fn new(
        grace: Duration,
        linger: Duration,
        closing: bool,
        hand_over: HandOver,
    ) -> DrainOrder {
        let deadline_ms = monotonic_ms() + grace.as_millis() as u64;
        DrainOrder { deadline_ms, linger_ms: linger.as_millis() as u64, closing, hand_over }
    }

    /// Whether connections that may travel are treated as if nothing had happened, as somebody may still take
    /// them. Shortly before the end they are told to close like all others.
    pub(crate) fn keeps_transferable_open(&self, now_ms: u64) -> bool {
        self.hand_over != HandOver::Never
            && now_ms.saturating_add(self.linger_ms) < self.deadline_ms
    }
}

/// Whether this worker drains, for all who want to know.
#[derive(Default)]
pub(crate) struct Drain {
    order: Cell<Option<DrainOrder>>,
    begun: Notify,
    /// The primary sends no more connections.
    released: Cell<bool>,
}

impl Drain {
    /// Returns `false` if it had begun before; the primary's death still shortens it.
    pub(crate) fn begin(&self, order: DrainOrder) -> bool {
        let first = self.order.get().is_none();
        let order = match self.order.get() {
            None => order,
            Some(earlier) => DrainOrder {
                deadline_ms: earlier.deadline_ms.min(order.deadline_ms),
                linger_ms: earlier.linger_ms.min(order.linger_ms),
                closing: earlier.closing,
                hand_over: match earlier.hand_over {
                    HandOver::Never => HandOver::Never,
                    // The primary has learned more since.
                    _ => order.hand_over,
                },
            },
        };
        self.order.set(Some(order));
        self.begun.notify_waiters();
        first
    }

    /// The primary has said that it sends no more connections, or is gone.
    pub(crate) fn release(&self) {
        self.released.set(true);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.get()
    }

    pub(crate) fn order(&self) -> Option<DrainOrder> {
        self.order.get()
    }

    /// Resolves once it has begun.
    pub(crate) async fn started(&self) {
        let begun = self.begun.notified();
        if self.order.get().is_none() {
            begun.await;
        }
    }
}
