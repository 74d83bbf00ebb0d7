//! What the threads of a worker share of it under `threads`, and the worker as the application sees it there.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::http::connection_state::ConnectionState;
use super::http::serve_context::ServeContext;
use super::local_state::LocalWorkerState;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::pool::Pool;
use crate::scoreboard::{ClusterSnapshot, Reader, SharedRow};
use prefork_supervisor::{Generation, Slot, WorkerId, WorkerTag};

/// The worker, for code that runs on any of its threads (`threads`). Cheap to clone.
#[derive(Clone)]
pub struct ThreadedWorker(pub(crate) Arc<ThreadedWorkerState>);

/// What the threads share of their worker.
pub(crate) struct ThreadedWorkerState {
    pub(crate) tag: WorkerTag,
    pub(crate) config: Config,
    pub(crate) row: SharedRow,
    pub(crate) scoreboard: Reader,
    pub(crate) pool: Pool,
    pub(crate) draining: AtomicBool,
    pub(crate) begun: Notify,
    pub(crate) retires: Notify,
}

impl ThreadedWorkerState {
    pub(crate) fn of(state: &LocalWorkerState) -> Result<ThreadedWorkerState> {
        let row = state.row.shared();
        let row = row.ok_or_else(|| Error::config("the row of this worker is for one thread"))?;
        Ok(ThreadedWorkerState {
            tag: state.tag,
            config: Config::clone(&state.config),
            row,
            scoreboard: state.scoreboard,
            pool: state.pool.clone(),
            draining: AtomicBool::new(false),
            begun: Notify::new(),
            retires: Notify::new(),
        })
    }
}

impl ServeContext for ThreadedWorkerState {
    type Ptr<T: 'static> = Arc<T>;
    type Row = SharedRow;

    fn share<T: 'static>(value: T) -> Arc<T> {
        Arc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.tag
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn row(&self) -> &SharedRow {
        &self.row
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn should_hand_over(&self) -> bool {
        false
    }

    fn should_announce_close(&self, _: &ConnectionState) -> bool {
        self.is_draining()
    }
}

impl ThreadedWorker {
    /// Its number, which only grows from worker to worker and is never used again.
    pub fn id(&self) -> WorkerId {
        self.0.tag.id
    }

    /// Its place among the workers: 0, but for the moment in which it is replaced.
    pub fn slot(&self) -> Slot {
        self.0.tag.slot
    }

    /// The generation it belongs to, which grows with each reload.
    pub fn generation(&self) -> Generation {
        self.0.tag.generation
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The configuration it was forked under; `worker_connections` is that of all threads together.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// What all processes of the cluster record_written on the scoreboard, at this moment.
    pub fn cluster(&self) -> ClusterSnapshot {
        self.0.scoreboard.snapshot()
    }

    /// The worker's CPU pool, one for all threads that serve; see [`Worker::pool`](crate::Worker::pool).
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Whether it has stopped accepting and finishes what is open.
    pub fn is_draining(&self) -> bool {
        ServeContext::is_draining(&*self.0)
    }

    /// Whether balancers should send new connections here: not when it drains, and not from the moment on in which the
    /// cluster was told to stop, though it still accepts for [`Config::drain_delay`](crate::Config::drain_delay). What
    /// a readiness probe wants to know.
    pub fn is_ready(&self) -> bool {
        let board = &self.0.scoreboard;
        let can_accept = !self.0.row.cannot_accept() && !board.cannot_accept();
        !self.is_draining() && !board.is_stopping() && can_accept
    }

    /// Resolves when the worker is told to finish: the moment to end long polls and event streams.
    pub async fn draining(&self) {
        let begun = self.0.begun.notified();
        let mut begun = pin!(begun);
        // Enlisted before the look, so that a drain which begins in between is not missed.
        begun.as_mut().enable();
        if !self.is_draining() {
            begun.await;
        }
    }

    /// Finish what is open, leave, and be replaced. Does nothing when the worker is draining already.
    pub fn retire(&self) {
        self.0.retires.notify_one();
    }
}

impl fmt::Debug for ThreadedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadedWorker({})", self.0.tag)
    }
}
