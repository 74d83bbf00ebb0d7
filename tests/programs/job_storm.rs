//! An application whose workers submit isolated jobs with random ends, and note each step of every job in files, for the laws of
//! jobs under faults: see `tests/it/job_storm.rs`.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio_prefork::isolated::{IsolatedJobError, IsolatedPool, IsolatedPoolConfig, Priority};
use tokio_prefork::{Cluster, ConcurrencyModel, Result, Worker};

use super::ProgramArguments;

/// How many jobs each worker has in progress.
const CONCURRENT_JOBS: usize = 8;

/// Numbers the tasks that submit jobs, in all threads of the process.
static NEXT_LANE: AtomicUsize = AtomicUsize::new(0);

/// How a job ends, and what its caller does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum JobEnd {
    Succeed,
    SucceedLater,
    Fail,
    Panic,
    ExitWithSuccess,
    ExitWithFailure,
    Abort,
    ExceedItsTime,
    BeDropped,
}

impl JobEnd {
    /// Most jobs succeed.
    fn from_random(number: u64) -> JobEnd {
        match number % 20 {
            0..=8 => JobEnd::Succeed,
            9..=11 => JobEnd::SucceedLater,
            12 | 13 => JobEnd::Fail,
            14 => JobEnd::Panic,
            15 => JobEnd::ExitWithSuccess,
            16 => JobEnd::ExitWithFailure,
            17 => JobEnd::Abort,
            18 => JobEnd::ExceedItsTime,
            _ => JobEnd::BeDropped,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct StormJob {
    id: String,
    end: JobEnd,
}

/// A file to which every process appends whole lines.
#[derive(Clone)]
struct Notes(Arc<File>);

impl Notes {
    fn open(name: &str) -> Result<Notes> {
        let file = File::options().create(true).append(true).open(name);
        let file = file.map_err(|e| tokio_prefork::Error::system(format!("open {name}"), e))?;
        Ok(Notes(Arc::new(file)))
    }

    /// One write(2), which no other process can split.
    fn add(&self, line: &str) {
        if let Err(e) = (&*self.0).write_all(format!("{line}\n").as_bytes()) {
            log::error!("cannot note {line:?}: {e}");
        }
    }
}

/// `processes=N` isolated processes. Notes are in the current directory: `callers`, `jobs`.
pub(super) fn job_storm(arguments: ProgramArguments) -> Result<()> {
    let processes = arguments.value("processes")?.parse().unwrap_or(2);
    let (callers, jobs) = (Notes::open("callers")?, Notes::open("jobs")?);
    let config = IsolatedPoolConfig::new("storm", processes)
        .nice(0)
        .queue(12)
        .deadline(Duration::from_secs(20));
    let pool =
        IsolatedPool::new(config, || Ok(()), move |(): &mut (), job: StormJob| run(&jobs, &job));
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let cluster = Cluster::new(arguments.config).isolated_pool(&pool);
    let boot = move |worker: Worker| {
        let (pool, callers) = (pool.clone(), callers.clone());
        async move {
            for _ in 0..CONCURRENT_JOBS {
                let lane = NEXT_LANE.fetch_add(1, Ordering::Relaxed);
                let submitting = submit_jobs(worker.clone(), pool.clone(), callers.clone(), lane);
                worker.spawn("storm", submitting);
            }
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
            }))
        }
    };
    if is_threads { cluster.serve_threads(boot) } else { cluster.serve(boot) }
}

/// Runs a job in an isolated process.
#[expect(clippy::panic, reason = "panics are among the ends")]
fn run(notes: &Notes, job: &StormJob) -> std::result::Result<String, String> {
    notes.add(&format!("{} begin", job.id));
    match job.end {
        JobEnd::Panic => panic!("a job panics"),
        JobEnd::ExitWithSuccess => std::process::exit(0),
        JobEnd::ExitWithFailure => std::process::exit(3),
        JobEnd::Abort => std::process::abort(),
        JobEnd::ExceedItsTime => loop {
            std::thread::park();
        },
        JobEnd::SucceedLater | JobEnd::BeDropped => {
            std::thread::park_timeout(Duration::from_millis(10))
        }
        JobEnd::Succeed | JobEnd::Fail => {}
    }
    notes.add(&format!("{} end", job.id));
    if job.end == JobEnd::Fail { Err(job.id.clone()) } else { Ok(job.id.clone()) }
}

/// Submits jobs one after the other until the worker drains.
async fn submit_jobs(
    worker: Worker,
    pool: IsolatedPool<StormJob, String, String>,
    notes: Notes,
    lane: usize,
) {
    let mut random =
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(worker.pid()) + lane as u64 + 1);
    for number in 0_u64.. {
        if worker.is_draining() {
            return;
        }
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (id, end) = (format!("{}-{lane}-{number}", worker.pid()), JobEnd::from_random(random));
        notes.add(&format!("{id} submit {end:?}"));
        let limit = Duration::from_millis(if end == JobEnd::ExceedItsTime { 30 } else { 5000 });
        let priority = if random & 1 == 0 { Priority::High } else { Priority::Normal };
        let job = pool.job(StormJob { id: id.clone(), end }).timeout(limit).priority(priority);
        let waiting = async { job.await };
        let outcome = match end {
            JobEnd::BeDropped => tokio::time::timeout(Duration::from_millis(5), waiting).await.ok(),
            _ => Some(waiting.await),
        };
        notes.add(&format!("{id} verdict {}", describe(&id, outcome)));
        // Refusals come at once.
        tokio::task::yield_now().await;
    }
}

/// Describes an outcome in one word, followed by whether the caller was told that the job had begun.
fn describe(
    id: &str,
    outcome: Option<std::result::Result<String, IsolatedJobError<String>>>,
) -> String {
    let error = match outcome {
        None => return "dropped".to_string(),
        Some(Ok(answer)) => {
            return if answer == id { "done" } else { "wrong" }.to_string();
        }
        Some(Err(error)) => error,
    };
    let word = match &error {
        IsolatedJobError::Failed(text) if text == id => "failed",
        IsolatedJobError::Failed(_) => "wrong",
        IsolatedJobError::Panicked { .. } => "panicked",
        IsolatedJobError::Died { .. } => "died",
        IsolatedJobError::TimedOut { .. } => "timed-out",
        IsolatedJobError::Cut => "cut",
        IsolatedJobError::Full => "full",
        IsolatedJobError::Closed => "closed",
        IsolatedJobError::PrimaryGone => "primary-gone",
        other => return format!("unexpected {other:?}"),
    };
    format!("{word} {}", if error.has_begun() { "begun" } else { "not-begun" })
}
