//! How connections are taken that come faster than one in each turn of the loop.

use std::time::{Duration, Instant};

use crate::yield_now::step_aside;

/// For so long connections are taken without a look at the others. A system call is about a thousandth of it; what a
/// slow handler takes is more, so after that everybody is looked after.
const MOST: Duration = Duration::from_micros(250);

/// Connections taken in a row.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    begun: Option<Instant>,
}

impl Burst {
    /// Lets the connection that was taken `now` have its first turn before the next one is taken; in a burst that has
    /// lasted too long, everybody else who has something to do as well, for which the kernel is asked.
    pub(crate) async fn pause(&mut self, now: Instant) {
        let begun = *self.begun.get_or_insert(now);
        if now.duration_since(begun) < MOST {
            return step_aside().await;
        }
        self.begun = None;
        tokio::task::yield_now().await;
    }

    /// There was nobody left to take.
    pub(crate) fn end(&mut self) {
        self.begun = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn who_was_taken_has_a_turn_before_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime.expect("runtime"), async {
            let said = Rc::new(RefCell::new(Vec::new()));
            let (mut burst, begun) = (Burst::default(), Instant::now());
            // The last of these pauses is long after the first.
            for (i, after) in [Duration::ZERO, MOST / 2, 2 * MOST].into_iter().enumerate() {
                let there = Rc::clone(&said);
                tokio::task::spawn_local(async move { there.borrow_mut().push(i) });
                burst.pause(begun + after).await;
                assert_eq!(said.borrow().len(), i + 1);
            }
            burst.end();
            assert!(burst.begun.is_none());
        });
    }
}
