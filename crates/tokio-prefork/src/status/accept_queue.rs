//! The part of `Status` about connections that wait to be accepted.

use serde::{Deserialize, Serialize};

use super::{LARGEST, WorkerStatus};
use crate::scoreboard::{BUCKETS, quantile};

/// The queue of one listening TCP socket at one moment. Unix sockets do not tell how full theirs is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueStatus {
    /// The address of the socket, as in [`Status::listeners`](super::Status::listeners).
    pub listener: String,
    /// Connections that are made and wait to be accepted.
    pub depth: u32,
    /// How many may wait: `backlog`, as far as the kernel allows it.
    pub limit: u32,
}

/// How long the connections that the living workers accepted had waited in the kernel's queue. The times are bounds,
/// powers of two of a millisecond; 32768 stands for all that is longer than 16384.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueWait {
    /// How many connections this is about: those over TCP.
    pub connections: u64,
    /// Half of them waited for no longer than this; none if there was none.
    pub p50_ms: Option<u64>,
    /// 99 of 100 waited for no longer than this.
    pub p99_ms: Option<u64>,
    /// Nobody waited for longer than this.
    pub max_ms: Option<u64>,
}

impl QueueStatus {
    pub(crate) fn new(listener: String, depth: u32, limit: u32) -> QueueStatus {
        QueueStatus { listener, depth, limit }
    }
}

impl QueueWait {
    /// Over all `workers`, whose figures may be anything.
    pub(super) fn of(workers: &[WorkerStatus]) -> QueueWait {
        let mut sum = [0u64; BUCKETS];
        for worker in workers {
            for (sum, more) in sum.iter_mut().zip(worker.queue_wait) {
                *sum = sum.saturating_add(more);
            }
        }
        QueueWait {
            connections: sum.iter().fold(0u64, |all, n| all.saturating_add(*n)).min(LARGEST),
            p50_ms: quantile(&sum, 50),
            p99_ms: quantile(&sum, 99),
            max_ms: quantile(&sum, 100),
        }
    }
}
