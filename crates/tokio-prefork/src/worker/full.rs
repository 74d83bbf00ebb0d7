//! Tells when a worker has as many connections as it may have, and when it has room again.

use std::cell::Cell;

use super::local_state::LocalWorkerState;

/// The shortest time between two warnings of one worker.
const WARN_INTERVAL_MS: u64 = 10_000;

/// What has been told of it.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    /// A warning stands that was not taken back.
    is_told: Cell<bool>,
    /// When the last warning was given.
    warned_ms: Cell<Option<u64>>,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Full,
    HasRoom { after_ms: u64 },
}

impl Fullness {
    fn observe(&self, is_full: bool, now_ms: u64) -> Option<Notice> {
        let since = self.warned_ms.get().map(|warned| now_ms.saturating_sub(warned));
        match (is_full, self.is_told.get()) {
            (true, false) if since.is_none_or(|since| since >= WARN_INTERVAL_MS) => {
                self.is_told.set(true);
                self.warned_ms.set(Some(now_ms));
                Some(Notice::Full)
            }
            (false, true) => {
                self.is_told.set(false);
                Some(Notice::HasRoom { after_ms: since.unwrap_or(0) })
            }
            _ => None,
        }
    }
}

/// Called at each heartbeat.
pub(crate) fn report(state: &LocalWorkerState, now_ms: u64) {
    let (open, limit) = (state.row.open(), u64::from(state.config.worker_connections));
    let is_full = open >= limit;
    state.row.full(is_full);
    match state.capacity_warning.observe(is_full, now_ms) {
        Some(Notice::Full) => log::warn!(
            "{} is full: {open} connections are open, and worker-connections is {limit}; new ones wait until some are \
             closed",
            state.tag
        ),
        Some(Notice::HasRoom { after_ms }) => {
            let seconds = after_ms as f64 / 1000.0;
            log::info!("{} has room for connections again, after {seconds:.1} s", state.tag);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_worker_warns_once_and_takes_it_back() {
        let fullness = Fullness::default();
        assert_eq!(fullness.observe(false, 0), None);
        assert_eq!(fullness.observe(true, 100), Some(Notice::Full));
        assert_eq!(fullness.observe(true, 60_000), None);
        assert_eq!(fullness.observe(false, 60_100), Some(Notice::HasRoom { after_ms: 60_000 }));
        assert_eq!(fullness.observe(false, 60_200), None);
    }

    #[test]
    fn one_that_is_full_now_and_then_warns_once_in_ten_seconds() {
        let fullness = Fullness::default();
        let notices =
            (0..1_000u64).filter(|beat| fullness.observe(beat % 2 == 0, beat * 100).is_some());
        // 100 s: a warning each 10 s, and each taken back.
        assert_eq!(notices.count(), 20);
    }
}
