//! `--dispatch round-robin`: the primary accepts, and deals connections out to the workers in turn.
//!
//! Whose turn it is stands in `turn`, how a connection changes hands without being lost or served twice in
//! `ipc::Queue`. Here: what is accepted when. In one turn of the primary's loop at most [`BATCH`] connections are
//! accepted, and never more than the workers have room for: what has to wait, waits in the kernel's queue.
//! Signals, words and questions are dealt with in between, however many connections come.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::turn::Turn;
use super::{Child, Primary};
use crate::config::Dispatch;
use crate::identity::WorkerId;
use crate::ipc::{Newcomer, Queue, Unread};
use crate::listener::Listener;
use crate::supervisor::Event;
use crate::sys;
use crate::sys::poll::{Interest, Watch};

/// So many connections are accepted in one turn of the loop.
const BATCH: usize = 64;

/// When to look again for a worker that can take one: a worker does not say that it is no longer full.
const LOOK: Duration = Duration::from_millis(5);

/// The same if all are only busy, and the kernel's word that a queue is down to a quarter did not help.
const SOON: Duration = Duration::from_millis(1);

/// How long accepting rests when descriptors have run out, or a listening socket is broken.
const REST: Duration = Duration::from_millis(100);

/// What the primary waits for on behalf of new connections.
#[derive(Debug, Default, PartialEq, Eq)]
enum Awaited {
    #[default]
    Nothing,
    /// Somebody to accept.
    Newcomers,
    /// Room in the queues of these workers.
    Room(Vec<WorkerId>),
}

/// What is going on with new connections.
#[derive(Debug, Default)]
pub(super) struct Dealer {
    turn: Turn,
    /// Accepted, or taken back, and in no worker's queue; oldest first.
    held: VecDeque<Newcomer>,
    awaited: Awaited,
    /// The listening sockets at which somebody waits.
    ready: Vec<usize>,
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
}

impl Dealer {
    /// Connections that were taken out of a worker's queue come first.
    fn take_back(&mut self, queue: &Queue) {
        let (back, lost) = queue.take_back();
        back.into_iter().rev().for_each(|one| self.held.push_front(one));
        self.lose(lost, "no descriptor left (raise LimitNOFILE)");
    }

    fn lose(&mut self, count: usize, why: &str) {
        let before = self.lost;
        self.lost += count as u64;
        if before.checked_ilog2() != self.lost.checked_ilog2() {
            super::journal::lost_newcomers(self.lost, why);
        }
    }

    /// The worker is dead, or its queue is broken.
    pub(super) fn bury(&mut self, worker: WorkerId, queue: Option<Queue>) {
        self.turn.forget(worker);
        queue.iter().for_each(|queue| self.take_back(queue));
    }

    /// What is in no queue, for the image after this one.
    pub(super) fn held(&self) -> impl Iterator<Item = &Newcomer> {
        self.held.iter()
    }

    /// What the image before this one had accepted.
    pub(super) fn inherit(&mut self, newcomer: Newcomer) {
        self.held.push_back(newcomer);
    }

    /// Takes as many out of the kernel's queues as there is room for.
    fn accept(&mut self, listeners: &[Listener], now: Instant) {
        let mut left = self.turn.room().saturating_sub(self.held.len()).min(BATCH);
        let mut ready = std::mem::take(&mut self.ready);
        self.first = self.first.wrapping_add(1);
        let first = self.first.checked_rem(ready.len()).unwrap_or(0);
        ready.rotate_left(first);
        for index in ready {
            let Some(listener) = listeners.get(index) else { continue };
            let unix = listener.is_unix();
            while left > 0 {
                match sys::socket::accept(listener) {
                    Ok(fd) => {
                        self.exhausted = false;
                        self.held.push_back(Newcomer { fd, unix });
                        left -= 1;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // Gone before we came.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => left -= 1,
                    Err(e) => {
                        self.rest = Some(now + REST);
                        if !std::mem::replace(&mut self.exhausted, true) {
                            super::journal::cannot_accept(&listener.local, &e);
                        }
                        return;
                    }
                }
            }
        }
    }

    /// Puts what is held into the queues of those whose turn it is. Returns those whose queues are broken.
    fn deal(&mut self, children: &BTreeMap<WorkerId, Child>, now: Instant) -> Vec<WorkerId> {
        let mut hands: BTreeMap<WorkerId, Vec<Newcomer>> = BTreeMap::new();
        while !self.held.is_empty() {
            let Some(id) = self.turn.next(now) else { break };
            hands.entry(id).or_default().extend(self.held.pop_front());
        }
        let mut broken = Vec::new();
        for (id, mut hand) in hands {
            let queue = children.get(&id).and_then(|child| child.queue.as_ref());
            let put = queue.map_or(Ok(0), |queue| queue.put(hand.iter()));
            let rest = hand.split_off(put.as_ref().map_or(0, |put| *put));
            if let (false, Some(queue)) = (rest.is_empty(), queue) {
                // The kernel has the last word on what fits.
                self.turn.told(id, queue.waiting().max(super::turn::BOUND), now);
            }
            rest.into_iter().rev().for_each(|one| self.held.push_front(one));
            broken.extend(put.is_err().then_some(id));
        }
        broken
    }
}

impl Primary {
    /// Deals out new connections, and decides what to wait for. Returns when to look again, if nothing happens.
    pub(super) fn deal(&mut self, now: Instant) -> Option<Duration> {
        self.dealer.awaited = Awaited::Nothing;
        let dealt_to = self.children.values().any(|child| child.queue.is_some());
        if !dealt_to && self.dealer.held.is_empty() {
            return None;
        }
        self.see_takers(now);
        self.move_overdue(now);
        for id in self.dealer.turn.uncertain() {
            self.count(id, now);
        }
        self.dealer.rest = self.dealer.rest.filter(|until| *until > now);
        if self.dealer.rest.is_none() && self.dealer.held.is_empty() && !self.taking_over {
            self.dealer.accept(&self.listeners.listeners, now);
        }
        for id in self.dealer.deal(&self.children, now) {
            self.condemn(id);
        }
        self.settle_held(now);
        self.await_next(now)
    }

    /// Sees to what is held and will never be dealt: at the end, or when a reload has changed the policy.
    fn settle_held(&mut self, now: Instant) {
        if self.supervisor.stopping() {
            if self.children.is_empty() {
                let held = self.dealer.held.drain(..).count();
                self.dealer.lose(held, "no worker is left to take them");
            }
        } else if self.config_in_force().is_some_and(|c| c.dispatch != Dispatch::RoundRobin)
            && !self.children.values().any(|child| child.queue.is_some() && !child.released)
        {
            // To workers that accept by themselves it comes as from another worker.
            for newcomer in self.dealer.held.drain(..) {
                self.relay.take_in(newcomer.fd, Unread::default(), now);
            }
        }
    }

    /// Whether what is taken back from `leaving` can go to another.
    pub(super) fn somebody_else_is_dealt_to(&self, leaving: WorkerId) -> bool {
        self.children.iter().any(|(id, child)| {
            let dealt_to = child.queue.is_some() && !child.released;
            *id != leaving && dealt_to && self.supervisor.serves(*id)
        })
    }

    /// Who can take connections. At a stop those that finish take what is left, too: what they do not take
    /// before they end comes back.
    fn see_takers(&mut self, now: Instant) {
        let now_ms = sys::process::monotonic_ms();
        let (turn, children, mind) = (&mut self.dealer.turn, &self.children, &self.supervisor);
        for (id, child) in children {
            let Some(queue) = &child.queue else { continue };
            let load = self.board.load(child.row, now_ms);
            let able = match mind.stopping() {
                true => load.turns,
                false => load.takes && !child.released && mind.serves(*id),
            };
            let reachable = child.channel.is_some() && !mind.is_stopped(*id);
            if turn.see(*id, able && reachable, now) {
                turn.told(*id, queue.waiting(), now);
            }
        }
        turn.keep(|id| children.get(&id).is_some_and(|child| child.queue.is_some()));
    }

    fn move_overdue(&mut self, now: Instant) {
        for id in self.dealer.turn.overdue(now) {
            self.count(id, now);
            if self.dealer.turn.is_to_be_moved(id, now) {
                self.take_back(id);
            }
        }
    }

    fn count(&mut self, id: WorkerId, now: Instant) {
        if let Some(queue) = self.children.get(&id).and_then(|child| child.queue.as_ref()) {
            self.dealer.turn.told(id, queue.waiting(), now);
        }
    }

    /// Takes what the worker has not taken yet, for others.
    pub(super) fn take_back(&mut self, id: WorkerId) {
        let Some(child) = self.children.get(&id) else { return };
        let Some(queue) = &child.queue else { return };
        self.dealer.take_back(queue);
        queue.probe();
        self.dealer.turn.taken_back(id);
    }

    fn condemn(&mut self, id: WorkerId) {
        let queue = self.children.get_mut(&id).and_then(|child| child.queue.take());
        self.dealer.bury(id, queue);
        let why = "it has closed its queue of connections".to_string();
        self.queue.push_back(Event::Garbled { worker: id, why });
    }

    fn await_next(&mut self, now: Instant) -> Option<Duration> {
        let dealer = &mut self.dealer;
        let (mut looks, full) = (Vec::new(), dealer.turn.full());
        let idle = self.listeners.listeners.is_empty() || self.taking_over;
        let times = dealer.turn.deadline(now).into_iter().chain(dealer.rest);
        looks.extend(times.map(|at| at.saturating_duration_since(now)));
        if dealer.turn.room() > 0 {
            if !idle && dealer.rest.is_none() {
                dealer.awaited = Awaited::Newcomers;
            }
        } else if full.is_empty() {
            looks.extend((!idle || !dealer.held.is_empty()).then_some(LOOK));
        } else if dealer.in_vain {
            looks.push(SOON);
        } else {
            dealer.awaited = Awaited::Room(full);
            looks.push(LOOK);
        }
        dealer.in_vain = false;
        looks.into_iter().min()
    }

    /// What to poll for new connections: see `dealt`.
    pub(super) fn watched_for_dealing(&self) -> Vec<Watch<'_>> {
        match &self.dealer.awaited {
            Awaited::Nothing => Vec::new(),
            Awaited::Newcomers => {
                self.listeners.listeners.iter().map(|one| Watch::read(one.as_fd())).collect()
            }
            Awaited::Room(ids) => {
                let queues = ids.iter().filter_map(|id| self.children.get(id)?.queue.as_ref());
                queues.map(|queue| Watch::new(queue.ends()[0], Interest::Write)).collect()
            }
        }
    }

    /// What came of it, in the order of `watched_for_dealing`.
    pub(super) fn dealt(&mut self, ready: &[bool]) {
        let which = ready.iter().enumerate().filter(|(_, ready)| **ready).map(|(index, _)| index);
        match self.dealer.awaited {
            Awaited::Nothing => {}
            Awaited::Newcomers => self.dealer.ready = which.collect(),
            // If there is room, this is not looked at.
            Awaited::Room(_) => self.dealer.in_vain = which.count() > 0,
        }
    }
}
