//! What is told of each worker, in which order, and how often: the promises of `ClusterEvent`.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Action, Event, LogEvent};
use super::Story;
use crate::identity::WorkerId;

/// What was told of one worker.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    forked: bool,
    online: bool,
    ready: bool,
    disconnected: bool,
    exited: bool,
    replaced: bool,
}

#[derive(Debug, Default)]
pub(super) struct Lives {
    told: BTreeMap<WorkerId, Told>,
}

impl Lives {
    pub(super) fn check(&mut self, event: &Event, actions: &[Action], story: &Story<'_>) {
        for action in actions {
            match action {
                Action::Log(notice) => self.hear(notice, story),
                Action::ConfirmRestart(exit) => {
                    let told = self.told.get(&exit.worker.id).copied().unwrap_or_default();
                    assert!(told.exited, "only the dead are asked about: {story}");
                }
                _ => {}
            }
        }
        let exited = |id: &WorkerId| self.told.get(id).is_some_and(|told| told.exited);
        match event {
            Event::Forked { worker, .. } => {
                let told = self.told.get(worker).is_some_and(|told| told.forked);
                let member = story.mind.members.contains_key(worker);
                assert!(told || !member, "forks are told: {story}");
            }
            Event::Exited { worker, .. } => {
                let forked = self.told.get(worker).is_some_and(|told| told.forked);
                assert!(!forked || exited(worker), "ends are told: {story}");
            }
            _ => {}
        }
        if actions.iter().any(|action| matches!(action, Action::Exit(_))) {
            let open = self.told.values().any(|told| told.forked && !told.exited);
            assert!(!open, "whoever was forked has ended in the end: {story}");
        }
    }

    fn hear(&mut self, notice: &LogEvent, story: &Story<'_>) {
        let id = match notice {
            LogEvent::Forked { worker }
            | LogEvent::Online { worker }
            | LogEvent::Ready { worker, .. }
            | LogEvent::Disconnected { worker } => worker.id,
            LogEvent::Exited(exit) => exit.worker.id,
            LogEvent::Replaced { worker, by } => {
                assert!(
                    self.told.get(&by.id).is_some_and(|t| t.ready),
                    "by one that serves: {story}"
                );
                *worker
            }
            _ => return,
        };
        let told = self.told.entry(id).or_default();
        let (before, now) = match notice {
            LogEvent::Forked { .. } => (true, &mut told.forked),
            LogEvent::Online { .. } => (told.forked && !told.disconnected, &mut told.online),
            LogEvent::Ready { .. } => (told.online && !told.disconnected, &mut told.ready),
            LogEvent::Disconnected { .. } => (told.forked && !told.exited, &mut told.disconnected),
            LogEvent::Exited(_) => (told.disconnected, &mut told.exited),
            _ => (told.exited && told.ready, &mut told.replaced),
        };
        assert!(before, "what comes before was told: {story}");
        assert!(!std::mem::replace(now, true), "told once: {story}");
    }

    /// Of those that live on, the image before has told the beginning.
    pub(super) fn adopted(&mut self, alive: &BTreeSet<WorkerId>) {
        for id in alive {
            let told = self.told.entry(*id).or_default();
            (told.forked, told.online, told.ready, told.disconnected) = (true, true, true, false);
        }
    }
}
