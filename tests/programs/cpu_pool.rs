//! An application that runs jobs on all kinds of pools, and beside them.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::isolated::{IsolatedPool, IsolatedPoolConfig};
use tokio_prefork::pool::{Pool, PoolConfig, TaskPool};
use tokio_prefork::{BoxError, Cluster, ConcurrencyModel, Result, Worker, WorkerKind};

use super::ProgramArguments;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The file that jobs wait for.
const RELEASE: &str = "release";

/// The pools of the application. At normal priority: niced threads may starve on a busy machine.
#[derive(Clone)]
struct Pools {
    worker: Worker,
    /// One with a name.
    images: Pool,
    /// One that the worker does not know.
    own: Pool,
    tasks: TaskPool<u32, u32, String>,
    isolated: IsolatedPool<(), String, String>,
}

/// A state that records its end.
struct State;

impl Drop for State {
    fn drop(&mut self) {
        record("state dropped");
    }
}

fn config() -> PoolConfig {
    PoolConfig::new().threads(1).nice(0)
}

/// Serves the paths of [`run_path`] under the model of the configuration. With `model-state=broken`, the state of a pool cannot be made.
///
/// A worker of the kind `background` writes the signals of a child to the file `kind-signals`, and leaves a job behind when it ends.
pub(super) fn cpu_pool(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let is_broken = arguments.value("model-state").is_ok_and(|state| state == "broken");
    // Without other workers, an error of the first boot ends the cluster.
    let others = u32::from(!is_broken);
    let isolated = IsolatedPool::new(
        IsolatedPoolConfig::new("signals", 1),
        || Ok(()),
        |(): &mut (), (): ()| Ok::<_, String>(child_signals()),
    );
    let cluster = match is_broken {
        true => Cluster::new(arguments.config),
        false => Cluster::new(arguments.config).isolated_pool(&isolated),
    };
    let cluster =
        cluster.kind(WorkerKind::new("background", others), |worker: Worker| async move {
            std::fs::write("kind-signals.tmp", child_signals())?;
            std::fs::rename("kind-signals.tmp", "kind-signals")?;
            worker.draining().await;
            worker.pool().run(|| record("job of the kind")).detach()?;
            Ok(())
        });
    let boot = move |worker: Worker| {
        let isolated = isolated.clone();
        async move {
            let make_state = move || if is_broken { Err("no model".into()) } else { Ok(State) };
            let work = |_: &mut State, n: u32| {
                wait_for_release();
                Ok::<_, String>(n)
            };
            let pools = Pools {
                images: worker.create_pool("images", config())?,
                tasks: worker.create_task_pool("tasks", config(), make_state, work).await?,
                own: Pool::new(config()),
                worker,
                isolated,
            };
            Ok(service(pools))
        }
    };
    if is_threads { cluster.serve_threads(boot) } else { cluster.serve(boot) }
}

type Text = Response<Full<Bytes>>;

fn service(
    pools: Pools,
) -> impl Service<
    Request<Incoming>,
    Response = Text,
    Error = Infallible,
    Future = impl Future<Output = std::result::Result<Text, Infallible>> + Send,
> + Send
+ Sync {
    service_fn(move |request: Request<Incoming>| {
        let pools = pools.clone();
        async move {
            let answer = run_path(pools, request.uri().path()).await;
            let text = answer.unwrap_or_else(|e| format!("error: {e}"));
            Ok(Response::new(Full::new(Bytes::from(text))))
        }
    })
}

async fn run_path(pools: Pools, path: &str) -> std::result::Result<String, BoxError> {
    let worker = &pools.worker;
    match path {
        "/signals/loop" => Ok(child_signals()),
        "/signals/pool" => Ok(worker.pool().run(child_signals).await?),
        "/signals/blocking" => Ok(tokio::task::spawn_blocking(child_signals).await?),
        "/signals/isolated" => Ok(pools.isolated.run(()).await?),
        "/background" => {
            submit_in_background(&pools);
            Ok("submitted".to_string())
        }
        "/late" => {
            wait_for_file(RELEASE).await;
            Ok(worker.pool().run(|| 6 * 7).await?.to_string())
        }
        "/thread" => {
            let job = || format!("{:?}", std::thread::current().id());
            Ok(worker.pool().run(job).await?)
        }
        "/nested" => {
            let pool = pools.images.clone();
            let nested = move || pool.run(|| 1).wait().map_err(|e| e.to_string());
            Ok(format!("{:?}", pools.images.run(nested).await?))
        }
        _ => Ok("unknown path".to_string()),
    }
}

/// Submits a job to each pool. Tasks that nobody waits for record the results.
fn submit_in_background(pools: &Pools) {
    let job = |n: u32| {
        move || {
            wait_for_release();
            n
        }
    };
    record_result("default", pools.worker.pool().run(job(1)));
    record_result("images", pools.images.run(job(2)));
    record_result("own", pools.own.run(job(3)));
    record_result("tasks", pools.tasks.run(4));
    record_result("queued", pools.images.run(job(5)));
    let detached = pools.worker.pool().run(|| record("detached"));
    detached.detach().expect("room in the queue");
}

fn record_result<E: std::fmt::Debug>(
    name: &'static str,
    result: impl Future<Output = std::result::Result<u32, E>> + Send + 'static,
) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let result = result.await;
        let _ = sender.send(result.map_or_else(|e| verdict_name(&e), |n| n.to_string()));
    });
    // Two more tasks that the result wakes one after the other.
    tokio::spawn(async move {
        if let Ok(text) = receiver.await {
            tokio::spawn(async move { record(&format!("{name} {text}")) });
        }
    });
}

/// Returns the name of the variant of a verdict.
fn verdict_name(error: &impl std::fmt::Debug) -> String {
    let text = format!("{error:?}");
    let text = text.trim_start_matches("Pool(");
    text.split([' ', ')']).next().unwrap_or_default().to_string()
}

/// Appends a line to the file `events`, in one write.
fn record(event: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open("events");
    let mut file = file.expect("the file of events");
    file.write_all(format!("{event}\n").as_bytes()).expect("write an event");
}

/// Returns the blocked and the ignored signals of a program that the calling thread starts.
fn child_signals() -> String {
    let output = Command::new("cat").arg("/proc/self/status").output().expect("cat");
    let status = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = status.lines().filter(|line| ["SigBlk", "SigIgn"].contains(&&line[..6]));
    lines.collect::<Vec<_>>().join(" ")
}

/// Blocks until the test creates the file, or for good if it never does.
fn wait_for_release() {
    let (_sender, never) = std::sync::mpsc::channel::<()>();
    let deadline = Instant::now() + TIMEOUT;
    while !Path::new(RELEASE).exists() && Instant::now() < deadline {
        let _ = never.recv_timeout(Duration::from_millis(5));
    }
}

async fn wait_for_file(name: &str) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !Path::new(name).exists() {
        ticks.tick().await;
    }
}
