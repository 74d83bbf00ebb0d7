//! The lines of code in the tables of `docs/src/cpu-bound-work.md`: what users of Piscina, `worker_threads` and
//! `ProcessPoolExecutor` write here. `tests/it/documentation.rs` searches for each of them, and `tests/it/cpu_bound_work.rs` runs
//! them: `/piscina`, `/worker_threads` and `/process_pool_executor`.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::isolated::{IsolatedPools, JobContext, MappedBytes};
use tokio_prefork::pool::{
    CancelFlag, Pool, PoolConfig, PoolError, Priority, TaskPool, cancellable_job,
};
use tokio_prefork::{
    BoxError, Cluster, IsolatedJobError, IsolatedPool, IsolatedPoolConfig, PrimaryHandle, Result,
    SharedBytes, SharedFlag, SharedLocks, SharedNumber, Worker,
};

use super::ProgramArguments;

const TIMEOUT: Duration = Duration::from_secs(10);

type Thumbnails = IsolatedPool<Vec<u8>, usize, String>;

/// What the handlers use.
#[derive(Clone)]
struct Api {
    worker: Worker,
    tasks: TaskPool<String, usize, String>,
    thumbnails: Thumbnails,
    frames: IsolatedPool<MappedBytes, usize>,
    exports: IsolatedPool<u32, u32, String, u32>,
    shared: Shared,
}

/// What all processes share.
#[derive(Clone, Copy)]
struct Shared {
    jobs: SharedNumber,
    flag: SharedFlag,
    frame: SharedBytes,
    locks: SharedLocks,
}

/// Stands for a model that takes long to load.
struct Model(usize);

fn load_model() -> std::result::Result<Model, BoxError> {
    Ok(Model(2))
}

fn score(model: &mut Model, text: String) -> std::result::Result<usize, String> {
    Ok(model.0 * text.len())
}

fn sum(numbers: &[u64]) -> u64 {
    numbers.iter().sum()
}

fn shrink(model: &mut Model, picture: Vec<u8>) -> std::result::Result<usize, String> {
    match picture.first() {
        None => Err("an empty picture".to_string()),
        Some(b'!') => std::process::exit(3),
        Some(_) => Ok(picture.len() / model.0),
    }
}

pub(super) fn cpu_bound_api(arguments: ProgramArguments) -> Result<()> {
    let shared = Shared {
        jobs: SharedNumber::new("jobs")?,
        flag: SharedFlag::new("flag")?,
        frame: SharedBytes::new("frame", 1 << 20)?,
        locks: SharedLocks::new("customers")?,
    };
    let thumbnails =
        IsolatedPool::new(IsolatedPoolConfig::new("thumbnails", 4), load_model, shrink);
    let isolated = IsolatedPoolConfig::new("frames", 1..=2);
    let isolated = isolated.max_data_bytes(256 << 20);
    let isolated = isolated.max_jobs(100);
    let isolated = isolated.queue(1000);
    let frames = IsolatedPool::new(isolated, || Ok(()), |_, frame: MappedBytes| Ok(frame.len()));
    let exports = IsolatedPool::with_context(
        IsolatedPoolConfig::new("exports", 1),
        || Ok(()),
        |_, rows, job: &JobContext<u32>| {
            job.report(&50).map_err(|e| e.to_string())?;
            Ok(rows)
        },
    );
    let load = || Ok(vec![1u8; 4096]);
    let mut cluster = Cluster::new(arguments.config);
    let model = cluster.preload(load);
    cluster
        .isolated_pool(&thumbnails)
        .isolated_pool(&frames)
        .isolated_pool(&exports)
        .on_message("stop", |primary, _, _| stop(primary))
        .serve(move |worker: Worker| {
            let (thumbnails, frames, exports) =
                (thumbnails.clone(), frames.clone(), exports.clone());
            async move {
                let config = PoolConfig::new().threads(2);
                let tasks = worker.create_task_pool("scores", config, load_model, score).await?;
                let api = Api { worker, tasks, thumbnails, frames, exports, shared };
                Ok(service_fn(move |request| handle_request(api.clone(), model.len(), request)))
            }
        })
}

/// A script has no cluster. Never called here, as a program with a cluster must not start another primary.
#[expect(dead_code, reason = "for the compiler only")]
fn run_script(thumbnails: Thumbnails) -> Result<()> {
    let pools = IsolatedPools::new().pool(&thumbnails).start()?;
    pools.stop()
}

fn stop(primary: &mut PrimaryHandle<'_>) {
    primary.stop();
}

async fn handle_request(
    api: Api,
    preloaded: usize,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, BoxError> {
    let done = match request.uri().path() {
        "/piscina" => call_like_piscina(&api).await,
        "/worker_threads" => call_like_worker_threads(&api).await,
        "/process_pool_executor" => call_like_process_pool_executor(&api).await,
        _ => Err(format!("unknown; {preloaded} bytes are preloaded").into()),
    };
    let text = done.map_or_else(|e| format!("failed: {e}\n"), |()| "done\n".to_string());
    Ok(Response::new(Full::new(Bytes::from(text))))
}

fn search(wanted: u64, flag: &CancelFlag<'_>) -> bool {
    wanted > 0 && !flag.is_set()
}

#[rustfmt::skip]
fn settings() -> PoolConfig {
    let config = PoolConfig::new().threads(4).min_threads(1);
    let config = config.idle_timeout(Duration::from_secs(10));
    let config = config.queue(64);
    let config = config.nice(10);
    config.stack_bytes(8 << 20)
}

#[rustfmt::skip]
async fn call_like_piscina(api: &Api) -> std::result::Result<(), BoxError> {
    let (worker, tasks, thumbnails, frames) = (&api.worker, &api.tasks, &api.thumbnails, &api.frames);
    let config = settings();
    // Of the name only one.
    let images = worker.create_pool("images", config);
    let pool = worker.pool();
    let numbers = vec![1u64, 2, 3];
    let sum = pool.run(move || sum(&numbers)).await?;
    let text = "text".to_string();
    let score = tasks.run(text).await?;
    let work = move || sum + score as u64;
    expect(pool.run(work).await?, 14)?;
    let job = pool.run(work);
    drop(job);
    expect(pool.run(cancellable_job(|flag| search(2, flag))).await?, true)?;
    let thumbnail = thumbnails.job(vec![1; 64]).start();
    drop(thumbnail);
    pool.job(work).timeout(TIMEOUT).await?;
    pool.job(work).priority(Priority::High).await?;
    let buffer = vec![1u8; 1 << 20];
    let buffer = pool.run(move || buffer).await?;
    let frame = buffer;
    expect(frames.run(MappedBytes::copy_from_slice(&frame)?).await?, 1 << 20)?;
    pool.run_when_room(work).await?;
    match pool.try_run(work) {
        Ok(job) => drop(job.await?),
        Err(refused) => drop((refused.job)()),
    }
    let (progress, mut received) = tokio::sync::mpsc::channel(1);
    pool.run(move || progress.blocking_send(50)).await??;
    expect(received.recv().await, Some(50))?;
    let mut export = api.exports.job(7).start();
    let mut reports = 0;
    while let Some(percent) = export.next_progress().await { reports += percent }
    expect((reports, export.await?), (50, 7))?;
    match pool.run(|| -> u64 { panic!("a bad job") }).await {
        Err(PoolError::Panicked { message, location, .. }) => log::info!("{message} at {location:?}"),
        other => return Err(format!("{other:?}").into()),
    }
    let percentiles = (pool.status().run_quantile(0.99), pool.status().wait_quantile(0.5));
    let status = pool.status();
    let counts = (status.done, status.depth);
    log::info!("{images:?} {percentiles:?} {counts:?} {}", status.utilisation);
    let pool = Pool::new(PoolConfig::new());
    pool.drain(TIMEOUT).await;
    drop(pool);
    Ok(())
}

#[rustfmt::skip]
async fn call_like_worker_threads(api: &Api) -> std::result::Result<(), BoxError> {
    let (worker, Shared { jobs, flag, frame, locks }) = (&api.worker, api.shared);
    let paths = vec!["a", "b"];
    let index = |paths: &[&str]| paths.len();
    let thread = std::thread::spawn(move || index(&paths));
    expect(thread.join().ok(), Some(2))?;
    let me = std::thread::current().id();
    let (requests, mut received) = tokio::sync::mpsc::channel(2);
    requests.send(1).await?;
    expect(received.try_recv(), Ok(1))?;
    let (answers, mut answered) = tokio::sync::oneshot::channel();
    answers.send(2).map_err(|_| "gone")?;
    expect(answered.try_recv(), Ok(2))?;
    let (requests, _received) = tokio::sync::mpsc::channel(1);
    let buffer = vec![1u8; 16];
    requests.send(buffer).await?;
    worker.broadcast("kind", &1).await?;
    let pixels = [7u8; 8];
    frame.write_at(4096, &pixels);
    frame.atomics()[3].store(5, SeqCst);
    expect(frame.atomics()[3].load(SeqCst), 5)?;
    drop(frame.lock(0..4096).await?);
    frame.notify_all();
    jobs.fetch_add(1);
    jobs.store(jobs.load() / 2);
    log::info!("{me:?} {:?}", jobs.compare_exchange(0, 1));
    jobs.store(1);
    expect(jobs.wait_while(0).await, 1)?;
    let waited = worker.pool().run(move || jobs.wait_while_blocking(0, TIMEOUT)).await?;
    expect(waited, Some(1))?;
    flag.set();
    flag.wait().await;
    let name = format!("customer {}", 7);
    drop(locks.lock(&name).await?);
    drop(locks.lock_shared(&name).await?);
    log::info!("{}", locks.try_lock(&name)?.is_some());
    log::info!("{}", worker.cluster_status().workers.len());
    Ok(())
}

#[rustfmt::skip]
async fn call_like_process_pool_executor(api: &Api) -> std::result::Result<(), BoxError> {
    let (pool, thumbnails) = (api.worker.pool(), api.thumbnails.clone());
    let picture = vec![1u8; 64];
    let thumbnail = thumbnails.job(picture).start();
    drop(thumbnail);
    let picture = vec![1u8; 64];
    expect(thumbnails.run(picture).await?, 32)?;
    let in_thread = thumbnails.clone();
    let waited = pool.run(move || {
        let (thumbnails, picture) = (in_thread, vec![1u8; 64]);
        let size = thumbnails.job(picture).wait()?;
        Ok::<_, IsolatedJobError>(size)
    });
    expect(waited.await??, 32)?;
    let picture = vec![1u8; 64];
    thumbnails.job(picture).timeout(TIMEOUT).await?;
    let picture = vec![1u8; 64];
    thumbnails.job(picture).detach()?;
    let picture = vec![1u8; 64];
    thumbnails.job(picture).when_room().await?;
    for input in ["", "!"] {
        match thumbnails.run(input.into()).await {
            Err(IsolatedJobError::Failed(error)) => expect(error.as_str(), "an empty picture")?,
            Err(IsolatedJobError::Died { code, signal }) => expect((code, signal), (Some(3), None))?,
            Err(IsolatedJobError::TimedOut { has_begun }) => return Err(format!("late {has_begun}").into()),
            other => return Err(format!("{other:?}").into()),
        }
    }
    let (numbers, square) = (1..=3u64, |n| n * n);
    let mut squares = pool.map(numbers, 8, square);
    let mut sum = 0;
    while let Some(square) = squares.next_result().await { sum += square? }
    expect(sum, 14)
}

fn expect<T: PartialEq + std::fmt::Debug>(
    found: T,
    wanted: T,
) -> std::result::Result<(), BoxError> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted:?}").into()) }
}
