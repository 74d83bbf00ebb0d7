//! An application that runs isolated jobs in all the ways in which they can be called. Each job writes its name to the file `journal`
//! when it begins.

use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::isolated::{JobContext, JobRequest, Priority};
use tokio_prefork::{
    BoxError, Cluster, ConcurrencyModel, IsolatedJobError, IsolatedPool, IsolatedPoolConfig,
    Result, Worker,
};

use super::ProgramArguments;

type Calls = IsolatedPool<String, String, JobFailure, u32>;
type CallResult = std::result::Result<String, IsolatedJobError<JobFailure>>;

/// An error type of the application.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct JobFailure {
    code: u32,
}

/// The state of a process.
struct ProcessState {
    jobs: u32,
}

/// `queue=N` jobs may wait; `init=fails` or `init=panics` is what the processes do.
pub(super) fn isolated_calls(arguments: ProgramArguments) -> Result<()> {
    let queue = arguments.value("queue").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    let init = arguments.value("init").unwrap_or_default();
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let calls = Calls::with_context(
        IsolatedPoolConfig::new("calls", 1).nice(0).queue(queue).max_payload_bytes(16 << 20),
        move || make_state(&init),
        run_job,
    );
    let cluster = Cluster::new(arguments.config).isolated_pool(&calls);
    let boot = move |worker: Worker| {
        let calls = calls.clone();
        async move { Ok(service(worker, calls)) }
    };
    if is_threads { cluster.serve_threads(boot) } else { cluster.serve(boot) }
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn make_state(init: &str) -> std::result::Result<ProcessState, BoxError> {
    match init {
        "fails" => Err("no model to load".into()),
        "panics" => panic!("no model to load"),
        _ => {
            write_journal("init");
            Ok(ProcessState { jobs: 0 })
        }
    }
}

fn write_journal(line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open("journal");
    // One write, so that lines of several processes do not mix.
    file.expect("a journal").write_all(format!("{line}\n").as_bytes()).expect("written");
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn run_job(
    state: &mut ProcessState,
    job: String,
    context: &JobContext<'_, u32>,
) -> std::result::Result<String, JobFailure> {
    write_journal(&job);
    state.jobs += 1;
    let (name, argument) = job.split_once('-').unwrap_or((&job, ""));
    let number = argument.parse().unwrap_or(0);
    match name {
        "wait" => {
            wait_for_file(argument);
            Ok(format!("waited for {argument}"))
        }
        "exit" => {
            wait_for_file("exit");
            std::process::exit(number as i32)
        }
        "abort" => std::process::abort(),
        "panic" => panic!("a job panics"),
        "fail" => Err(JobFailure { code: number as u32 }),
        "sleep" => {
            std::thread::park_timeout(Duration::from_millis(number));
            Ok(format!("slept {number}"))
        }
        "count" => Ok(format!("job {}", state.jobs)),
        "progress" => {
            for percent in 0..number as u32 {
                context.report(&percent).expect("a report");
            }
            Ok("done".to_string())
        }
        "left" => Ok(format!("{}", context.time_left() > Duration::ZERO)),
        "big" => Ok("x".repeat(number as usize)),
        _ => Ok(job),
    }
}

fn wait_for_file(name: &str) {
    while std::fs::metadata(name).is_err() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn service(
    worker: Worker,
    calls: Calls,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future = impl Future<Output = std::result::Result<Response<Full<Bytes>>, Infallible>> + Send,
> + Send
+ Sync {
    service_fn(move |request: Request<Incoming>| {
        let (worker, calls) = (worker.clone(), calls.clone());
        async move {
            let text = match call(&worker, &calls, request.uri().path()).await {
                Ok(text) => format!("ok {text}"),
                Err(error) => format!("error begun={} {error:?}", error.has_begun()),
            };
            Ok(Response::new(Full::new(Bytes::from(text))))
        }
    })
}

/// Handles the path `/HOW/JOB`.
async fn call(worker: &Worker, calls: &Calls, path: &str) -> CallResult {
    let (how, job) = path.trim_start_matches('/').split_once('/').unwrap_or(("pid", ""));
    let request = || calls.job(job.to_string());
    match how {
        "pid" => Ok(worker.pid().to_string()),
        "run" => calls.run(job.to_string()).await,
        "short" => request().timeout(Duration::from_millis(200)).await,
        "high" => request().priority(Priority::High).await,
        "room" => request().when_room().await,
        "big" => {
            calls.run("x".repeat(job.parse().unwrap_or(0))).await.map(|text| text.len().to_string())
        }
        "try" => request().try_run().await.map_err(|refused| {
            assert_eq!(refused.input.is_some(), !refused.error.has_begun());
            refused.error
        }),
        "detach" => request().detach().map(|()| "detached".to_string()),
        "start-detach" => {
            request().start().detach();
            Ok("detached".to_string())
        }
        "drop" => {
            drop(request().start());
            Ok("dropped".to_string())
        }
        "progress" => {
            let mut handle = request().start();
            let mut reports = String::new();
            while let Some(percent) = handle.next_progress().await {
                reports += &format!("{percent} ");
            }
            Ok(reports + &handle.await?)
        }
        "wait-loop" => request().wait(),
        "wait-pool" => wait_in_pool(worker, request()).await,
        "wait-blocking" => {
            let request = request();
            tokio::task::spawn_blocking(move || request.wait()).await.expect("no panic")
        }
        "wait-thread" => {
            let (request, (done, result)) = (request(), tokio::sync::oneshot::channel());
            std::thread::spawn(move || done.send(request.wait()));
            result.await.expect("a result")
        }
        _ => Ok(format!("no such call: {how}")),
    }
}

async fn wait_in_pool(
    worker: &Worker,
    request: JobRequest<String, String, JobFailure, u32>,
) -> CallResult {
    worker.pool().run(move || request.wait()).await.expect("no panic")
}
