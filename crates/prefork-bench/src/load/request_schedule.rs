//! When requests are due in an open loop. Pure: a schedule that no answer, late or missing, can change, which
//! is what makes a stall visible as latency of all that was due meanwhile.

/// The requests of one thread: every `lanes`th of `rate` a second, beginning with number `lane`.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    next: u64,
    step: u64,
    rate: u64,
}

impl Pace {
    pub(crate) fn new(rate: u32, lane: usize, lanes: usize) -> Pace {
        Pace { next: lane as u64, step: lanes as u64, rate: u64::from(rate.max(1)) }
    }

    /// When the next one is due, in nanoseconds from the start.
    pub(crate) fn due(&self) -> u64 {
        nanos(self.next, self.rate)
    }

    /// The next one has been sent.
    pub(crate) fn sent(&mut self) {
        self.next += self.step;
    }

    /// The due times of all that are left before `end`.
    pub(crate) fn left(&self, end: u64) -> impl Iterator<Item = u64> + use<> {
        let rate = self.rate;
        let numbers = (self.next..).step_by(self.step as usize);
        numbers.map(move |number| nanos(number, rate)).take_while(move |due| *due < end)
    }
}

/// Without the drift that adding up rounded intervals has.
fn nanos(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_together_keep_the_rate() {
        for (rate, lanes) in [(1, 1), (7, 2), (1000, 3), (333_333, 2)] {
            let second = 1_000_000_000;
            let all = (0..lanes).flat_map(|lane| Pace::new(rate, lane, lanes).left(3 * second));
            let mut all: Vec<u64> = all.collect();
            all.sort_unstable();
            assert_eq!(all.len(), 3 * rate as usize);
            let gap = second / u64::from(rate);
            assert!(all.windows(2).all(|w| (gap..=gap + 1).contains(&(w[1] - w[0]))));
        }
    }

    #[test]
    fn what_is_sent_is_no_longer_left() {
        let mut pace = Pace::new(10, 0, 1);
        pace.sent();
        assert_eq!(pace.due(), 100_000_000);
        assert_eq!(
            pace.left(300_000_001).collect::<Vec<_>>(),
            [100_000_000, 200_000_000, 300_000_000]
        );
    }
}
