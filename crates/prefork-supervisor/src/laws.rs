//! What holds after every event, whatever the workers do. The simulated world asserts it at each step, over
//! the real state of the supervisor and over what the world itself remembers. What concerns reloads and the
//! watch is in `rolls`, `handoffs` and `looks`.

mod delays;
mod handoffs;
mod lives;
mod looks;
mod rolls;
mod slots;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use super::backoff::Allowance;
use super::places::Vacancy;
use super::{
    Action, ClusterPhase, Event, LAST_MOMENT, LogEvent, Place, SavedState, Supervisor, WorkerState,
};
use crate::identity::WorkerId;

/// What the world remembers, kept apart from what the supervisor believes.
#[derive(Debug, Default)]
pub(super) struct Laws {
    /// Forks that were asked for and not answered.
    outstanding: BTreeSet<WorkerId>,
    alive: BTreeSet<WorkerId>,
    drained: BTreeSet<WorkerId>,
    killed: BTreeSet<WorkerId>,
    ids: BTreeSet<WorkerId>,
    listeners_closed: bool,
    exited: bool,
    /// Who waits for an answer.
    tickets: BTreeSet<u64>,
    handoffs: handoffs::Handoffs,
    rolls: rolls::Rolls,
    looks: looks::Looks,
    slots: slots::Slots,
    lives: lives::Lives,
}

/// What was so before the event.
#[derive(Debug)]
pub(super) struct Before {
    phase: ClusterPhase,
    allowance: Allowance,
    backoff: Option<Instant>,
    restarts: u64,
    standing: handoffs::Standing,
}

/// What is told when a law is broken; written only then.
struct Story<'a> {
    before: &'a Before,
    event: &'a Event,
    actions: &'a [Action],
    mind: &'a Supervisor,
}

impl fmt::Display for Story<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Story { before, event, actions, mind } = self;
        write!(f, "{before:#?}, then {event:?}, gave {actions:#?} and {mind:#?}")
    }
}

impl Laws {
    pub(super) fn before(&self, mind: &Supervisor) -> Before {
        Before {
            phase: mind.phase,
            allowance: mind.backoff.allowance(),
            backoff: mind.backoff.deadline(),
            restarts: mind.restart_count(),
            standing: handoffs::Standing::of(mind),
        }
    }

    pub(super) fn check(
        &mut self,
        before: &Before,
        now: Instant,
        mind: &Supervisor,
        event: &Event,
        actions: &[Action],
    ) {
        let story = &Story { before, event, actions, mind };
        self.hear(event);
        self.looks.hear(now, event);
        assert!(!self.exited || actions.is_empty(), "ExitReport is the last action: {story}");
        for action in actions {
            self.obey(action, mind, story);
            self.looks.obey(action, mind, story);
        }
        self.looks.check(now, mind, story);
        self.lives.check(event, actions, story);
        self.slots.check(mind, event, actions, story);
        self.rolls.check(mind, event, actions, story);
        self.handoffs.check(now, mind, event, actions, story);
        self.members_are_those_that_exist(mind, story);
        slots_are_held_once(mind, story);
        phases_go_one_way(before, mind, story);
        delays::are_kept(before, now, mind, event, actions, story);
        self.something_is_awaited(mind, story);
        if *event == Event::DeadlineReached {
            let moved = mind.deadline().is_none_or(|deadline| deadline > now);
            assert!(moved, "a deadline that has come is dealt with: {story}");
        }
        let restarted = mind.restart_count() - before.restarts;
        assert!(restarted <= 1, "one event ends one worker: {story}");
    }

    /// Whether workers of several generations may serve for now.
    pub(super) fn are_mixed(&self) -> bool {
        self.rolls.are_mixed()
    }

    /// The image was followed by another, with these workers alive. It says to them once more what its predecessor
    /// may have said.
    pub(super) fn adopted(
        &mut self,
        mind: &Supervisor,
        left: &SavedState,
        alive: BTreeSet<WorkerId>,
        now: Instant,
    ) {
        let passed: BTreeSet<u64> =
            left.upgrade_requesters.iter().filter_map(|asker| asker.reply_id).collect();
        assert_eq!(self.tickets, passed, "whoever waits is passed to the next image: {left:?}");
        self.handoffs.adopted(mind, left, now);
        self.rolls.adopted(mind);
        self.slots.adopted(left);
        self.looks = looks::Looks::default();
        self.lives.adopted(&alive);
        self.outstanding.clear();
        self.drained.clear();
        self.killed.clear();
        self.alive = alive;
        let members: BTreeSet<WorkerId> = mind.members.keys().copied().collect();
        assert_eq!(members, self.alive, "the living are known: {left:?}, {mind:#?}");
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::Forked { worker, .. } => {
                self.alive.extend(self.outstanding.take(worker));
            }
            Event::ForkFailed { worker, .. } => drop(self.outstanding.remove(worker)),
            Event::Exited { worker, .. } => {
                self.outstanding.remove(worker);
                self.alive.remove(worker);
            }
            Event::CommandReceived { by, .. } => {
                let news = by.reply_id.is_none_or(|reply_id| self.tickets.insert(reply_id));
                assert!(news, "the test gives each reply_id once");
            }
            _ => {}
        }
    }

    fn obey(&mut self, action: &Action, mind: &Supervisor, story: &Story<'_>) {
        match action {
            Action::Fork(tag) => {
                assert!(!mind.is_stopping(), "no fork once stopping: {story}");
                assert!(self.ids.insert(tag.id), "no id is used again: {story}");
                let there = mind.places.iter().any(|p| (p.slot, p.kind) == (tag.slot, tag.kind));
                assert!(tag.pid.is_none() && there, "a plain tag: {story}");
                self.outstanding.insert(tag.id);
            }
            Action::CloseListeners => {
                assert!(
                    mind.is_stopping() && !self.listeners_closed,
                    "closed once, to stop: {story}"
                );
                self.listeners_closed = true;
            }
            Action::Drain(worker) => {
                let closed = self.listeners_closed || !mind.is_stopping();
                assert!(closed, "nobody listens when all drain: {story}");
                assert!(self.alive.contains(worker), "only the living are drained: {story}");
                assert!(!self.killed.contains(worker), "the killed are not drained: {story}");
                assert!(self.drained.insert(*worker), "nobody is drained twice: {story}");
            }
            Action::Kill(worker) => {
                assert!(self.alive.contains(worker), "only the living are killed: {story}");
                assert!(self.killed.insert(*worker), "nobody is killed twice: {story}");
            }
            Action::Log(LogEvent::AllReady { workers }) => {
                let open = mind.places.iter().filter(|place| !place.is_closed());
                let all = open.clone().count() == *workers as usize;
                let serve = open.into_iter().all(|place| place.is_served(mind));
                assert!(all && serve, "all means all: {story}");
            }
            Action::Abort(worker) => {
                assert!(self.alive.contains(worker), "only the living are aborted: {story}");
                assert!(!self.killed.contains(worker), "the killed are not aborted: {story}");
            }
            Action::Reply { reply_id, .. } => {
                assert!(self.tickets.remove(reply_id), "who asked is answered, once: {story}");
            }
            Action::Log(_) | Action::ReadConfig(_) | Action::ConfirmRestart(_) => {}
            Action::OpenSockets { .. } | Action::AdoptSlot { .. } | Action::ReleaseSlot { .. } => {}
            Action::StartUpgradeCheck | Action::StopUpgradeCheck | Action::ExecNewBinary => {}
            Action::KeepGenerations(_)
            | Action::SampleHealth { .. }
            | Action::SetDispatchTarget { .. } => {}
            Action::Exit(_) => {
                assert!(self.tickets.is_empty(), "everybody is answered in the end: {story}");
                assert!(!self.exited && mind.phase == ClusterPhase::Done, "one end: {story}");
                assert!(
                    self.alive.is_empty() && self.outstanding.is_empty(),
                    "nobody left: {story}"
                );
                self.exited = true;
            }
        }
    }

    fn members_are_those_that_exist(&self, mind: &Supervisor, story: &Story<'_>) {
        let exist: BTreeSet<WorkerId> = self.alive.union(&self.outstanding).copied().collect();
        let members: BTreeSet<WorkerId> = mind.members.keys().copied().collect();
        assert_eq!(members, exist, "members are the living and the awaited: {story}");
        for (id, member) in &mind.members {
            let outstanding = self.outstanding.contains(id);
            assert_eq!(
                member.state == WorkerState::Forking,
                outstanding,
                "forks are known: {story}"
            );
            let killed = matches!(member.state, WorkerState::Killed { .. });
            assert_eq!(killed, self.killed.contains(id), "kills are known: {story}");
        }
    }

    /// Whoever waits waits for something that comes: an answer, a deadline, or the kernel.
    fn something_is_awaited(&self, mind: &Supervisor, story: &Story<'_>) {
        if mind.phase == ClusterPhase::Done {
            return assert!(self.exited, "the end is announced: {story}");
        }
        let someone = !self.alive.is_empty() || !self.outstanding.is_empty();
        let left = mind.places.iter().all(|place| place.vacancy != Vacancy::None);
        assert!(
            left || someone || mind.deadline().is_some(),
            "there is something to wait for: {story}"
        );
        let empty = mind.places.iter().enumerate().any(|(slot, place)| {
            let empty = place.holder.is_none() && place.successor.is_none();
            empty && place.vacancy == Vacancy::None && !mind.is_crowded(slot)
        });
        if mind.is_stopping() || !empty {
            return;
        }
        let allowance = mind.backoff.allowance();
        assert_eq!(allowance, Allowance::None, "who may be tried is tried: {story}");
        let trial = mind.backoff.trial().is_some_and(|trial| mind.members.contains_key(&trial));
        let delay = mind.backoff.deadline().is_some();
        assert!(trial || delay, "an empty slot waits for a delay or for a trial: {story}");
    }
}

impl Place {
    fn is_closed(&self) -> bool {
        self.vacancy == Vacancy::Closed && self.holder.is_none()
    }

    fn is_served(&self, mind: &Supervisor) -> bool {
        self.holder.is_some_and(|id| mind.is_serving(id))
    }
}

fn slots_are_held_once(mind: &Supervisor, story: &Story<'_>) {
    let others: u32 = mind.wanted_of_kinds().iter().map(|kind| kind.1).sum();
    assert_eq!(
        mind.places.len(),
        (mind.wanted_workers() + others) as usize,
        "a slot for each: {story}"
    );
    let web = mind.places.iter().take_while(|place| place.slot.is_web()).enumerate();
    assert!(web.into_iter().all(|(n, p)| p.slot.0 as usize == n), "web has the first: {story}");
    let mut holders = BTreeSet::new();
    let of_slot = |place: &Place| [place.holder, place.successor].map(|id| (place.slot, id));
    for (slot, holder) in mind.places.iter().flat_map(of_slot) {
        let Some(holder) = holder else { continue };
        assert!(holders.insert(holder), "a worker holds one slot, or succeeds in one: {story}");
        let member = mind.members.get(&holder);
        let slot_of_tag = member.map(|member| member.tag.slot);
        assert_eq!(slot_of_tag, Some(slot), "a holder exists and knows its slot: {story}");
    }
    for (id, member) in &mind.members {
        let stays = matches!(member.state, WorkerState::Booting { .. } | WorkerState::Serving);
        assert!(holders.contains(id) || !stays, "who holds no slot leaves: {story}");
    }
    // This bounds the processes, whatever becomes of them.
    for slot in mind.members.values().map(|member| member.tag.slot) {
        let crowd = mind.members.values().filter(|member| member.tag.slot == slot).count();
        assert!(crowd <= 2, "two of a slot at a time: {story}");
    }
}

fn phases_go_one_way(before: &Before, mind: &Supervisor, story: &Story<'_>) {
    let rank = |phase: ClusterPhase| match phase {
        ClusterPhase::Booting => 0,
        ClusterPhase::Running => 1,
        ClusterPhase::Stopping => 2,
        ClusterPhase::Killing(_) => 3,
        ClusterPhase::Done => 4,
    };
    assert!(rank(before.phase) <= rank(mind.phase), "phases go one way: {story}");
}
