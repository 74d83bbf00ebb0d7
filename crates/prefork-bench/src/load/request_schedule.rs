//! When requests are due in an open loop.
//!
//! The schedule is fixed in advance: a late or missing response does not change it, so a stall shows as
//! latency of every request due meanwhile.

/// Due times of one thread: every `threads`-th of `rate` requests per second, from number `thread` on.
#[derive(Debug, Clone)]
pub(crate) struct RequestSchedule {
    next: u64,
    step: u64,
    rate: u64,
    ramp: Option<RateRamp>,
}

/// A rate that changes evenly over time; times are nanoseconds since the start of the round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateRamp {
    /// Requests per second at the end, and after it.
    pub(crate) rate_at_end: u32,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

impl RequestSchedule {
    pub(crate) fn new(
        rate: u32,
        ramp: Option<RateRamp>,
        thread: usize,
        threads: usize,
    ) -> RequestSchedule {
        let (next, step) = (thread as u64, threads as u64);
        RequestSchedule { next, step, rate: u64::from(rate.max(1)), ramp }
    }

    /// Returns when request `number` is due.
    fn due(&self, number: u64) -> u64 {
        match &self.ramp {
            None => due_nanos(number, self.rate),
            Some(ramp) => ramp.due_nanos(number, self.rate),
        }
    }

    /// Returns when the next request is due, in nanoseconds since the start of the round.
    pub(crate) fn next_due(&self) -> u64 {
        self.due(self.next)
    }

    /// Moves on to the next request.
    pub(crate) fn advance(&mut self) {
        self.next += self.step;
    }

    /// Returns the due times of all remaining requests before `end`.
    pub(crate) fn remaining_until(&self, end: u64) -> impl Iterator<Item = u64> + use<> {
        let schedule = self.clone();
        let numbers = (self.next..).step_by(self.step as usize);
        numbers.map(move |number| schedule.due(number)).take_while(move |due| *due < end)
    }
}

/// Returns the due time of request `number`. Computed from the number, because adding up rounded intervals
/// would drift.
fn due_nanos(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

impl RateRamp {
    /// Returns the due time of request `number`: when the integral of the rate reaches it.
    fn due_nanos(&self, number: u64, rate: u64) -> u64 {
        // Exact to below a microsecond for an hour: a double has 53 bits.
        let (from, to) = (rate as f64 / 1e9, f64::from(self.rate_at_end.max(1)) / 1e9);
        let before = from * self.begin as f64;
        let after_begin = number as f64 - before;
        if after_begin <= 0.0 {
            return due_nanos(number, rate);
        }
        let length = (self.end - self.begin).max(1) as f64;
        let within = (from + to) / 2.0 * length;
        let since_begin = if after_begin >= within {
            length + (after_begin - within) / to
        } else {
            let slope = (to - from) / length;
            // The solution of from * t + slope * t * t / 2 = n in the form that does not cancel digits.
            2.0 * after_begin / (from + (from * from + 2.0 * slope * after_begin).max(0.0).sqrt())
        };
        self.begin + since_begin as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_together_keep_the_rate() {
        for (rate, threads) in [(1, 1), (7, 2), (1000, 3), (333_333, 2)] {
            let second = 1_000_000_000;
            let all = (0..threads).flat_map(|thread| {
                RequestSchedule::new(rate, None, thread, threads).remaining_until(3 * second)
            });
            let mut all: Vec<u64> = all.collect();
            all.sort_unstable();
            assert_eq!(all.len(), 3 * rate as usize);
            let gap = second / u64::from(rate);
            assert!(all.windows(2).all(|w| (gap..=gap + 1).contains(&(w[1] - w[0]))));
        }
    }

    #[test]
    fn a_ramp_sends_as_many_requests_as_the_mean_of_its_rates() {
        let second = 1_000_000_000;
        for (from, to) in [(100, 1000), (1000, 100), (50, 50), (1, 100_000)] {
            let ramp = RateRamp { rate_at_end: to, begin: second, end: 5 * second };
            let all = |thread| {
                RequestSchedule::new(from, Some(ramp), thread, 2).remaining_until(7 * second)
            };
            let mut due: Vec<u64> = all(0).chain(all(1)).collect();
            due.sort_unstable();
            let count = |begin: u64, end: u64| {
                due.iter().filter(|at| (begin * second..end * second).contains(at)).count() as i64
            };
            let expected =
                |n: i64, counted: i64| assert!((counted - n).abs() <= 1, "{counted} for {n}");
            expected(i64::from(from), count(0, 1));
            expected(i64::from(from + to) * 2, count(1, 5));
            expected(i64::from(to) * 2, count(5, 7));
            // A quarter of the way: the mean of the rates at its ends.
            expected(i64::from(from) + (i64::from(to) - i64::from(from)) / 8, count(1, 2));
        }
    }

    #[test]
    fn sent_requests_no_longer_remain() {
        let mut schedule = RequestSchedule::new(10, None, 0, 1);
        schedule.advance();
        assert_eq!(schedule.next_due(), 100_000_000);
        assert_eq!(
            schedule.remaining_until(300_000_001).collect::<Vec<_>>(),
            [100_000_000, 200_000_000, 300_000_000]
        );
    }
}
