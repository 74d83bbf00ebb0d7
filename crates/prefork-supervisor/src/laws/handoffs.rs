//! What holds for upgrades in place: nothing is given up that was not replaced by something proved, and nobody is
//! lost on the way from one image to the next.

use std::time::{Duration, Instant};

use super::super::{Action, ClusterPhase, Event, SavedState, SavedWorker, Supervisor, WorkerState};
use super::{LAST_MOMENT, Story};
use crate::config::SupervisorConfig;
use crate::identity::{Generation, WorkerId, WorkerTag};

/// More than any proof may take beyond the time that its worker has to boot.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Handoffs {
    /// Until when the proof that is under way has to end.
    proving: Option<Instant>,
    proved: bool,
    taking_over: bool,
    /// SavedState workers that a new image has to tell to leave, as nobody may have told them.
    untold: Vec<WorkerId>,
}

/// What a failed upgrade must not change.
#[derive(Debug, PartialEq)]
pub(super) struct Standing {
    holders: Vec<Option<WorkerId>>,
    generations: Vec<Generation>,
    generation: Generation,
    policy: String,
    phase: ClusterPhase,
    rolls: bool,
}

impl Standing {
    pub(super) fn of(mind: &Supervisor) -> Standing {
        let policy: &SupervisorConfig = &mind.policy;
        Standing {
            holders: mind.places.iter().map(|place| place.holder).collect(),
            generations: mind.places.iter().map(|place| place.generation).collect(),
            generation: mind.generation,
            policy: format!("{policy:?}"),
            phase: mind.phase,
            rolls: mind.roll.is_some(),
        }
    }

    /// Empty places may be filled at any time.
    fn is_kept_by(&self, mut after: Standing) -> bool {
        for (holder, before) in after.holders.iter_mut().zip(&self.holders) {
            *holder = holder.filter(|_| before.is_some());
        }
        *self == after
    }
}

impl Handoffs {
    pub(super) fn check(
        &mut self,
        now: Instant,
        mind: &Supervisor,
        event: &Event,
        actions: &[Action],
        story: &Story<'_>,
    ) {
        match event {
            Event::UpgradeCheckPassed => self.proved = self.proving.is_some(),
            Event::UpgradeFailed { .. } => {
                *self = Handoffs::default();
                let kept = story.before.standing.is_kept_by(Standing::of(mind));
                assert!(kept, "a failed upgrade changes nothing: {story}");
            }
            _ => {}
        }
        for worker in std::mem::take(&mut self.untold) {
            let told = actions.contains(&Action::Drain(worker));
            assert!(told, "who is to leave is told so at the start: {story}");
        }
        for action in actions {
            self.obey(now, action, mind, story);
        }
        let under_way = self.proving.is_some();
        assert_eq!(mind.handoff.is_some(), under_way, "both know of the upgrade: {story}");
        assert!(!under_way || !mind.is_stopping(), "a stop ends an upgrade: {story}");
        assert!(!under_way || mind.roll.is_none(), "no reload during an upgrade: {story}");
        assert!(!self.proved || self.taking_over, "who is proved takes over: {story}");
        if let Some(limit) = self.proving.filter(|_| !self.proved) {
            let ends = mind.deadline().is_some_and(|deadline| deadline <= limit);
            assert!(ends, "a proof ends in time: {story}");
        }
    }

    fn obey(&mut self, now: Instant, action: &Action, mind: &Supervisor, story: &Story<'_>) {
        match action {
            Action::StartUpgradeCheck => {
                assert!(self.proving.is_none(), "one proof at a time: {story}");
                assert!(mind.phase == ClusterPhase::Running, "only what runs is upgraded: {story}");
                self.proving = Some(now + mind.policy.boot_timeout + SLACK);
            }
            Action::StopUpgradeCheck => {
                assert!(self.proving.is_some(), "only a proof is stopped: {story}");
                *self = Handoffs::default();
            }
            Action::ExecNewBinary => {
                assert!(self.proved, "nothing takes over that is not proved: {story}");
                assert!(!self.taking_over, "and once: {story}");
                assert!(!mind.is_stopping(), "and not in a stop: {story}");
                self.taking_over = true;
            }
            _ => {}
        }
    }

    /// The exec worked.
    pub(super) fn adopted(&mut self, mind: &Supervisor, left: &SavedState, now: Instant) {
        assert!(self.taking_over, "nobody else is followed: {mind:#?}");
        *self = Handoffs::default();
        // The new image may have fewer of another kind than `web`, or none.
        let place = |tag: &WorkerTag| {
            mind.places.iter().any(|place| (place.slot, place.kind) == (tag.slot, tag.kind))
        };
        let leaves = |one: &SavedWorker| !one.is_serving || !place(&one.tag);
        let leaving = left.workers.iter().filter(|one| leaves(one));
        self.untold = leaving.map(|one| one.tag.id).collect();
        let grown = mind.next_id >= left.next_id.0 && mind.last_generation > left.generation;
        assert!(grown, "numbers only grow: {left:?}, {mind:#?}");
        assert!(mind.restarts >= left.restart_count, "counters only grow: {left:?}, {mind:#?}");
        assert_eq!(
            mind.wanted_workers(),
            left.wanted_workers,
            "as many as before, until the roll is done"
        );
        for one in &left.workers {
            let state = mind.members.get(&one.tag.id).map(|member| member.state);
            let holds = mind.places.iter().any(|place| place.holder == Some(one.tag.id));
            let limit = now + mind.policy.graceful_timeout + LAST_MOMENT;
            let cared_for = match state {
                Some(WorkerState::Serving) => holds && !leaves(one),
                Some(WorkerState::Draining { deadline }) => {
                    !holds && leaves(one) && deadline <= limit
                }
                _ => false,
            };
            assert!(cared_for, "nobody is forgotten: {one:?}, {mind:#?}");
        }
    }
}
