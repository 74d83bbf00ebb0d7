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
mod command;
mod config;
mod departure;
mod event;
mod exits;
mod handoff;
mod identity;
mod kinds;
mod member;
mod places;
mod rolling;
mod saved_state;
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

pub use action::{
    Action, DrainReason, ExitCause, ExitReport, LogEvent, RecycleReason, ShutdownReason,
};
use adoption::Adoption;
use backoff::Backoff;
pub use command::{ClusterCommand, Requester, ScaleChange, WorkerEnvironment};
pub use config::{RecycleLimits, SupervisorConfig, WorkerKindConfig};
use departure::Departure;
pub use event::{Event, HealthSample};
use handoff::{Handoff, UpgradeAsker};
pub use identity::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
use kinds::Kind;
pub use member::{WorkerRecord, WorkerState};
use places::Place;
use rolling::Roll;
pub use saved_state::{SavedState, SavedWorker};
pub use view::{ClusterView, WorkerView};
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
pub enum ClusterPhase {
    /// Not all workers have been ready yet.
    Booting,
    /// All workers have been ready once.
    Running,
    /// Told to end: workers finish what is open.
    Stopping,
    /// Told to end at once, or giving up: workers are killed.
    Killing(ShutdownReason),
    /// The last action was given out.
    Done,
}

/// The state of the cluster, and the rules.
#[derive(Debug)]
pub struct Supervisor {
    policy: SupervisorConfig,
    phase: ClusterPhase,
    /// In the order of their slots: `places[i]` is slot `i`, for the kind `web`; behind it are those of other kinds.
    places: Vec<Place>,
    /// The kinds of workers besides `web`.
    kinds: Vec<Kind>,
    /// Every worker that exists or is being forked. Changed by `enter` and `remove` only.
    members: BTreeMap<WorkerId, WorkerRecord>,
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
    waiting: Vec<Requester>,
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
    scaling: VecDeque<(ScaleChange, Requester)>,
    /// Whether the application decides who is replaced.
    asks_restart: bool,
}

impl Supervisor {
    /// A cluster that does not exist yet. `seed` spreads the delays of crash loops.
    pub fn new(policy: SupervisorConfig, seed: u64) -> Supervisor {
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
            phase: ClusterPhase::Booting,
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
            Event::ForkFailed { worker, reason } => {
                self.fork_failed(now, worker, reason, &mut actions)
            }
            Event::Online { worker } => self.online(worker, &mut actions),
            Event::Ready { worker } => self.ready(now, worker, &mut actions),
            Event::RiskyJobStarted { worker } => self.proven(worker),
            Event::BootFailed { worker, reason } => self.boot_failed(worker, reason, &mut actions),
            Event::Retiring { worker } => self.retiring(now, worker, &mut actions),
            Event::Disconnecting { worker } => self.disconnecting(now, worker, &mut actions),
            Event::ChannelClosed { worker } => self.channel_closed(now, worker, &mut actions),
            Event::ProtocolError { worker, reason } => self.garbled(worker, reason, &mut actions),
            Event::Stopped { worker } => self.stopped(worker, true),
            Event::Continued { worker } => self.stopped(worker, false),
            Event::Exited { worker, status, requests_served } => {
                self.exited(now, worker, status, requests_served, &mut actions);
            }
            Event::CommandReceived { command, by } => self.asked(now, command, by, &mut actions),
            Event::ConfigRead { result } => self.config_read(result, &mut actions),
            Event::SocketsOpened { slots, result } => {
                self.sockets_opened(now, slots, result, &mut actions);
            }
            Event::AdoptSlotFailed { worker, slot } => self.adopt_failed(now, worker, slot),
            Event::ReleaseSlotFailed { worker, slot } => self.release_failed(now, worker, slot),
            Event::RestartDecided { worker, restart } => {
                self.restart_decided(worker, restart, &mut actions);
            }
            Event::UpgradeCheckPassed => self.proved(&mut actions),
            Event::UpgradeFailed { reason } => self.not_proved(&reason, &mut actions),
            Event::HealthSampled { samples } => self.observed(now, samples, &mut actions),
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
        let members = self.members.values().filter_map(WorkerRecord::deadline);
        let others = match self.phase {
            ClusterPhase::Booting | ClusterPhase::Running => {
                [self.backoff.deadline(), self.watch.deadline(), self.departure_deadline()]
            }
            ClusterPhase::Stopping => [None, self.watch.deadline(), None],
            ClusterPhase::Killing(_) | ClusterPhase::Done => [None, None, None],
        };
        let proof = self.handoff.as_ref().and_then(Handoff::deadline);
        members.chain(others.into_iter().flatten()).chain(proof).min()
    }

    /// How many workers of the kind `web` there should be.
    pub fn wanted_workers(&self) -> u32 {
        self.policy.workers
    }

    /// Workers forked in place of one that ended unasked.
    pub fn restart_count(&self) -> u64 {
        self.restarts
    }

    /// What the image after this one has to know of the workers and of ourselves.
    pub fn save_state(&self, now: Instant) -> SavedState {
        let workers = self
            .members
            .values()
            .filter(|member| member.state != WorkerState::Forking)
            .map(|member| SavedWorker {
                tag: member.tag,
                age: now.duration_since(member.born),
                is_serving: member.state == WorkerState::Serving && self.is_wanted(member.tag.id),
                has_own_socket: member.own_socket,
                adopted_slots: self
                    .slot_adopters()
                    .filter(|(_, w)| *w == member.tag.id)
                    .map(|a| a.0)
                    .collect(),
            })
            .collect();
        SavedState {
            generation: self.last_generation,
            next_id: WorkerId(self.next_id),
            restart_count: self.restarts,
            wanted_workers: self.policy.workers,
            socket_slots: self.adoption.sockets,
            environments: self.environments(),
            workers,
            upgrade_requesters: self.handoff.as_ref().map_or(Vec::new(), Handoff::waiting),
        }
    }

    /// Whether the cluster is on its way out.
    pub fn is_stopping(&self) -> bool {
        !matches!(self.phase, ClusterPhase::Booting | ClusterPhase::Running)
    }

    fn all_ready(&mut self, actions: &mut Vec<Action>) {
        let workers = self.serving();
        if self.phase == ClusterPhase::Booting && self.is_whole() && workers > 0 {
            self.phase = ClusterPhase::Running;
            actions.push(Action::Log(LogEvent::AllReady { workers }));
        }
    }

    /// SIGKILL, once, to a process that exists and has not been reaped.
    fn kill(&mut self, worker: WorkerId, reason: ExitCause, actions: &mut Vec<Action>) {
        if let Some(member) = self.members.get_mut(&worker)
            && !matches!(member.state, WorkerState::Forking | WorkerState::Killed { .. })
        {
            member.state = WorkerState::Killed { reason };
            actions.push(Action::Kill(worker));
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        let result = match self.phase {
            ClusterPhase::Stopping => ShutdownReason::StopRequested,
            ClusterPhase::Killing(result) => result,
            ClusterPhase::Booting | ClusterPhase::Running | ClusterPhase::Done => return,
        };
        if self.members.is_empty() {
            self.phase = ClusterPhase::Done;
            actions.push(Action::Log(LogEvent::Stopped));
            actions.push(Action::Exit(result));
        }
    }
}

fn places_of_web(workers: u32, generation: Generation) -> Vec<Place> {
    (0..workers).map(|slot| Place::new(Slot(slot), WEB_KIND, generation)).collect()
}
