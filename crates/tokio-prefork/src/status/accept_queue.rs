//! The status of connections that wait to be accepted.

use serde::{Deserialize, Serialize};

use super::{MAX_JSON_INTEGER, WorkerStatus};
use crate::scoreboard::{DURATION_BUCKETS, duration_quantile};

/// The accept queue of one listening TCP socket at one moment. Unix sockets do not report theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AcceptQueueStatus {
    /// The address of the socket, as in [`ClusterStatus::listeners`](super::ClusterStatus::listeners).
    pub listener: String,
    /// Connections that are established and wait to be accepted.
    pub depth: u32,
    /// How many connections may wait: `backlog`, as far as the kernel allows it.
    pub limit: u32,
}

/// How long the connections that the living workers accepted had waited in the kernel's queue. The times are upper bounds,
/// powers of two of a millisecond; 32768 stands for all that is longer than 16384.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueWaitStatus {
    /// How many connections were measured. Only TCP reports the wait.
    pub connections: u64,
    /// The median wait; `None` without connections.
    pub p50_ms: Option<u64>,
    /// The 99th percentile of the wait.
    pub p99_ms: Option<u64>,
    /// The longest wait.
    pub max_ms: Option<u64>,
}

impl AcceptQueueStatus {
    pub(crate) fn new(listener: String, depth: u32, limit: u32) -> AcceptQueueStatus {
        AcceptQueueStatus { listener, depth, limit }
    }
}

impl QueueWaitStatus {
    /// Sums up the histograms of all `workers`.
    pub(super) fn of_workers(workers: &[WorkerStatus]) -> QueueWaitStatus {
        let mut sum = [0u64; DURATION_BUCKETS];
        for worker in workers {
            for (sum, more) in sum.iter_mut().zip(worker.queue_wait) {
                *sum = sum.saturating_add(more);
            }
        }
        let connections = sum.iter().fold(0u64, |all, n| all.saturating_add(*n));
        QueueWaitStatus {
            connections: connections.min(MAX_JSON_INTEGER),
            p50_ms: duration_quantile(&sum, 50),
            p99_ms: duration_quantile(&sum, 99),
            max_ms: duration_quantile(&sum, 100),
        }
    }
}
