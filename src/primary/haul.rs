//! How many connections to take out of a kernel's queue before waiting again: a decision, without a system call.
//!
//! To find a queue empty costs the kernel nearly as much as to accept somebody. So no more are asked for than came the
//! last time; now and then twice as many are, and if they are there, this is the new measure.

/// After a queue was found empty, so many times at most nothing more is asked for than came then.
const CONTENT: u32 = 8;

/// So many are accepted in one turn of the loop at most.
pub(super) const MOST: usize = 64;

/// The measure.
#[derive(Debug)]
pub(super) struct Haul {
    most: usize,
    /// So many times more are asked for before they are twice as many.
    rest: u32,
    /// What `rest` begins with.
    content: u32,
    /// Twice as many as before are asked for.
    tries: bool,
}

impl Default for Haul {
    fn default() -> Haul {
        Haul { most: 1, rest: 0, content: 0, tries: false }
    }
}

impl Haul {
    /// So many to accept.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// So many came; there may be `more`.
    pub(super) fn learn(&mut self, came: usize, more: bool) {
        if !more {
            self.content = (2 * self.content + 1).min(CONTENT);
            (self.most, self.rest, self.tries) = (came.max(1), self.content, false);
        } else if came < self.most {
            // There was no room for them.
        } else if self.rest > 0 {
            self.rest -= 1;
        } else {
            if std::mem::replace(&mut self.tries, true) {
                self.content = 0;
            }
            self.most = (2 * self.most).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts from a queue of `waiting`; how many came, and how often it was found empty.
    fn take(haul: &mut Haul, waiting: usize) -> (usize, u32) {
        let (came, more) = (waiting.min(haul.most()), waiting >= haul.most());
        haul.learn(came, more);
        (came, u32::from(!more))
    }

    #[test]
    fn where_one_waits_at_a_time_the_queue_is_hardly_ever_found_empty() {
        let mut haul = Haul::default();
        let empty: u32 = (0..1000).map(|_| take(&mut haul, 1).1).sum();
        assert!((50..=110).contains(&empty), "{empty}");
    }

    #[test]
    fn a_long_queue_is_soon_taken_in_large_hauls() {
        let mut haul = Haul::default();
        (0..1000).for_each(|_| assert_eq!(take(&mut haul, 1).0, 1));
        let (mut waiting, mut turns) = (640, 0);
        while waiting > 0 {
            waiting -= take(&mut haul, waiting).0;
            turns += 1;
        }
        assert!(turns < 25, "{turns}");
    }

    #[test]
    fn who_had_no_room_for_more_has_not_learnt_that_there_is_nobody() {
        let mut haul = Haul::default();
        (0..9).for_each(|_| assert!(take(&mut haul, 64).0 > 0));
        let most = haul.most();
        haul.learn(1, true);
        assert_eq!(haul.most(), most);
    }
}
