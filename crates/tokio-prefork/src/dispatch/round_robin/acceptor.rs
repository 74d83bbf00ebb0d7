//! New connections between the kernel's queues and those of the workers: taken from the ones, put into the others.

mod awaited;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use awaited::Awaited;

use super::policy::{BOUND, Turn};
use super::{Newcomer, Queue};
use crate::listener::Listener;
use crate::primary::WorkerProcess;
use crate::scoreboard::Scoreboard;
use prefork_supervisor::Supervisor;
use prefork_supervisor::WorkerId;

/// How many connections are accepted before the primary looks at its other events.
const MAX_ACCEPTS_PER_STEP: usize = 64;

/// How long accepting rests when descriptors have run out.
const REST: Duration = Duration::from_millis(100);

/// How long a listening socket that accepting fails at for good rests for the first time. Doubled each time.
const ACCEPT_RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest of those rests.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// After how many such failures in a row a socket counts as one that gives no connections.
const FAILURES_UNTIL_ERROR: u32 = 3;

/// A listening socket that accepting fails at for a reason that is none of the connection's.
#[derive(Debug, Clone, Copy)]
struct Failing {
    failures: u32,
    /// Not to be asked before.
    until: Instant,
}

/// What dealing looks at and does not change.
pub(crate) struct Table<'a> {
    pub(crate) workers: &'a BTreeMap<WorkerId, WorkerProcess>,
    pub(crate) scoreboard: &'a Scoreboard,
    pub(crate) mind: &'a Supervisor,
    /// None while nobody is to be accepted.
    pub(crate) listeners: &'a [Listener],
}

/// What is going on with new connections.
#[derive(Debug, Default)]
pub(crate) struct Dealer {
    turn: Turn,
    /// Accepted, or taken back, and in no worker's queue; oldest first.
    held: VecDeque<Newcomer>,
    awaited: Awaited,
    /// The listening sockets at which somebody waits.
    ready: Vec<usize>,
    /// Those that are polled, in the order in which they are.
    polled: Vec<usize>,
    /// Those that fail, by the number of their descriptor.
    failing: BTreeMap<i32, Failing>,
    /// Where to begin among those, so that none is always the last.
    first: usize,
    /// The kernel said that there was room, and there was none.
    in_vain: bool,
    /// Not to accept before.
    rest: Option<Instant>,
    /// Whether it was told that descriptors have run out, and none came free since.
    exhausted: bool,
    /// Connections that had to be closed.
    lost: u64,
    /// Those that have broken their queues.
    broken: Vec<WorkerId>,
}

impl Dealer {
    /// Takes what the worker has not taken yet, for others; it comes before all else that is held.
    pub(crate) fn take_back(&mut self, worker: WorkerId, queue: &Queue) {
        self.empty(queue);
        queue.probe();
        self.turn.taken_back(worker);
    }

    fn empty(&mut self, queue: &Queue) {
        let (back, lost) = queue.take_back();
        back.into_iter().rev().for_each(|one| self.held.push_front(one));
        self.lose(lost, "no descriptor left (raise LimitNOFILE)");
    }

    pub(crate) fn lose(&mut self, count: usize, why: &str) {
        let before = self.lost;
        self.lost += count as u64;
        if before.checked_ilog2() != self.lost.checked_ilog2() {
            crate::primary::event_log::lost_newcomers(self.lost, why);
        }
    }

    /// The worker is dead, or its queue is broken.
    pub(crate) fn bury(&mut self, worker: WorkerId, queue: Option<Queue>) {
        self.turn.forget(worker);
        queue.iter().for_each(|queue| self.empty(queue));
    }

    /// What is in no queue, for the image after this one.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Newcomer> {
        self.held.iter()
    }

    /// Gives up what is in no queue.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Newcomer> {
        self.held.drain(..)
    }

    /// What the image before this one had accepted.
    pub(crate) fn inherit(&mut self, newcomer: Newcomer) {
        self.held.push_back(newcomer);
    }

    /// Those that have broken their queues since this was asked.
    pub(crate) fn broken(&mut self) -> Vec<WorkerId> {
        std::mem::take(&mut self.broken)
    }

    /// Nobody is dealt to.
    pub(crate) fn await_nothing(&mut self) {
        self.awaited = Awaited::Nothing;
    }

    /// Accepts whom there is room for, and deals out what is held.
    pub(crate) fn step(&mut self, table: &Table<'_>, now: Instant) {
        self.see_takers(table, now);
        self.move_overdue(table, now);
        self.count_uncertain(table, now);
        self.rest = self.rest.filter(|until| *until > now);
        if self.rest.is_none() && self.held.is_empty() {
            self.accept(table.listeners, now);
        }
        self.deal(table, now);
        if self.turn.room(now) == 0 {
            self.count_uncertain(table, now);
        }
    }

    /// Whether all was dealt out, and nothing was found broken.
    pub(crate) fn is_done(&self) -> bool {
        self.broken.is_empty() && self.held.is_empty()
    }

    /// Who can take connections. At a stop those that finish take what is left, too: what they do not take
    /// before they end comes back.
    fn see_takers(&mut self, table: &Table<'_>, now: Instant) {
        let now_ms = prefork_os::system::monotonic_ms();
        let stopping = table.mind.is_stopping();
        let mut seen = 0;
        for (id, child) in table.workers {
            let Some(queue) = &child.queue else { continue };
            let load = table.scoreboard.load(child.row, now_ms);
            let able = match stopping {
                true => load.turns,
                false => load.takes && !child.released && table.mind.is_serving(*id),
            };
            let reachable = child.channel.is_some() && !table.mind.is_stopped_by_signal(*id);
            if self.turn.see(*id, able && reachable, now) {
                self.turn.told(*id, queue.waiting(), now);
            }
            seen += 1;
        }
        if self.turn.len() != seen {
            let children = table.workers;
            self.turn.keep(|id| children.get(&id).is_some_and(|child| child.queue.is_some()));
        }
    }

    fn move_overdue(&mut self, table: &Table<'_>, now: Instant) {
        for id in self.turn.overdue(now) {
            let Some(queue) = table.queue(id) else { continue };
            self.turn.told(id, queue.waiting(), now);
            if self.turn.is_to_be_moved(id, now) {
                self.take_back(id, queue);
            }
        }
    }

    fn count_uncertain(&mut self, table: &Table<'_>, now: Instant) {
        for id in self.turn.uncertain() {
            self.turn.told(id, table.queue(id).map_or(0, Queue::waiting), now);
        }
    }

    /// Accepts until the kernel's queues are empty or the workers' queues are full.
    ///
    /// Finding a queue empty costs one more `accept4` per batch. Predicting the length of the queue instead saved 8 % of the
    /// system calls of sequential connections, but no more than 2 % of the CPU time, so it was not worth its code.
    fn accept(&mut self, listeners: &[Listener], now: Instant) {
        let mut left = self.turn.room(now).min(MAX_ACCEPTS_PER_STEP);
        let mut ready = std::mem::take(&mut self.ready);
        self.first = self.first.wrapping_add(1);
        let first = self.first.checked_rem(ready.len()).unwrap_or(0);
        ready.rotate_left(first);
        for index in ready.drain(..) {
            let Some(listener) = listeners.get(index) else { continue };
            let unix = listener.is_unix();
            while left > 0 {
                let accepted = prefork_os::socket::accept_connection(listener);
                self.note(listener, &accepted, now);
                match accepted {
                    Ok(fd) => {
                        self.exhausted = false;
                        self.held.push_back(Newcomer { fd, unix });
                        left -= 1;
                    }
                    // The client has closed the connection already.
                    Err(e) if prefork_os::socket::is_accepted_connection_error(&e) => left -= 1,
                    Err(e) if !prefork_os::socket::is_resource_exhaustion(&e) => break,
                    Err(e) => {
                        self.rest = Some(now + REST);
                        if !std::mem::replace(&mut self.exhausted, true) {
                            crate::primary::event_log::cannot_accept(
                                &listener.local.to_string(),
                                &e,
                            );
                        }
                        return;
                    }
                }
            }
        }
        // Kept for its memory.
        self.ready = ready;
    }

    /// A socket that fails for good rests, longer each time, and leaves the others alone.
    fn note(&mut self, listener: &Listener, outcome: &io::Result<OwnedFd>, now: Instant) {
        let key = listener.socket.as_raw_fd();
        let error = match outcome {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => e,
            _ if self.failing.is_empty() => return,
            _ => {
                let before = self.failing.remove(&key);
                if before.is_some_and(|one| one.failures >= FAILURES_UNTIL_ERROR) {
                    crate::primary::event_log::accepts_again(&listener.local.to_string());
                }
                return;
            }
        };
        if prefork_os::socket::is_accepted_connection_error(error)
            || prefork_os::socket::is_resource_exhaustion(error)
        {
            return;
        }
        let failures = self.failing.get(&key).map_or(0, |one| one.failures).saturating_add(1);
        let rest = ACCEPT_RETRY_MIN.saturating_mul(1 << failures.min(16)).min(ACCEPT_RETRY_MAX);
        self.failing.insert(key, Failing { failures, until: now + rest });
        if failures == FAILURES_UNTIL_ERROR {
            crate::primary::event_log::accept_fails(&listener.local.to_string(), error);
        }
    }

    /// Whether connections could come, but no listening socket gives any.
    pub(crate) fn cannot_accept(&self, listeners: &[Listener]) -> bool {
        let fails = |listener: &Listener| {
            let failing = self.failing.get(&listener.socket.as_raw_fd());
            failing.is_some_and(|one| one.failures >= FAILURES_UNTIL_ERROR)
        };
        !listeners.is_empty() && listeners.iter().all(fails)
    }

    /// Decides which listening sockets are polled. Returns when one that rests is to be asked again.
    fn choose_polled(&mut self, listeners: &[Listener], now: Instant) -> Option<Instant> {
        let failing = &self.failing;
        let rest = |listener: &Listener| {
            let failing = failing.get(&listener.socket.as_raw_fd()).map(|one| one.until);
            failing.filter(|until| *until > now)
        };
        let all = listeners.iter().enumerate();
        self.polled.clear();
        self.polled.extend(all.filter(|(_, one)| rest(one).is_none()).map(|(index, _)| index));
        listeners.iter().filter_map(rest).min()
    }

    /// Puts what is held into the queues of those whose turn it is.
    fn deal(&mut self, table: &Table<'_>, now: Instant) {
        let mut hands: Vec<(WorkerId, Vec<Newcomer>)> = Vec::new();
        while !self.held.is_empty() {
            // Before anybody is passed over: the order of turns must not depend on who was counted when.
            for id in self.turn.uncertain() {
                let dealt = hands.iter().find(|hand| hand.0 == id).map_or(0, |hand| hand.1.len());
                let waiting = table.queue(id).map_or(0, Queue::waiting);
                self.turn.told(id, waiting + dealt, now);
            }
            let Some(id) = self.turn.next(now) else { break };
            let newcomer = self.held.pop_front();
            match hands.iter_mut().find(|hand| hand.0 == id) {
                Some(hand) => hand.1.extend(newcomer),
                None => hands.push((id, newcomer.into_iter().collect())),
            }
        }
        // What comes back is put before what came back of those that were dealt to later.
        for (id, mut hand) in hands.into_iter().rev() {
            let queue = table.queue(id);
            let put = queue.map_or(Ok(0), |queue| queue.put(hand.iter()));
            self.broken.extend(put.is_err().then_some(id));
            let put = put.unwrap_or(0);
            if put == hand.len() {
                continue;
            }
            if let Some(queue) = queue {
                // The kernel has the last word on what fits.
                self.turn.told(id, queue.waiting().max(BOUND), now);
            }
            hand.drain(put..).rev().for_each(|one| self.held.push_front(one));
        }
    }
}

impl Table<'_> {
    fn queue(&self, id: WorkerId) -> Option<&Queue> {
        self.workers.get(&id)?.queue.as_ref()
    }
}
