//! The handle of a pool of isolated processes.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::job_runner::make_job_runner;
use super::{IsolatedJobError, IsolatedPoolConfig, JobContext, JobRequest, MakeJobRunner};
use crate::cluster::program_caller;
use crate::error::BoxError;
use crate::status::IsolatedPoolStatus;
use crate::worker::Worker;

/// A pool of processes for jobs that may crash, leak or never end, which no thread could contain.
///
/// Declared before [`Cluster::serve`](crate::Cluster::serve), with the function that runs in its processes, and given to
/// [`Cluster::isolated_pool`](crate::Cluster::isolated_pool). Each process runs one job at a time. A job that ends its process costs
/// nothing but that process, which is replaced at once, and its caller is told at once.
///
/// The handle is cheap to clone. It runs jobs on any thread of a worker: in handlers, pool jobs, `spawn_blocking` and plain threads.
///
/// Input, output, error and progress cross processes, encoded as messages are (see [`IntoPayload`](crate::IntoPayload)).
///
/// ```no_run
/// # use http_body_util::Full;
/// # use hyper::body::{Bytes, Incoming};
/// # use hyper::{Request, Response, service::service_fn};
/// use std::time::Duration;
/// use tokio_prefork::{Cluster, Config, IsolatedPool, IsolatedPoolConfig, Worker};
///
/// # fn load_model() -> Vec<u32> { Vec::new() }
/// # fn run(config: Config) -> tokio_prefork::Result<()> {
/// let config_of_pool = IsolatedPoolConfig::new("thumbnails", 2).deadline(Duration::from_secs(5));
/// let thumbnails = IsolatedPool::new(
///     config_of_pool,
///     || Ok(load_model()), // Once in each process, before its first job.
///     |model, width: u32| model.get(width as usize).copied().ok_or("no such width".to_string()),
/// );
/// Cluster::new(config).isolated_pool(&thumbnails).serve(move |_: Worker| {
///     let thumbnails = thumbnails.clone();
///     async move {
///         Ok(service_fn(move |_: Request<Incoming>| {
///             let thumbnails = thumbnails.clone();
///             async move {
///                 let result = thumbnails.job(640).timeout(Duration::from_secs(1)).await;
///                 let text = result.map_or_else(|e| e.to_string(), |width| width.to_string());
///                 Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
///             }
///         }))
///     }
/// })
/// # }
/// ```
pub struct IsolatedPool<I, O, E = String, P = ()> {
    declaration: Arc<PoolDeclaration>,
    types: JobTypes<I, O, E, P>,
}

/// The types of a job: the function that it is. So the handle is `Send` and `Sync` whatever they are.
type JobTypes<I, O, E, P> = PhantomData<fn(I) -> (O, E, P)>;

/// A pool as its program has declared it.
pub(crate) struct PoolDeclaration {
    pub(crate) config: IsolatedPoolConfig,
    pub(crate) make_runner: MakeJobRunner,
    /// Whether a cluster has the pool. Set before the first fork, so its workers know it.
    is_registered: AtomicBool,
}

impl<I, O, E> IsolatedPool<I, O, E>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    E: Serialize + DeserializeOwned + Send + 'static,
{
    /// Declares a pool. `init` makes the state of a process, and `work` runs the jobs with it.
    ///
    /// `init` runs once in each process, on the thread that runs all its jobs, before the process is ready: the place to load a model
    /// or to open a connection. An error or a panic in it is a failed boot. After a job that panicked it runs again, as the state may
    /// be inconsistent.
    ///
    /// Both run in a process that was forked from the primary, so what they capture must have been made before
    /// [`Cluster::serve`](crate::Cluster::serve).
    pub fn new<S: 'static>(
        config: IsolatedPoolConfig,
        init: impl Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        work: impl Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    ) -> IsolatedPool<I, O, E> {
        IsolatedPool::with_context(config, init, move |state: &mut S, input, _: &JobContext<'_>| {
            work(state, input)
        })
    }
}

impl<I, O, E, P> IsolatedPool<I, O, E, P>
where
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    E: Serialize + DeserializeOwned + Send + 'static,
    P: Serialize + DeserializeOwned + 'static,
{
    /// Declares a pool whose jobs get a [`JobContext`], to report their progress and to ask how long they may still run. Otherwise as
    /// [`IsolatedPool::new`].
    pub fn with_context<S: 'static>(
        config: IsolatedPoolConfig,
        init: impl Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        work: impl Fn(&mut S, I, &JobContext<'_, P>) -> Result<O, E> + Send + Sync + 'static,
    ) -> IsolatedPool<I, O, E, P> {
        let make_runner = make_job_runner(config.max_payload_bytes, init, work);
        let is_registered = AtomicBool::new(false);
        let declaration = Arc::new(PoolDeclaration { config, make_runner, is_registered });
        IsolatedPool { declaration, types: PhantomData }
    }

    /// Runs a job, and waits for its result for up to the pool's [`deadline`](IsolatedPoolConfig::deadline).
    ///
    /// If the future is dropped, a queued job is removed, and the process of a running one is killed; see
    /// [`OnAbandon`](super::OnAbandon).
    ///
    /// # Errors
    /// Why there is no result: see [`IsolatedJobError`]. The death of a job's process is reported at once.
    pub async fn run(&self, input: I) -> Result<O, IsolatedJobError<E>> {
        self.job(input).await
    }

    /// Creates a job that is submitted when it is awaited or started, to set its timeout or its priority.
    pub fn job(&self, input: I) -> JobRequest<I, O, E, P> {
        JobRequest::new(self.clone(), input)
    }
}

impl<I, O, E, P> IsolatedPool<I, O, E, P> {
    /// Returns the figures of the pool in the whole cluster, as the primary publishes them in shared memory. `None` in a process
    /// that is neither a worker of a cluster with this pool nor a program that has [started](super::IsolatedPools::start) it.
    pub fn status(&self) -> Option<IsolatedPoolStatus> {
        let pools = match program_caller() {
            Some(program) => program.scoreboard.isolated_pools(),
            None => Worker::current()?.0.scoreboard.isolated_pools(),
        };
        pools.into_iter().find(|pool| pool.name == self.name())
    }

    /// Returns the name of the pool.
    pub fn name(&self) -> &'static str {
        self.declaration.config.name
    }

    pub(crate) fn declaration(&self) -> &Arc<PoolDeclaration> {
        &self.declaration
    }
}

impl PoolDeclaration {
    /// Records that a cluster has the pool.
    pub(crate) fn set_registered(&self) {
        self.is_registered.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_registered(&self) -> bool {
        self.is_registered.load(Ordering::Relaxed)
    }
}

impl<I, O, E, P> Clone for IsolatedPool<I, O, E, P> {
    fn clone(&self) -> IsolatedPool<I, O, E, P> {
        IsolatedPool { declaration: Arc::clone(&self.declaration), types: PhantomData }
    }
}

impl<I, O, E, P> fmt::Debug for IsolatedPool<I, O, E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IsolatedPool").field("config", &self.declaration.config).finish()
    }
}
