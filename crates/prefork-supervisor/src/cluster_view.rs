//! A copy of the supervisor's state for status, metrics and the service manager.

use std::time::Instant;

use crate::config::WorkerRange;
use crate::supervisor::{ClusterPhase, Supervisor};
use crate::worker_identity::{Generation, Slot, WorkerTag};
use crate::worker_table::WorkerState;

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
    /// The bounds of the kinds whose number of workers follows the demand.
    pub demand_ranges: Vec<(&'static str, WorkerRange)>,
    /// Number of workers forked to replace workers that exited unexpectedly.
    pub restart_count: u64,
    /// The slots that stay empty until a reload or a scale command.
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
    /// When the supervisor decided to fork it.
    pub forked_at: Instant,
}

impl Supervisor {
    /// Returns a copy of the current state.
    pub fn view(&self) -> ClusterView {
        let workers = self.workers.iter().map(|record| WorkerView {
            tag: record.tag,
            state: record.state.status_name(),
            forked_at: record.forked_at,
        });
        let phase = if self.stop.is_delayed() {
            ClusterPhase::Stopping.status_name()
        } else if self.phase == ClusterPhase::Running && self.reload.is_reloading() {
            "reloading"
        } else {
            self.phase.status_name()
        };
        ClusterView {
            phase,
            generation: self.reload.generation(),
            wanted_workers: self.wanted_workers(),
            wanted_by_kind: self.wanted_by_kind(),
            demand_ranges: self
                .kinds
                .iter()
                .filter_map(|kind| Some((kind.config.name, kind.config.demand_range?)))
                .collect(),
            restart_count: self.restart_count(),
            empty_slots: self.slots.slots_left_empty(),
            workers: workers.collect(),
        }
    }
}

impl ClusterPhase {
    /// Returns the name that status reports show.
    fn status_name(self) -> &'static str {
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
    /// Returns the name that status reports show.
    fn status_name(self) -> &'static str {
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
