//! The jobs that wait for room in the queue of their pool, in order of arrival. Their inputs stay with the callers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::Priority;
use super::waiting_jobs::JobKey;
use prefork_supervisor::WorkerId;

/// A job that waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomWaiter {
    pub(crate) key: JobKey,
    pub(crate) priority: Priority,
    pub(crate) is_detached: bool,
    /// The size of its input.
    pub(crate) size: usize,
    pub(crate) submitted: Instant,
    /// When its caller stops waiting; `None` without a limit.
    pub(crate) deadline: Option<Instant>,
}

/// All jobs that wait for room, and those that have got it but whose input has not arrived.
#[derive(Debug, Default)]
pub(crate) struct RoomWaiters {
    pub(super) waiting: VecDeque<RoomWaiter>,
    /// With the time until which the place is kept for the input.
    pub(super) granted: BTreeMap<JobKey, (RoomWaiter, Instant)>,
}

impl RoomWaiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns how many jobs wait, and how many have a place that is kept for their input.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.waiting.len(), self.granted.len())
    }

    /// Returns the size of the inputs that are on their way.
    pub(crate) fn granted_bytes(&self) -> usize {
        self.granted.values().map(|(waiter, _)| waiter.size).sum()
    }

    pub(crate) fn push(&mut self, waiter: RoomWaiter) {
        self.waiting.push_back(waiter);
    }

    /// Returns the job that gets the next place.
    pub(crate) fn first(&self) -> Option<RoomWaiter> {
        self.waiting.front().copied()
    }

    /// Keeps a place for the first job until `until`.
    pub(crate) fn grant_first(&mut self, until: Instant) {
        if let Some(waiter) = self.waiting.pop_front() {
            self.granted.insert(waiter.key, (waiter, until));
        }
    }

    /// Keeps a place for a job that had one in the previous image.
    pub(super) fn restore_granted(&mut self, waiter: RoomWaiter, until: Instant) {
        self.granted.insert(waiter.key, (waiter, until));
    }

    /// Takes the place that is kept for a job whose input has arrived.
    pub(crate) fn take_granted(&mut self, key: JobKey) -> Option<RoomWaiter> {
        self.granted.remove(&key).map(|(waiter, _)| waiter)
    }

    /// Removes a job, and returns whether it was there.
    pub(crate) fn remove(&mut self, key: JobKey) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.key != key);
        self.granted.remove(&key).is_some() || self.waiting.len() < before
    }

    /// Removes the jobs of a caller that has ended, with their inputs, and returns how many.
    pub(crate) fn remove_caller(&mut self, caller: WorkerId) -> u64 {
        let before = self.waiting.len() + self.granted.len();
        self.waiting.retain(|waiter| waiter.key.caller != caller);
        self.granted.retain(|key, _| key.caller != caller);
        (before - self.waiting.len() - self.granted.len()) as u64
    }

    /// Lets a job wait although nobody waits for its result.
    pub(crate) fn detach(&mut self, key: JobKey) {
        let granted = self.granted.get_mut(&key).map(|(waiter, _)| waiter);
        let waiting = self.waiting.iter_mut().find(|waiter| waiter.key == key);
        granted.into_iter().chain(waiting).for_each(|waiter| waiter.is_detached = true);
    }

    /// Takes the jobs whose deadline has passed, and those whose input has not arrived in time.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<RoomWaiter> {
        let is_late = |waiter: &RoomWaiter| waiter.deadline.is_some_and(|deadline| deadline <= now);
        let mut expired: Vec<RoomWaiter> =
            self.waiting.iter().copied().filter(|waiter| is_late(waiter)).collect();
        self.waiting.retain(|waiter| !is_late(waiter));
        let late = self.granted.values().filter(|(waiter, until)| *until <= now || is_late(waiter));
        expired.extend(late.map(|(waiter, _)| *waiter));
        self.granted.retain(|_, (waiter, until)| *until > now && !is_late(waiter));
        expired
    }

    /// Takes all jobs.
    pub(crate) fn take_all(&mut self) -> Vec<RoomWaiter> {
        let granted = std::mem::take(&mut self.granted).into_values().map(|(waiter, _)| waiter);
        self.waiting.drain(..).chain(granted).collect()
    }

    /// Returns when `take_expired` has to be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(|waiter| waiter.deadline);
        let granted = self.granted.values();
        let granted =
            granted.map(|(waiter, until)| waiter.deadline.map_or(*until, |at| at.min(*until)));
        waiting.chain(granted).min()
    }
}
