//! The status of the process of the admin listener.

use serde::{Deserialize, Serialize};

use super::WorkerState;
use prefork_supervisor::Generation;

/// The status of the process that serves the admin listener. It is no worker: its requests are not those of the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AdminStatus {
    /// The addresses of the admin listener.
    pub listeners: Vec<String>,
    /// The process id. `None` while none is running.
    pub pid: Option<u32>,
    /// The state: [`WorkerState::Forking`] while none is running.
    pub state: WorkerState,
    /// The generation of the configuration that it was forked with.
    pub generation: Generation,
    /// How long ago it was forked, in milliseconds.
    pub uptime_ms: u64,
    /// How many processes replaced one that exited unexpectedly.
    pub restarts: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests answered since it was forked.
    pub requests: u64,
}
