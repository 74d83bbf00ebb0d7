//! What holds for reloads, scaling and single replacements: what serves goes on until something better does.

use std::collections::BTreeSet;

use super::super::rolling::Roll;
use super::super::{Action, ClusterCommand, Event, LogEvent, Supervisor, WorkerState};
use super::Story;
use crate::identity::Generation;

#[derive(Debug)]
pub(super) struct Rolls {
    /// The generations whose configuration the primary has.
    kept: BTreeSet<Generation>,
    /// The one that was asked for last.
    asked: Generation,
    /// A reload failed, and going back failed too: for once, workers of two generations serve.
    /// Or they were adopted, and the new ones have not replaced them all yet, or could not.
    mixed: bool,
}

impl Default for Rolls {
    fn default() -> Rolls {
        let first = Generation(1);
        Rolls { kept: BTreeSet::from([first]), asked: first, mixed: false }
    }
}

impl Rolls {
    pub(super) fn check(
        &mut self,
        mind: &Supervisor,
        event: &Event,
        actions: &[Action],
        story: &Story<'_>,
    ) {
        if let Event::ConfigRead { result: Ok(_) } = event {
            self.kept.insert(self.asked);
        }
        for action in actions {
            self.obey(action, mind, story);
        }
        successors_are_members_and_few(mind, story);
        if mind.is_stopping() {
            return;
        }
        let workers = mind.places.iter().flat_map(|place| [place.holder, place.successor]);
        let members = workers.flatten().filter_map(|id| mind.members.get(&id));
        let generations: BTreeSet<Generation> = members.map(|m| m.tag.generation).collect();
        let next = mind.places.iter().map(|place| place.generation).chain([mind.generation]);
        let needed: BTreeSet<Generation> = generations.iter().copied().chain(next).collect();
        assert!(needed.is_subset(&self.kept), "what is needed is kept: {story}");
        if matches!(mind.roll, None | Some(Roll::Reading { .. })) && !self.mixed {
            assert_eq!(needed, BTreeSet::from([mind.generation]), "one generation: {story}");
            assert!(self.kept.len() <= 2, "what is not needed is dropped: {story}");
        }
    }

    /// Whether workers of several generations may serve for now.
    pub(super) fn are_mixed(&self) -> bool {
        self.mixed
    }

    /// A new image has its own configuration, and the workers of before need none.
    pub(super) fn adopted(&mut self, mind: &Supervisor) {
        let ours = mind.generation;
        assert!(ours > self.asked, "generations only grow: {mind:#?}");
        let adopted = mind.members.values().map(|member| member.tag.generation);
        self.kept = adopted.chain([ours]).collect();
        self.asked = ours;
        self.mixed = true;
    }

    fn obey(&mut self, action: &Action, mind: &Supervisor, story: &Story<'_>) {
        match action {
            Action::ReadConfig(generation) => {
                assert!(*generation > self.asked, "generations only grow: {story}");
                self.asked = *generation;
            }
            Action::KeepGenerations(kept) => {
                let known = kept.iter().all(|generation| self.kept.contains(generation));
                assert!(known, "only what is there can be kept: {story}");
                self.kept = kept.iter().copied().collect();
            }
            Action::Fork(tag) => {
                assert!(self.kept.contains(&tag.generation), "a fork has its config: {story}");
            }
            // Whom a new image tells to leave at its start served no slot.
            // And whoever asks for a worker to leave wants it to be missed.
            Action::Drain(worker)
                if !mind.is_stopping()
                    && *story.event != Event::Started
                    && !matches!(
                        story.event,
                        Event::CommandReceived { command: ClusterCommand::Disconnect(_), .. }
                    ) =>
            {
                let slot = mind.members.get(worker).map(|member| member.tag.slot);
                let place = mind.places.iter().find(|place| Some(place.slot) == slot);
                let succeeded = place.is_none_or(|place| place.is_served(mind));
                let serving = mind.places.iter().filter(|place| place.is_served(mind)).count();
                let may = serving + mind.policy.max_unavailable as usize >= mind.places.len();
                assert!(succeeded || may, "nobody is missed for a reload: {story}");
            }
            Action::Log(LogEvent::Recycling { .. }) => {
                let calm = mind.backoff.allowance() == super::Allowance::All;
                assert!(calm, "nobody is recycled in a crash loop: {story}");
            }
            Action::Log(LogEvent::Reloaded { generation, .. }) => {
                assert!(*generation == mind.generation, "the new one is in force: {story}");
                self.mixed = false;
            }
            Action::Log(LogEvent::ReloadFailed { reason }) => {
                self.mixed |= reason.contains("going back failed too");
            }
            _ => {}
        }
    }
}

fn successors_are_members_and_few(mind: &Supervisor, story: &Story<'_>) {
    let both = |place: &&super::Place| place.successor.is_some() && place.holder.is_some();
    let surge = mind.policy.surge.max(1) as usize;
    let surplus = mind.places.iter().filter(both).count();
    assert!(surplus <= surge, "no more than the surge: {story}");
    let successors: Vec<_> = mind.places.iter().filter_map(|place| place.successor).collect();
    assert!(successors.is_empty() || !mind.is_stopping(), "a stop needs no successors: {story}");
    for place in mind.places.iter().filter(|place| place.successor.is_some()) {
        let of = |id: Option<super::WorkerId>| id.and_then(|id| mind.members.get(&id));
        let Some((holder, successor)) = of(place.holder).zip(of(place.successor)) else { continue };
        let same = holder.tag.generation == successor.tag.generation;
        let boots = matches!(holder.state, WorkerState::Forking | WorkerState::Booting { .. });
        assert!(!same || !boots, "nobody succeeds one that is coming: {story}");
    }
    let settled = matches!(mind.roll, None | Some(Roll::Reading { .. }));
    assert!(!settled || successors.len() <= 1, "one is recycled at a time: {story}");
    for successor in successors {
        let state = mind.members.get(&successor).map(|member| member.state);
        let alive = state.is_some_and(|state| state != WorkerState::Serving);
        assert!(alive, "a successor exists, and takes over when it serves: {story}");
    }
}
