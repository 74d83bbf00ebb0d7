//! `--dispatch round-robin`: the primary accepts, and deals connections out to the workers in turn.
//!
//! Whose turn it is stands in `turn`, how a connection changes hands without being lost or served twice in
//! `channel::Queue`, what is accepted when and put where in `dealer`. In one turn of the primary's loop a bounded number of
//! connections is accepted, and never more than the workers have room for: what has to wait, waits in the kernel's
//! queue. Signals, words and questions are dealt with in between, however many connections come.
//!
//! As long as newcomers are all that happens, they are all that is looked after: see `deal_on`.

use std::io;
use std::time::{Duration, Instant};

use super::Primary;
use crate::channel::Unread;
use crate::dispatch::round_robin::{Dealer, Table};
use crate::listener::{Listener, ListenerSet};
use prefork_os::poll::PollSet;
use prefork_supervisor::Event;
use prefork_supervisor::WorkerId;

/// So many times newcomers may be all that is looked after.
const TURNS: u32 = 64;

impl Primary {
    /// Deals out new connections, and decides what to wait for. Returns when to look again, if nothing happens.
    pub(super) fn deal(&mut self, now: Instant) -> Option<Duration> {
        self.dealer.await_nothing();
        let dealt_to = self.workers.values().any(|child| child.queue.is_some());
        let cannot = dealt_to && self.dealer.cannot_accept(&self.listeners.listeners);
        self.scoreboard.cannot_accept(cannot);
        if !dealt_to && self.dealer.held().next().is_none() {
            return None;
        }
        let (dealer, table) = self.table();
        dealer.step(&table, now);
        for id in self.dealer.broken() {
            self.condemn(id);
        }
        self.settle_held(now);
        let (dealer, table) = self.table();
        dealer.await_next(table.listeners, now)
    }

    fn table(&mut self) -> (&mut Dealer, Table<'_>) {
        let Primary { dealer, workers, scoreboard, supervisor, listeners, upgrade, .. } = self;
        let listeners = acceptable(listeners, upgrade.is_exec_scheduled());
        (dealer, Table { workers, scoreboard, mind: supervisor, listeners })
    }

    /// Sees to what is held and will never be dealt: at the end, or when a reload has changed the policy.
    fn settle_held(&mut self, now: Instant) {
        if self.supervisor.is_stopping() {
            if self.workers.is_empty() {
                let held = self.dealer.give_up().count();
                self.dealer.lose(held, "no worker is left to take them");
            }
        } else if self.current_config().is_some_and(|c| !c.dispatch.accepts_in_primary())
            && !self.workers.values().any(|child| child.queue.is_some() && !child.released)
        {
            // To workers that accept by themselves it comes as from another worker.
            for newcomer in self.dealer.give_up() {
                self.handover.push(newcomer.fd, Unread::default(), now);
            }
        }
    }

    /// Whether what is taken back from `leaving` can go to another.
    pub(super) fn somebody_else_is_dealt_to(&self, leaving: WorkerId) -> bool {
        self.workers.iter().any(|(id, child)| {
            let dealt_to = child.queue.is_some() && !child.released;
            *id != leaving && dealt_to && self.supervisor.is_serving(*id)
        })
    }

    /// Takes what the worker has not taken yet, for others.
    pub(super) fn take_back(&mut self, id: WorkerId) {
        let queue = self.workers.get(&id).and_then(|child| child.queue.as_ref());
        queue.into_iter().for_each(|queue| self.dealer.take_back(id, queue));
    }

    fn condemn(&mut self, id: WorkerId) {
        let queue = self.workers.get_mut(&id).and_then(|child| child.queue.take());
        self.dealer.bury(id, queue);
        let why = "it has closed its queue of connections".to_string();
        self.pending_events.push_back(Event::ProtocolError { worker: id, reason: why });
    }
}

/// Those at which newcomers are accepted. What is accepted before the exec of an upgrade would have to be held until after it.
pub(super) fn acceptable(listeners: &ListenerSet, taking_over: bool) -> &[Listener] {
    if taking_over { &[] } else { &listeners.listeners }
}

/// How long `deal_on` may wait.
pub(super) struct Waits {
    /// When to look again at what was dealt.
    pub(super) dealing: Option<Duration>,
    /// When there is something else to do.
    pub(super) until: Option<Instant>,
    /// When to sleep at the earliest.
    pub(super) awake: Option<Instant>,
    pub(super) now: Instant,
}

/// Waits for `set`, and for what the dealer waits for. While nothing else comes than that, it is served here: all the rest
/// is as it was, up to `until`. Returns one flag for each descriptor of `set`.
pub(super) fn deal_on<'fd>(
    dealer: &mut Dealer,
    table: &Table<'fd>,
    mut set: PollSet<'fd>,
    waits: Waits,
) -> io::Result<Vec<bool>> {
    let Waits { mut dealing, until, awake, mut now } = waits;
    let others = set.len();
    for _ in 0..TURNS {
        set.replace_after(others, dealer.watched(table.listeners, table.workers));
        let left = until.map(|at| at.saturating_duration_since(now));
        let ready = set.wait_busy_polling(awake, left.into_iter().chain(dealing).min())?;
        let came = || (others..set.len()).filter(|at| set.is_ready(*at));
        let alone = came().count() == ready;
        dealer.dealt(came().map(|at| at - others));
        if ready == 0 || !alone {
            break;
        }
        set.clear_ready();
        now = Instant::now();
        dealer.step(table, now);
        if !dealer.is_done() {
            break;
        }
        dealing = dealer.await_next(table.listeners, now);
        if until.is_some_and(|at| at <= now) {
            break;
        }
    }
    set.replace_after(others, []);
    Ok(set.ready_flags())
}
