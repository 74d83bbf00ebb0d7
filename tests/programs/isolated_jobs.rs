//! Isolated workers: a worker that serves has the job done that the path of a request names, and answers with what came
//! of it.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::signal::{Signal, raise};
use tokio_prefork::{Cluster, Isolated, IsolatedError, Result, Worker};

use super::Told;

/// `processes=N` of them, `waiting=N` jobs may wait, and with `max-rss-mib=N` they may use so much.
pub(super) fn isolated(told: Told) -> Result<ExitCode> {
    let number = |key: &str| told.value(key).ok().and_then(|text| text.parse::<u64>().ok());
    let processes = number("processes").unwrap_or(1) as u32;
    let waiting = number("waiting").unwrap_or(8) as usize;
    let mut pool = Isolated::new("danger", processes).queue(waiting);
    if let Some(mib) = number("max-rss-mib") {
        pool = pool.max_rss(mib << 20);
    }
    if let Some(ms) = number("deadline-ms") {
        pool = pool.deadline(Duration::from_millis(ms));
    }
    Cluster::new(told.config).isolated(pool, work).serve(|worker: Worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let worker = worker.clone();
            async move {
                let said = ask(&worker, request.uri().path()).await;
                let text = said.unwrap_or_else(|e| format!("{e:?}"));
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            }
        }))
    })
}

/// `/JOB/LIMIT-MS`.
async fn ask(worker: &Worker, path: &str) -> std::result::Result<String, IsolatedError> {
    let mut words = path.trim_start_matches('/').split('/');
    let job = words.next().unwrap_or_default();
    if job.is_empty() {
        return Ok(std::process::id().to_string());
    }
    let limit = words.next().and_then(|ms| ms.parse().ok()).unwrap_or(20_000);
    let name = if job == "nobody" { "nobody" } else { "danger" };
    worker.isolated(name)?.run(job, Duration::from_millis(limit)).await
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn work(job: String) -> std::result::Result<String, String> {
    match job.as_str() {
        "segv" => {
            // Twice: std has a handler for stack overflows, which lets the first one pass and removes itself.
            for _ in 0..2 {
                raise(Signal::SIGSEGV).map_err(|e| e.to_string())?;
            }
            wait_for_ever()
        }
        "hang" => {
            eprintln!("a job hangs");
            wait_for_ever()
        }
        "barrier" => {
            eprintln!("a job waits for the barrier");
            while std::fs::metadata("barrier").is_err() {
                std::thread::yield_now();
            }
            Ok("through the barrier".to_string())
        }
        "leak" => {
            let mut all = Vec::new();
            loop {
                all.push(vec![1u8; 8 << 20]);
                if all.len() == 32 {
                    wait_for_ever()
                }
            }
        }
        "panic" => panic!("the job has had enough"),
        "error" => Err("no".to_string()),
        "exit" => std::process::exit(37),
        other => Ok(format!("{other} by {}", std::process::id())),
    }
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
