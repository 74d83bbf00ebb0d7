//! Back-off in a crash loop: when the next worker may be forked, and when the primary gives up.
//!
//! A worker that served long enough is replaced at once, always; an operator's `kill -9` of a healthy worker is no
//! crash. A *crash* here is a death before READY, or soon after it by the worker's own doing. After a crash no worker
//! is forked for a delay that doubles each round. Then only one worker, the *probe*, is forked; the others follow when
//! it is ready. So a cluster that cannot boot costs one fork per round, however many workers it wants.

use std::time::{Duration, Instant};

use crate::config::SupervisorConfig;
use crate::worker_identity::WorkerId;

/// Number of external kills of booting workers that do not count as crashes. The OOM killer may cause more.
const MAX_FORGIVEN_KILLS: u32 = 3;

/// How many workers may be forked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForkAllowance {
    All,
    One,
    None,
}

/// The consequence of a crash for the back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashOutcome {
    /// The crash belongs to a round that has failed already.
    SameRound,
    /// A new round begins after this delay.
    BackOff { failures: u32, delay: Duration },
    /// No worker was ever ready, and the boot attempts are used up.
    GiveUp { failures: u32 },
}

/// The state of the crash back-off.
#[derive(Debug)]
pub(crate) struct CrashBackoff {
    first_delay: Duration,
    max_delay: Duration,
    /// Rounds that failed in a row.
    failures: u32,
    stage: BackoffStage,
    /// External kills since a worker was last ready.
    kills: u32,
    /// Whether any worker ever was ready.
    was_any_worker_ready: bool,
    /// State of the generator that jitters the delays.
    jitter_state: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BackoffStage {
    /// All wanted workers may be forked.
    Open,
    /// No worker is forked until this time.
    Waiting { until: Instant },
    /// The delay is over; one worker may be forked.
    Due,
    /// The probe is being booted.
    Probing { probe: WorkerId },
    /// The probe was ready. If nothing crashes until then, the failures are forgotten.
    Recovering { until: Instant },
}

impl CrashBackoff {
    /// Creates the back-off; `seed` makes the delays of clusters that crash together differ.
    pub(crate) fn new(config: &SupervisorConfig, seed: u64) -> CrashBackoff {
        CrashBackoff {
            first_delay: config.backoff_first,
            max_delay: config.backoff_max,
            failures: 0,
            stage: BackoffStage::Open,
            kills: 0,
            was_any_worker_ready: false,
            jitter_state: seed,
        }
    }

    #[cfg(test)]
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the worker whose boot decides when others are forked.
    #[cfg(test)]
    pub(crate) fn probe_worker(&self) -> Option<WorkerId> {
        match self.stage {
            BackoffStage::Probing { probe } => Some(probe),
            _ => None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            BackoffStage::Waiting { until } | BackoffStage::Recovering { until } => Some(until),
            BackoffStage::Open | BackoffStage::Due | BackoffStage::Probing { .. } => None,
        }
    }

    /// Enters the next stage if its deadline has come.
    pub(crate) fn advance_stage(&mut self, now: Instant) {
        match self.stage {
            BackoffStage::Waiting { until } if until <= now => self.stage = BackoffStage::Due,
            BackoffStage::Recovering { until } if until <= now => {
                self.stage = BackoffStage::Open;
                self.failures = 0;
            }
            BackoffStage::Waiting { .. } | BackoffStage::Recovering { .. } => {}
            BackoffStage::Open | BackoffStage::Due | BackoffStage::Probing { .. } => {}
        }
    }

    pub(crate) fn fork_allowance(&self) -> ForkAllowance {
        match self.stage {
            BackoffStage::Open | BackoffStage::Recovering { .. } => ForkAllowance::All,
            BackoffStage::Due => ForkAllowance::One,
            BackoffStage::Waiting { .. } | BackoffStage::Probing { .. } => ForkAllowance::None,
        }
    }

    /// Records that a worker is being forked for an empty slot.
    pub(crate) fn record_fork(&mut self, worker: WorkerId) {
        if self.stage == BackoffStage::Due {
            self.stage = BackoffStage::Probing { probe: worker };
        }
    }

    /// Records that workers serve, so that the cluster never gives up any more.
    pub(crate) fn set_any_worker_ready(&mut self) {
        self.was_any_worker_ready = true;
    }

    /// Records that a worker is ready. The failures are forgotten if nothing crashes within `min_uptime`.
    pub(crate) fn record_ready(&mut self, now: Instant, min_uptime: Duration) {
        self.kills = 0;
        self.was_any_worker_ready = true;
        // Not during a delay: of many workers that all crash, one is always about to be ready.
        if matches!(self.stage, BackoffStage::Probing { .. } | BackoffStage::Recovering { .. }) {
            self.stage = BackoffStage::Recovering { until: now + min_uptime };
        }
    }

    /// Records that a booting worker was killed from outside. Returns whether the kill does not count as a crash.
    pub(crate) fn forgive_boot_kill(&mut self) -> bool {
        self.kills += 1;
        self.kills <= MAX_FORGIVEN_KILLS
    }

    /// Records that a worker ended without a crash. If it was the probe, another one may be forked.
    pub(crate) fn end_probe(&mut self, worker: WorkerId) {
        if self.stage == (BackoffStage::Probing { probe: worker }) {
            self.stage = BackoffStage::Due;
        }
    }

    /// Records that every slot is served, by a reload or because there are fewer slots: no probe is needed.
    pub(crate) fn record_all_slots_served(&mut self, now: Instant, min_uptime: Duration) {
        if matches!(self.stage, BackoffStage::Waiting { .. } | BackoffStage::Due) {
            self.stage = BackoffStage::Recovering { until: now + min_uptime };
        }
    }

    /// Records a crash. A crash during a round's delay, or of another worker than the probe, belongs to the same round.
    pub(crate) fn record_crash(
        &mut self,
        now: Instant,
        worker: WorkerId,
        boot_attempts: u32,
    ) -> CrashOutcome {
        match self.stage {
            BackoffStage::Waiting { .. } => return CrashOutcome::SameRound,
            BackoffStage::Probing { probe } if probe != worker => return CrashOutcome::SameRound,
            BackoffStage::Probing { .. } | BackoffStage::Recovering { .. } => {}
            BackoffStage::Open | BackoffStage::Due => {}
        }
        self.failures += 1;
        let (failures, delay) = (self.failures, self.next_delay());
        self.stage = BackoffStage::Waiting { until: now + delay };
        if !self.was_any_worker_ready && failures >= boot_attempts {
            CrashOutcome::GiveUp { failures }
        } else {
            CrashOutcome::BackOff { failures, delay }
        }
    }

    /// Doubles the delay each round up to the maximum, minus up to 25 % jitter. Clusters that fail together, on a
    /// shared database for example, should not retry together.
    fn next_delay(&mut self) -> Duration {
        let doublings = (self.failures - 1).min(20);
        let full = self.first_delay.saturating_mul(1 << doublings).min(self.max_delay);
        // A linear congruential step (Knuth's MMIX constants) is random enough.
        self.jitter_state = self
            .jitter_state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        full - full.mul_f64((self.jitter_state >> 40) as f64 / f64::from(1u32 << 24) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::test_config;

    fn test_backoff(first_ms: u64, max_ms: u64, seed: u64) -> CrashBackoff {
        let config = SupervisorConfig {
            backoff_first: Duration::from_millis(first_ms),
            backoff_max: Duration::from_millis(max_ms),
            ..test_config(1)
        };
        CrashBackoff::new(&config, seed)
    }

    fn backoff_delay(outcome: CrashOutcome) -> Option<Duration> {
        match outcome {
            CrashOutcome::BackOff { delay, .. } => Some(delay),
            CrashOutcome::SameRound | CrashOutcome::GiveUp { .. } => None,
        }
    }

    #[test]
    fn delays_double_up_to_the_maximum_with_jitter() {
        let (mut backoff1, mut now) = (test_backoff(100, 15_000, 1), Instant::now());
        for full in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000] {
            let outcome = backoff1.record_crash(now, WorkerId(1), u32::MAX);
            let delay = backoff_delay(outcome).expect("a new round").as_millis();
            assert!(delay <= full && delay >= full * 3 / 4, "{delay} of {full}");
            now = backoff1.deadline().expect("waiting");
            backoff1.advance_stage(now);
        }
        let first =
            |seed| test_backoff(1_000, 1_000, seed).record_crash(now, WorkerId(1), u32::MAX);
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn crashes_during_the_delay_belong_to_the_same_round() {
        let (mut backoff, now) = (test_backoff(100, 15_000, 1), Instant::now());
        assert!(backoff_delay(backoff.record_crash(now, WorkerId(1), 5)).is_some());
        assert_eq!(backoff.record_crash(now, WorkerId(1), 5), CrashOutcome::SameRound);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn after_the_delay_one_probe_is_forked_and_its_survival_resets_the_failures() {
        let (mut backoff, now) = (test_backoff(100, 15_000, 1), Instant::now());
        backoff.record_crash(now, WorkerId(1), 5);
        assert_eq!(backoff.fork_allowance(), ForkAllowance::None);
        let now = now + Duration::from_millis(100);
        backoff.advance_stage(now);
        assert_eq!(backoff.fork_allowance(), ForkAllowance::One);
        backoff.record_fork(WorkerId(7));
        assert_eq!(backoff.fork_allowance(), ForkAllowance::None);
        backoff.record_ready(now, Duration::from_secs(1));
        assert_eq!(backoff.fork_allowance(), ForkAllowance::All);
        backoff.advance_stage(now + Duration::from_secs(1));
        assert_eq!((backoff.failures(), backoff.deadline()), (0, None));
    }

    #[test]
    fn the_last_boot_attempt_gives_up_unless_a_worker_was_ever_ready() {
        let (mut backoff, now) = (test_backoff(100, 15_000, 1), Instant::now());
        let outcome = backoff.record_crash(now, WorkerId(1), 1);
        assert_eq!(outcome, CrashOutcome::GiveUp { failures: 1 });
        backoff.record_ready(now, Duration::ZERO);
        backoff.advance_stage(now + Duration::from_secs(1));
        assert!(backoff_delay(backoff.record_crash(now, WorkerId(1), 1)).is_some());
    }
}
