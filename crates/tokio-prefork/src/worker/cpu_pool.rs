//! Creates the worker's CPU pool, and drains it before the worker exits.

use super::local_state::LocalWorkerState;
use crate::config::Config;
use crate::pool::{Pool, PoolConfig};
use crate::scoreboard::WorkerPage;
use prefork_supervisor::WorkerTag;

/// Creates the pool with the configured size. Its threads start with the first job.
pub(crate) fn create_cpu_pool(config: &Config, worker_page: &WorkerPage, tag: WorkerTag) -> Pool {
    let settings = PoolConfig {
        threads: config.pool_thread_count(),
        queue: config.pool_queue as usize,
        nice: config.pool_nice,
        newest_first: config.pool_newest_first,
    };
    Pool::with_counters(settings, tag.to_string(), worker_page.pool_counters())
}

/// Waits for all jobs of the pool, but not beyond the drain deadline: then the process exits with jobs still running.
pub(crate) async fn drain_cpu_pool(state: &LocalWorkerState) {
    state.shared.pool.close();
    tokio::select! {
        biased;
        () = state.shared.pool.wait_until_ended() => return,
        () = state.drain.wait_for_deadline() => {}
    }
    let running = state.shared.pool.abort();
    let plural = if running == 1 { "" } else { "s" };
    log::warn!("{} abandoned {running} running job{plural} at the graceful timeout", state.tag);
}
