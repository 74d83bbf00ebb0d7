//! Our own ways to run a job, each measured in a process of this program: the event loop, the pool and tokio's blocking
//! threads. `isolated_way` has the isolated processes.

use std::io::Write;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use super::program_plan::{
    CRASH_LINE, DONE_LINE, Measure, ProgramCosts, ProgramPlan, TransferSamples,
};
use super::{JobWay, isolated_way};
use tokio_prefork::pool::{Pool, PoolConfig};
use tokio_prefork::{BoxError, Error, Result};

/// Arguments that make this program measure one way; the name of the way and the plan follow.
pub const MEASURED_WAY_ARGS: [&str; 2] = ["demo", "job-way"];

/// How long the job runs that is in progress when another one aborts.
pub(super) const OTHER_JOB_TIME: Duration = Duration::from_millis(200);

type WayResult<T> = std::result::Result<T, BoxError>;

/// Runs in a process of its own: measures the way of this name as the plan says, and prints the figures. Call it before the
/// first thread of the process, as isolated processes are forked.
///
/// # Errors
/// The name or the plan is unknown, or a job fails.
pub fn run_measured_way(name: &str, plan: &str) -> Result<()> {
    let fail = |e: BoxError| Error::application(format!("measure jobs ({name})"), e);
    let plan: ProgramPlan = serde_json::from_str(plan).map_err(|e| fail(e.into()))?;
    match JobWay::ALL.into_iter().find(|way| way.name() == name) {
        Some(JobWay::EventLoop) => run_threaded_way(&EventLoop, &plan),
        Some(JobWay::Pool) => {
            let mut config = PoolConfig::default();
            config.threads = plan.threads;
            config.queue = plan.batch;
            run_threaded_way(&ThreadPool(Pool::new(config)), &plan)
        }
        Some(JobWay::SpawnBlocking) => run_threaded_way(&BlockingThreads, &plan),
        Some(JobWay::Isolated) => isolated_way::run(&plan),
        _ => Err("no way of ours".into()),
    }
    .map_err(fail)
}

/// A way to run closures in this process.
trait ThreadedWay {
    /// How data gets to the job and back.
    const TRANSFER: &str;

    /// Submits a job at once.
    fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = WayResult<T>> + 'static;
}

struct EventLoop;

impl ThreadedWay for EventLoop {
    const TRANSFER: &str = "event loop, Vec<u8> moved";

    fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = WayResult<T>> + 'static {
        let task = tokio::task::spawn_local(async move { job() });
        async move { Ok(task.await?) }
    }
}

struct ThreadPool(Pool);

impl ThreadedWay for ThreadPool {
    const TRANSFER: &str = "pool, Vec<u8> moved";

    fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = WayResult<T>> + 'static {
        let job = self.0.run(job);
        async move { Ok(job.await?) }
    }
}

struct BlockingThreads;

impl ThreadedWay for BlockingThreads {
    const TRANSFER: &str = "spawn_blocking, Vec<u8> moved";

    fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = WayResult<T>> + 'static {
        let task = tokio::task::spawn_blocking(job);
        async move { Ok(task.await?) }
    }
}

fn run_threaded_way<W: ThreadedWay>(way: &W, plan: &ProgramPlan) -> WayResult<()> {
    let empty = || way.submit(|| ());
    LocalSet::new().block_on(&build_runtime(plan)?, async {
        match plan.measure {
            Measure::Costs => {
                let mut data = vec![b'x'; plan.bytes];
                let transfer = async || {
                    let sent = std::mem::take(&mut data);
                    data = way.submit(move || sent).await?;
                    if data.len() == plan.bytes { Ok(()) } else { Err("data was lost".into()) }
                };
                let (one_by_one_us, bulk_us) = measure_empty_jobs(plan, empty).await?;
                let samples_us = sample(plan, transfer).await?;
                let transfers = vec![TransferSamples { how: W::TRANSFER.to_string(), samples_us }];
                print_line(&serde_json::to_string(&ProgramCosts {
                    one_by_one_us,
                    bulk_us,
                    transfers,
                })?)
            }
            Measure::Crash => {
                join(Vec::from_iter((0..plan.threads * 8).map(|_| empty()))).await?;
                // On the loop nothing else can run, so there all other jobs wait.
                let running = (W::TRANSFER != EventLoop::TRANSFER)
                    .then(|| way.submit(|| std::thread::sleep(OTHER_JOB_TIME)));
                print_line(CRASH_LINE)?;
                let aborted = way.submit(|| std::process::abort());
                let waiting: Vec<_> = (1..plan.other_jobs).map(|_| empty()).collect();
                join(waiting).await?;
                aborted.await?;
                drop(running);
                Err("the process is still there after an abort".into())
            }
            Measure::Next => {
                empty().await?;
                print_line(DONE_LINE)
            }
        }
    })
}

/// Builds the event loop of a way.
pub(super) fn build_runtime(plan: &ProgramPlan) -> WayResult<Runtime> {
    Ok(Builder::new_current_thread().max_blocking_threads(plan.threads).enable_all().build()?)
}

/// Measures empty jobs, one at a time and in batches. `submit` submits at once.
pub(super) async fn measure_empty_jobs<F: Future<Output = WayResult<()>>>(
    plan: &ProgramPlan,
    submit: impl Fn() -> F,
) -> WayResult<(Vec<f64>, Vec<f64>)> {
    let batch = async || join((0..plan.batch).map(|_| submit()).collect()).await;
    // Starts the threads.
    batch().await?;
    let one_by_one = sample(plan, async || submit().await).await?;
    let mut bulk = sample(plan, batch).await?;
    bulk.iter_mut().for_each(|time| *time /= plan.batch as f64);
    Ok((one_by_one, bulk))
}

/// Repeats a job until the plan's number of samples or its time is reached. Returns the times in microseconds.
pub(super) async fn sample(
    plan: &ProgramPlan,
    mut job: impl AsyncFnMut() -> WayResult<()>,
) -> WayResult<Vec<f64>> {
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_millis(plan.budget_ms);
    while times.len() < plan.samples && (times.len() < 3 || Instant::now() < end) {
        let begun = Instant::now();
        job().await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Waits for jobs that were submitted.
pub(super) async fn join<F: Future<Output = WayResult<()>>>(jobs: Vec<F>) -> WayResult<()> {
    for job in jobs {
        job.await?;
    }
    Ok(())
}

/// Prints a line for the program that started this one.
pub(super) fn print_line(line: &str) -> WayResult<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
