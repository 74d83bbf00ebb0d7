//! A pool for one kind of task, whose threads have a state.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::current_thread;
use super::pool_state::{PoolNames, PoolState, ThreadInit};
use super::pool_threads::StartReport;
use super::thread_parker::block_on;
use super::{
    CancelFlag, JobDeadline, JobFuture, JobRequest, Pool, PoolConfig, PoolError, PoolJob,
    RefusedJob, TaskError,
};
use crate::error::{BoxError, Error, Result};
use crate::scoreboard::PoolCounters;
use crate::status::PoolStatus;

/// The function of a task pool, without the type of its state.
type TaskFunction<I, O, E> = dyn Fn(&mut dyn Any, I) -> Result<O, E> + Send + Sync;

/// A pool whose threads each make a state once and pass it to every task: a model, a connection, a random number generator.
///
/// Input, output and error have their own types, so that a wrong task does not compile. The threads start with the pool, which is
/// ready when all of them have made their state. A state never leaves its thread, so it need not be `Send`; it is dropped there when
/// the thread ends, which a drain waits for. After a panic, thread and state are replaced.
///
/// Cheap to clone; `Send` and `Sync`. In a worker, [`Worker::create_task_pool`](crate::Worker::create_task_pool) adds its figures to
/// `prefork status`.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tokio_prefork::pool::{PoolConfig, TaskError, TaskPool};
///
/// struct Parser {
///     parsed: u32,
/// }
///
/// let parsers = TaskPool::new(
///     PoolConfig::new().threads(2),
///     || Ok(Parser { parsed: 0 }),
///     |parser: &mut Parser, text: String| {
///         parser.parsed += 1;
///         text.parse::<u32>()
///     },
/// )?;
/// assert_eq!(parsers.run("42".to_string()).await, Ok(42));
/// assert!(matches!(parsers.run("x".to_string()).await, Err(TaskError::Failed(_))));
/// # Ok::<_, tokio_prefork::Error>(())
/// # }).unwrap();
/// ```
pub struct TaskPool<I, O, E> {
    pool: Pool,
    function: Arc<TaskFunction<I, O, E>>,
    /// The type name of the application's function, which tells where it is defined.
    name: &'static str,
}

/// One task: the function and its input.
struct TaskJob<I, O, E> {
    function: Arc<TaskFunction<I, O, E>>,
    input: I,
}

impl<I, O, E> PoolJob for TaskJob<I, O, E>
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static,
{
    type Output = std::result::Result<O, E>;

    fn run(self, _: &CancelFlag<'_>) -> std::result::Result<O, E> {
        let TaskJob { function, input } = self;
        let result = current_thread::with_state(|state| function(state, input));
        result.unwrap_or_else(|| resume_unwind(Box::new("the thread has no state")))
    }
}

impl<I, O, E> TaskPool<I, O, E>
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static,
{
    /// Creates a pool, starts its threads, and waits on the calling thread until `init` has returned on each of them.
    ///
    /// `work` runs on any of the threads, with the state of that thread. A draining worker waits for the pool, but `prefork status`
    /// does not show it. In an async function, [`TaskPool::start`] does not block the event loop.
    ///
    /// # Errors
    /// A thread could not be started, or `init` returned an error or panicked; the pool is closed then.
    pub fn new<S, Init, Work>(
        config: PoolConfig,
        init: Init,
        work: Work,
    ) -> Result<TaskPool<I, O, E>>
    where
        S: 'static,
        Init: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        Work: Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    {
        block_on(TaskPool::start(config, init, work))
    }

    /// As [`TaskPool::new`], but waits for the threads without blocking the calling one.
    ///
    /// # Errors
    /// As [`TaskPool::new`].
    pub async fn start<S, Init, Work>(
        config: PoolConfig,
        init: Init,
        work: Work,
    ) -> Result<TaskPool<I, O, E>>
    where
        S: 'static,
        Init: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        Work: Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    {
        let names = PoolNames { owner: None, threads: "task".to_string() };
        let pool =
            TaskPool::start_with(config, names, PoolCounters::standalone("task"), init, work);
        let pool = pool.await?;
        super::process_pools::register(pool.pool.state());
        Ok(pool)
    }

    /// Creates the pool of a worker.
    pub(crate) async fn start_with<S, Init, Work>(
        mut config: PoolConfig,
        names: PoolNames,
        counters: PoolCounters,
        init: Init,
        work: Work,
    ) -> Result<TaskPool<I, O, E>>
    where
        S: 'static,
        Init: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        Work: Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    {
        let starting = config.min_threads.unwrap_or(config.threads).clamp(1, config.max_threads());
        config.min_threads = Some(starting);
        let init: ThreadInit =
            Arc::new(move || init().map(|state| Box::new(state) as Box<dyn Any>));
        let pool = Pool::from_state(PoolState::new(config, names, counters, Some(init)));
        let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let make_report = || -> StartReport {
            let report = report.clone();
            // If nobody receives it, another thread has failed.
            Box::new(move |result| drop(report.send(result)))
        };
        for _ in 0..pool.state().start_kept_threads(starting, make_report) {
            // Each thread reports, or drops its report with itself.
            let result = reports.recv().await.unwrap_or(Ok(()));
            result.map_err(|why| Error::application("start the threads of a task pool", why))?;
        }
        let function = move |state: &mut dyn Any, input| match state.downcast_mut::<S>() {
            Some(state) => work(state, input),
            None => resume_unwind(Box::new("the state of the thread has another type")),
        };
        let name = std::any::type_name::<Work>();
        Ok(TaskPool { pool, function: Arc::new(function), name })
    }

    /// Submits a task and returns its result as a future. Dropping the future cancels the task.
    ///
    /// # Errors
    /// The future returns a [`TaskError`] if the task has no output.
    pub fn run(&self, input: I) -> TaskFuture<I, O, E> {
        TaskFuture(self.request(input).start())
    }

    /// Submits a task with a deadline.
    ///
    /// # Errors
    /// As [`TaskPool::run`].
    pub fn run_within(&self, deadline: JobDeadline, input: I) -> TaskFuture<I, O, E> {
        TaskFuture(self.request(input).deadline(deadline).start())
    }

    /// Submits a task, which waits for room if the queue is full.
    ///
    /// # Errors
    /// As [`TaskPool::run`], but never [`PoolError::Full`].
    pub fn run_when_room(&self, input: I) -> TaskFuture<I, O, E> {
        TaskFuture(self.request(input).when_room().start())
    }

    /// Submits a task, or gives its input back.
    ///
    /// # Errors
    /// The pool has refused the task.
    pub fn try_run(&self, input: I) -> std::result::Result<TaskFuture<I, O, E>, RefusedJob<I>> {
        match self.request(input).try_start() {
            Ok(future) => Ok(TaskFuture(future)),
            Err(refused) => Err(RefusedJob { job: refused.job.input, error: refused.error }),
        }
    }

    /// Returns the figures of the pool.
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Rejects new tasks and waits for up to `grace` until all have ended; see [`Pool::drain`].
    pub async fn drain(&self, grace: std::time::Duration) -> usize {
        self.pool.drain(grace).await
    }

    /// Returns the pool, to close or drain it with others.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn request(&self, input: I) -> JobRequest<TaskJob<I, O, E>> {
        let job = TaskJob { function: Arc::clone(&self.function), input };
        JobRequest::new(self.pool.clone(), job, self.name)
    }
}

impl<I, O, E> Clone for TaskPool<I, O, E> {
    fn clone(&self) -> TaskPool<I, O, E> {
        TaskPool { pool: self.pool.clone(), function: Arc::clone(&self.function), name: self.name }
    }
}

impl<I, O, E> fmt::Debug for TaskPool<I, O, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskPool({:?})", self.pool)
    }
}

/// The result of a task, as a future. Dropping it cancels the task. See [`JobFuture`].
#[must_use = "dropping the future cancels the task; await it, or detach it"]
pub struct TaskFuture<I, O, E>(JobFuture<TaskJob<I, O, E>>)
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static;

impl<I, O, E> TaskFuture<I, O, E>
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static,
{
    /// Lets the task run to its end without a caller; see [`JobFuture::detach`].
    ///
    /// # Errors
    /// The pool has refused the task.
    pub fn detach(self) -> std::result::Result<(), PoolError> {
        self.0.detach()
    }

    /// Waits for the result on the calling thread; see [`JobFuture::wait`].
    ///
    /// # Errors
    /// As [`TaskPool::run`].
    pub fn wait(self) -> std::result::Result<O, TaskError<E>> {
        flatten(self.0.wait())
    }
}

impl<I, O, E> Future for TaskFuture<I, O, E>
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static,
{
    type Output = std::result::Result<O, TaskError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0).poll(cx).map(flatten)
    }
}

impl<I, O, E> fmt::Debug for TaskFuture<I, O, E>
where
    I: Send + 'static,
    O: Send + 'static,
    E: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task{:?}", self.0)
    }
}

fn flatten<O, E>(
    result: std::result::Result<std::result::Result<O, E>, PoolError>,
) -> std::result::Result<O, TaskError<E>> {
    match result {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(TaskError::Failed(error)),
        Err(error) => Err(TaskError::Pool(error)),
    }
}
