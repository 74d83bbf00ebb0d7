//! What the primary has done: forks, exits by reason, reloads and upgrades.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MAX_JSON_INTEGER;

/// What the primary has counted since it started, over upgrades.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SupervisionCounters {
    /// When the primary started, in milliseconds since 1970. An upgrade in place is no start.
    pub started_at_ms: u64,
    /// Workers that were forked, of all kinds.
    pub forks: u64,
    /// Workers that have exited, of all kinds, by the reason. The reasons are the names of
    /// [`WorkerExitReason`](crate::WorkerExitReason) in lower case, such as `out_of_memory`, with one for each recycling limit
    /// (`recycled_requests`), and `job` for an isolated process that was killed because of its job.
    pub exits: BTreeMap<String, u64>,
    /// Reloads.
    pub reloads: ChangeCounters,
    /// Upgrades in place.
    pub upgrades: ChangeCounters,
    /// Lines of the log of all processes that were dropped.
    pub log_lines_dropped: u64,
    /// Messages of the application that were lost.
    pub messages_lost: u64,
}

/// How often the workers were replaced on command, and how that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChangeCounters {
    /// How often it succeeded.
    pub succeeded: u64,
    /// How often it failed and the old workers went on.
    pub failed: u64,
    /// When it last succeeded, in milliseconds since 1970; 0 for never.
    pub last_succeeded_at_ms: u64,
    /// When it last failed, in milliseconds since 1970; 0 for never.
    pub last_failed_at_ms: u64,
    /// How long the last one took, in milliseconds.
    pub last_duration_ms: u64,
    /// When the one in progress started, in milliseconds on the monotonic clock; 0 for none.
    pub(crate) started_ms: u64,
}

/// The reasons of exits, in the order of their words in shared memory. New ones are appended.
pub(crate) const EXIT_REASONS: [&str; 21] = [
    "stopped",
    "disconnected",
    "retired",
    "recycled_requests",
    "recycled_memory",
    "recycled_lifetime",
    "recycled_jobs",
    "reloaded",
    "scaled_down",
    "superseded",
    "graceful_timeout",
    "boot_timeout",
    "boot_failed",
    "stalled",
    "memory_limit",
    "misbehaved",
    "out_of_memory",
    "killed",
    "crashed",
    "exited",
    "job",
];

impl ChangeCounters {
    /// How many numbers this has.
    pub(crate) const WORDS: usize = 6;

    pub(crate) fn from_array(numbers: [u64; Self::WORDS]) -> ChangeCounters {
        let [succeeded, failed, last_succeeded_at_ms, last_failed_at_ms, last_duration_ms, started] =
            numbers.map(|n| n.min(MAX_JSON_INTEGER));
        ChangeCounters {
            succeeded,
            failed,
            last_succeeded_at_ms,
            last_failed_at_ms,
            last_duration_ms,
            started_ms: started,
        }
    }

    pub(crate) fn to_array(self) -> [u64; Self::WORDS] {
        [
            self.succeeded,
            self.failed,
            self.last_succeeded_at_ms,
            self.last_failed_at_ms,
            self.last_duration_ms,
            self.started_ms,
        ]
    }

    /// Records the start.
    pub(crate) fn start(&mut self, monotonic_ms: u64) {
        self.started_ms = monotonic_ms.max(1);
    }

    /// Records the end.
    pub(crate) fn end(&mut self, has_succeeded: bool, monotonic_ms: u64, unix_ms: u64) {
        let (count, at) = match has_succeeded {
            true => (&mut self.succeeded, &mut self.last_succeeded_at_ms),
            false => (&mut self.failed, &mut self.last_failed_at_ms),
        };
        *count += 1;
        *at = unix_ms;
        if self.started_ms != 0 {
            self.last_duration_ms = monotonic_ms.saturating_sub(self.started_ms);
        }
        self.started_ms = 0;
    }

    /// Returns whether one is in progress.
    pub(crate) fn is_running(&self) -> bool {
        self.started_ms != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_counted_with_its_time_and_duration() {
        let mut changes = ChangeCounters::default();
        changes.start(1000);
        assert!(changes.is_running());
        changes.end(true, 1500, 7);
        changes.end(false, 9000, 8);
        assert_eq!((changes.succeeded, changes.failed, changes.last_duration_ms), (1, 1, 500));
        assert_eq!((changes.last_succeeded_at_ms, changes.last_failed_at_ms), (7, 8));
        assert_eq!(ChangeCounters::from_array(changes.to_array()), changes);
    }
}
