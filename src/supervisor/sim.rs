//! A fake world with virtual time: children that behave as their [`Life`] says (see `lives`), a kernel that forks and
//! kills, and a primary that can be stopped for a while. The laws are asserted after every event.

mod lives;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::laws::Laws;
use super::{Action, Asker, Event, Intent, Notice, Outcome, State, Supervisor};
use crate::config::Policy;
use crate::identity::{WorkerId, WorkerTag};
pub(super) use lives::{Deed, Dice, Life, SIGKILL, SIGSEGV, code, ms, signal};

/// Decides how the worker with this tag will live.
type Fate = Box<dyn FnMut(WorkerTag, &mut Dice) -> Life>;

#[derive(Debug)]
enum Happening {
    ForkReturns(WorkerId),
    Does(WorkerId, Deed),
    Asks(Intent),
}

pub(super) struct World {
    pub(super) mind: Supervisor,
    pub(super) now: Instant,
    /// Every action so far, with its time since the beginning.
    pub(super) log: Vec<(Duration, Action)>,
    pub(super) exit: Option<Outcome>,
    began: Instant,
    /// The primary notices nothing before this moment.
    awake: Instant,
    laws: Laws,
    dice: Dice,
    fate: Fate,
    /// By time, and in the order in which they were planned.
    plan: BTreeMap<(Instant, usize), Happening>,
    planned: usize,
    forking: BTreeMap<WorkerId, Life>,
    children: BTreeMap<WorkerId, Life>,
}

impl World {
    pub(super) fn new(
        policy: Policy,
        seed: u64,
        fate: impl FnMut(WorkerTag, &mut Dice) -> Life + 'static,
    ) -> World {
        let now = Instant::now();
        World {
            mind: Supervisor::new(policy, seed),
            now,
            log: Vec::new(),
            exit: None,
            began: now,
            awake: now,
            laws: Laws::default(),
            dice: Dice(seed),
            fate: Box::new(fate),
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
                    for (after, deed) in &life.deeds {
                        self.plan(*after, Happening::Does(*worker, *deed));
                    }
                    self.children.insert(*worker, life);
                }
            }
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
        self.now = end;
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

    pub(super) fn ask(&mut self, intent: Intent) {
        self.tell(Event::Asked { intent, by: Asker::nameless("SIGTERM") });
    }

    pub(super) fn ask_in(&mut self, time: Duration, intent: Intent) {
        self.plan(time, Happening::Asks(intent));
    }

    /// The worker ends now.
    pub(super) fn end(&mut self, worker: u64, status: ExitStatus) {
        self.happens(Happening::Does(WorkerId(worker), Deed::End(status)));
    }

    /// The ids of the workers that serve, in the order of their slots.
    pub(super) fn serving(&self) -> Vec<u64> {
        let serves = |id: &&WorkerId| self.mind.members[*id].state == State::Serving;
        self.mind.slots.iter().flatten().filter(serves).map(|id| id.0).collect()
    }

    /// When each fork was decided.
    pub(super) fn forks(&self) -> Vec<Duration> {
        let forks = self.log.iter().filter(|(_, action)| matches!(action, Action::Fork(_)));
        forks.map(|(at, _)| *at).collect()
    }

    /// The moments of an action.
    pub(super) fn times(&self, wanted: &Action) -> Vec<Duration> {
        self.log.iter().filter(|(_, action)| action == wanted).map(|(at, _)| *at).collect()
    }

    /// What was said that `pick` finds interesting.
    pub(super) fn said<T>(&self, pick: impl Fn(&Notice) -> Option<T>) -> Vec<T> {
        let notices = self.log.iter().filter_map(|(_, action)| match action {
            Action::Report(notice) => pick(notice),
            _ => None,
        });
        notices.collect()
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.planned += 1;
        self.plan.insert((self.now + after, self.planned), happening);
    }

    fn perform(&mut self, action: Action) {
        match &action {
            Action::Fork(tag) => {
                let life = (self.fate)(*tag, &mut self.dice);
                self.plan(life.fork, Happening::ForkReturns(tag.id));
                self.forking.insert(tag.id, life);
            }
            Action::Drain(worker) => self.drain(*worker),
            Action::Kill(worker) => {
                self.plan(ms(1), Happening::Does(*worker, Deed::End(signal(SIGKILL))));
            }
            Action::Report(_) | Action::Answer { .. } | Action::CloseListeners => {}
            Action::Exit(outcome) => self.exit = Some(*outcome),
        }
        self.log.push((self.now - self.began, action));
    }

    fn drain(&mut self, worker: WorkerId) {
        if let Some(time) = self.children.get(&worker).and_then(|life| life.drain) {
            self.plan(time, Happening::Does(worker, Deed::End(code(0))));
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Asks(intent) => self.ask(intent),
            Happening::ForkReturns(worker) => match self.forking.get(&worker) {
                Some(life) if life.fork_fails => {
                    self.tell(Event::ForkFailed { worker, why: "EAGAIN".to_string() });
                }
                Some(_) => self.tell(Event::Forked { worker, pid: 1000 + worker.0 as u32 }),
                None => {}
            },
            Happening::Does(worker, deed) if self.children.contains_key(&worker) => {
                self.does(worker, deed);
            }
            // It is dead already.
            Happening::Does(..) => {}
        }
    }

    fn does(&mut self, worker: WorkerId, deed: Deed) {
        match deed {
            Deed::SayReady => self.tell(Event::Ready { worker }),
            Deed::SayBootFailed => self.tell(Event::BootFailed { worker, why: "no".to_string() }),
            Deed::Retire => {
                self.tell(Event::Retiring { worker });
                self.drain(worker);
            }
            Deed::CloseChannel => self.tell(Event::ChannelClosed { worker }),
            Deed::Garble => self.tell(Event::Garbled { worker, why: "noise".to_string() }),
            Deed::End(status) => {
                // The kernel closes a dead child's channel; which of both is learned first is open.
                if self.dice.below(2) == 0 {
                    self.tell(Event::ChannelClosed { worker });
                }
                self.tell(Event::Exited { worker, status, served: 7 });
            }
        }
    }
}
