//! `Worker`: the application's handle to the worker it runs in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::worker_shared::{self, WorkerShared};
use crate::channel::WorkerReport;
use crate::config::Config;
use crate::listener::ListenAddr;
use crate::pool::Pool;
use crate::status::ClusterStatus;
use prefork_supervisor::{Generation, Slot, WorkerId};

/// A handle to the worker that this code runs in, in every concurrency model. Cheap to clone; `Send` and `Sync`.
///
/// All methods may be called on any thread of the worker's process: in handlers, pool jobs, `spawn_blocking`, and the tasks
/// of other runtimes.
#[derive(Clone)]
pub struct Worker(pub(crate) Arc<WorkerShared>);

impl Worker {
    /// Returns the worker that this code runs in, on any thread of its process. `None` in the primary.
    ///
    /// Under [`ConcurrencyModel::ThreadPerCore`](crate::ConcurrencyModel::ThreadPerCore) a process has a worker for each
    /// event loop, all with the same id: on a loop it is the one of that loop, on other threads the process's first one.
    /// To ask only whether this process is a worker, use [`is_worker`](crate::is_worker).
    pub fn current() -> Option<Worker> {
        worker_shared::current().map(Worker)
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

    /// Returns the addresses that this worker serves, with their real ports: where [`Config::bind`] has port 0, the
    /// one that the kernel chose.
    ///
    /// Empty in a worker of another kind than `web`.
    pub fn addresses(&self) -> &[ListenAddr] {
        self.0.listener_names.addrs()
    }

    /// Returns the configuration that the worker was forked with. Where several threads serve together
    /// ([`ConcurrencyModel::Threads`](crate::ConcurrencyModel::Threads)), `worker_connections` limits all of them together.
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
    /// Threads start on demand (`pool-threads`, `pool-queue`, `pool-nice`); `prefork status` shows their figures. All event loops
    /// of a process share the pool. A draining worker runs submitted jobs, and delivers their results, for up to
    /// `graceful-timeout`. [`Worker::create_pool`] creates more pools.
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
        self.0.pools.default_pool()
    }

    /// Whether the worker drains: it accepts no more and finishes open requests.
    pub fn is_draining(&self) -> bool {
        self.0.drain.is_draining()
    }

    /// Whether a load balancer should send connections to this worker; the answer to a readiness probe.
    ///
    /// False while the worker drains or cannot accept, and from the moment the cluster is told to stop, although it
    /// still accepts for [`Config::drain_delay`](crate::Config::drain_delay).
    pub fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Waits until the worker starts to drain: the moment to end long polls and event streams.
    pub async fn draining(&self) {
        self.0.drain.wait_started().await;
    }

    /// Whether the channel to the primary is open. Once it closes, the worker finishes open requests and exits.
    pub fn is_connected(&self) -> bool {
        self.0.is_primary_connected.load(Ordering::Acquire)
    }

    /// Drains this worker without a replacement: its slot stays empty until the next reload or scale command.
    ///
    /// [`Worker::is_draining`] is true when this returns. No effect if the worker already drains.
    pub fn disconnect(&self) {
        self.0.request_drain(WorkerReport::Disconnecting);
    }

    /// Drains this worker and lets the primary replace it.
    ///
    /// [`Worker::is_draining`] is true when this returns. No effect if the worker already drains.
    pub fn retire(&self) {
        self.0.request_drain(WorkerReport::Retiring);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.0.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inbox, IsolatedPool};

    #[test]
    fn handles_may_go_to_any_thread() {
        fn check_send<T: Send>() {}
        fn check_sync<T: Sync>() {}
        check_send::<Worker>();
        check_sync::<Worker>();
        check_send::<Inbox>();
        check_send::<IsolatedPool<Vec<u32>, String>>();
        check_sync::<IsolatedPool<Vec<u32>, String>>();
    }

    #[test]
    fn futures_of_the_handle_are_send() {
        fn check_send(_: impl Send) {}
        let _ = |worker: Worker, mut inbox: Inbox, pool: IsolatedPool<u32, u32>| {
            let limit = std::time::Duration::ZERO;
            check_send(worker.draining());
            check_send(worker.send("kind", &1));
            check_send(worker.request("kind", &1, limit));
            check_send(worker.broadcast("kind", &1));
            check_send(inbox.recv());
            check_send(pool.run(1));
            check_send(pool.job(1).into_future());
            check_send(pool.job(1).start());
        };
    }
}
