//! A copy of the supervisor's state for status, metrics and the service manager.

use std::time::Instant;

use super::{ClusterPhase, Supervisor, WorkerState};
use crate::identity::{Generation, Slot, WorkerTag};

/// The state of the cluster at one moment.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// `booting`, `running`, `reloading`, `stopping`, `ending` or `done`.
    pub phase: &'static str,
    /// The generation in force.
    pub generation: Generation,
    /// How many workers of the kind `web` should run.
    pub wanted_workers: u32,
    /// How many workers of each other kind should run.
    pub wanted_by_kind: Vec<(&'static str, u32)>,
    /// How many workers were forked in place of one that ended unasked.
    pub restart_count: u64,
    /// The slots that stay empty for now.
    pub empty_slots: Vec<Slot>,
    /// Every worker that exists or is being forked, oldest first.
    pub workers: Vec<WorkerView>,
}

/// The state of one worker at one moment.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Its identity.
    pub tag: WorkerTag,
    /// `forking`, `booting`, `serving`, `draining`, `leaving`, `aborted` or `killed`.
    pub state: &'static str,
    /// When its fork was decided.
    pub forked_at: Instant,
}

impl Supervisor {
    /// Returns a copy of the current state.
    pub fn view(&self) -> ClusterView {
        let workers = self.members.values().map(|member| WorkerView {
            tag: member.tag,
            state: member.state.name(),
            forked_at: member.born,
        });
        ClusterView {
            phase: match self.roll {
                _ if self.departure.is_some() => ClusterPhase::Stopping.name(),
                Some(_) if self.phase == ClusterPhase::Running => "reloading",
                _ => self.phase.name(),
            },
            generation: self.generation,
            wanted_workers: self.wanted_workers(),
            wanted_by_kind: self.wanted_of_kinds(),
            restart_count: self.restarts,
            empty_slots: self.vacant(),
            workers: workers.collect(),
        }
    }
}

impl ClusterPhase {
    fn name(self) -> &'static str {
        match self {
            ClusterPhase::Booting => "booting",
            ClusterPhase::Running => "running",
            ClusterPhase::Stopping => "stopping",
            ClusterPhase::Killing(_) => "ending",
            ClusterPhase::Done => "done",
        }
    }
}

impl WorkerState {
    fn name(self) -> &'static str {
        match self {
            WorkerState::Forking => "forking",
            WorkerState::Booting { .. } => "booting",
            WorkerState::Serving => "serving",
            WorkerState::Draining { .. } => "draining",
            WorkerState::Exiting { .. } => "leaving",
            WorkerState::Aborted { .. } => "aborted",
            WorkerState::Killed { .. } => "killed",
        }
    }
}
