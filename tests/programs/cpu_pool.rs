//! An application that runs jobs on the CPU pool and beside it.

use std::convert::Infallible;
use std::process::Command;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{BoxError, Cluster, Result, Worker, WorkerKind};

use super::ProgramArguments;

/// Serves the paths of [`run_path`]. A worker of the kind `background` writes the signals of a child to the file `kind-signals`.
pub(super) fn cpu_pool(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config)
        .kind(WorkerKind::new("background", 1), |worker: Worker| async move {
            std::fs::write("kind-signals.tmp", child_signals())?;
            std::fs::rename("kind-signals.tmp", "kind-signals")?;
            worker.draining().await;
            Ok(())
        })
        .serve(|worker: Worker| async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let worker = worker.clone();
                async move {
                    let path = request.uri().path().to_string();
                    let answer = run_path(&worker, &path).await;
                    let text = answer.unwrap_or_else(|e| format!("error: {e}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

/// Returns the blocked and the ignored signals of a program that the calling thread starts.
fn child_signals() -> String {
    let output = Command::new("cat").arg("/proc/self/status").output().expect("cat");
    let status = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = status.lines().filter(|line| ["SigBlk", "SigIgn"].contains(&&line[..6]));
    lines.collect::<Vec<_>>().join(" ")
}

async fn run_path(worker: &Worker, path: &str) -> std::result::Result<String, BoxError> {
    match path {
        "/signals/loop" => Ok(child_signals()),
        "/signals/pool" => Ok(worker.pool().run(child_signals).await?),
        "/signals/blocking" => Ok(tokio::task::spawn_blocking(child_signals).await?),
        _ => Ok("unknown path".to_string()),
    }
}
