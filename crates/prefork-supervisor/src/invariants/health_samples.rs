//! Invariants of health checks: no worker is aborted for a stall that was not sampled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::InvariantViolation;
use crate::supervisor::{ClusterPhase, Supervisor};
use crate::worker_identity::WorkerId;
use crate::{Action, Event};

/// The longest time between two samples while the primary is awake.
const MAX_SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// A longer gap between two samples means that the primary was stopped.
const MAX_SAMPLE_GAP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct HealthSampleChecker {
    is_sampling: bool,
    last_sample: Option<Instant>,
    last_gap: Duration,
    /// The last heartbeat of each worker, and for how long the samples showed no change.
    heartbeats: BTreeMap<WorkerId, (u64, Duration)>,
}

impl HealthSampleChecker {
    pub(super) fn record_event(&mut self, now: Instant, event: &Event) {
        let Event::HealthSampled { samples } = event else { return };
        if !std::mem::take(&mut self.is_sampling) {
            return;
        }
        self.last_gap = self.last_sample.map_or(MAX_SAMPLE_INTERVAL, |last| now - last);
        self.last_sample = Some(now);
        for sample in samples {
            let first = (sample.heartbeat, Duration::ZERO);
            let (heartbeat, stalled) = self.heartbeats.entry(sample.worker).or_insert(first);
            if *heartbeat == sample.heartbeat {
                *stalled += self.last_gap.min(MAX_SAMPLE_GAP);
            } else {
                (*heartbeat, *stalled) = first;
            }
        }
    }

    pub(super) fn check_health_sample_action(
        &mut self,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        match action {
            Action::SampleHealth { .. } => {
                assert!(!self.is_sampling, "one sample at a time: {violation}");
                self.is_sampling = true;
            }
            Action::Abort(worker) => {
                let (_, stalled) = self.heartbeats.get(worker).copied().unwrap_or_default();
                let limit = supervisor.config.stall_timeout;
                let is_stalled = limit.is_some_and(|limit| stalled >= limit);
                assert!(is_stalled, "only a sampled stall aborts a worker: {violation}");
                assert!(self.last_gap <= MAX_SAMPLE_GAP, "no abort after a long gap: {violation}");
            }
            _ => {}
        }
    }

    pub(super) fn check_health_sample_invariants(
        &self,
        now: Instant,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        let is_unscheduled = supervisor.health.deadline().is_none();
        assert!(is_unscheduled || !self.is_sampling, "one sample at a time: {violation}");
        let is_over = matches!(supervisor.phase, ClusterPhase::Killing(_) | ClusterPhase::Done);
        if supervisor.has_health_limits() && !self.is_sampling && !is_over {
            let deadline = supervisor.next_deadline();
            let is_soon = deadline.is_some_and(|at| at <= now + MAX_SAMPLE_INTERVAL);
            assert!(is_soon, "the next sample is scheduled: {violation}");
        }
    }
}
