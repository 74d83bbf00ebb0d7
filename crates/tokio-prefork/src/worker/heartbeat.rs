//! The heartbeat: ten times per second it publishes the time, enforces timeouts and checks for SIGTERM. In an idle worker it is slower.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::capacity_warning;
use super::connection_registry::TimeoutOutcome;
use super::http::timeouts::ConnectionTimeouts;
use super::idle_heartbeat::IdleHeartbeat;
use super::local_state::LocalWorkerState;
use super::parked;
use crate::channel::WorkerReport;
use crate::dispatch::queue_wait;
use crate::text::Count;
use prefork_os::interval_timer::IntervalTimer;

/// The time between two heartbeats of a worker that is not idle, and so the resolution of all connection timeouts.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);

/// Creates the timer of the heartbeat in the current runtime.
pub(crate) fn create_timer() -> std::io::Result<IntervalTimer> {
    IntervalTimer::new(HEARTBEAT_INTERVAL)
}

/// Runs the heartbeat for the life of the worker.
///
/// `terminate` is set by the handler of SIGTERM.
pub(crate) async fn run_heartbeat(
    mut timer: IntervalTimer,
    state: Rc<LocalWorkerState>,
    terminate: Arc<AtomicBool>,
    mut idle: IdleHeartbeat,
) {
    let mut late = Duration::ZERO;
    loop {
        state.worker_page.record_loop_lag(late);
        let now = LocalWorkerState::monotonic_ms();
        state.worker_page.record_heartbeat(now);
        state.accept_recheck.notify_waiters();
        if terminate.swap(false, Ordering::Relaxed) {
            log::info!("{} received SIGTERM directly, and drains", state.tag);
            state.begin_own_drain(&WorkerReport::Retiring);
        }
        #[cfg(feature = "tls")]
        if let Some(tickets) = &state.shared.session_tickets {
            // Otherwise an idle worker would keep keys that the primary has deleted.
            tickets.refresh();
        }
        state.hand_over_log_lines(now);
        queue_wait::report_queue_wait_rejections(&state, now);
        capacity_warning::report_capacity(&state, now);
        let limits = ConnectionTimeouts::new(&state.config, state.drain.current_order(), now);
        let TimeoutOutcome { at_deadline, stalled, has_idle } =
            state.connections.borrow().enforce_timeouts(now, &limits);
        let at_deadline = at_deadline + state.parked.enforce_timeouts(&state, now, &limits);
        if has_idle && state.drain.current_order().is_none() {
            parked::park_idle_connections(&state);
        }
        state.parked.release_memory(now, state.worker_page.open_connections());
        if state.drain.current_order().is_some() {
            publish_holds(&state);
        }
        if state.should_hand_over() {
            // A worker that can take idle connections may have started since the last heartbeat.
            state.connections.borrow().wake_all();
            parked::start_handing_over(&state);
        }
        for _ in 0..at_deadline + stalled {
            state.worker_page.connection_cut();
        }
        if at_deadline > 0 && state.drain.current_order().is_some() {
            log_unfinished_requests(&state, at_deadline);
        }
        late = match idle.next_slow_interval(&state) {
            None => timer.tick().await,
            Some(interval) => wait_slow_interval(&mut timer, &mut idle, now, interval).await,
        };
    }
}

/// Waits for the next heartbeat of an idle worker, or until anything else wakes its event loop. Returns how late the heartbeat is.
async fn wait_slow_interval(
    timer: &mut IntervalTimer,
    idle: &mut IdleHeartbeat,
    now_ms: u64,
    interval: Duration,
) -> Duration {
    if timer.set_period(interval).is_err() {
        return timer.tick().await;
    }
    idle.begin_slow_interval(now_ms, interval);
    tokio::select! {
        biased;
        late = timer.tick() => late,
        () = idle.wait_woken() => {
            idle.end_slow_interval();
            // If it fails, the slow interval stays until the next heartbeat.
            let _ = timer.set_period(HEARTBEAT_INTERVAL);
            Duration::ZERO
        }
    }
}

/// Lists the holds that the draining worker waits for in its status.
fn publish_holds(state: &LocalWorkerState) {
    let holds = state.shared.holds.summary();
    let listed = holds.as_ref().map(|holds| (holds.names.as_str(), holds.oldest_ms));
    state.worker_page.set_holds(listed);
}

/// Logs how many connections were closed at the drain deadline, and the requests that were in progress.
fn log_unfinished_requests(state: &LocalWorkerState, closed: usize) {
    let serving = state.scoreboard.cluster_status(&state.config);
    let requests: Vec<String> = serving
        .workers
        .iter()
        .filter(|worker| worker.id == state.tag.id)
        .flat_map(|worker| &worker.serving)
        .filter(|request| !request.is_hold())
        .map(|r| format!("{} (for {:.1} s)", r.request, r.age_ms as f64 / 1000.0))
        .collect();
    let named =
        if requests.is_empty() { String::new() } else { format!(": {}", requests.join(", ")) };
    let closed = Count(closed as u64, "connection");
    log::warn!("{} closed {closed} at the graceful timeout{named}", state.tag);
}
