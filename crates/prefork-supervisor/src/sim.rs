//! A fake world with virtual time: children that behave as their [`Life`] says (see `lives`), a kernel that forks and
//! kills, a configuration that can be read again, and a primary that can be stopped for a while. The laws are
//! asserted after every event.

mod acts;
mod image;
mod lives;
mod views;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::laws::Laws;
use super::{
    Action, ClusterCommand, Event, HealthSample, Requester, ShutdownReason, Supervisor,
    WorkerKindConfig,
};
use crate::config::SupervisorConfig;
use crate::identity::{WorkerId, WorkerTag};
pub(super) use image::Binary;
use image::{Moment, Trial};
use lives::Child;
pub(super) use lives::{Deed, Dice, Life, SIGABRT, SIGKILL, SIGSEGV, code, ms, signal};

/// Decides how the worker with this tag will live.
type Fate = Box<dyn FnMut(WorkerTag, &mut Dice) -> Life>;

/// What is in the configuration's file: how long it takes to read it, and what comes of that. It is given the
/// policy in force.
type File =
    Box<dyn FnMut(&SupervisorConfig, &mut Dice) -> (Duration, Result<SupervisorConfig, String>)>;

#[derive(Debug)]
enum Happening {
    ForkReturns(WorkerId),
    Does(WorkerId, Deed),
    Asks(ClusterCommand),
    ReadsConfig,
    Sees(Vec<HealthSample>),
    Tells(Event),
    Upgrades(Moment),
}

pub(super) struct World {
    pub(super) mind: Supervisor,
    /// What each image says of kinds of workers besides `web`.
    pub(super) kinds: Vec<WorkerKindConfig>,
    pub(super) now: Instant,
    /// Every action so far, with its time since the beginning.
    pub(super) log: Vec<(Duration, Action)>,
    pub(super) exit: Option<ShutdownReason>,
    began: Instant,
    /// The primary notices nothing before this moment.
    awake: Instant,
    laws: Laws,
    dice: Dice,
    fate: Fate,
    pub(super) file: File,
    pub(super) binary: image::File,
    /// The upgrade under way.
    trial: Option<Trial>,
    /// How many images there have been before this one.
    pub(super) images: u32,
    /// One in so many words about adoption finds a full channel; 0 if none does.
    pub(super) deafness: u64,
    /// Of so many workers the application does not want one to be replaced; 0 if it wants all.
    pub(super) vetoes: u64,
    /// What a configuration that is being read says.
    read: Option<Result<SupervisorConfig, String>>,
    /// By time, and in the order in which they were planned.
    plan: BTreeMap<(Instant, usize), Happening>,
    planned: usize,
    forking: BTreeMap<WorkerId, Life>,
    children: BTreeMap<WorkerId, Child>,
}

impl World {
    pub(super) fn new(
        policy: SupervisorConfig,
        seed: u64,
        fate: impl FnMut(WorkerTag, &mut Dice) -> Life + 'static,
    ) -> World {
        let now = Instant::now();
        World {
            mind: Supervisor::new(policy, seed),
            kinds: Vec::new(),
            now,
            log: Vec::new(),
            exit: None,
            began: now,
            awake: now,
            laws: Laws::default(),
            dice: Dice(seed),
            fate: Box::new(fate),
            file: Box::new(|policy, _| (ms(5), Ok(policy.clone()))),
            binary: Box::new(|policy, _| Binary::fit(policy)),
            trial: None,
            images: 0,
            deafness: 0,
            vetoes: 0,
            read: None,
            plan: BTreeMap::new(),
            planned: 0,
            forking: BTreeMap::new(),
            children: BTreeMap::new(),
        }
    }

    /// Reports an event now, checks the laws, and does what is to be done.
    pub(super) fn tell(&mut self, event: Event) {
        match &event {
            Event::Forked { worker, .. } => {
                if let Some(life) = self.forking.remove(worker) {
                    self.born(*worker, life);
                }
            }
            Event::UpgradeFailed { .. } => self.trial = None,
            Event::ForkFailed { worker, .. } => drop(self.forking.remove(worker)),
            Event::Exited { worker, .. } => {
                self.forking.remove(worker);
                self.children.remove(worker);
            }
            _ => {}
        }
        let before = self.laws.before(&self.mind);
        let actions = self.mind.handle(self.now, event.clone());
        self.laws.check(&before, self.now, &self.mind, &event, &actions);
        for action in actions {
            self.perform(action);
        }
    }

    /// Moves on to the next happening or deadline; what has happened is told before a deadline is, even
    /// if the primary was stopped meanwhile. False if nothing will ever happen.
    pub(super) fn step(&mut self) -> bool {
        let happening = self.plan.keys().next().map(|(at, _)| *at);
        let deadline = self.mind.deadline().map(|at| at.max(self.awake));
        match (happening, deadline) {
            (None, None) => return false,
            (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => {
                self.now = self.now.max(at).max(self.awake);
                let (_, happening) = self.plan.pop_first().expect("it was just looked at");
                self.happens(happening);
            }
            (_, deadline) => {
                self.now = self.now.max(deadline.expect("or a happening would have come first"));
                self.tell(Event::DeadlineReached);
            }
        }
        true
    }

    /// Runs until nothing more will happen, in at most `steps` steps.
    pub(super) fn drive_bounded(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.step() {
                return;
            }
        }
        panic!("not quiet after {steps} steps: {:#?}", self.mind);
    }

    pub(super) fn drive(&mut self) {
        self.drive_bounded(100_000);
    }

    /// Lets so much time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let next = |world: &World| {
            let planned = world.plan.keys().next().map(|(at, _)| *at);
            planned.into_iter().chain(world.mind.deadline()).min().map(|at| at.max(world.awake))
        };
        while next(self).is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    /// The same with other kinds of workers besides `web`.
    pub(super) fn with_kinds(mut self, kinds: Vec<WorkerKindConfig>) -> World {
        self.mind = self.mind.with_kinds(kinds.clone());
        self.kinds = kinds;
        self
    }

    /// A cluster at the moment when it has begun and all forks have returned.
    pub(super) fn start(mut self) -> World {
        self.tell(Event::Started);
        self.run(ms(0));
        self
    }

    /// The primary is stopped for so long; what happens meanwhile it learns all at once afterwards.
    pub(super) fn stop_primary(&mut self, time: Duration) {
        self.awake = self.now + time;
    }

    pub(super) fn ask(&mut self, command: ClusterCommand) {
        self.tell(Event::CommandReceived { command, by: Requester::without_reply("SIGTERM") });
    }

    pub(super) fn ask_in(&mut self, time: Duration, command: ClusterCommand) {
        self.plan(time, Happening::Asks(command));
    }

    /// Somebody asks who waits for the answer. After the end nobody is there to be asked.
    pub(super) fn request(&mut self, reply_id: u64, command: ClusterCommand) {
        if self.exit.is_none() {
            let by = Requester { name: "control".to_string(), reply_id: Some(reply_id) };
            self.tell(Event::CommandReceived { command, by });
        }
    }

    /// Stops every process of the group for so long, the primary and its workers.
    pub(super) fn suspend(&mut self, time: Duration) {
        let workers: Vec<WorkerId> = self.children.keys().copied().collect();
        for worker in workers {
            self.does(worker, Deed::Freeze);
            // It is scheduled again a moment after the primary is.
            self.plan(time + ms(30), Happening::Does(worker, Deed::Thaw));
        }
        self.stop_primary(time);
    }

    /// The worker does this now.
    pub(super) fn make(&mut self, worker: u64, deed: Deed) {
        self.happens(Happening::Does(WorkerId(worker), deed));
    }

    /// The worker ends now.
    pub(super) fn end(&mut self, worker: u64, status: ExitStatus) {
        self.make(worker, Deed::End(status));
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.planned += 1;
        self.plan.insert((self.now + after, self.planned), happening);
    }
}
