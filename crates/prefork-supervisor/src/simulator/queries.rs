//! Queries of a simulated cluster's state and history.

use std::time::Duration;

use super::Simulator;
use crate::worker_identity::Generation;
use crate::worker_table::WorkerRecord;
use crate::{Action, LogEvent};

/// A reply id and its reply.
pub(crate) type ReceivedReply = (u64, Result<String, String>);

impl Simulator {
    /// Returns the ids of the workers that serve, in the order of their slots.
    pub(crate) fn serving_workers(&self) -> Vec<u64> {
        self.serving_records().map(|record| record.tag.id.0).collect()
    }

    /// Returns the generations of the workers that serve, in the order of their slots, without those that reloads leave alone.
    pub(crate) fn serving_generations(&self) -> Vec<u64> {
        let kinds = &self.supervisor.kinds;
        let is_kept = |name| kinds.get(name).is_some_and(|kind| kind.config.is_kept_by_reload);
        let records = self.serving_records().filter(|record| !is_kept(record.tag.kind));
        records.map(|record| record.tag.generation.0).collect()
    }

    fn serving_records(&self) -> impl Iterator<Item = &WorkerRecord> {
        let holders = self.supervisor.slots.iter().filter_map(|entry| entry.holder);
        let records = holders.filter_map(|worker| self.supervisor.workers.get(worker));
        records.filter(|record| record.is_serving())
    }

    /// Returns when each fork was requested.
    pub(crate) fn fork_times(&self) -> Vec<Duration> {
        let forks = self.log.iter().filter(|(_, action)| matches!(action, Action::Fork(_)));
        forks.map(|(at, _)| *at).collect()
    }

    /// Returns when this action was requested.
    pub(crate) fn times_of_action(&self, wanted: &Action) -> Vec<Duration> {
        self.log.iter().filter(|(_, action)| action == wanted).map(|(at, _)| *at).collect()
    }

    /// Returns the logged events that `pick` selects.
    pub(crate) fn logged<T>(&self, pick: impl Fn(&LogEvent) -> Option<T>) -> Vec<T> {
        let picked = self.log.iter().filter_map(|(_, action)| match action {
            Action::Log(event) => pick(event),
            _ => None,
        });
        picked.collect()
    }

    /// Returns the replies so far, in their order.
    pub(crate) fn replies(&self) -> Vec<ReceivedReply> {
        let replies = self.log.iter().filter_map(|(_, action)| match action {
            Action::Reply { reply_id, result } => Some((*reply_id, result.clone())),
            _ => None,
        });
        replies.collect()
    }

    /// Returns the generations of the last `Action::KeepGenerations`.
    pub(crate) fn kept_generations(&self) -> Option<Vec<u64>> {
        self.log.iter().rev().find_map(|(_, action)| match action {
            Action::KeepGenerations(kept) => Some(kept.iter().map(|Generation(g)| *g).collect()),
            _ => None,
        })
    }

    pub(crate) fn is_reloading_or_upgrading(&self) -> bool {
        self.supervisor.reload.is_reloading() || self.supervisor.upgrade.is_upgrading()
    }
}
