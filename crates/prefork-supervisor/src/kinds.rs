//! Kinds of workers besides `web`: each has slots, a number of workers and limits of its own, and else the same life.
//!
//! The slots of a kind begin at a multiple of `Slot::PER_KIND` and keep their numbers, whatever is scaled. After an
//! upgrade a kind has the slots that its workers of the image before have, in whatever order the program names kinds.

use std::collections::BTreeSet;
use std::time::Instant;

use super::action::Action;
use super::{Place, Supervisor};
use crate::MAX_WORKERS;
use crate::command::{Requester, ScaleChange};
use crate::config::{RecycleLimits, WorkerKindConfig};
use crate::identity::{Slot, WEB_KIND, WorkerTag};

/// A kind, and where its slots begin.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) rules: WorkerKindConfig,
    pub(super) first: Slot,
}

impl Supervisor {
    /// The same with these kinds of workers besides `web`; asked for before it begins.
    pub fn with_kinds(mut self, kinds: Vec<WorkerKindConfig>) -> Supervisor {
        self.add_kinds(kinds, std::iter::empty());
        self
    }

    /// Kinds that workers of the image before this one are of get the slots that these have.
    pub(super) fn add_kinds(
        &mut self,
        kinds: Vec<WorkerKindConfig>,
        left: impl Iterator<Item = WorkerTag> + Clone,
    ) {
        let mut taken: BTreeSet<Slot> = left.clone().map(|t| t.slot.first_of_its_kind()).collect();
        taken.insert(Slot(0));
        for rules in kinds {
            let known = left.clone().find(|tag| tag.kind == rules.name);
            let mut free = (1..).map(|n| Slot(n * Slot::PER_KIND)).filter(|s| !taken.contains(s));
            let first = known.map(|tag| tag.slot.first_of_its_kind()).or_else(|| free.next());
            let Some(first) = first else { continue };
            taken.insert(first);
            let slots = (first.0..).map(Slot).take(rules.workers as usize);
            self.places.extend(slots.map(|slot| Place::new(slot, rules.name, self.generation)));
            self.kinds.push(Kind { rules, first });
        }
        self.places.sort_by_key(|place| place.slot);
    }

    /// Where the slots of each kind begin that is not `web`.
    pub fn kind_first_slots(&self) -> Vec<(&'static str, Slot)> {
        self.kinds.iter().map(|kind| (kind.rules.name, kind.first)).collect()
    }

    /// How many workers of each kind there should be that is not `web`.
    pub fn wanted_of_kinds(&self) -> Vec<(&'static str, u32)> {
        self.kinds.iter().map(|kind| (kind.rules.name, kind.rules.workers)).collect()
    }

    /// Scales a kind, which has no sockets to wait for.
    pub(super) fn scale_kind(
        &mut self,
        now: Instant,
        name: &str,
        scale: ScaleChange,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        let Some(kind) = self.kinds.iter().find(|kind| kind.rules.name == name) else {
            let reason = format!("there are no workers of kind {name:?} in this cluster");
            return by.refuse_or_log(reason, actions);
        };
        let (name, from) = (kind.rules.name, kind.rules.workers);
        let to = scale.apply_to(from);
        let others: u32 = self.kinds.iter().map(|kind| kind.rules.workers).sum::<u32>() - from;
        let reason = if self.is_stopping() {
            "the cluster is stopping".to_string()
        } else if self.roll.is_some() {
            "a reload is under way; ask again when it is done".to_string()
        } else if to.saturating_add(others) > MAX_WORKERS {
            let most = MAX_WORKERS - others.min(MAX_WORKERS);
            format!("{to} workers of kind {name} are too many: ask for 0 to {most}")
        } else {
            return self.scale_to(now, name, (from, to), scale, by, actions);
        };
        by.refuse_or_log(reason, actions);
    }

    /// Where the slots of a kind begin, and how many workers of it are wanted.
    pub(super) fn first_and_wanted(&mut self, name: &str) -> (Slot, &mut u32) {
        match self.kinds.iter_mut().find(|kind| kind.rules.name == name) {
            Some(kind) => (kind.first, &mut kind.rules.workers),
            None => (Slot(0), &mut self.policy.workers),
        }
    }

    /// When workers of this kind are replaced.
    pub(super) fn limits_of(&self, name: &str) -> RecycleLimits {
        match self.kinds.iter().find(|kind| kind.rules.name == name) {
            Some(kind) => kind.rules.limits,
            None => self.policy.web_limits(),
        }
    }

    pub(super) fn limits_of_all(&self) -> impl Iterator<Item = RecycleLimits> {
        let web = std::iter::once(self.limits_of(WEB_KIND));
        web.chain(self.kinds.iter().map(|kind| kind.rules.limits))
    }

    /// Whether anything is asked for that needs looks at the workers.
    pub(super) fn is_watchful(&self) -> bool {
        self.policy.has_stall_limit()
            || self.limits_of_all().any(|limits| limits != RecycleLimits::default())
    }
}
