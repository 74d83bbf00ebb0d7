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
mod adoption;
mod asked;
mod backoff;
mod departure;
mod event;
mod exits;
mod handoff;
mod identity;
mod kinds;
mod member;
mod places;
mod policy;
mod rolling;
mod scaling;
mod succession;
mod vacancy;
mod view;
mod watch;
mod words;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

pub use action::Limit;
pub use action::{Action, Cause, Exit, Leave, Notice, Outcome};
use adoption::Adoption;
use backoff::Backoff;
use departure::Departure;
pub use event::{Adopted, AdoptedMember, Asker, Event, Intent, Scale, Vitals};
use handoff::{Handoff, UpgradeAsker};
pub use identity::{Generation, Slot, WEB, WorkerId, WorkerTag};
use kinds::Kind;
pub use kinds::{KindRules, Limits};
pub use member::{Member, State};
use places::Place;
pub use policy::Policy;
use rolling::Roll;
pub use view::{MemberView, View};
use watch::Watch;

/// The largest accepted number of workers, over all kinds. The scoreboard has room for twice as many.
pub const MAX_WORKERS: u32 = 1024;

/// How long a worker that closed its channel unasked may take to exit. It has nothing left to do.
const LEAVING: Duration = Duration::from_secs(1);

/// A worker cuts off what is still open at the graceful timeout and exits. This is how much longer it may
/// take before it is killed.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
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
pub struct Supervisor {
    policy: Policy,
    phase: Phase,
    /// In the order of their slots: `places[i]` is slot `i`, for the kind `web`; behind it are those of other kinds.
    places: Vec<Place>,
    /// The kinds of workers besides `web`.
    kinds: Vec<Kind>,
    /// Every worker that exists or is being forked. Changed by `enter` and `remove` only.
    members: BTreeMap<WorkerId, Member>,
    /// How many of `members` belong to each slot; slots without any have no entry. Counting them anew for each slot after
    /// each event takes cubic time over a reload: 100 s with 1024 workers.
    workers_per_slot: BTreeMap<Slot, usize>,
    backoff: Backoff,
    /// The reload under way.
    roll: Option<Roll>,
    /// Workers of the image before this one that are to be told to leave.
    untold: Vec<WorkerId>,
    /// The upgrade under way.
    handoff: Option<Handoff>,
    /// Upgrades that were asked for during a reload, and wait for its end: one serves them all.
    upgrades_waiting: Vec<UpgradeAsker>,
    /// New workers that somebody killed since it began to roll.
    roll_kills: u32,
    /// Those who asked for another reload meanwhile: one more serves them all.
    waiting: Vec<Asker>,
    /// The generation that is wanted.
    generation: Generation,
    /// The last one that was tried; it only grows.
    last_generation: Generation,
    next_id: u64,
    /// Whether any worker ever was ready.
    ever_ready: bool,
    /// When the graceful stop was asked for.
    stop_began: Option<Instant>,
    /// A stop that waits for balancers to notice.
    departure: Option<Departure>,
    /// Workers forked in place of one that ended unasked.
    restarts: u64,
    watch: Watch,
    adoption: Adoption,
    /// Who asked for another number of workers, in turn; the first one waits for its sockets.
    scaling: VecDeque<(Scale, Asker)>,
    /// Whether the application decides who is replaced.
    asks_restart: bool,
}

impl Supervisor {
    /// A cluster that does not exist yet. `seed` spreads the delays of crash loops.
    pub fn new(policy: Policy, seed: u64) -> Supervisor {
        Supervisor {
            places: places_of_web(policy.workers, Generation(1)),
            kinds: Vec::new(),
            backoff: Backoff::new(policy.backoff_first, policy.backoff_max, seed),
            watch: Watch::new(seed),
            adoption: Adoption::default(),
            scaling: VecDeque::new(),
            asks_restart: false,
            policy,
            roll: None,
            untold: Vec::new(),
            handoff: None,
            upgrades_waiting: Vec::new(),
            roll_kills: 0,
            waiting: Vec::new(),
            phase: Phase::Booting,
            members: BTreeMap::new(),
            workers_per_slot: BTreeMap::new(),
            generation: Generation(1),
            last_generation: Generation(1),
            next_id: 1,
            ever_ready: false,
            stop_began: None,
            departure: None,
            restarts: 0,
        }
    }

    /// Takes note of `event` and says what to do, in this order.
    #[must_use]
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Started => {
                self.know_sockets(self.policy.workers);
                self.renew_drains(&mut actions);
            }
            Event::Forked { worker, pid } => self.forked(now, worker, pid, &mut actions),
            Event::ForkFailed { worker, why } => self.fork_failed(now, worker, why, &mut actions),
            Event::Online { worker } => self.online(worker, &mut actions),
            Event::Ready { worker } => self.ready(now, worker, &mut actions),
            Event::Proven { worker } => self.proven(worker),
            Event::BootFailed { worker, why } => self.boot_failed(worker, why, &mut actions),
            Event::Retiring { worker } => self.retiring(now, worker, &mut actions),
            Event::Disconnecting { worker } => self.disconnecting(now, worker, &mut actions),
            Event::ChannelClosed { worker } => self.channel_closed(now, worker, &mut actions),
            Event::Garbled { worker, why } => self.garbled(worker, why, &mut actions),
            Event::Stopped { worker } => self.stopped(worker, true),
            Event::Continued { worker } => self.stopped(worker, false),
            Event::Exited { worker, status, served } => {
                self.exited(now, worker, status, served, &mut actions);
            }
            Event::Asked { intent, by } => self.asked(now, intent, by, &mut actions),
            Event::ConfigRead { outcome } => self.config_read(outcome, &mut actions),
            Event::SocketsOpened { slots, outcome } => {
                self.sockets_opened(now, slots, outcome, &mut actions);
            }
            Event::AdoptFailed { worker, slot } => self.adopt_failed(now, worker, slot),
            Event::ReleaseFailed { worker, slot } => self.release_failed(now, worker, slot),
            Event::RestartDecided { worker, restart } => {
                self.restart_decided(worker, restart, &mut actions);
            }
            Event::Proved => self.proved(&mut actions),
            Event::NotProved { why } => self.not_proved(&why, &mut actions),
            Event::Observed { vitals } => self.observed(now, vitals, &mut actions),
            Event::DeadlineReached => {
                self.depart(now, &mut actions);
                self.overdue(now, &mut actions);
                self.proof_overdue(now, &mut actions);
                self.look(now, &mut actions);
            }
        }
        self.give_up_proof(&mut actions);
        self.give_up_scaling(&mut actions);
        self.roll_on(now, &mut actions);
        self.begin_waiting_upgrade(now, &mut actions);
        self.fill_slots(now, &mut actions);
        self.tend_slots(now, &mut actions);
        self.all_ready(&mut actions);
        self.keep_watch(now);
        self.finish(&mut actions);
        actions
    }

    /// When `DeadlineReached` should be reported, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let members = self.members.values().filter_map(Member::deadline);
        let others = match self.phase {
            Phase::Booting | Phase::Running => {
                [self.backoff.deadline(), self.watch.deadline(), self.departure_deadline()]
            }
            Phase::Stopping => [None, self.watch.deadline(), None],
            Phase::Ending(_) | Phase::Done => [None, None, None],
        };
        let proof = self.handoff.as_ref().and_then(Handoff::deadline);
        members.chain(others.into_iter().flatten()).chain(proof).min()
    }

    /// How many workers of the kind `web` there should be.
    pub fn wanted(&self) -> u32 {
        self.policy.workers
    }

    /// Workers forked in place of one that ended unasked.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What the image after this one has to know of the workers and of ourselves.
    pub fn leave(&self, now: Instant) -> Adopted {
        let members = self
            .members
            .values()
            .filter(|member| member.state != State::Forking)
            .map(|member| AdoptedMember {
                tag: member.tag,
                age: now.duration_since(member.born),
                serving: member.state == State::Serving && self.is_wanted(member.tag.id),
                own_socket: member.own_socket,
                adopts: self.adopters().filter(|(_, w)| *w == member.tag.id).map(|a| a.0).collect(),
            })
            .collect();
        Adopted {
            generation: self.last_generation,
            next_id: self.next_id,
            restarts: self.restarts,
            workers_wanted: self.policy.workers,
            sockets: self.adoption.sockets,
            environments: self.environments(),
            members,
            askers: self.handoff.as_ref().map_or(Vec::new(), Handoff::waiting),
        }
    }

    /// Whether the cluster is on its way out.
    pub fn stopping(&self) -> bool {
        !matches!(self.phase, Phase::Booting | Phase::Running)
    }

    fn all_ready(&mut self, actions: &mut Vec<Action>) {
        let workers = self.serving();
        if self.phase == Phase::Booting && self.is_whole() && workers > 0 {
            self.phase = Phase::Running;
            actions.push(Action::Report(Notice::AllReady { workers }));
        }
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

fn places_of_web(workers: u32, generation: Generation) -> Vec<Place> {
    (0..workers).map(|slot| Place::new(Slot(slot), WEB, generation)).collect()
}
