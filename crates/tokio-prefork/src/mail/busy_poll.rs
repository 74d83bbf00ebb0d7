//! Whether to sleep until the next letter, or to look out for it: a decision, without a clock.
//!
//! Two processes that talk in turns spend most of the time on being woken: a round trip took 65 us where both sleep, and
//! 10 where both are awake (`benches/messages.rs`). So who is answered within a moment looks out for the next letter that
//! long before it sleeps, as the kernel does for its guests (`halt_poll_ns`). Where that was in vain it is done ever less
//! often: letters that are no conversation cost a moment for every 2^6 of them.

use std::time::{Duration, Instant};

use crate::skip_backoff::Trust;

/// So long is looked out for the next letter. Longer than to be woken takes, mostly.
const MOMENT: Duration = Duration::from_micros(50);

/// What comes within this time of the last letter may be an answer by somebody who had to be woken.
const SOON: Duration = Duration::from_micros(200);

/// One end of a channel, or of several.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    /// When a letter came last.
    last: Option<Instant>,
    looks: bool,
    trust: Trust,
}

impl Lookout {
    /// Something has come.
    pub(crate) fn came(&mut self, now: Instant) {
        let gap = self.last.replace(now).map(|last| now.duration_since(last));
        if self.looks {
            match gap.is_some_and(|gap| gap < MOMENT) {
                true => self.trust.regain(),
                false => self.trust.lose(),
            }
        }
        self.looks = gap.is_some_and(|gap| gap < SOON) && self.trust.is_given();
    }

    /// Until when not to sleep.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.last.filter(|_| self.looks).map(|last| last + MOMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is looked out for the next of letters that come with these gaps, in microseconds.
    fn looks(gaps: impl IntoIterator<Item = u64>) -> usize {
        let (mut lookout, mut now) = (Lookout::default(), Instant::now());
        lookout.came(now);
        let each = gaps.into_iter().map(|gap| {
            now += Duration::from_micros(gap);
            lookout.came(now);
            usize::from(lookout.until() == Some(now + MOMENT))
        });
        each.sum()
    }

    #[test]
    fn nobody_looks_out_for_letters_that_come_now_and_then() {
        assert_eq!(looks([300; 100]), 0);
    }

    #[test]
    fn whoever_talks_in_turns_looks_out_for_each_answer() {
        assert_eq!(looks([8; 100]), 100);
        assert_eq!(looks([150].into_iter().chain([8; 99])), 100);
    }

    #[test]
    fn what_never_comes_in_time_is_hardly_looked_out_for() {
        // Six times while trust falls, then each 63rd time.
        assert_eq!(looks([100; 1000]), 20);
        // Two that come together, again and again.
        assert_eq!(looks([8, 1000].into_iter().cycle().take(2000)), 20);
    }

    #[test]
    fn a_conversation_that_ends_costs_one_moment() {
        let conversation = || [8; 50].into_iter().chain([1_000_000]);
        assert_eq!(looks(conversation().chain(conversation())), 100);
    }
}
