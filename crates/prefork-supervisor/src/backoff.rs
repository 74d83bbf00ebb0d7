//! Crash loops: who is respawned at once, who waits, and when we give up.
//!
//! A worker that had proved itself is replaced at once, always; an operator's `kill -9` of a healthy worker
//! is no crash. A *fault* is a death before ready, or soon after it by the worker's own doing. After a fault
//! no worker is forked for a delay that doubles each round, and then only one, the trial: as long as it is
//! not ready there is no point in forking the others. So a cluster that cannot boot costs one fork a round,
//! however many workers it wants.

use std::time::{Duration, Instant};

use crate::identity::WorkerId;

/// Foreign kills of booting workers that are forgiven before they count as faults: it may be the OOM killer.
const FORGIVEN_KILLS: u32 = 3;

/// How many workers may be forked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowance {
    All,
    One,
    None,
}

#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    /// Rounds that failed in a row. 0: all is well.
    failures: u32,
    stage: Stage,
    /// Kills from outside since a worker was last ready.
    kills: u32,
    /// WorkerState of the generator that spreads the delays.
    spread: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Fork what is wanted.
    Open,
    /// Fork nothing until then.
    Waiting { until: Instant },
    /// The delay is over: one may be forked.
    Due,
    /// One is being tried.
    Trying { trial: WorkerId },
    /// The trial was ready; if nothing fails until then, all is forgotten.
    Proving { until: Instant },
}

impl Backoff {
    /// `seed` makes this cluster's delays differ from those of its neighbours.
    pub(super) fn new(first: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { first, max, failures: 0, stage: Stage::Open, kills: 0, spread: seed }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The worker whose fate decides.
    #[cfg(test)]
    pub(super) fn trial(&self) -> Option<WorkerId> {
        match self.stage {
            Stage::Trying { trial } => Some(trial),
            _ => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting { until } | Stage::Proving { until } => Some(until),
            Stage::Open | Stage::Due | Stage::Trying { .. } => None,
        }
    }

    /// Moves on if a deadline has come.
    pub(super) fn tick(&mut self, now: Instant) {
        match self.stage {
            Stage::Waiting { until } if until <= now => self.stage = Stage::Due,
            Stage::Proving { until } if until <= now => {
                self.stage = Stage::Open;
                self.failures = 0;
            }
            _ => {}
        }
    }

    pub(super) fn allowance(&self) -> Allowance {
        match self.stage {
            Stage::Open | Stage::Proving { .. } => Allowance::All,
            Stage::Due => Allowance::One,
            Stage::Waiting { .. } | Stage::Trying { .. } => Allowance::None,
        }
    }

    /// A worker is being forked.
    pub(super) fn forked(&mut self, worker: WorkerId) {
        if self.stage == Stage::Due {
            self.stage = Stage::Trying { trial: worker };
        }
    }

    /// A worker is ready. `min_uptime` is how long it has to live to prove the loop over.
    pub(super) fn ready(&mut self, now: Instant, min_uptime: Duration) {
        self.kills = 0;
        // Not during a delay: among many workers that all die young, one is always about to be ready.
        if matches!(self.stage, Stage::Trying { .. } | Stage::Proving { .. }) {
            self.stage = Stage::Proving { until: now + min_uptime };
        }
    }

    /// Somebody killed a booting worker from outside. Returns whether that is still forgiven.
    pub(super) fn forgive_kill(&mut self) -> bool {
        self.kills += 1;
        self.kills <= FORGIVEN_KILLS
    }

    /// The trial ended without being at fault (it was asked to leave): another may be tried.
    pub(super) fn trial_over(&mut self, worker: WorkerId) {
        if self.stage == (Stage::Trying { trial: worker }) {
            self.stage = Stage::Due;
        }
    }

    /// Every place is served: by workers of a reload that mended the loop, or since there are fewer places. So
    /// there is nobody to be tried, and if nothing fails until `min_uptime` is over, all is forgotten.
    pub(super) fn whole(&mut self, now: Instant, min_uptime: Duration) {
        if matches!(self.stage, Stage::Waiting { .. } | Stage::Due) {
            self.stage = Stage::Proving { until: now + min_uptime };
        }
    }

    /// A worker died young. Returns the delay if this begins a new round; deaths during a round's delay, and
    /// those of others than the trial, belong to it.
    pub(super) fn fault(&mut self, now: Instant, worker: WorkerId) -> Option<Duration> {
        match self.stage {
            Stage::Waiting { .. } => return None,
            Stage::Trying { trial } if trial != worker => return None,
            _ => {}
        }
        self.failures += 1;
        let delay = self.delay();
        self.stage = Stage::Waiting { until: now + delay };
        Some(delay)
    }

    /// Doubles each round up to the maximum, less up to a quarter of it: clusters that fail together (on a
    /// shared database, say) should not retry together.
    fn delay(&mut self) -> Duration {
        let doublings = (self.failures - 1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        // A linear congruential step (Knuth's MMIX constants) is random enough to spread delays.
        self.spread = self
            .spread
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        full - full.mul_f64((self.spread >> 40) as f64 / f64::from(1u32 << 24) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(15), 1)
    }

    #[test]
    fn delays_double_up_to_the_maximum_and_are_spread() {
        let (mut backoff, mut now) = (backoff(), Instant::now());
        for full in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000] {
            let delay = backoff.fault(now, WorkerId(1)).expect("a new round").as_millis();
            assert!(delay <= full && delay >= full * 3 / 4, "{delay} of {full}");
            now = backoff.deadline().expect("waiting");
            backoff.tick(now);
        }
        let other =
            Backoff::new(Duration::from_secs(1), Duration::from_secs(1), 2).fault(now, WorkerId(1));
        assert_ne!(
            Backoff::new(Duration::from_secs(1), Duration::from_secs(1), 1).fault(now, WorkerId(1)),
            other
        );
    }

    #[test]
    fn deaths_during_the_delay_belong_to_the_round() {
        let (mut backoff, now) = (backoff(), Instant::now());
        assert!(backoff.fault(now, WorkerId(1)).is_some());
        assert!(backoff.fault(now, WorkerId(1)).is_none());
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn after_the_delay_one_is_tried_and_if_it_lives_all_is_forgotten() {
        let (mut backoff, now) = (backoff(), Instant::now());
        backoff.fault(now, WorkerId(1));
        assert_eq!(backoff.allowance(), Allowance::None);
        let now = now + Duration::from_millis(100);
        backoff.tick(now);
        assert_eq!(backoff.allowance(), Allowance::One);
        backoff.forked(WorkerId(7));
        assert_eq!(backoff.allowance(), Allowance::None);
        backoff.ready(now, Duration::from_secs(1));
        assert_eq!(backoff.allowance(), Allowance::All);
        backoff.tick(now + Duration::from_secs(1));
        assert_eq!((backoff.failures(), backoff.deadline()), (0, None));
    }
}
