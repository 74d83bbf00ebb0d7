//! The pools of a worker process: the default one, and those that the application creates. A draining worker waits for all of them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Worker;
use super::local_state::LocalWorkerState;
use crate::config::Config;
use crate::error::{BoxError, Error, Result};
use crate::pool::process_pools::{DrainedPool, registered_pools};
use crate::pool::{Pool, PoolConfig, PoolNames, TaskPool};
use crate::scoreboard::{MAX_POOL_NAME_BYTES, PoolCounters, PoolRecords, WorkerPage};
use crate::text::Count;
use prefork_supervisor::WorkerTag;

/// How often tasks are polled after the last job has ended, so that what they wake in turn is polled as well.
const POLL_ROUNDS: usize = 32;

/// How long to wait for the threads of a runtime to finish the tasks that they poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long jobs have at the graceful timeout to see their cancel flag and return, and tasks to see the verdicts. The primary kills the
/// worker a second after that timeout.
const CANCELLED_JOB_GRACE: Duration = Duration::from_millis(100);

/// The pools of a worker process, which all of its event loops share.
pub(crate) struct WorkerPools {
    tag: WorkerTag,
    default: Pool,
    named: Mutex<NamedPools>,
    /// Where the pools are counted.
    records: PoolRecords,
    /// Held while a task pool starts, so that another event loop waits for it instead of starting the same one.
    starting: tokio::sync::Mutex<()>,
    /// Event loops that may still submit jobs.
    loops: AtomicUsize,
}

#[derive(Default)]
struct NamedPools {
    pools: BTreeMap<String, NamedPool>,
    /// Whether the pools are closed, because the worker is about to exit.
    is_closed: bool,
}

struct NamedPool {
    pool: Pool,
    config: PoolConfig,
    /// The [`TaskPool`], if it is one.
    task_pool: Option<Arc<dyn Any + Send + Sync>>,
}

/// The share of one event loop in the pools: when the last one is dropped, the pools are closed.
pub(crate) struct PoolUser(Arc<WorkerPools>);

impl Drop for PoolUser {
    fn drop(&mut self) {
        if self.0.loops.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.close();
        }
    }
}

impl WorkerPools {
    /// Creates the default pool with the configured size, for the event loops of a process. Its threads start with the first job.
    pub(crate) fn new(
        config: &Config,
        worker_page: &WorkerPage,
        tag: WorkerTag,
        loops: usize,
    ) -> Arc<WorkerPools> {
        let pool_config = PoolConfig::with_threads(config.pool_thread_count())
            .min_threads(config.pool_min_threads as usize)
            .idle_timeout(config.pool_idle_timeout)
            .queue(config.pool_queue as usize)
            .nice(config.pool_nice)
            .newest_first(config.pool_newest_first);
        let stack = config.pool_stack.and_then(|bytes| usize::try_from(bytes).ok());
        let pool_config = match stack {
            Some(bytes) => pool_config.stack_bytes(bytes),
            None => pool_config,
        };
        let names = PoolNames { owner: Some(tag.to_string()), threads: "pool".to_string() };
        let default = Pool::with_counters(pool_config, names, worker_page.pool_counters());
        let (named, starting) = (Mutex::default(), tokio::sync::Mutex::default());
        let (records, loops) = (worker_page.pool_records(), AtomicUsize::new(loops));
        Arc::new(WorkerPools { tag, default, named, records, starting, loops })
    }

    /// Returns the share of one of the event loops that the pools were created for.
    pub(crate) fn user(self: &Arc<WorkerPools>) -> PoolUser {
        PoolUser(Arc::clone(self))
    }

    pub(crate) fn default_pool(&self) -> &Pool {
        &self.default
    }

    fn lock(&self) -> MutexGuard<'_, NamedPools> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.all_pools().iter().for_each(DrainedPool::close);
    }

    /// Returns all pools of the process, those without a name included.
    fn all_pools(&self) -> Vec<DrainedPool> {
        let mut pools = vec![self.default.drained_pool()];
        pools.extend(self.lock().pools.values().map(|named| named.pool.drained_pool()));
        pools.extend(registered_pools());
        pools
    }

    fn names(&self, name: &str) -> PoolNames {
        PoolNames { owner: Some(format!("{} pool={name}", self.tag)), threads: name.to_string() }
    }

    fn create_counters(&self, name: &str) -> Result<PoolCounters> {
        self.records.named_pool_counters(name).ok_or_else(|| {
            let why = "the scoreboard has room for 15 pools beside the default one";
            Error::application(format!("create the pool {name:?}"), why)
        })
    }

    /// Returns the pool `name` if it exists with this configuration. Otherwise checks that it can be created.
    fn find_or_check(
        &self,
        table: &NamedPools,
        name: &str,
        config: &PoolConfig,
    ) -> Result<Option<Pool>> {
        let fail = |why: &str| Err(Error::application(format!("create the pool {name:?}"), why));
        if let Some(existing) = table.pools.get(name) {
            return match existing.config == *config {
                true => Ok(Some(existing.pool.clone())),
                false => fail("it exists with another configuration"),
            };
        }
        let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c);
        if name.is_empty() || name.len() > MAX_POOL_NAME_BYTES || !name.bytes().all(is_plain) {
            return fail("take up to 32 small letters, digits, - and _ for its name");
        }
        if name == "default" {
            return fail("that is the name of the pool that Worker::pool returns");
        }
        if table.is_closed {
            return fail("the worker is about to exit");
        }
        Ok(None)
    }

    fn create_pool(&self, name: &str, config: PoolConfig) -> Result<Pool> {
        let mut table = self.lock();
        if let Some(existing) = self.find_or_check(&table, name, &config)? {
            return Ok(existing);
        }
        let counters = self.create_counters(name)?;
        let pool = Pool::with_counters(config.clone(), self.names(name), counters);
        let named = NamedPool { pool: pool.clone(), config, task_pool: None };
        table.pools.insert(name.to_string(), named);
        Ok(pool)
    }

    /// Returns the task pool `name` if it exists with this configuration and these types.
    fn find_task_pool<I: 'static, O: 'static, E: 'static>(
        &self,
        name: &str,
        config: &PoolConfig,
    ) -> Result<Option<TaskPool<I, O, E>>> {
        let table = self.lock();
        if self.find_or_check(&table, name, config)?.is_none() {
            return Ok(None);
        }
        let existing = table.pools.get(name).and_then(|named| named.task_pool.clone());
        let task_pool = existing.and_then(|pool| pool.downcast::<TaskPool<I, O, E>>().ok());
        match task_pool {
            Some(task_pool) => Ok(Some(TaskPool::clone(&task_pool))),
            None => Err(Error::application(
                format!("create the task pool {name:?}"),
                "a pool of this name exists for other tasks",
            )),
        }
    }

    async fn create_task_pool<S, I, O, E, Init, Work>(
        &self,
        name: &str,
        config: PoolConfig,
        init: Init,
        work: Work,
    ) -> Result<TaskPool<I, O, E>>
    where
        S: 'static,
        I: Send + 'static,
        O: Send + 'static,
        E: Send + 'static,
        Init: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        Work: Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    {
        let _starting = self.starting.lock().await;
        if let Some(existing) = self.find_task_pool(name, &config)? {
            return Ok(existing);
        }
        let (names, counters) = (self.names(name), self.create_counters(name)?);
        let started = TaskPool::start_with(config.clone(), names, counters, init, work).await;
        let task_pool: TaskPool<I, O, E> = started?;
        let pool = task_pool.pool().clone();
        let named = NamedPool { pool, config, task_pool: Some(Arc::new(task_pool.clone())) };
        let mut table = self.lock();
        // Meanwhile the worker may have been drained, or another pool may have taken the name.
        if self.find_or_check(&table, name, &named.config)?.is_some() {
            return Err(Error::application(
                format!("create the task pool {name:?}"),
                "a pool of this name was created meanwhile",
            ));
        }
        table.pools.insert(name.to_string(), named);
        Ok(task_pool)
    }
}

/// Pools of the application's own.
impl Worker {
    /// Creates a pool beside the default one: for work that should not wait for other work, or has another size or priority.
    ///
    /// A draining worker waits for its jobs as for those of [`Worker::pool`], and `prefork status` shows it. If the pool exists with the
    /// same configuration, returns it: under [`ConcurrencyModel::ThreadPerCore`](crate::ConcurrencyModel::ThreadPerCore) the boot function
    /// runs for each event loop, and the process has each pool once.
    ///
    /// ```no_run
    /// # async fn example(worker: tokio_prefork::Worker) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_prefork::pool::PoolConfig;
    ///
    /// let images = worker.create_pool("images", PoolConfig::new().threads(2).queue(16))?;
    /// let size = images.run(|| 640 * 480).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The name is taken with another configuration, or is not made of up to 32 small letters, digits, `-` and `_`; the worker has created
    /// 15 pools, or is about to exit.
    pub fn create_pool(&self, name: &str, config: PoolConfig) -> Result<Pool> {
        self.0.pools.create_pool(name, config)
    }

    /// Creates a [`TaskPool`]: starts its threads, and waits until `init` has returned on each of them.
    ///
    /// Await it in the boot function, so that the worker counts as ready when all states are made; an error of `init` is an error of the
    /// boot. In all other respects as [`Worker::create_pool`].
    ///
    /// ```no_run
    /// # async fn example(worker: tokio_prefork::Worker) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_prefork::pool::PoolConfig;
    ///
    /// # struct Model;
    /// # impl Model {
    /// #     fn load() -> Result<Model, std::io::Error> { Ok(Model) }
    /// #     fn score(&mut self, text: &str) -> Result<f64, String> { Ok(text.len() as f64) }
    /// # }
    /// let config = PoolConfig::new().threads(2);
    /// let init = || Ok(Model::load()?);
    /// let model = worker.create_task_pool("model", config, init, |model: &mut Model, text: String| model.score(&text));
    /// let model = model.await?;
    /// let score = model.run("some text".to_string()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Worker::create_pool`] and [`TaskPool::new`].
    pub async fn create_task_pool<S, I, O, E, Init, Work>(
        &self,
        name: &str,
        config: PoolConfig,
        init: Init,
        work: Work,
    ) -> Result<TaskPool<I, O, E>>
    where
        S: 'static,
        I: Send + 'static,
        O: Send + 'static,
        E: Send + 'static,
        Init: Fn() -> Result<S, BoxError> + Send + Sync + 'static,
        Work: Fn(&mut S, I) -> Result<O, E> + Send + Sync + 'static,
    {
        self.0.pools.create_task_pool(name, config, init, work).await
    }

    /// Returns the pool that was created with this name, on any thread of the process.
    pub fn named_pool(&self, name: &str) -> Option<Pool> {
        self.0.pools.lock().pools.get(name).map(|named| named.pool.clone())
    }
}

/// Waits for all jobs of all pools, until their results are read and the tasks that awaited them are polled, but not beyond
/// `deadline`: then the process exits with jobs still running.
pub(crate) async fn drain_pools(
    state: &LocalWorkerState,
    user: PoolUser,
    deadline: impl Future<Output = ()>,
) {
    let pools = Arc::clone(&user.0);
    // Closes the pools if all other event loops of the process have drained.
    drop(user);
    let runtime = state.serving_threads.get().map(|threads| threads.runtime.clone());
    tokio::select! {
        biased;
        () = wait_until_drained(&pools, runtime.as_ref()) => return,
        () = deadline => {}
    }
    let all = pools.all_pools();
    let running: usize = all.iter().map(DrainedPool::abort).sum();
    let unread: usize = all.iter().map(DrainedPool::unread_results).sum();
    let returned = wait_until_drained(&pools, None);
    if tokio::time::timeout(CANCELLED_JOB_GRACE, returned).await.is_err() {
        all.iter().for_each(DrainedPool::cut_running_jobs);
    }
    let _ = tokio::time::timeout(CANCELLED_JOB_GRACE, poll_tasks(runtime.as_ref())).await;
    if running == 0 && unread == 0 {
        return;
    }
    let running = Count(running as u64, "running job");
    log::warn!(
        "{} abandoned {running} at the graceful timeout; unread_results={unread}",
        state.tag
    );
}

async fn wait_until_drained(pools: &WorkerPools, runtime: Option<&Handle>) {
    loop {
        let all = pools.all_pools();
        if pools.loops.load(Ordering::Acquire) == 0 {
            // One may have been created while the others were closed.
            all.iter().for_each(DrainedPool::close);
        }
        for pool in &all {
            pool.wait_until_drained().await;
        }
        // The job of one pool may have used another one that had ended before.
        if all.iter().all(DrainedPool::is_drained) {
            return poll_tasks(runtime).await;
        }
    }
}

/// Lets the event loop, and the threads of `runtime`, poll the tasks that are ready.
async fn poll_tasks(runtime: Option<&Handle>) {
    for _ in 0..POLL_ROUNDS {
        tokio::task::yield_now().await;
    }
    if let Some(runtime) = runtime {
        // At the timeout a handler blocks its thread.
        let _ = tokio::time::timeout(POLL_TIMEOUT, wait_until_parked(runtime)).await;
    }
}

/// Waits until each thread of a runtime was seen without work, so that what it polled before is done.
async fn wait_until_parked(runtime: &Handle) {
    let metrics = runtime.metrics();
    // Increases when a thread goes to sleep, and again when it wakes up: odd while it sleeps.
    let counts = || (0..metrics.num_workers()).map(|n| metrics.worker_park_unpark_count(n));
    let before: Vec<u64> = counts().collect();
    let has_parked = |(before, now): (&u64, u64)| now % 2 == 1 || now != *before;
    while !before.iter().zip(counts()).all(has_parked) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_parked_only_after_the_poll_that_was_under_way() {
        let busy = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let busy = busy.expect("runtime");
        let ((started, has_started), (release, released)) =
            (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        busy.spawn(async move {
            let _ = started.send(());
            let _ = released.recv_timeout(Duration::from_secs(20));
        });
        has_started.recv_timeout(Duration::from_secs(20)).expect("started");
        let own = tokio::runtime::Builder::new_current_thread().enable_time().build();
        own.expect("runtime").block_on(async {
            let waiting = wait_until_parked(busy.handle());
            let mut waiting = std::pin::pin!(waiting);
            let early = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
            assert!(early.is_err(), "the task is still polled");
            let _ = release.send(());
            tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("parked");
        });
    }
}
