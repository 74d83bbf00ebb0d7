//! What a test sees of the world.

use std::time::Duration;

use super::super::{Action, LogEvent, WorkerState};
use super::World;
use crate::identity::{Generation, WorkerId};

/// A reply_id and what it was answered.
pub type Answer = (u64, Result<String, String>);

impl World {
    /// The ids of the workers that serve, in the order of their slots.
    pub fn serving(&self) -> Vec<u64> {
        let serves = |id: &&WorkerId| self.mind.members[*id].state == WorkerState::Serving;
        self.mind
            .places
            .iter()
            .filter_map(|p| p.holder.as_ref())
            .filter(serves)
            .map(|id| id.0)
            .collect()
    }

    /// When each fork was decided.
    pub fn forks(&self) -> Vec<Duration> {
        let forks = self.log.iter().filter(|(_, action)| matches!(action, Action::Fork(_)));
        forks.map(|(at, _)| *at).collect()
    }

    /// The moments of an action.
    pub fn times(&self, wanted: &Action) -> Vec<Duration> {
        self.log.iter().filter(|(_, action)| action == wanted).map(|(at, _)| *at).collect()
    }

    /// What was said that `pick` finds interesting.
    pub fn said<T>(&self, pick: impl Fn(&LogEvent) -> Option<T>) -> Vec<T> {
        let notices = self.log.iter().filter_map(|(_, action)| match action {
            Action::Log(notice) => pick(notice),
            _ => None,
        });
        notices.collect()
    }

    /// The generations of the workers that serve, in the order of their slots.
    pub fn generations(&self) -> Vec<u64> {
        let serving = self.serving();
        serving.iter().map(|id| self.mind.members[&WorkerId(*id)].tag.generation.0).collect()
    }

    /// The answers so far, in their order.
    pub fn answers(&self) -> Vec<Answer> {
        let answers = self.log.iter().filter_map(|(_, action)| match action {
            Action::Reply { reply_id, result } => Some((*reply_id, result.clone())),
            _ => None,
        });
        answers.collect()
    }

    /// The generations that were last said to be wanted.
    pub fn kept(&self) -> Option<Vec<u64>> {
        self.log.iter().rev().find_map(|(_, action)| match action {
            Action::KeepGenerations(kept) => Some(kept.iter().map(|Generation(g)| *g).collect()),
            _ => None,
        })
    }

    /// Whether a reload or an upgrade is under way.
    pub fn is_changing(&self) -> bool {
        self.mind.roll.is_some() || self.mind.handoff.is_some()
    }
}
