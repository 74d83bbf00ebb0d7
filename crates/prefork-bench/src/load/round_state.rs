//! State shared by the threads of a round: its clock, its end, and progress counts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::connection_opening::{MAX_UNANSWERED, STALL_NANOS};
use super::part_counters::RAMP_STEPS;
use super::plan::LoadPlan;

/// Clock, end and progress of a round; times are nanoseconds since its start.
#[derive(Debug)]
pub(crate) struct RoundState {
    /// Start of the round on `CLOCK_MONOTONIC`.
    start: u64,
    /// Start of the measurement: the end of the warm-up.
    measure_start: u64,
    /// End of the measurement if nothing ends it early.
    planned_end: u64,
    /// End of the measurement: no request is due after it.
    measure_end: AtomicU64,
    /// How long to wait for requests in flight after the end.
    drain_timeout: u64,
    /// Whether to stop without waiting for requests in flight.
    abandoned: AtomicBool,
    responses: AtomicU64,
    failures: AtomicU64,
    /// Connections without a first response, of a load that waits for these before it sends more.
    unanswered: AtomicUsize,
    /// When the last first response came.
    last_first_response: AtomicU64,
}

impl LoadPlan {
    /// Returns whether all connections are opened, with one request on each, before the load begins.
    pub(crate) fn opens_before_load(&self) -> bool {
        let is_kept = !self.reconnect_each_request && self.rate.is_none();
        let has_time = !self.warm_up.is_zero() && self.connection_ramp.is_zero();
        is_kept && has_time && self.connections > MAX_UNANSWERED
    }
}

impl RoundState {
    pub(crate) fn new(plan: &LoadPlan) -> RoundState {
        let nanos = |span: Duration| span.as_nanos() as u64;
        let measure_start = nanos(plan.warm_up);
        RoundState {
            start: monotonic_nanos(),
            measure_start,
            planned_end: measure_start + nanos(plan.duration),
            measure_end: AtomicU64::new(measure_start + nanos(plan.duration)),
            drain_timeout: nanos(plan.timeout),
            abandoned: AtomicBool::new(false),
            responses: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unanswered: AtomicUsize::new(match plan.opens_before_load() {
                true => plan.connections,
                false => 0,
            }),
            last_first_response: AtomicU64::new(0),
        }
    }

    pub(crate) fn elapsed_nanos(&self) -> u64 {
        monotonic_nanos().saturating_sub(self.start)
    }

    /// Returns the time on `CLOCK_MONOTONIC` that is `nanos` after the start of the round.
    pub(crate) fn monotonic_time(&self, nanos: u64) -> TimeSpec {
        TimeSpec::from_duration(Duration::from_nanos(self.start.saturating_add(nanos)))
    }

    pub(crate) fn measure_start(&self) -> u64 {
        self.measure_start
    }

    pub(crate) fn measure_end(&self) -> u64 {
        self.measure_end.load(Relaxed)
    }

    /// Returns the planned end of the measurement, which a signal does not change.
    pub(crate) fn planned_end(&self) -> u64 {
        self.planned_end
    }

    /// Returns when the connections of a thread are opened in a closed loop, and their indices; earliest first. In an open
    /// loop they are opened when requests are due.
    pub(crate) fn opening_times(&self, plan: &LoadPlan, thread: usize) -> VecDeque<(u64, usize)> {
        let connections = if plan.rate.is_some() { 0 } else { plan.thread_connections(thread) };
        let number = |at: usize| at * plan.thread_count() + thread;
        (0..connections).map(|at| (self.opening_time(plan, number(at)), at)).collect()
    }

    /// Returns when connection `number` of all threads is opened.
    fn opening_time(&self, plan: &LoadPlan, number: usize) -> u64 {
        if plan.connection_ramp.is_zero() || number == 0 {
            return 0;
        }
        let ramp = plan.connection_ramp.as_nanos() * number as u128;
        self.measure_start + (ramp / (plan.connections - 1) as u128) as u64
    }

    /// Returns whether connections that had their first response must wait for that of the others, which a server that they
    /// keep busy would accept slowly. Only in the warm-up, and not for a server that takes no more of them.
    pub(crate) fn is_opening(&self, now: u64) -> bool {
        let is_stalled = now >= self.last_first_response.load(Relaxed) + STALL_NANOS;
        self.unanswered.load(Relaxed) > 0 && now < self.measure_start && !is_stalled
    }

    /// Counts the first response, or the end, of a connection.
    pub(crate) fn record_first_response(&self, now: u64) {
        self.last_first_response.fetch_max(now, Relaxed);
        // At 0 from the begin if nothing waits for it.
        let _ = self.unanswered.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
    }

    /// Returns the step of a ramp in which a request of the measurement is due.
    pub(crate) fn ramp_step(&self, due: u64) -> usize {
        let length = (self.planned_end - self.measure_start).max(1);
        let since = due.saturating_sub(self.measure_start);
        (u128::from(since) * RAMP_STEPS as u128 / u128::from(length)) as usize
    }

    /// Returns when to give up requests in flight; 0 once the round is abandoned.
    pub(crate) fn drain_deadline(&self) -> u64 {
        if self.is_abandoned() { 0 } else { self.measure_end().saturating_add(self.drain_timeout) }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Ends the measurement now; requests in flight are waited for.
    pub(crate) fn end_measurement(&self) {
        self.measure_end.fetch_min(self.elapsed_nanos(), Relaxed);
    }

    /// Ends the measurement now; a second call also abandons requests in flight.
    pub(crate) fn stop_round(&self) {
        let now = self.elapsed_nanos();
        if self.measure_end.fetch_min(now, Relaxed) <= now {
            self.abandoned.store(true, Relaxed);
        }
    }

    /// Returns the length of the measurement, once it has ended.
    pub(crate) fn measured_duration(&self) -> Duration {
        Duration::from_nanos(self.measure_end().saturating_sub(self.measure_start))
    }

    /// Adds responses and failures.
    pub(crate) fn add_progress(&self, new_results: [u64; 2]) {
        if new_results != [0; 2] {
            self.responses.fetch_add(new_results[0], Relaxed);
            self.failures.fetch_add(new_results[1], Relaxed);
        }
    }

    /// Returns all responses and failures so far, warm-up included.
    pub(crate) fn progress_counts(&self) -> [u64; 2] {
        [self.responses.load(Relaxed), self.failures.load(Relaxed)]
    }
}

/// Reads `CLOCK_MONOTONIC`. Cheaper than [`std::time::Instant`], and gives the absolute times that a timer takes.
fn monotonic_nanos() -> u64 {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::target_url::TargetUrl;

    #[test]
    fn load_waits_for_the_first_response_on_each_connection() {
        let plan = LoadPlan::new(TargetUrl::parse("http://h/").expect("url"));
        let many = LoadPlan { connections: MAX_UNANSWERED + 2, ..plan.clone() };
        let state = RoundState::new(&many);
        let measure_start = state.measure_start();
        for at in 0..many.connections {
            assert!(state.is_opening(1000 + at as u64), "{at}");
            state.record_first_response(at as u64);
        }
        assert!(!state.is_opening(1000));
        let state = RoundState::new(&many);
        assert!(!state.is_opening(measure_start));
        state.record_first_response(STALL_NANOS);
        assert!(state.is_opening(2 * STALL_NANOS - 1) && !state.is_opening(2 * STALL_NANOS));
        assert!(!RoundState::new(&LoadPlan { rate: Some(1), ..many.clone() }).is_opening(0));
        assert!(!RoundState::new(&plan).is_opening(0));
    }

    #[test]
    fn a_second_stop_abandons_requests_in_flight() {
        let state = RoundState::new(&LoadPlan::new(TargetUrl::parse("http://h/").expect("url")));
        assert_eq!(state.measured_duration(), Duration::from_secs(10));
        state.stop_round();
        assert!(
            state.measure_end() <= state.elapsed_nanos()
                && state.drain_deadline() > state.elapsed_nanos()
        );
        assert_eq!(state.measured_duration(), Duration::ZERO);
        state.stop_round();
        assert!(state.is_abandoned() && state.drain_deadline() == 0);
    }
}
