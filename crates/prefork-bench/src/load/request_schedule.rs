//! When requests are due in an open loop. Pure: a schedule that no answer, late or missing, can change, which
//! is what makes a stall visible as latency of all that was due meanwhile.

/// The requests of one thread: every `threads`th of `rate` a second, beginning with number `thread`.
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

    /// When the next one is due, in nanoseconds from the start.
    pub(crate) fn next_due(&self) -> u64 {
        due_nanos(self.next, self.rate)
    }

    /// The next one has been sent.
    pub(crate) fn advance(&mut self) {
        self.next += self.step;
    }

    /// The due times of all that are left before `end`.
    pub(crate) fn remaining_until(&self, end: u64) -> impl Iterator<Item = u64> + use<> {
        let rate = self.rate;
        let numbers = (self.next..).step_by(self.step as usize);
        numbers.map(move |number| due_nanos(number, rate)).take_while(move |due| *due < end)
    }
}

/// Without the drift that adding up rounded intervals has.
fn due_nanos(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_together_keep_the_rate() {
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
    fn what_is_sent_is_no_longer_left() {
        let mut schedule = RequestSchedule::new(10, 0, 1);
        schedule.advance();
        assert_eq!(schedule.next_due(), 100_000_000);
        assert_eq!(
            schedule.remaining_until(300_000_001).collect::<Vec<_>>(),
            [100_000_000, 200_000_000, 300_000_000]
        );
    }
}
