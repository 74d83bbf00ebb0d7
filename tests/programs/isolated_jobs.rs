//! An application that runs the isolated job that the path of a request names.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use nix::sys::signal::{Signal, raise};
use tokio_prefork::isolated::OnAbandon;
use tokio_prefork::{Cluster, IsolatedJobError, IsolatedPool, IsolatedPoolConfig, Result, Worker};

use super::ProgramArguments;

/// `processes=N` isolated processes, `waiting=N` queued jobs, `max-rss-mib=N` memory for each process, a `deadline-ms=N`, and `on-abandon=finish`.
pub(super) fn isolated_jobs(arguments: ProgramArguments) -> Result<()> {
    let number = |key: &str| arguments.value(key).ok().and_then(|text| text.parse::<u64>().ok());
    let processes = number("processes").unwrap_or(1) as u32;
    let waiting = number("waiting").unwrap_or(8) as usize;
    let mut pool = IsolatedPoolConfig::new("danger", processes).nice(0).queue(waiting);
    if let Some(mib) = number("max-rss-mib") {
        pool = pool.max_rss(mib << 20);
    }
    if arguments.value("on-abandon").is_ok_and(|text| text == "finish") {
        pool = pool.on_abandon(OnAbandon::Finish);
    }
    if let Some(ms) = number("deadline-ms") {
        pool = pool.deadline(Duration::from_millis(ms));
    }
    let pools = TestPools {
        danger: IsolatedPool::new(pool, || Ok(()), |(), job: String| perform_job(&job)),
        unregistered: IsolatedPool::new(
            IsolatedPoolConfig::new("unregistered", 1),
            || Ok(()),
            |(), job| Ok(job),
        ),
    };
    let cluster = Cluster::new(arguments.config).isolated_pool(&pools.danger);
    cluster.serve(move |_: Worker| {
        let pools = pools.clone();
        async move {
            Ok(service_fn(move |request: Request<Incoming>| {
                let pools = pools.clone();
                async move {
                    let answer = run_job(&pools, request.uri().path()).await;
                    let text = answer.unwrap_or_else(|e| format!("{e:?}"));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        }
    })
}

#[derive(Clone)]
struct TestPools {
    danger: IsolatedPool<String, String>,
    /// Not given to the cluster.
    unregistered: IsolatedPool<String, String>,
}

/// Runs the job of the path `/JOB/MILLISECONDS`.
async fn run_job(pools: &TestPools, path: &str) -> std::result::Result<String, IsolatedJobError> {
    let mut words = path.trim_start_matches('/').split('/');
    let job = words.next().unwrap_or_default();
    if job.is_empty() {
        return Ok(std::process::id().to_string());
    }
    if job == "status" {
        let figures = serde_json::to_string(&pools.danger.status());
        return Ok(figures.unwrap_or_else(|e| e.to_string()));
    }
    let limit = words.next().and_then(|ms| ms.parse().ok()).unwrap_or(20_000);
    let pool = if job == "unknown" { &pools.unregistered } else { &pools.danger };
    pool.job(job.to_string()).timeout(Duration::from_millis(limit)).await
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn perform_job(job: &str) -> std::result::Result<String, String> {
    match job {
        "segv" => {
            // Twice: the stack overflow handler of std ignores the first signal and removes itself.
            for _ in 0..2 {
                raise(Signal::SIGSEGV).map_err(|e| e.to_string())?;
            }
            park_forever()
        }
        "hang" => {
            eprintln!("a job hangs");
            park_forever()
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
                    park_forever()
                }
            }
        }
        "panic" => panic!("the job has had enough"),
        "error" => Err("no".to_string()),
        "exit" => std::process::exit(37),
        other => Ok(format!("{other} by {}", std::process::id())),
    }
}

fn park_forever() -> ! {
    loop {
        std::thread::park();
    }
}
