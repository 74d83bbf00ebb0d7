//! Requests of the primary that workers have not answered yet. Pure: the time is an argument.
//!
//! Each request ends once: with the answer of the worker that was asked, at its deadline, or when that worker exits. A
//! later answer finds no request with its id, which is never used again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::messages::MessageError;
use prefork_supervisor::WorkerId;

/// How many requests may wait for an answer at the same time.
pub(super) const MAX_PENDING_REQUESTS: usize = 1 << 16;

/// A request without an answer; `T` is the callback for its end.
#[derive(Debug)]
struct PendingRequest<T> {
    worker: WorkerId,
    kind: String,
    deadline: Instant,
    callback: T,
}

/// All requests that wait for an answer.
#[derive(Debug)]
pub(super) struct PendingRequests<T> {
    last_id: u64,
    requests: BTreeMap<u64, PendingRequest<T>>,
    by_deadline: BTreeSet<(Instant, u64)>,
    by_worker: BTreeSet<(WorkerId, u64)>,
    late_replies: u64,
}

impl<T> Default for PendingRequests<T> {
    fn default() -> PendingRequests<T> {
        PendingRequests {
            last_id: 0,
            requests: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            by_worker: BTreeSet::new(),
            late_replies: 0,
        }
    }
}

impl<T> PendingRequests<T> {
    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < MAX_PENDING_REQUESTS
    }

    /// Returns the id that `insert` gives to the next request.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// Continues after the ids of the previous image, whose late replies must not answer new requests.
    pub(super) fn continue_after(&mut self, last_id: u64) {
        self.last_id = self.last_id.max(last_id);
    }

    /// Adds a request that was sent to `worker` with the id `next_id`.
    pub(super) fn insert(&mut self, worker: WorkerId, kind: &str, deadline: Instant, callback: T) {
        self.last_id += 1;
        self.by_deadline.insert((deadline, self.last_id));
        self.by_worker.insert((worker, self.last_id));
        let request = PendingRequest { worker, kind: kind.to_string(), deadline, callback };
        self.requests.insert(self.last_id, request);
    }

    /// Removes the request that `from` has answered. Returns `None` if it has ended or was sent to another worker.
    pub(super) fn take_answered(&mut self, from: WorkerId, id: u64) -> Option<T> {
        match self.requests.get(&id) {
            Some(request) if request.worker == from => {
                self.remove(id).map(|request| request.callback)
            }
            Some(_) => None,
            None => {
                self.late_replies += 1;
                None
            }
        }
    }

    /// Records that another worker has got the request, because the first one exited before it read it.
    pub(super) fn move_to(&mut self, id: u64, worker: WorkerId) {
        if let Some(request) = self.requests.get_mut(&id) {
            let previous = std::mem::replace(&mut request.worker, worker);
            self.by_worker.remove(&(previous, id));
            self.by_worker.insert((worker, id));
        }
    }

    /// Removes one request that cannot be answered: its deadline has passed, or its worker is not `known` any more.
    pub(super) fn take_failed(
        &mut self,
        now: Instant,
        known: impl Fn(WorkerId) -> bool,
    ) -> Option<(WorkerId, T, MessageError)> {
        let gone = self.workers().find(|worker| !known(*worker));
        let first_of = |worker| self.by_worker.range((worker, 0)..).next().map(|(_, id)| *id);
        let orphaned = gone.and_then(first_of);
        let is_late = |(deadline, _): &&(Instant, u64)| *deadline <= now;
        let late = self.by_deadline.first().filter(is_late).map(|(_, id)| *id);
        let PendingRequest { worker, kind, callback, .. } = self.remove(orphaned.or(late)?)?;
        let error =
            if orphaned.is_some() { MessageError::Closed } else { MessageError::TimedOut(kind) };
        Some((worker, callback, error))
    }

    /// Returns each worker with a pending request, once.
    fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let first = self.by_worker.first().map(|(worker, _)| *worker);
        std::iter::successors(first, |last| {
            let after = (*last, u64::MAX);
            self.by_worker.range(after..).find(|at| at.0 != *last).map(|(worker, _)| *worker)
        })
    }

    fn remove(&mut self, id: u64) -> Option<PendingRequest<T>> {
        let request = self.requests.remove(&id)?;
        self.by_deadline.remove(&(request.deadline, id));
        self.by_worker.remove(&(request.worker, id));
        Some(request)
    }

    /// Returns when the next request times out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Returns how many answers arrived after their request had ended.
    pub(super) fn late_replies(&self) -> u64 {
        self.late_replies
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST_WORKER: WorkerId = WorkerId(1);
    const SECOND_WORKER: WorkerId = WorkerId(2);

    #[test]
    fn a_request_accepts_one_answer_and_only_from_its_worker() {
        let (mut pending, now) = (PendingRequests::default(), Instant::now());
        let id = pending.next_id();
        pending.insert(FIRST_WORKER, "a", now, "first");
        assert_eq!(pending.take_answered(SECOND_WORKER, id), None);
        assert_eq!(pending.late_replies(), 0);
        assert_eq!(pending.take_answered(FIRST_WORKER, id), Some("first"));
        assert_eq!(pending.take_answered(FIRST_WORKER, id), None);
        assert_eq!((pending.late_replies(), pending.next_deadline()), (1, None));
        assert!(pending.next_id() > id);
    }

    #[test]
    fn unanswered_requests_time_out_in_the_order_of_their_deadlines() {
        let (mut pending, now) = (PendingRequests::default(), Instant::now());
        let soon = now + Duration::from_secs(1);
        pending.insert(FIRST_WORKER, "a", soon + Duration::from_secs(1), "second");
        pending.insert(SECOND_WORKER, "b", soon, "first");
        assert_eq!(pending.take_failed(now, |_| true), None);
        assert_eq!(pending.next_deadline(), Some(soon));
        let late = pending.take_failed(soon, |_| true);
        assert_eq!(late, Some((SECOND_WORKER, "first", MessageError::TimedOut("b".to_string()))));
        assert_eq!(pending.take_failed(soon, |_| true), None);
        assert_eq!(pending.take_answered(SECOND_WORKER, 2), None);
        assert_eq!(pending.take_answered(FIRST_WORKER, 1), Some("second"));
        assert_eq!(pending.late_replies(), 1);
    }

    #[test]
    fn the_exit_of_a_worker_ends_its_requests_and_no_others() {
        let (mut pending, now) = (PendingRequests::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        for (n, worker) in
            [SECOND_WORKER, FIRST_WORKER, SECOND_WORKER, WorkerId(3)].into_iter().enumerate()
        {
            pending.insert(worker, "a", later, n);
        }
        for n in [0, 2] {
            let failed = pending.take_failed(now, |worker| worker != SECOND_WORKER);
            assert_eq!(failed, Some((SECOND_WORKER, n, MessageError::Closed)));
        }
        assert_eq!(pending.take_failed(now, |worker| worker != SECOND_WORKER), None);
        assert_eq!(pending.take_answered(FIRST_WORKER, 2), Some(1));
        assert_eq!(pending.take_answered(WorkerId(3), 4), Some(3));
    }

    #[test]
    fn a_request_that_another_worker_has_got_is_answered_by_that_one() {
        let (mut pending, now) = (PendingRequests::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        let id = pending.next_id();
        pending.insert(FIRST_WORKER, "a", later, "moved");
        pending.move_to(id, SECOND_WORKER);
        assert_eq!(pending.take_failed(now, |worker| worker != FIRST_WORKER), None);
        assert_eq!(pending.take_answered(FIRST_WORKER, id), None);
        assert_eq!(pending.take_answered(SECOND_WORKER, id), Some("moved"));
        pending.move_to(id, FIRST_WORKER);
        assert_eq!(pending.take_failed(later, |_| false), None);
    }

    #[test]
    fn the_number_of_pending_requests_is_bounded() {
        let (mut pending, now) = (PendingRequests::default(), Instant::now());
        for _ in 0..MAX_PENDING_REQUESTS {
            assert!(pending.has_room());
            pending.insert(FIRST_WORKER, "a", now, ());
        }
        assert!(!pending.has_room());
        assert!(pending.take_failed(now, |_| true).is_some());
        assert!(pending.has_room());
    }
}
