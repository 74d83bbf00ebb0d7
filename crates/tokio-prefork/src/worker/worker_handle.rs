//! Worker: what the application sees of the worker it runs in.

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};

use super::local_state::LocalWorkerState;
use crate::channel::ToPrimary;
use crate::config::Config;
use crate::pool::Pool;
use crate::scoreboard::ClusterSnapshot;
use prefork_supervisor::{Generation, Slot, WorkerId};

thread_local! {
    /// The worker of this thread, while it lives.
    static CURRENT: RefCell<Weak<LocalWorkerState>> = const { RefCell::new(Weak::new()) };
}

/// The worker this code runs in. Cheap to clone; stays in its process and thread.
#[derive(Clone)]
pub struct Worker(pub(crate) Rc<LocalWorkerState>);

impl Worker {
    /// The worker this code runs in. `None` in the primary, and in threads other than the worker's
    /// own: all that serve under [`Model::Threads`](crate::Model::Threads).
    pub fn current() -> Option<Worker> {
        CURRENT.with_borrow(Weak::upgrade).map(Worker)
    }

    /// From now on this thread is that worker's.
    pub(crate) fn enter(state: &Rc<LocalWorkerState>) {
        CURRENT.set(Rc::downgrade(state));
    }

    /// Its number, which only grows from worker to worker and is never used again.
    pub fn id(&self) -> WorkerId {
        self.0.tag.id
    }

    /// Its place among the workers, `0..N`; a replacement has the same. Those of other kinds than `web` begin at a
    /// multiple of [`Slot::PER_KIND`].
    pub fn slot(&self) -> Slot {
        self.0.tag.slot
    }

    /// The kind of workers it is one of: [`WEB_KIND`](crate::WEB_KIND), or the name given to
    /// [`Kind::new`](crate::Kind::new).
    pub fn kind(&self) -> &'static str {
        self.0.tag.kind
    }

    /// The slot of the `n`th worker of another kind than `web`, counted from 0: where messages to it go. `None` if the
    /// program named no such kind; whether somebody serves there is another question.
    pub fn slot_of_kind(&self, kind: &str, n: u32) -> Option<Slot> {
        self.0.kinds.iter().find(|(name, _)| *name == kind)?.1.checked_add(n)
    }

    /// The generation it belongs to, which grows with each reload.
    pub fn generation(&self) -> Generation {
        self.0.tag.generation
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The configuration it was forked under.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// What all processes of the cluster wrote on the scoreboard, at this moment.
    pub fn cluster(&self) -> ClusterSnapshot {
        self.0.scoreboard.snapshot()
    }

    /// Threads for work that computes, so that the event loop goes on serving meanwhile. They start with the
    /// first job (`pool-threads`, `pool-queue`, `pool-nice`); their figures stand in `prefork status`.
    ///
    /// A draining worker runs what was submitted, for up to `graceful-timeout`.
    ///
    /// ```no_run
    /// use std::convert::Infallible;
    ///
    /// use http_body_util::Full;
    /// use hyper::body::{Bytes, Incoming};
    /// use hyper::{Request, Response, StatusCode, service::service_fn};
    /// use tokio_prefork::{Cluster, Config, Worker, pool::PoolError};
    ///
    /// # fn run() -> tokio_prefork::Result<std::process::ExitCode> {
    /// Cluster::new(Config::builder().build()?).serve(|worker: Worker| async move {
    ///     Ok(service_fn(move |request: Request<Incoming>| {
    ///         let worker = worker.clone();
    ///         async move {
    ///             let path = request.uri().path().to_string();
    ///             // Moves to a thread; this connection waits, all others are served.
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

    /// Whether it has stopped accepting and finishes what is open.
    pub fn is_draining(&self) -> bool {
        self.0.drain.order().is_some()
    }

    /// Whether balancers should send new connections here: not when it drains, and not from the moment on in which the
    /// cluster was told to stop, though it still accepts for [`Config::drain_delay`](crate::Config::drain_delay). What
    /// a readiness probe wants to know.
    pub fn is_ready(&self) -> bool {
        let board = &self.0.scoreboard;
        let can_accept = !self.0.cannot_accept() && !board.cannot_accept();
        !self.is_draining() && !board.is_stopping() && can_accept
    }

    /// Resolves when the worker is told to finish: the moment to end long polls and event streams.
    pub async fn draining(&self) {
        self.0.drain.started().await;
    }

    /// Whether the primary can still be heard. Once it cannot, the worker finishes what is open and leaves.
    pub fn is_connected(&self) -> bool {
        self.0.is_primary_connected.get()
    }

    /// Finish what is open, leave, and not be replaced: the slot stays empty until the next reload, or until somebody
    /// scales. Does nothing when the worker is draining already.
    pub fn disconnect(&self) {
        self.0.begin_own_drain(&ToPrimary::Disconnecting);
    }

    /// Finish what is open, leave, and be replaced. Does nothing when the worker is draining already.
    pub fn retire(&self) {
        self.0.begin_own_drain(&ToPrimary::Retiring);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.0.tag)
    }
}
