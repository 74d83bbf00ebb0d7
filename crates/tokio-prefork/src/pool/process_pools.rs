//! The pools that a process has created with [`Pool::new`](super::Pool::new), so that a draining worker can wait for them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::pool_state::PoolState;

static POOLS: Mutex<Vec<Weak<PoolState>>> = Mutex::new(Vec::new());

/// A pool as a drain sees it. Does not keep it open.
#[derive(Clone)]
pub(crate) struct DrainedPool(pub(super) Arc<PoolState>);

impl DrainedPool {
    /// Rejects new jobs.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// Returns whether all jobs have ended, and all results were read or their futures dropped.
    pub(crate) fn is_drained(&self) -> bool {
        self.0.has_ended() && self.0.unread_results() == 0
    }

    /// Waits until the pool is closed and drained; see [`DrainedPool::is_drained`].
    pub(crate) async fn wait_until_drained(&self) {
        let is_drained = |pool: &PoolState| pool.has_ended() && pool.unread_results() == 0;
        self.0.wait_until(is_drained).await;
    }

    /// Returns how many futures have neither returned a result nor were dropped.
    pub(crate) fn unread_results(&self) -> usize {
        self.0.unread_results()
    }

    /// Cancels all jobs. Returns how many still run.
    pub(crate) fn abort(&self) -> usize {
        self.0.abort()
    }

    /// Ends the running jobs for their callers, because the process exits before the jobs end.
    pub(crate) fn cut_running_jobs(&self) {
        self.0.cut_running_jobs();
    }
}

/// Remembers a pool for as long as it has a handle or a thread.
pub(super) fn register(pool: &Arc<PoolState>) {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.retain(|pool| pool.strong_count() > 0);
    pools.push(Arc::downgrade(pool));
}

/// Returns the registered pools that still exist.
pub(crate) fn registered_pools() -> Vec<DrainedPool> {
    let pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.iter().filter_map(Weak::upgrade).map(DrainedPool).collect()
}
