//! Counts what the primary does, for the status and the metrics: forks, exits by reason, reloads and upgrades.

use super::Primary;
use super::cluster_event::{WorkerExit, WorkerExitReason};
use crate::log_output;
use crate::status::{SupervisionCounters, unix_time_ms};
use prefork_os::system::monotonic_ms;
use prefork_supervisor::{LogEvent, RecycleReason};

impl WorkerExitReason {
    /// Returns the name of the reason in metrics: one of `EXIT_REASONS`.
    fn metric_name(&self) -> &'static str {
        match self {
            WorkerExitReason::Stopped => "stopped",
            WorkerExitReason::Disconnected => "disconnected",
            WorkerExitReason::Retired => "retired",
            WorkerExitReason::Recycled(RecycleReason::Requests(_)) => "recycled_requests",
            WorkerExitReason::Recycled(RecycleReason::Memory(_)) => "recycled_memory",
            WorkerExitReason::Recycled(RecycleReason::Lifetime(_)) => "recycled_lifetime",
            WorkerExitReason::Recycled(RecycleReason::Jobs(_)) => "recycled_jobs",
            WorkerExitReason::Reloaded => "reloaded",
            WorkerExitReason::ScaledDown => "scaled_down",
            WorkerExitReason::Superseded => "superseded",
            WorkerExitReason::GracefulTimeout => "graceful_timeout",
            WorkerExitReason::BootTimeout => "boot_timeout",
            WorkerExitReason::BootFailed(_) => "boot_failed",
            WorkerExitReason::Stalled => "stalled",
            WorkerExitReason::MemoryLimit => "memory_limit",
            WorkerExitReason::Misbehaved(_) => "misbehaved",
            WorkerExitReason::OutOfMemory => "out_of_memory",
            WorkerExitReason::Killed => "killed",
            WorkerExitReason::Crashed => "crashed",
            WorkerExitReason::Exited => "exited",
        }
    }
}

impl Primary {
    /// Counts an event and publishes the counters.
    pub(super) fn count_event(&mut self, event: &LogEvent, exit: Option<(&WorkerExit, bool)>) {
        let mut counters = self.scoreboard.supervision_counters();
        if let Some((exit, was_killed_with_job)) = exit {
            let reason = if was_killed_with_job { "job" } else { exit.reason.metric_name() };
            *counters.exits.entry(reason.to_string()).or_default() += 1;
        }
        if !count_change(&mut counters, event) && exit.is_none() {
            return;
        }
        self.scoreboard.publish_supervision_counters(&counters);
    }

    /// Publishes how many log lines and messages were lost so far.
    pub(super) fn publish_losses(&self) {
        let lines = self.upgrade.dropped_log_lines + log_output::dropped_line_count();
        self.scoreboard.publish_losses(lines, self.messages.primary_end.lost_count());
    }
}

/// Counts a fork, a reload or an upgrade. Returns whether it was one.
fn count_change(counters: &mut SupervisionCounters, event: &LogEvent) -> bool {
    let (now, at) = (monotonic_ms(), unix_time_ms());
    match event {
        LogEvent::Forked { .. } => counters.forks += 1,
        LogEvent::Reloading { .. } => counters.reloads.start(now),
        LogEvent::Reloaded { is_upgrade: false, .. } => counters.reloads.end(true, now, at),
        LogEvent::UpgradeChecking { .. } => counters.upgrades.start(now),
        LogEvent::Reloaded { is_upgrade: true, .. } => counters.upgrades.end(true, now, at),
        LogEvent::UpgradeFailed { .. } => counters.upgrades.end(false, now, at),
        // The workers of a new image are started as in a reload.
        LogEvent::ReloadFailed { .. }
            if counters.upgrades.is_running() && !counters.reloads.is_running() =>
        {
            counters.upgrades.end(false, now, at);
        }
        LogEvent::ReloadFailed { .. } => counters.reloads.end(false, now, at),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::EXIT_REASONS;

    #[test]
    fn every_reason_has_a_word_in_shared_memory() {
        let text = String::new;
        let reasons = [
            WorkerExitReason::Stopped,
            WorkerExitReason::Disconnected,
            WorkerExitReason::Retired,
            WorkerExitReason::Recycled(RecycleReason::Requests(1)),
            WorkerExitReason::Recycled(RecycleReason::Memory(1)),
            WorkerExitReason::Recycled(RecycleReason::Lifetime(std::time::Duration::ZERO)),
            WorkerExitReason::Recycled(RecycleReason::Jobs(1)),
            WorkerExitReason::Reloaded,
            WorkerExitReason::ScaledDown,
            WorkerExitReason::Superseded,
            WorkerExitReason::GracefulTimeout,
            WorkerExitReason::BootTimeout,
            WorkerExitReason::BootFailed(text()),
            WorkerExitReason::Stalled,
            WorkerExitReason::MemoryLimit,
            WorkerExitReason::Misbehaved(text()),
            WorkerExitReason::OutOfMemory,
            WorkerExitReason::Killed,
            WorkerExitReason::Crashed,
            WorkerExitReason::Exited,
        ];
        let names: Vec<_> = reasons.iter().map(WorkerExitReason::metric_name).collect();
        assert_eq!(names, EXIT_REASONS[..20]);
    }

    #[test]
    fn a_failed_rollout_of_a_new_image_is_a_failed_upgrade() {
        let mut counters = SupervisionCounters::default();
        let failed = LogEvent::ReloadFailed { reason: "boot".to_string() };
        count_change(&mut counters, &LogEvent::UpgradeChecking { by: "a test".to_string() });
        assert!(count_change(&mut counters, &failed));
        assert_eq!((counters.upgrades.failed, counters.reloads.failed), (1, 0));
        count_change(&mut counters, &failed);
        assert_eq!((counters.upgrades.failed, counters.reloads.failed), (1, 1));
    }
}
