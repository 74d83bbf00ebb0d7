//! The end of a worker: waits for connections, holds and pool jobs, runs the stop functions, and drops the service.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::Instant;

use super::cpu_pool::{self, PoolUser};
use super::local_state::LocalWorkerState;
use super::panic_report::catch_panic;
use super::pending_work::{HoldSummary, StopFunction};
use crate::text::{HumanDuration, panic_text};

/// How long a drained worker waits for the primary to confirm that it passes no more connections.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an exiting worker waits for the primary to read its last messages and those that it returns.
pub(crate) const MESSAGE_LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits until the worker drains, no connection is open, no hold is left, and the primary passes no more connections. At the
/// drain deadline, waits for the connections only, which the heartbeat closes.
pub(super) async fn wait_until_drained(state: &LocalWorkerState) {
    state.drain.wait_started().await;
    loop {
        let freed = state.capacity_freed.notified();
        let released = state.shared.holds.released.notified();
        let has_connections = state.active_acceptors.get() > 0 || state.has_connections();
        let is_empty = !has_connections && state.shared.holds.is_empty();
        if is_empty && state.drain.is_released() {
            return;
        }
        tokio::select! {
            () = freed => {}
            () = released => {}
            // The primary is stuck; waiting longer would not help.
            () = tokio::time::sleep(RELEASE_TIMEOUT), if is_empty => return,
            () = state.drain.wait_for_deadline(), if !has_connections && !is_empty => return,
        }
    }
}

/// Ends all work beside the connections, and drops the application. What is not done at the drain deadline is cut and logged.
pub(super) async fn finish(state: &LocalWorkerState, pool_user: PoolUser) {
    let without_drain = Instant::now() + state.config.graceful_timeout;
    let is_in_time = wait_for_holds(state, without_drain).await;
    cpu_pool::drain_pools(state, pool_user, wait_for_deadline(state, without_drain)).await;
    if is_in_time {
        // What awaited a job may have begun a task that a drain waits for.
        wait_for_holds(state, without_drain).await;
    }
    run_stop_functions(state, without_drain).await;
    drop_app(state);
}

/// Waits until no hold is left. Returns `false` if the deadline has passed before.
async fn wait_for_holds(state: &LocalWorkerState, without_drain: Instant) -> bool {
    tokio::select! {
        biased;
        () = state.shared.holds.wait_until_empty() => true,
        () = wait_for_deadline(state, without_drain) => {
            log_cut_holds(state);
            false
        }
    }
}

/// Returns the messages that nobody has received, and sends what is queued. Threads that share their messages leave that to the relay.
pub(crate) async fn finish_messages(state: &LocalWorkerState, owns_messages: bool) {
    if owns_messages {
        state.shared.messages.leave(MESSAGE_LEAVE_TIMEOUT).await;
    }
}

/// Waits for the drain deadline, or until `without_drain` if the main loop of a custom kind returned without a drain.
async fn wait_for_deadline(state: &LocalWorkerState, without_drain: Instant) {
    match state.drain.current_order() {
        Some(_) => state.drain.wait_for_deadline().await,
        None => tokio::time::sleep_until(without_drain).await,
    }
}

fn log_cut_holds(state: &LocalWorkerState) {
    let Some(HoldSummary { count, names, oldest_ms }) = state.shared.holds.summary() else {
        return;
    };
    let age = Duration::from_millis(LocalWorkerState::monotonic_ms().saturating_sub(oldest_ms));
    log::warn!(
        "{} abandons background work at the graceful timeout; count={count} names={names:?} oldest={}",
        state.tag,
        HumanDuration(age)
    );
}

/// Runs the stop functions, the latest one first, until the deadline.
async fn run_stop_functions(state: &LocalWorkerState, without_drain: Instant) {
    // Some of them may register more.
    while let Some(StopFunction { future, location }) = state.shared.stop_functions.pop() {
        tokio::select! {
            // One that needs no time is run even after the deadline.
            biased;
            done = catch_panic(future) => if let Err(panic) = done {
                let text = panic_text(&*panic);
                log::error!("{} the stop function of {location} panicked: {text}", state.tag);
            },
            () = wait_for_deadline(state, without_drain) => log::warn!(
                "{} abandons a stop function at the graceful timeout; registered_at={location}",
                state.tag
            ),
        }
    }
}

/// Drops the application's service, which may flush or close what it holds.
///
/// What the boot function captured is not dropped: it was created before the fork and belongs to the primary as well.
pub(super) fn drop_app(state: &LocalWorkerState) {
    let app = state.app.take();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(app))) {
        log::error!("{} dropping the service panicked: {}", state.tag, panic_text(&*panic));
    }
}
