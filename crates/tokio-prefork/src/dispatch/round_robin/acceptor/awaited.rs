//! What the primary waits for on behalf of new connections.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Dealer;
use crate::listener::Listener;
use crate::primary::WorkerProcess;
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_supervisor::WorkerId;

/// When to look again for a worker that can take one: a worker does not say that it is no longer full.
const LOOK: Duration = Duration::from_millis(5);

/// The same if all are only busy, and the kernel's word that a queue is down to a quarter did not help.
const SOON: Duration = Duration::from_millis(1);

/// What is waited for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Awaited {
    #[default]
    Nothing,
    /// Somebody to accept.
    Newcomers,
    /// Room in the queues of these workers.
    Room(Vec<WorkerId>),
}

impl Dealer {
    /// Decides what to wait for, and when to look again, if nothing happens.
    pub(crate) fn await_next(&mut self, listeners: &[Listener], now: Instant) -> Option<Duration> {
        self.awaited = Awaited::Nothing;
        let idle = listeners.is_empty();
        let in_vain = std::mem::take(&mut self.in_vain);
        let resting = self.choose_polled(listeners, now);
        let times = self.turn.deadline(now).into_iter().chain(self.rest).chain(resting).min();
        let look = if self.turn.room(now) > 0 {
            if !idle && self.rest.is_none() {
                self.awaited = Awaited::Newcomers;
            }
            None
        } else {
            match self.turn.full() {
                full if full.is_empty() => (!idle || !self.held.is_empty()).then_some(LOOK),
                _ if in_vain => Some(SOON),
                full => {
                    self.awaited = Awaited::Room(full);
                    Some(LOOK)
                }
            }
        };
        times.map(|at| at.saturating_duration_since(now)).into_iter().chain(look).min()
    }

    /// What to poll for new connections: see `dealt`.
    pub(crate) fn watched<'a>(
        &self,
        listeners: &'a [Listener],
        children: &'a BTreeMap<WorkerId, WorkerProcess>,
    ) -> Vec<WatchedFd<'a>> {
        match &self.awaited {
            Awaited::Nothing => Vec::new(),
            Awaited::Newcomers => {
                let polled = self.polled.iter().filter_map(|index| listeners.get(*index));
                polled.map(|one| WatchedFd::readable(one.as_fd())).collect()
            }
            Awaited::Room(ids) => {
                let queues = ids.iter().filter_map(|id| children.get(id)?.queue.as_ref());
                queues
                    .map(|queue| WatchedFd::new(queue.ends()[0], PollInterest::Writable))
                    .collect()
            }
        }
    }

    /// What came of it: the places of those that are ready, in the order of `watched`.
    pub(crate) fn dealt(&mut self, ready: impl Iterator<Item = usize>) {
        match self.awaited {
            Awaited::Nothing => {}
            Awaited::Newcomers => {
                self.ready.clear();
                self.ready.extend(ready.filter_map(|place| self.polled.get(place)));
            }
            // If there is room, this is not looked at.
            Awaited::Room(_) => self.in_vain = ready.count() > 0,
        }
    }
}
