//! What holds for the watch: nobody dies of what nobody saw.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::{Action, ClusterPhase, Event, Supervisor};
use super::Story;
use crate::identity::WorkerId;

/// The longest time between two looks, in a primary that is awake.
const INTERVAL: Duration = Duration::from_millis(500);

/// A gap between two looks that is longer was slept through.
const ASLEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Looks {
    outstanding: bool,
    last: Option<Instant>,
    /// The last gap between two looks.
    gap: Duration,
    /// For how long each worker was seen with the same beat.
    still: BTreeMap<WorkerId, (u64, Duration)>,
}

impl Looks {
    pub(super) fn hear(&mut self, now: Instant, event: &Event) {
        let Event::HealthSampled { samples } = event else { return };
        if !std::mem::take(&mut self.outstanding) {
            return;
        }
        self.gap = self.last.map_or(INTERVAL, |last| now - last);
        self.last = Some(now);
        for one in samples {
            let (beat, still) =
                self.still.entry(one.worker).or_insert((one.heartbeat, Duration::ZERO));
            if *beat == one.heartbeat {
                *still += self.gap.min(ASLEEP);
            } else {
                (*beat, *still) = (one.heartbeat, Duration::ZERO);
            }
        }
    }

    pub(super) fn obey(&mut self, action: &Action, mind: &Supervisor, story: &Story<'_>) {
        match action {
            Action::SampleHealth { .. } => {
                assert!(!self.outstanding, "one look at a time: {story}");
                self.outstanding = true;
            }
            Action::Abort(worker) => {
                let (_, still) = self.still.get(worker).copied().unwrap_or_default();
                let limit = mind.policy.stall_timeout;
                let seen = limit.is_some_and(|limit| still >= limit);
                assert!(seen, "only who was seen to stand still is aborted: {story}");
                assert!(self.gap <= ASLEEP, "no verdict right after we slept: {story}");
            }
            _ => {}
        }
    }

    pub(super) fn check(&self, now: Instant, mind: &Supervisor, story: &Story<'_>) {
        let idle = mind.watch.deadline().is_none();
        assert!(idle || !self.outstanding, "no look while one is unanswered: {story}");
        let over = matches!(mind.phase, ClusterPhase::Killing(_) | ClusterPhase::Done);
        if mind.is_watchful() && !self.outstanding && !over {
            let soon = mind.deadline().is_some_and(|at| at <= now + INTERVAL);
            assert!(soon, "no needed look is slept through: {story}");
        }
    }
}
