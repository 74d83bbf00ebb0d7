//! What holds for sockets of slots: nobody waits where somebody could serve, and no slot has two adopters.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Action, Event, SavedState, Supervisor, WorkerState};
use super::Story;
use crate::identity::{Slot, WorkerId};

/// Who was told to accept from which slot's sockets, and not told to stop.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<Slot, BTreeSet<WorkerId>>, Steered);

/// Who was said to take the connections of which slot.
#[derive(Debug, Default)]
struct Steered(BTreeMap<Slot, WorkerId>);

impl Slots {
    pub(super) fn check(
        &mut self,
        mind: &Supervisor,
        event: &Event,
        actions: &[Action],
        story: &Story<'_>,
    ) {
        if let Event::AdoptSlotFailed { worker, slot } = event {
            self.0.entry(*slot).or_default().remove(worker);
        }
        let serves = |worker: &WorkerId| {
            mind.members.get(worker).is_some_and(|member| member.state == WorkerState::Serving)
        };
        for action in actions {
            match action {
                Action::AdoptSlot { worker, slot } => {
                    assert!(serves(worker), "who adopts serves: {story}");
                    assert!(slot.0 < mind.adoption.sockets, "what is adopted is there: {story}");
                    let news = self.0.entry(*slot).or_default().insert(*worker);
                    assert!(news, "a slot is adopted once: {story}");
                }
                Action::ReleaseSlot { worker, slot } => {
                    self.0.entry(*slot).or_default().remove(worker);
                }
                Action::SetDispatchTarget { slot, worker } => {
                    self.1.hear(mind, *slot, *worker, story)
                }
                Action::OpenSockets { slots } => {
                    assert!(mind.policy.has_socket_per_slot, "a shared socket is one: {story}");
                    assert!(
                        *slots > mind.wanted_workers(),
                        "for more workers than there are: {story}"
                    );
                }
                Action::Fork(tag) if tag.slot.is_web() && mind.has_own_socket(tag.generation) => {
                    let there = tag.slot.0 < mind.adoption.sockets;
                    assert!(there, "a worker finds its socket: {story}");
                }
                _ => {}
            }
        }
        if !mind.is_stopping() {
            self.everybody_is_served(mind, &serves, story);
            self.1.check(mind, story);
        }
    }

    fn everybody_is_served(
        &mut self,
        mind: &Supervisor,
        serves: &dyn Fn(&WorkerId) -> bool,
        story: &Story<'_>,
    ) {
        self.0.values_mut().for_each(|adopters| adopters.retain(serves));
        for (slot, adopters) in &self.0 {
            assert!(adopters.len() <= 1, "one adopter for slot {slot}: {adopters:?}, {story}");
            let known: BTreeSet<WorkerId> =
                mind.slot_adopters().filter(|one| one.0 == *slot).map(|one| one.1).collect();
            assert_eq!(*adopters, known, "adopters are known: {story}");
        }
        let able = |id: &WorkerId| mind.members.get(id).is_some_and(|member| member.is_able());
        let hears = |id: &&WorkerId| able(id) && !mind.adoption.deaf.contains_key(id);
        if mind.members.keys().filter(hears).count() == 0 {
            return;
        }
        for slot in (0..mind.adoption.sockets).map(Slot) {
            let shared = slot == Slot(0);
            let own = mind.members.iter().any(|(id, member)| {
                let of_it = if member.own_socket { member.tag.slot == slot } else { shared };
                of_it && able(id)
            });
            let adopted = self.0.get(&slot).is_some_and(|adopters| adopters.iter().any(able));
            assert!(own || adopted, "nobody waits in slot {slot}: {story}");
            assert!(!(own && adopted), "what its own worker serves is given back: {story}");
        }
    }

    /// Another image goes on with what it was left.
    pub(super) fn adopted(&mut self, left: &SavedState) {
        self.0.clear();
        self.1.0.clear();
        for one in left.workers.iter().filter(|one| one.is_serving) {
            for slot in &one.adopted_slots {
                self.0.entry(*slot).or_default().insert(one.tag.id);
            }
        }
    }
}

impl Steered {
    fn hear(&mut self, mind: &Supervisor, slot: Slot, worker: Option<WorkerId>, story: &Story<'_>) {
        assert!(slot.0 < mind.adoption.sockets, "what is steered to is there: {story}");
        let before = match worker {
            Some(worker) => self.0.insert(slot, worker),
            None => self.0.remove(&slot),
        };
        assert!(before != worker, "what is said is news: {story}");
    }

    /// Connections are steered to workers that take them, and to all of those.
    fn check(&self, mind: &Supervisor, story: &Story<'_>) {
        for slot in (0..mind.adoption.sockets).map(Slot) {
            let takes = |id: &WorkerId| {
                mind.members.get(id).is_some_and(|one| one.is_able() && one.own_slot() == slot)
            };
            let anybody = mind.members.keys().any(takes);
            let steered = self.0.get(&slot);
            assert_eq!(steered.is_some(), anybody, "slot {slot} is steered to: {story}");
            assert!(steered.is_none_or(takes), "whoever is steered to takes it: {story}");
        }
        assert_eq!(self.0, *mind.dispatch_targets(), "what was said is known: {story}");
    }
}
