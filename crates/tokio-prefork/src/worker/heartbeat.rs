//! The worker's pulse: ten times a second it writes the time, tends the connections and looks for a SIGTERM.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::connection_registry::TimedOutConnections;
use super::full;
use super::http::timeouts::ConnectionTimeouts;
use super::local_state::LocalWorkerState;
use crate::channel::ToPrimary;
use crate::dispatch::queue_wait;
use prefork_os::interval_timer::IntervalTimer;

/// The resolution of all connection timeouts.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// What it follows, in the current runtime.
pub(crate) fn beats() -> std::io::Result<IntervalTimer> {
    IntervalTimer::new(INTERVAL)
}

pub(crate) async fn beat(
    mut beats: IntervalTimer,
    state: Rc<LocalWorkerState>,
    terminate: Arc<AtomicBool>,
) {
    let mut late = Duration::ZERO;
    loop {
        state.row.lagged(late);
        let now = LocalWorkerState::monotonic_ms();
        state.row.beat(now);
        state.accept_recheck.notify_waiters();
        state.pool.update_utilisation();
        if terminate.swap(false, Ordering::Relaxed) {
            log::info!("{} got SIGTERM itself", state.tag);
            state.begin_own_drain(&ToPrimary::Retiring);
        }
        queue_wait::report(&state, now);
        full::report(&state, now);
        let limits = ConnectionTimeouts::new(&state.config, state.drain.order(), now);
        let TimedOutConnections { cut, stalled } =
            state.connections.borrow().enforce_timeouts(now, &limits);
        if state.should_hand_over() {
            // A worker that can take them may have come only now.
            state.connections.borrow().wake_all();
        }
        for _ in 0..cut + stalled {
            state.row.cut();
        }
        if cut > 0 && state.drain.order().is_some() {
            report_cut(&state, cut);
        }
        late = beats.tick().await;
    }
}

/// Names what did not finish in time.
fn report_cut(state: &LocalWorkerState, cut: usize) {
    let serving = state.scoreboard.snapshot();
    let requests: Vec<String> = serving
        .workers
        .iter()
        .filter(|worker| worker.id == state.tag.id.0)
        .flat_map(|worker| &worker.serving)
        .map(|r| format!("{} (for {:.1} s)", r.request, r.age_ms as f64 / 1000.0))
        .collect();
    let named =
        if requests.is_empty() { String::new() } else { format!(": {}", requests.join(", ")) };
    let plural = if cut == 1 { "" } else { "s" };
    log::warn!("{} cut {cut} connection{plural} at the graceful timeout{named}", state.tag);
}
