//! `Worker`: the application's handle to the worker it runs in.

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};

use super::local_state::LocalWorkerState;
use crate::channel::WorkerReport;
use crate::config::Config;
use crate::pool::Pool;
use crate::status::ClusterStatus;
use prefork_supervisor::{Generation, Slot, WorkerId};

thread_local! {
    /// The worker that runs on this thread.
    static CURRENT_WORKER: RefCell<Weak<LocalWorkerState>> = const { RefCell::new(Weak::new()) };
}

/// A handle to the worker that this code runs in. Cheap to clone; neither `Send` nor `Sync`.
#[derive(Clone)]
pub struct Worker(pub(crate) Rc<LocalWorkerState>);

impl Worker {
    /// Returns the worker that this code runs in.
    ///
    /// `None` in the primary, and on threads other than the worker's event loop, such as all serving threads of
    /// [`ConcurrencyModel::Threads`](crate::ConcurrencyModel::Threads).
    pub fn current() -> Option<Worker> {
        CURRENT_WORKER.with_borrow(Weak::upgrade).map(Worker)
    }

    /// Makes `state` the worker of this thread.
    pub(crate) fn set_current(state: &Rc<LocalWorkerState>) {
        CURRENT_WORKER.set(Rc::downgrade(state));
    }

    /// Returns the worker's id. Ids increase and are never reused.
    pub fn id(&self) -> WorkerId {
        self.0.tag.id
    }

    /// Returns the worker's slot, `0..N`. A replacement has the same slot.
    ///
    /// The slots of custom kinds start at a multiple of [`Slot::MAX_SLOTS_PER_KIND`].
    pub fn slot(&self) -> Slot {
        self.0.tag.slot
    }

    /// Returns the worker's kind: [`WEB_KIND`](crate::WEB_KIND), or the name given to
    /// [`WorkerKind::new`](crate::WorkerKind::new).
    pub fn kind(&self) -> &'static str {
        self.0.tag.kind
    }

    /// Returns the slot of the `n`th worker of a custom kind, counted from 0, as the target of messages.
    ///
    /// `None` if the program has no such kind. The slot may be empty at the moment.
    pub fn slot_of_kind(&self, kind: &str, n: u32) -> Option<Slot> {
        self.0.kinds.iter().find(|(name, _)| *name == kind)?.1.checked_add(n)
    }

    /// Returns the worker's generation, which increases with each reload.
    pub fn generation(&self) -> Generation {
        self.0.tag.generation
    }

    /// Returns the worker's process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Returns the configuration that the worker was forked with.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Returns the status of the whole cluster, as its processes publish it at this moment. Fields that only the
    /// primary knows are empty; see [`status`](crate::status).
    pub fn cluster_status(&self) -> ClusterStatus {
        self.0.scoreboard.cluster_status(&self.0.config)
    }

    /// Returns the worker's CPU pool: threads for computations that would block the event loop.
    ///
    /// The threads start with the first job (`pool-threads`, `pool-queue`, `pool-nice`); `prefork status` shows their
    /// figures. A draining worker runs submitted jobs for up to `graceful-timeout`.
    ///
    /// ```no_run
    /// use std::convert::Infallible;
    ///
    /// use http_body_util::Full;
    /// use hyper::body::{Bytes, Incoming};
    /// use hyper::{Request, Response, StatusCode, service::service_fn};
    /// use tokio_prefork::{Cluster, Config, Worker, pool::PoolError};
    ///
    /// # fn run() -> tokio_prefork::Result<()> {
    /// Cluster::new(Config::builder().build()?).serve(|worker: Worker| async move {
    ///     Ok(service_fn(move |request: Request<Incoming>| {
    ///         let worker = worker.clone();
    ///         async move {
    ///             let path = request.uri().path().to_string();
    ///             // Runs on a pool thread; this connection waits, and the event loop serves the others.
    ///             let sum = worker.pool().run(move || path.bytes().map(u64::from).sum::<u64>());
    ///             let (status, text) = match sum.await {
    ///                 Ok(sum) => (StatusCode::OK, sum.to_string()),
    ///                 Err(e @ PoolError::Full { .. }) => {
    ///                     (StatusCode::SERVICE_UNAVAILABLE, e.to_string())
    ///                 }
    ///                 Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    ///             };
    ///             let mut answer = Response::new(Full::new(Bytes::from(text)));
    ///             *answer.status_mut() = status;
    ///             Ok::<_, Infallible>(answer)
    ///         }
    ///     }))
    /// })
    /// # }
    /// ```
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Whether the worker drains: it accepts no more and finishes open requests.
    pub fn is_draining(&self) -> bool {
        self.0.drain.current_order().is_some()
    }

    /// Whether a load balancer should send connections to this worker; the answer to a readiness probe.
    ///
    /// False while the worker drains or cannot accept, and from the moment the cluster is told to stop, although it
    /// still accepts for [`Config::drain_delay`](crate::Config::drain_delay).
    pub fn is_ready(&self) -> bool {
        let board = &self.0.scoreboard;
        let can_accept = !self.0.cannot_accept() && !board.cannot_accept();
        !self.is_draining() && !board.is_stopping() && can_accept
    }

    /// Waits until the worker starts to drain: the moment to end long polls and event streams.
    pub async fn draining(&self) {
        self.0.drain.wait_started().await;
    }

    /// Whether the channel to the primary is open. Once it closes, the worker finishes open requests and exits.
    pub fn is_connected(&self) -> bool {
        self.0.is_primary_connected.get()
    }

    /// Drains this worker without a replacement: its slot stays empty until the next reload or scale command.
    ///
    /// No effect if the worker already drains.
    pub fn disconnect(&self) {
        self.0.begin_own_drain(&WorkerReport::Disconnecting);
    }

    /// Drains this worker and lets the primary replace it. No effect if the worker already drains.
    pub fn retire(&self) {
        self.0.begin_own_drain(&WorkerReport::Retiring);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.0.tag)
    }
}
