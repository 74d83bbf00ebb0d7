//! `ThreadedWorker`: the application's handle to its worker in the `threads` model, and the state behind it.

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
use crate::scoreboard::{ScoreboardReader, SharedWorkerPage};
use crate::status::ClusterStatus;
use prefork_supervisor::{Generation, Slot, WorkerId, WorkerTag};

/// A handle to the worker in the `threads` model, for code on any of its threads. Cheap to clone; `Send` and `Sync`.
#[derive(Clone)]
pub struct ThreadedWorker(pub(crate) Arc<ThreadedWorkerState>);

/// The state that the threads of one worker share.
pub(crate) struct ThreadedWorkerState {
    pub(crate) tag: WorkerTag,
    pub(crate) config: Config,
    pub(crate) worker_page: SharedWorkerPage,
    pub(crate) scoreboard: ScoreboardReader,
    pub(crate) pool: Pool,
    pub(crate) is_draining: AtomicBool,
    /// Notified when the drain starts.
    pub(crate) drain_started: Notify,
    /// Notified when the application wants this worker replaced.
    pub(crate) retire_requested: Notify,
}

impl ThreadedWorkerState {
    /// Copies what the threads need from the state of the worker's event loop.
    pub(crate) fn from_local(state: &LocalWorkerState) -> Result<ThreadedWorkerState> {
        let worker_page = state.worker_page.shared_page();
        let worker_page = worker_page.ok_or_else(|| {
            Error::internal("the scoreboard page of this worker is for one thread")
        })?;
        Ok(ThreadedWorkerState {
            tag: state.tag,
            config: Config::clone(&state.config),
            worker_page,
            scoreboard: state.scoreboard.clone(),
            pool: state.pool.clone(),
            is_draining: AtomicBool::new(false),
            drain_started: Notify::new(),
            retire_requested: Notify::new(),
        })
    }
}

impl ServeContext for ThreadedWorkerState {
    type Ptr<T: 'static> = Arc<T>;
    type Recorder = SharedWorkerPage;

    fn new_shared<T: 'static>(value: T) -> Arc<T> {
        Arc::new(value)
    }

    fn tag(&self) -> WorkerTag {
        self.tag
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn worker_page(&self) -> &SharedWorkerPage {
        &self.worker_page
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    fn should_hand_over(&self) -> bool {
        false
    }

    fn should_announce_close(&self, _: &ConnectionState) -> bool {
        self.is_draining()
    }
}

impl ThreadedWorker {
    /// Returns the worker's id. Ids increase and are never reused.
    pub fn id(&self) -> WorkerId {
        self.0.tag.id
    }

    /// Returns the worker's slot.
    pub fn slot(&self) -> Slot {
        self.0.tag.slot
    }

    /// Returns the worker's generation, which increases with each reload.
    pub fn generation(&self) -> Generation {
        self.0.tag.generation
    }

    /// Returns the worker's process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Returns the configuration that the worker was forked with. `worker_connections` limits all threads together.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Returns the status of the whole cluster, as its processes publish it at this moment. Fields that only the primary
    /// knows are empty; see [`status`](crate::status).
    pub fn cluster_status(&self) -> ClusterStatus {
        self.0.scoreboard.cluster_status(&self.0.config)
    }

    /// Returns the worker's CPU pool, which all threads share; see [`Worker::pool`](crate::Worker::pool).
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Whether the worker drains: it accepts no more and finishes open requests.
    pub fn is_draining(&self) -> bool {
        ServeContext::is_draining(&*self.0)
    }

    /// Whether a load balancer should send connections to this worker; the answer to a readiness probe.
    ///
    /// False while the worker drains or cannot accept, and from the moment the cluster is told to stop, although it
    /// still accepts for [`Config::drain_delay`](crate::Config::drain_delay).
    pub fn is_ready(&self) -> bool {
        let board = &self.0.scoreboard;
        let can_accept = !self.0.worker_page.cannot_accept() && !board.cannot_accept();
        !self.is_draining() && !board.is_stopping() && can_accept
    }

    /// Waits until the worker starts to drain: the moment to end long polls and event streams.
    pub async fn draining(&self) {
        let started = self.0.drain_started.notified();
        let mut started = pin!(started);
        // Registers before it checks, so that a drain that starts in between is not missed.
        started.as_mut().enable();
        if !self.is_draining() {
            started.await;
        }
    }

    /// Drains this worker and lets the primary replace it. No effect if the worker already drains.
    pub fn retire(&self) {
        self.0.retire_requested.notify_one();
    }
}

impl fmt::Debug for ThreadedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadedWorker({})", self.0.tag)
    }
}
