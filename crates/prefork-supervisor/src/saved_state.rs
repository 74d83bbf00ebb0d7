//! The supervisor's state that survives an upgrade in place, passed across `execve` to the new binary.

use std::time::Duration;

use crate::command::{Requester, WorkerEnvironment};
use crate::worker_identity::{Generation, Slot, WorkerId, WorkerTag};

/// The state that [`Supervisor::save_state`](crate::Supervisor::save_state) returns and
/// [`Supervisor::restore`](crate::Supervisor::restore) continues from.
#[derive(Debug, Clone)]
pub struct SavedState {
    /// The last generation that was tried, even if it failed: its workers may live, and generations only grow.
    pub generation: Generation,
    /// The next unused worker id.
    pub next_id: WorkerId,
    /// Number of workers forked to replace workers that exited unexpectedly.
    pub restart_count: u64,
    /// How many workers of the kind `web` should run.
    pub wanted_workers: u32,
    /// How many of them the configuration names. `None` if the old binary did not pass it on.
    pub configured_workers: Option<u32>,
    /// The kinds besides `web`. Empty if the old binary did not pass them on.
    pub kinds: Vec<SavedKind>,
    /// The slots `0..socket_slots` have sockets of their own; 0 where all workers share one socket.
    pub socket_slots: u32,
    /// The slots that the program added.
    pub forked_slots: Vec<SavedForkedSlot>,
    /// All forked workers.
    pub workers: Vec<SavedWorker>,
    /// The requesters of the upgrade that wait until the new binary's workers serve.
    pub upgrade_requesters: Vec<Requester>,
}

/// The number of workers of a kind besides `web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedKind {
    /// The kind's name.
    pub name: String,
    /// How many workers of it should run.
    pub wanted_workers: u32,
    /// How many of them the old binary declared.
    pub declared_workers: u32,
}

/// A slot that the program added to the configured number (`ScaleChange::AddWorker`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedForkedSlot {
    /// The slot.
    pub slot: Slot,
    /// The id of its first worker, if that has not been forked yet.
    pub reserved_id: Option<WorkerId>,
    /// The additional environment variables of its workers.
    pub environment: WorkerEnvironment,
}

/// A worker that was forked before the upgrade.
#[derive(Debug, Clone)]
pub struct SavedWorker {
    /// Its identity.
    pub tag: WorkerTag,
    /// Time since the supervisor decided to fork it.
    pub age: Duration,
    /// Whether the worker serves in its slot; if not, it has to drain.
    pub is_serving: bool,
    /// Whether the worker was forked with its slot's own sockets instead of shared ones.
    pub has_own_socket: bool,
    /// The slots that it adopted: it accepts from their sockets as well.
    pub adopted_slots: Vec<Slot>,
}
