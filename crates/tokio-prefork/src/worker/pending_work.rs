//! Work beside connections that a draining worker waits for: holds, background tasks, and the functions that run at its end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Worker;
use super::panic_report::log_panic;
use super::worker_shared::WorkerShared;
use prefork_os::system::monotonic_ms;

type SendFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Keeps a draining worker alive until it is dropped; see [`Worker::hold`].
#[must_use = "the worker is held only until the guard is dropped"]
pub struct HoldGuard {
    worker: Arc<WorkerShared>,
    id: u64,
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let holds = &self.worker.holds;
        holds.lock().active.remove(&self.id);
        holds.released.notify_waiters();
    }
}

impl fmt::Debug for HoldGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HoldGuard({}, {})", self.worker.tag, self.id)
    }
}

/// All holds of a worker.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<HoldTable>,
    /// Notified when a hold ends.
    pub(crate) released: Notify,
}

#[derive(Default)]
struct HoldTable {
    next_id: u64,
    active: BTreeMap<u64, Hold>,
}

struct Hold {
    name: Cow<'static, str>,
    /// When it began, in milliseconds on the monotonic clock.
    since_ms: u64,
}

/// The holds of a worker at one moment, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HoldSummary {
    pub(crate) count: usize,
    /// The names in alphabetical order, those that occur several times with their number: `mail x3, upload`.
    pub(crate) names: String,
    /// When the oldest one began, in milliseconds on the monotonic clock.
    pub(crate) oldest_ms: u64,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HoldTable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().active.is_empty()
    }

    /// Waits until no hold is left.
    pub(crate) async fn wait_until_empty(&self) {
        loop {
            let released = self.released.notified();
            if self.is_empty() {
                return;
            }
            released.await;
        }
    }

    /// Describes the holds; `None` if there is none.
    pub(crate) fn summary(&self) -> Option<HoldSummary> {
        let table = self.lock();
        let oldest_ms = table.active.values().map(|hold| hold.since_ms).min()?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        table.active.values().for_each(|hold| *counts.entry(&hold.name).or_default() += 1);
        let names = counts.iter().map(|(name, count)| match count {
            1 => (*name).to_string(),
            n => format!("{name} x{n}"),
        });
        let names = names.collect::<Vec<_>>().join(", ");
        Some(HoldSummary { count: table.active.len(), names, oldest_ms })
    }
}

/// The functions that run when a worker has drained.
#[derive(Default)]
pub(crate) struct StopFunctions(Mutex<Vec<StopFunction>>);

/// One function that runs when a worker has drained.
pub(crate) struct StopFunction {
    pub(crate) future: SendFuture,
    /// Where it was registered.
    pub(crate) location: &'static Location<'static>,
}

impl StopFunctions {
    fn push(&self, function: StopFunction) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(function);
    }

    /// Takes the function that was registered last.
    pub(crate) fn pop(&self) -> Option<StopFunction> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Work that the worker finishes before it exits.
///
/// A worker that drains (in a reload, an upgrade or a stop, when it is recycled, after [`Worker::retire`] and
/// [`Worker::disconnect`], or because its primary is gone) waits until all connections are closed and all holds and background
/// tasks have ended. Then it drains its [pool](Worker::pool), runs its [stop functions](Worker::on_stop), drops the service, sends
/// its last messages, and exits. All of that ends at `graceful-timeout`; the log names what was cut.
impl Worker {
    /// Keeps a draining worker alive, like an open connection, until the guard is dropped or `graceful-timeout` has passed.
    ///
    /// `name` says what the worker waits for: in `prefork status` while it drains, and in the log if it is cut.
    ///
    /// ```no_run
    /// # async fn send_mail() {}
    /// # async fn example(worker: tokio_prefork::Worker) {
    /// let hold = worker.hold("mail");
    /// tokio::spawn(async move {
    ///     send_mail().await;
    ///     drop(hold);
    /// });
    /// # }
    /// ```
    pub fn hold(&self, name: impl Into<Cow<'static, str>>) -> HoldGuard {
        let mut table = self.0.holds.lock();
        let id = table.next_id;
        table.next_id += 1;
        table.active.insert(id, Hold { name: name.into(), since_ms: monotonic_ms() });
        HoldGuard { worker: Arc::clone(&self.0), id }
    }

    /// Spawns a background task that a draining worker waits for, like [`Worker::hold`]; a panic in it is logged.
    ///
    /// It runs in the caller's tokio runtime, or, called from a thread without one, on the worker's event loop. A task that never
    /// ends by itself should end when [`Worker::draining`] resolves.
    ///
    /// ```no_run
    /// # async fn flush_metrics() {}
    /// # async fn example(worker: tokio_prefork::Worker) {
    /// use std::time::Duration;
    ///
    /// let draining = worker.clone();
    /// worker.spawn("metrics", async move {
    ///     loop {
    ///         tokio::select! {
    ///             () = tokio::time::sleep(Duration::from_secs(10)) => flush_metrics().await,
    ///             () = draining.draining() => return flush_metrics().await,
    ///         }
    ///     }
    /// });
    /// # }
    /// ```
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.hold_during(name.into(), future);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn(task),
            Err(_) => self.0.runtime.spawn(task),
        }
    }

    /// As [`Worker::spawn`], for a future that is not `Send`. Runs on the calling thread.
    ///
    /// # Panics
    /// Outside of the worker's event loop (and other tokio runtimes for one thread), as `tokio::task::spawn_local` does.
    pub fn spawn_local<F>(
        &self,
        name: impl Into<Cow<'static, str>>,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        tokio::task::spawn_local(self.hold_during(name.into(), future))
    }

    /// Runs `future` when the worker has drained: to close a pool of connections, or to flush a log or a tracer.
    ///
    /// Several are allowed. They run one after the other in reverse order of registration, after the last connection, hold and
    /// pool job have ended, on the worker's event loop, and still within `graceful-timeout`; what is left then is dropped and
    /// logged. Under [`ConcurrencyModel::ThreadPerCore`](crate::ConcurrencyModel::ThreadPerCore) each event loop runs those of its
    /// own worker. Dropped without being run if the worker ends before it is ready, or is killed.
    ///
    /// ```no_run
    /// # struct Pool;
    /// # impl Pool { async fn close(&self) {} }
    /// # async fn example(worker: tokio_prefork::Worker, pool: std::sync::Arc<Pool>) {
    /// worker.on_stop(async move { pool.close().await });
    /// # }
    /// ```
    #[track_caller]
    pub fn on_stop(&self, future: impl Future<Output = ()> + Send + 'static) {
        let location = Location::caller();
        self.0.stop_functions.push(StopFunction { future: Box::pin(future), location });
    }

    fn hold_during<F: Future>(
        &self,
        name: Cow<'static, str>,
        future: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let hold = self.hold(name.clone());
        let tag = self.0.tag;
        async move {
            let output = log_panic(tag, || format!("the background task {name:?}"), future).await;
            drop(hold);
            output
        }
    }
}
