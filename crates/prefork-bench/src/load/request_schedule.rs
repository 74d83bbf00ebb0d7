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
}

impl RequestSchedule {
    pub(crate) fn new(rate: u32, thread: usize, threads: usize) -> RequestSchedule {
        RequestSchedule { next: thread as u64, step: threads as u64, rate: u64::from(rate.max(1)) }
    }

    /// Returns when the next request is due, in nanoseconds since the start of the round.
    pub(crate) fn next_due(&self) -> u64 {
        due_nanos(self.next, self.rate)
    }

    /// Moves on to the next request.
    pub(crate) fn advance(&mut self) {
        self.next += self.step;
    }

    /// Returns the due times of all remaining requests before `end`.
    pub(crate) fn remaining_until(&self, end: u64) -> impl Iterator<Item = u64> + use<> {
        let rate = self.rate;
        let numbers = (self.next..).step_by(self.step as usize);
        numbers.map(move |number| due_nanos(number, rate)).take_while(move |due| *due < end)
    }
}

/// Returns the due time of request `number`. Computed from the number, because adding up rounded intervals
/// would drift.
fn due_nanos(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_together_keep_the_rate() {
        for (rate, threads) in [(1, 1), (7, 2), (1000, 3), (333_333, 2)] {
            let second = 1_000_000_000;
            let all = (0..threads).flat_map(|thread| {
                RequestSchedule::new(rate, thread, threads).remaining_until(3 * second)
            });
            let mut all: Vec<u64> = all.collect();
            all.sort_unstable();
            assert_eq!(all.len(), 3 * rate as usize);
            let gap = second / u64::from(rate);
            assert!(all.windows(2).all(|w| (gap..=gap + 1).contains(&(w[1] - w[0]))));
        }
    }

    #[test]
    fn sent_requests_no_longer_remain() {
        let mut schedule = RequestSchedule::new(10, 0, 1);
        schedule.advance();
        assert_eq!(schedule.next_due(), 100_000_000);
        assert_eq!(
            schedule.remaining_until(300_000_001).collect::<Vec<_>>(),
            [100_000_000, 200_000_000, 300_000_000]
        );
    }
}
