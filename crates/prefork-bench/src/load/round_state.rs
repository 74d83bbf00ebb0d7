//! What the threads of a round share: one clock, its end, and two sums for whoever looks on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::plan::Plan;

/// The times of a round, in nanoseconds from its start.
#[derive(Debug)]
pub(crate) struct Shared {
    start: Instant,
    /// When the measuring begins: the end of the warm-up.
    begin: u64,
    /// When the last request is due.
    end: AtomicU64,
    /// How long what is on the way then may take.
    patience: u64,
    /// Nobody wants to wait for the rest.
    abandoned: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Shared {
    pub(crate) fn new(plan: &Plan) -> Shared {
        let nanos = |span: Duration| span.as_nanos() as u64;
        let begin = nanos(plan.warm_up);
        Shared {
            start: Instant::now(),
            begin,
            end: AtomicU64::new(begin + nanos(plan.duration)),
            patience: nanos(plan.timeout),
            abandoned: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.load(Relaxed)
    }

    /// When nobody waits any longer for what is on the way.
    pub(crate) fn give_up(&self) -> u64 {
        if self.is_abandoned() { 0 } else { self.end().saturating_add(self.patience) }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Ends the round now; asked a second time, waits for nothing more.
    pub(crate) fn end_now(&self) {
        let now = self.now();
        if self.end.fetch_min(now, Relaxed) <= now {
            self.abandoned.store(true, Relaxed);
        }
    }

    /// How long was measured, once the end has come.
    pub(crate) fn measured(&self) -> Duration {
        Duration::from_nanos(self.end().saturating_sub(self.begin))
    }

    /// So many more responses and failures.
    pub(crate) fn tell(&self, news: [u64; 2]) {
        if news != [0; 2] {
            self.answered.fetch_add(news[0], Relaxed);
            self.failed.fetch_add(news[1], Relaxed);
        }
    }

    /// All responses and failures so far, warm-up included.
    pub(crate) fn told(&self) -> [u64; 2] {
        [self.answered.load(Relaxed), self.failed.load(Relaxed)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::target_url::Target;

    #[test]
    fn a_second_wish_to_end_gives_up_what_is_on_the_way() {
        let shared = Shared::new(&Plan::new(Target::parse("http://h/").expect("url")));
        assert_eq!(shared.measured(), Duration::from_secs(10));
        shared.end_now();
        assert!(shared.end() <= shared.now() && shared.give_up() > shared.now());
        assert_eq!(shared.measured(), Duration::ZERO);
        shared.end_now();
        assert!(shared.is_abandoned() && shared.give_up() == 0);
    }
}
