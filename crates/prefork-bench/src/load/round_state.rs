//! What the threads of a round share: one clock, its end, and two sums for whoever looks on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::plan::LoadPlan;

/// The times of a round, in nanoseconds from its start.
#[derive(Debug)]
pub(crate) struct RoundState {
    start: Instant,
    /// When the measuring begins: the end of the warm-up.
    measure_start: u64,
    /// When the last request is due.
    measure_end: AtomicU64,
    /// How long what is on the way then may take.
    drain_timeout: u64,
    /// Nobody wants to wait for the rest.
    abandoned: AtomicBool,
    responses: AtomicU64,
    failures: AtomicU64,
}

impl RoundState {
    pub(crate) fn new(plan: &LoadPlan) -> RoundState {
        let nanos = |span: Duration| span.as_nanos() as u64;
        let measure_start = nanos(plan.warm_up);
        RoundState {
            start: Instant::now(),
            measure_start,
            measure_end: AtomicU64::new(measure_start + nanos(plan.duration)),
            drain_timeout: nanos(plan.timeout),
            abandoned: AtomicBool::new(false),
            responses: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub(crate) fn measure_start(&self) -> u64 {
        self.measure_start
    }

    pub(crate) fn measure_end(&self) -> u64 {
        self.measure_end.load(Relaxed)
    }

    /// When nobody waits any longer for what is on the way.
    pub(crate) fn drain_deadline(&self) -> u64 {
        if self.is_abandoned() { 0 } else { self.measure_end().saturating_add(self.drain_timeout) }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Ends the round now; asked a second time, waits for nothing more.
    pub(crate) fn stop(&self) {
        let now = self.now();
        if self.measure_end.fetch_min(now, Relaxed) <= now {
            self.abandoned.store(true, Relaxed);
        }
    }

    /// How long was measured, once the end has come.
    pub(crate) fn measured_duration(&self) -> Duration {
        Duration::from_nanos(self.measure_end().saturating_sub(self.measure_start))
    }

    /// So many more responses and failures.
    pub(crate) fn add_progress(&self, new_results: [u64; 2]) {
        if new_results != [0; 2] {
            self.responses.fetch_add(new_results[0], Relaxed);
            self.failures.fetch_add(new_results[1], Relaxed);
        }
    }

    /// All responses and failures so far, warm-up included.
    pub(crate) fn progress(&self) -> [u64; 2] {
        [self.responses.load(Relaxed), self.failures.load(Relaxed)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::target_url::TargetUrl;

    #[test]
    fn a_second_wish_to_end_gives_up_what_is_on_the_way() {
        let state = RoundState::new(&LoadPlan::new(TargetUrl::parse("http://h/").expect("url")));
        assert_eq!(state.measured_duration(), Duration::from_secs(10));
        state.stop();
        assert!(state.measure_end() <= state.now() && state.drain_deadline() > state.now());
        assert_eq!(state.measured_duration(), Duration::ZERO);
        state.stop();
        assert!(state.is_abandoned() && state.drain_deadline() == 0);
    }
}
