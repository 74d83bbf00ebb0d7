//! What the primary has asked workers and they have not answered: pure, the time is an argument.
//!
//! Each request ends once: with the answer of the worker that was asked, at its deadline, or with the end of that
//! worker. An answer that comes later finds nothing under its id, which is never used again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::messages::MessageError;
use prefork_supervisor::WorkerId;

/// More requests than this do not wait for an answer at once.
pub(super) const MOST: usize = 1 << 16;

/// A request; `T` is what happens when it ends.
#[derive(Debug)]
struct Request<T> {
    worker: WorkerId,
    kind: String,
    until: Instant,
    then: T,
}

/// All requests that wait for an answer.
#[derive(Debug)]
pub(super) struct Asked<T> {
    last: u64,
    requests: BTreeMap<u64, Request<T>>,
    by_deadline: BTreeSet<(Instant, u64)>,
    by_worker: BTreeSet<(WorkerId, u64)>,
    late: u64,
}

impl<T> Default for Asked<T> {
    fn default() -> Asked<T> {
        let (by_deadline, by_worker) = (BTreeSet::new(), BTreeSet::new());
        Asked { last: 0, requests: BTreeMap::new(), by_deadline, by_worker, late: 0 }
    }
}

impl<T> Asked<T> {
    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < MOST
    }

    /// The id that the next request will have.
    pub(super) fn next_id(&self) -> u64 {
        self.last + 1
    }

    /// The request with `next_id` went to `worker`.
    pub(super) fn enter(&mut self, worker: WorkerId, kind: &str, until: Instant, then: T) {
        self.last += 1;
        self.by_deadline.insert((until, self.last));
        self.by_worker.insert((worker, self.last));
        let request = Request { worker, kind: kind.to_string(), until, then };
        self.requests.insert(self.last, request);
    }

    /// `from` has answered, or refused. `None` if nobody waits for that, or it was not asked.
    pub(super) fn answered(&mut self, from: WorkerId, id: u64) -> Option<T> {
        match self.requests.get(&id) {
            Some(request) if request.worker == from => self.remove(id).map(|request| request.then),
            Some(_) => None,
            None => {
                self.late += 1;
                None
            }
        }
    }

    /// One that will not be answered, and why: its deadline has passed, or its worker is not one that is `known`.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        known: impl Fn(WorkerId) -> bool,
    ) -> Option<(WorkerId, T, MessageError)> {
        let orphan = self.workers().find(|worker| !known(*worker));
        let of = |worker| self.by_worker.range((worker, 0)..).next().map(|(_, id)| *id);
        let orphan = orphan.and_then(of);
        let late = self.by_deadline.first().filter(|(until, _)| *until <= now).map(|(_, id)| *id);
        let Request { worker, kind, then, .. } = self.remove(orphan.or(late)?)?;
        let why =
            if orphan.is_some() { MessageError::Closed } else { MessageError::TimedOut(kind) };
        Some((worker, then, why))
    }

    /// Each worker that was asked something, once.
    fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let first = self.by_worker.first().map(|(worker, _)| *worker);
        std::iter::successors(first, |last| {
            let after = (*last, u64::MAX);
            self.by_worker.range(after..).find(|at| at.0 != *last).map(|(worker, _)| *worker)
        })
    }

    fn remove(&mut self, id: u64) -> Option<Request<T>> {
        let request = self.requests.remove(&id)?;
        self.by_deadline.remove(&(request.until, id));
        self.by_worker.remove(&(request.worker, id));
        Some(request)
    }

    /// When `failed` may have something new to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(until, _)| *until)
    }

    /// Answers that came too late so far.
    pub(super) fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: WorkerId = WorkerId(1);
    const TWO: WorkerId = WorkerId(2);

    #[test]
    fn an_answer_counts_once_and_only_from_the_one_that_was_asked() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let id = asked.next_id();
        asked.enter(ONE, "a", now, "first");
        assert_eq!(asked.answered(TWO, id), None);
        assert_eq!(asked.late(), 0);
        assert_eq!(asked.answered(ONE, id), Some("first"));
        assert_eq!(asked.answered(ONE, id), None);
        assert_eq!((asked.late(), asked.deadline()), (1, None));
        assert!(asked.next_id() > id);
    }

    #[test]
    fn a_deadline_ends_what_is_not_answered_in_their_order() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let soon = now + Duration::from_secs(1);
        asked.enter(ONE, "a", soon + Duration::from_secs(1), "second");
        asked.enter(TWO, "b", soon, "first");
        assert_eq!(asked.failed(now, |_| true), None);
        assert_eq!(asked.deadline(), Some(soon));
        let late = asked.failed(soon, |_| true);
        assert_eq!(late, Some((TWO, "first", MessageError::TimedOut("b".to_string()))));
        assert_eq!(asked.failed(soon, |_| true), None);
        assert_eq!(asked.answered(TWO, 2), None);
        assert_eq!(asked.answered(ONE, 1), Some("second"));
        assert_eq!(asked.late(), 1);
    }

    #[test]
    fn the_end_of_a_worker_ends_all_that_it_was_asked_and_nothing_else() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        for (n, worker) in [TWO, ONE, TWO, WorkerId(3)].into_iter().enumerate() {
            asked.enter(worker, "a", later, n);
        }
        for n in [0, 2] {
            let gone = asked.failed(now, |worker| worker != TWO);
            assert_eq!(gone, Some((TWO, n, MessageError::Closed)));
        }
        assert_eq!(asked.failed(now, |worker| worker != TWO), None);
        assert_eq!(asked.answered(ONE, 2), Some(1));
        assert_eq!(asked.answered(WorkerId(3), 4), Some(3));
    }

    #[test]
    fn so_many_may_wait_at_once() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        for _ in 0..MOST {
            assert!(asked.has_room());
            asked.enter(ONE, "a", now, ());
        }
        assert!(!asked.has_room());
        assert!(asked.failed(now, |_| true).is_some());
        assert!(asked.has_room());
    }
}
