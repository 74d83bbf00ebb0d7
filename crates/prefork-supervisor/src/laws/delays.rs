//! Crash loops: who waits.

use std::time::Instant;

use super::super::backoff::Allowance;
use super::super::{Action, Event, Supervisor};
use super::{Before, Story};
use crate::identity::WorkerTag;

/// During a delay nothing is forked, whatever happens, but successors: if they die too, the reload is over.
/// And during a trial only a worker that gets ready opens the door to more than one.
pub(super) fn are_kept(
    before: &Before,
    now: Instant,
    mind: &Supervisor,
    event: &Event,
    actions: &[Action],
    story: &Story<'_>,
) {
    let holds = |tag: &WorkerTag| mind.places.iter().any(|place| place.holder == Some(tag.id));
    let forks = actions.iter().filter(|a| matches!(a, Action::Fork(tag) if holds(tag))).count();
    if before.allowance == Allowance::None {
        let waits = before.backoff.is_some_and(|until| now < until);
        assert!(!waits || forks == 0, "a delay is kept: {story}");
        let ready = matches!(event, Event::Ready { .. });
        assert!(ready || forks <= 1, "one is tried at a time: {story}");
    }
}
