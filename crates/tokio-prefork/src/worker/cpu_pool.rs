//! The worker's CPU pool: how it begins, and how it ends with the worker.

use std::time::Duration;

use super::local_state::LocalWorkerState;
use crate::config::Config;
use crate::pool::{Pool, PoolConfig};
use crate::scoreboard::OwnRow;
use prefork_supervisor::WorkerTag;

/// The longest wait before the deadline is looked at again: the primary's death brings it forward.
const LOOK: Duration = Duration::from_millis(100);

/// The pool as it was configured. Its threads start with the first job.
pub(crate) fn pool(config: &Config, row: &OwnRow, tag: WorkerTag) -> Pool {
    let settings = PoolConfig {
        threads: config.threads_of_pool(),
        queue: config.pool_queue as usize,
        nice: config.pool_nice,
        newest_first: config.pool_newest_first,
    };
    Pool::with_meter(settings, tag.to_string(), row.pool())
}

/// Lets all jobs run to their end, but not beyond the deadline of the drain: the process ends then, whatever
/// its threads do.
pub(crate) async fn finish(state: &LocalWorkerState) {
    state.pool.close();
    while let Some(order) = state.drain.order() {
        let left = Duration::from_millis(
            order.deadline_ms.saturating_sub(LocalWorkerState::monotonic_ms()),
        );
        if tokio::time::timeout(left.min(LOOK), state.pool.wait_until_ended()).await.is_ok() {
            return;
        }
        if left.is_zero() {
            break;
        }
    }
    let running = state.pool.abort();
    let plural = if running == 1 { "" } else { "s" };
    log::warn!("{} cut {running} running job{plural} at the graceful timeout", state.tag);
}
