//! Warns when a worker reaches its connection limit, and reports when it is below the limit again.

use std::cell::Cell;

use super::local_state::LocalWorkerState;

/// The shortest time between two warnings of a worker, in milliseconds.
const WARN_INTERVAL_MS: u64 = 10_000;

/// The state of the capacity warnings in the log.
#[derive(Debug, Default)]
pub(crate) struct CapacityWarning {
    /// Whether the last log entry says that the worker is full.
    is_active: Cell<bool>,
    /// When the last warning was logged.
    warned_ms: Cell<Option<u64>>,
}

/// What to log about the connection limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CapacityChange {
    Full,
    BelowLimit { after_ms: u64 },
}

impl CapacityWarning {
    /// Returns what to log, given whether the worker is at its limit now.
    fn record_capacity(&self, is_full: bool, now_ms: u64) -> Option<CapacityChange> {
        let since = self.warned_ms.get().map(|warned| now_ms.saturating_sub(warned));
        match (is_full, self.is_active.get()) {
            (true, false) if since.is_none_or(|since| since >= WARN_INTERVAL_MS) => {
                self.is_active.set(true);
                self.warned_ms.set(Some(now_ms));
                Some(CapacityChange::Full)
            }
            (false, true) => {
                self.is_active.set(false);
                Some(CapacityChange::BelowLimit { after_ms: since.unwrap_or(0) })
            }
            _ => None,
        }
    }
}

/// Updates the scoreboard and logs a change. Called at each heartbeat.
pub(crate) fn report_capacity(state: &LocalWorkerState, now_ms: u64) {
    let (open, limit) =
        (state.worker_page.open_connections(), u64::from(state.config.worker_connections));
    let is_full = open >= limit;
    state.worker_page.set_full(is_full);
    match state.capacity_warning.record_capacity(is_full, now_ms) {
        Some(CapacityChange::Full) => log::warn!(
            "{} is full: {open} connections are open and worker-connections is {limit}; new connections wait until some close",
            state.tag
        ),
        Some(CapacityChange::BelowLimit { after_ms }) => {
            let seconds = after_ms as f64 / 1000.0;
            log::info!("{} is below worker-connections again after {seconds:.1} s", state.tag);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_worker_warns_once_and_reports_when_it_is_below_the_limit() {
        let warning = CapacityWarning::default();
        assert_eq!(warning.record_capacity(false, 0), None);
        assert_eq!(warning.record_capacity(true, 100), Some(CapacityChange::Full));
        assert_eq!(warning.record_capacity(true, 60_000), None);
        assert_eq!(
            warning.record_capacity(false, 60_100),
            Some(CapacityChange::BelowLimit { after_ms: 60_000 })
        );
        assert_eq!(warning.record_capacity(false, 60_200), None);
    }

    #[test]
    fn warnings_are_at_least_ten_seconds_apart() {
        let warning = CapacityWarning::default();
        let changes = (0..1_000u64)
            .filter(|beat| warning.record_capacity(beat % 2 == 0, beat * 100).is_some());
        // In 100 s: a warning every 10 s, and a report after each.
        assert_eq!(changes.count(), 20);
    }
}
