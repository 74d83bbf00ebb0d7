//! Slows the heartbeat of a worker that has nothing to do, so that many idle workers need next to no CPU time.
//!
//! After a second without connections, the worker sends one heartbeat per [`slow_interval`] instead of ten per second. While its event
//! loop sleeps, its page shows the time of the *next* heartbeat: until then it counts as recent. When anything else than the heartbeat's
//! own timer ends the sleep, the page shows the present time before any task runs, and the heartbeats are fast again. So a task that
//! blocks the event loop is noticed as early as in a busy worker.
//!
//! A worker that a signal stops in its sleep cannot do that: the primary learns of the stop from the kernel, and corrects the page.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::local_state::LocalWorkerState;
use crate::scoreboard::ThreadPageView;

/// How many heartbeats in a row must find the worker idle before they become slow: one second.
const IDLE_HEARTBEATS_UNTIL_SLOW: u32 = 10;

/// The interval of slow heartbeats for each worker of the cluster: all idle workers together send 50 per second.
const SLOW_INTERVAL_PER_WORKER: Duration = Duration::from_millis(20);

/// The shortest interval of slow heartbeats.
const SLOW_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// The longest interval of slow heartbeats. A later time on a scoreboard page was not written by a sleeping worker.
pub(crate) const SLOW_INTERVAL_MAX: Duration = Duration::from_secs(20);

/// Returns the time between two heartbeats of an idle worker in a cluster of `workers`.
///
/// At each heartbeat an idle worker looks for a connection that another one was woken for and did not accept. As their heartbeats
/// are spread over time, one of them looks every 20 ms in a large cluster.
fn slow_interval(workers: usize) -> Duration {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    let interval = SLOW_INTERVAL_PER_WORKER.saturating_mul(workers);
    interval.clamp(SLOW_INTERVAL_MIN, SLOW_INTERVAL_MAX)
}

/// Returns a part of `interval` that differs from worker to worker. Workers that start together would otherwise all send their heartbeats
/// at the same time.
fn spread(interval: Duration, page_number: usize) -> Duration {
    // The fractional parts of multiples of the golden ratio are spread evenly over 0 to 1.
    let fraction = (page_number as u32).wrapping_mul(0x9e37_79b9) as f64 / f64::from(u32::MAX);
    interval.mul_f64(fraction).max(SLOW_INTERVAL_MIN)
}

thread_local! {
    /// Whether the heartbeat of this thread's event loop is slow. Read before and after each sleep.
    static IS_SLOW: Cell<bool> = const { Cell::new(false) };
    static SLOW_HEARTBEAT: RefCell<Option<Rc<SlowHeartbeat>>> = const { RefCell::new(None) };
}

/// What the hooks of the event loop need while the heartbeat is slow.
struct SlowHeartbeat {
    page: ThreadPageView,
    /// When the next heartbeat is due, in milliseconds on the monotonic clock.
    due_ms: Cell<u64>,
    /// Notified when the event loop was woken before that.
    woken: Notify,
}

/// Sets the hooks of a worker's event loop that slow heartbeats need. Without them [`IdleHeartbeat`] must not be used.
pub(crate) fn set_hooks(runtime: &mut tokio::runtime::Builder) -> &mut tokio::runtime::Builder {
    runtime.on_thread_park(before_sleep).on_thread_unpark(after_sleep)
}

fn before_sleep() {
    if IS_SLOW.get() {
        with_slow_heartbeat(|slow| slow.page.record_heartbeat(slow.due_ms.get()));
    }
}

fn after_sleep() {
    if IS_SLOW.get() {
        with_slow_heartbeat(|slow| {
            let now = LocalWorkerState::monotonic_ms();
            slow.page.record_heartbeat(now);
            if now < slow.due_ms.get() {
                IS_SLOW.set(false);
                slow.woken.notify_one();
            }
        });
    }
}

fn with_slow_heartbeat(act: impl FnOnce(&SlowHeartbeat)) {
    SLOW_HEARTBEAT.with_borrow(|slow| {
        if let Some(slow) = slow {
            act(slow);
        }
    });
}

/// Decides when the heartbeat of a worker is slow.
pub(crate) struct IdleHeartbeat {
    slow: Rc<SlowHeartbeat>,
    /// How many heartbeats in a row found the worker idle.
    idle_heartbeats: u32,
    /// How many connections it had accepted at the last heartbeat.
    accepted: u64,
}

impl IdleHeartbeat {
    /// Creates the state for the event loop of this thread, which must have the hooks.
    pub(crate) fn new(page: ThreadPageView) -> IdleHeartbeat {
        let slow = SlowHeartbeat { page, due_ms: Cell::new(0), woken: Notify::new() };
        let slow = Rc::new(slow);
        SLOW_HEARTBEAT.set(Some(Rc::clone(&slow)));
        // A worker that has not served yet need not wait for a quiet second.
        IdleHeartbeat { slow, idle_heartbeats: IDLE_HEARTBEATS_UNTIL_SLOW, accepted: 0 }
    }

    /// Called at each heartbeat. Returns the interval to the next one if it is to be slow.
    pub(crate) fn next_slow_interval(&mut self, state: &LocalWorkerState) -> Option<Duration> {
        let accepted = self.slow.page.accepted_connections();
        let has_accepted = std::mem::replace(&mut self.accepted, accepted) != accepted;
        if state.app.borrow().is_none() {
            return None;
        }
        if has_accepted || !state.is_idle() {
            self.idle_heartbeats = 0;
            return None;
        }
        self.idle_heartbeats = self.idle_heartbeats.saturating_add(1);
        if self.idle_heartbeats <= IDLE_HEARTBEATS_UNTIL_SLOW {
            return None;
        }
        let interval = slow_interval(state.scoreboard.pages_used());
        let is_first = !IS_SLOW.get();
        Some(if is_first { spread(interval, state.worker_page.page_number()) } else { interval })
    }

    /// Promises the next heartbeat after `interval`, counted from `now_ms`, for the time in which the event loop sleeps.
    pub(crate) fn begin_slow_interval(&self, now_ms: u64, interval: Duration) {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.slow.due_ms.set(now_ms.saturating_add(interval_ms));
        IS_SLOW.set(true);
    }

    /// Waits until something else than the heartbeat's timer ends the sleep of the event loop.
    pub(crate) async fn wait_woken(&self) {
        self.slow.woken.notified().await;
    }

    /// Makes the next heartbeats fast: the worker may have something to do. If the next one after this finds nothing, as when another
    /// worker has accepted the connection, they are slow again.
    pub(crate) fn end_slow_interval(&mut self) {
        IS_SLOW.set(false);
        self.idle_heartbeats = IDLE_HEARTBEATS_UNTIL_SLOW - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_workers_of_a_large_cluster_send_fifty_heartbeats_per_second_together() {
        assert_eq!(slow_interval(1), Duration::from_millis(500));
        assert_eq!(slow_interval(64), Duration::from_millis(1280));
        assert_eq!(slow_interval(512), Duration::from_millis(10_240));
        assert_eq!(slow_interval(usize::MAX), SLOW_INTERVAL_MAX);
    }

    #[test]
    fn the_first_slow_heartbeats_are_spread_over_the_interval() {
        let first: Vec<Duration> = (0..1000).map(|page| spread(SLOW_INTERVAL_MAX, page)).collect();
        for second in 1..20 {
            let from = Duration::from_secs(second);
            let count =
                first.iter().filter(|at| **at >= from && **at < from + Duration::from_secs(1));
            assert!((40..=60).contains(&count.count()), "second {second}");
        }
        assert!(first.iter().all(|at| *at >= SLOW_INTERVAL_MIN && *at <= SLOW_INTERVAL_MAX));
        assert_eq!(spread(SLOW_INTERVAL_MIN, 7), SLOW_INTERVAL_MIN);
    }
}
