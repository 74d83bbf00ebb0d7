//! The mind: what to do when something happens. Pure: no system call, no clock, no log, no randomness of
//! its own. `primary` tells it the time and the events, and performs the actions; a failed action is not an
//! error here but the next event. So every failure is a unit test, and a simulated world can run a year of
//! crashes in a second (see `sim`, `laws`).
//!
//! Desired state is kept apart from actual state. Desired: a phase, and one worker for each slot. Actual: the
//! members, each in a state of its own (see `member`). A slot is *held* by the worker that serves it or is
//! about to; a worker that leaves lets go of its slot at once, so that its replacement can be forked while it
//! still finishes what it has open.

mod action;
mod asked;
mod backoff;
mod event;
mod exits;
mod member;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::Policy;
use crate::identity::{Generation, Slot, WorkerId, WorkerTag};
pub(crate) use action::{Action, Cause, Exit, Notice, Outcome};
use backoff::{Allowance, Backoff};
pub(crate) use event::{Asker, Event, Intent, Scale};
pub(crate) use member::{Member, State};

/// How long a worker that closed its channel unasked may take to exit. It has nothing left to do.
const LEAVING: Duration = Duration::from_secs(1);

/// A worker cuts off what is still open at the graceful timeout and exits. This is how much longer it may
/// take before it is killed.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not all workers have been ready yet.
    Booting,
    /// All workers have been ready once.
    Running,
    /// Told to end: workers finish what is open.
    Stopping,
    /// Told to end at once, or giving up: workers are killed.
    Ending(Outcome),
    /// The last action was given out.
    Done,
}

/// The state of the cluster, and the rules.
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    phase: Phase,
    /// Who holds slot `i`.
    slots: Vec<Option<WorkerId>>,
    /// Every worker that exists or is being forked.
    members: BTreeMap<WorkerId, Member>,
    backoff: Backoff,
    generation: Generation,
    next_id: u64,
    /// Whether any worker ever was ready.
    ever_ready: bool,
    /// Workers forked in place of one that ended unasked.
    restarts: u64,
}

impl Supervisor {
    /// A cluster that does not exist yet. `seed` spreads the delays of crash loops.
    pub(crate) fn new(policy: Policy, seed: u64) -> Supervisor {
        Supervisor {
            slots: vec![None; policy.workers as usize],
            backoff: Backoff::new(policy.backoff_first, policy.backoff_max, seed),
            policy,
            phase: Phase::Booting,
            members: BTreeMap::new(),
            generation: Generation(1),
            next_id: 1,
            ever_ready: false,
            restarts: 0,
        }
    }

    /// Takes note of `event` and says what to do, in this order.
    #[must_use]
    pub(crate) fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Started => {}
            Event::Forked { worker, pid } => self.forked(now, worker, pid, &mut actions),
            Event::ForkFailed { worker, why } => self.fork_failed(now, worker, why, &mut actions),
            Event::Ready { worker } => self.ready(now, worker, &mut actions),
            Event::BootFailed { worker, why } => self.boot_failed(worker, why, &mut actions),
            Event::Retiring { worker } => self.retiring(now, worker, &mut actions),
            Event::ChannelClosed { worker } => self.channel_closed(now, worker),
            Event::Garbled { worker, why } => self.garbled(worker, why, &mut actions),
            Event::Exited { worker, status, served } => {
                self.exited(now, worker, status, served, &mut actions);
            }
            Event::Asked { intent, by } => self.asked(now, intent, by, &mut actions),
            Event::DeadlineReached => self.overdue(now, &mut actions),
        }
        self.fill_slots(now, &mut actions);
        self.finish(&mut actions);
        actions
    }

    /// When `DeadlineReached` should be reported, if nothing else happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let members = self.members.values().filter_map(Member::deadline);
        let backoff = match self.phase {
            Phase::Booting | Phase::Running => self.backoff.deadline(),
            Phase::Stopping | Phase::Ending(_) | Phase::Done => None,
        };
        members.chain(backoff).min()
    }

    /// How many workers there should be.
    pub(crate) fn wanted(&self) -> u32 {
        self.policy.workers
    }

    /// Workers forked in place of one that ended unasked.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Whether the cluster is on its way out.
    pub(crate) fn stopping(&self) -> bool {
        !matches!(self.phase, Phase::Booting | Phase::Running)
    }

    fn forked(&mut self, now: Instant, worker: WorkerId, pid: u32, actions: &mut Vec<Action>) {
        let boot = now + self.policy.boot_timeout;
        let stopping = self.stopping();
        let Some(member) = self.members.get_mut(&worker) else { return };
        if member.state != State::Forking {
            return;
        }
        member.tag.pid = Some(pid);
        member.state = State::Booting { deadline: boot };
        if stopping {
            // Decided before the stop, forked after it.
            self.kill(worker, Cause::Stopped, actions);
        }
    }

    fn ready(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if !matches!(member.state, State::Booting { .. }) {
            return;
        }
        member.state = State::Serving;
        member.ready = Some(now);
        self.ever_ready = true;
        let after = now.duration_since(member.born);
        actions.push(Action::Report(Notice::Ready { worker: member.tag, after }));
        self.backoff.ready(now, self.policy.min_uptime);
        let serving = self.slots.iter().flatten().filter(|id| self.serves(**id)).count();
        if self.phase == Phase::Booting && serving == self.slots.len() {
            self.phase = Phase::Running;
            actions.push(Action::Report(Notice::AllReady { workers: self.policy.workers }));
        }
    }

    fn boot_failed(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get(&worker) {
            actions.push(Action::Report(Notice::BootFailed { worker: member.tag, why }));
        }
    }

    /// The worker is draining already; its slot is free for the replacement.
    fn retiring(&mut self, now: Instant, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, State::Booting { .. } | State::Serving) {
            member.state =
                State::Draining { deadline: now + self.policy.graceful_timeout + LAST_MOMENT };
            let never_ready = member.ready.is_none();
            actions.push(Action::Report(Notice::Retiring { worker: member.tag }));
            self.let_go(worker);
            if never_ready {
                // Its replacement may well do the same.
                self.fault(now, worker, actions);
            }
        }
    }

    /// Normal when a worker ends: its exit is on the way. One that lives on can not be led any more.
    fn channel_closed(&mut self, now: Instant, worker: WorkerId) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        if matches!(member.state, State::Booting { .. } | State::Serving) {
            member.state = State::Leaving { deadline: now + LEAVING };
        }
    }

    fn garbled(&mut self, worker: WorkerId, why: String, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get(&worker) else { return };
        actions.push(Action::Report(Notice::Condemned { worker: member.tag, why }));
        self.kill(worker, Cause::Condemned, actions);
    }

    /// SIGKILL, once, to a process that exists and has not been reaped.
    fn kill(&mut self, worker: WorkerId, why: Cause, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker)
            && !matches!(member.state, State::Forking | State::Killed { .. })
        {
            member.state = State::Killed { why };
            actions.push(Action::Kill(worker));
        }
    }

    /// Whether the worker accepts and is not about to leave.
    pub(crate) fn serves(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|m| m.state == State::Serving)
    }

    /// Empties the slot that the worker holds; whether it held one.
    fn let_go(&mut self, worker: WorkerId) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| **slot == Some(worker)) else {
            return false;
        };
        *slot = None;
        true
    }

    /// Forks a worker for each empty slot, as far as the crash-loop rule allows.
    fn fill_slots(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping() {
            return;
        }
        self.backoff.tick(now);
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_some() {
                continue;
            }
            if self.backoff.allowance() == Allowance::None {
                return;
            }
            let id = WorkerId(self.next_id);
            self.next_id += 1;
            let generation = self.generation;
            let tag = WorkerTag { id, slot: Slot(slot as u32), generation, pid: None };
            self.members.insert(id, Member::new(tag, now));
            self.slots[slot] = Some(id);
            self.backoff.forked(id);
            actions.push(Action::Fork(tag));
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        let outcome = match self.phase {
            Phase::Stopping => Outcome::Stopped,
            Phase::Ending(outcome) => outcome,
            Phase::Booting | Phase::Running | Phase::Done => return,
        };
        if self.members.is_empty() {
            self.phase = Phase::Done;
            actions.push(Action::Report(Notice::Stopped));
            actions.push(Action::Exit(outcome));
        }
    }
}
