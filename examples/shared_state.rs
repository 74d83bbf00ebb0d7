//! State that all workers share: a counter, a rate limit, a cache, and a role that one worker has.
//!
//! ```text
//! cargo run --example shared_state -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/fib/30      # computed once, by whichever worker was asked first
//! curl http://127.0.0.1:3000/limited     # 5 at once and one a second, over all workers
//! curl http://127.0.0.1:3000/            # what all workers have done; who leads
//! ```
//!
//! Kill the worker that leads (`kill -9`), and ask `/` again: another one leads, and nothing is lost.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{
    Cluster, Config, Leadership, RateLimiter, SharedCache, SharedCounter, Worker, shared,
};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Declared here, before the fork, these are the same in all workers.
    let requests = SharedCounter::new("requests")?;
    let ticks = SharedCounter::new("ticks")?;
    let limit = RateLimiter::new("limit", 1, Duration::from_secs(1), 5)?;
    let cache = SharedCache::new("cache", 1000, 64)?;
    let cron = Leadership::new("cron")?;
    Cluster::new(config).serve(move |worker: Worker| async move {
        tokio::task::spawn_local(tick(worker.clone(), cron, ticks));
        Ok(service_fn(move |request: Request<Incoming>| {
            requests.add(1);
            let path = request.uri().path();
            let (status, text) = match path.strip_prefix("/fib/").map(str::parse) {
                Some(Ok(n @ 0..=40)) => (StatusCode::OK, cached(cache, n)),
                _ if path == "/limited" => limited(limit),
                _ if path == "/" => (StatusCode::OK, overview(&worker)),
                _ => (StatusCode::NOT_FOUND, "no such path\n".to_string()),
            };
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            async move { Ok::<_, Infallible>(response) }
        }))
    })
}

/// One worker of all does the work; when it dies or drains, another goes on.
async fn tick(worker: Worker, cron: Leadership, ticks: SharedCounter) {
    tokio::select! {
        led = cron.run_once(count(ticks)) => if let Err(e) = led { log::error!("{e}") },
        () = worker.draining() => {}
    }
}

async fn count(ticks: SharedCounter) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ticks.add(1);
    }
}

fn cached(cache: SharedCache, n: u32) -> String {
    let key = n.to_le_bytes();
    if let Some(found) = cache.get(&key) {
        return format!("{} (from the cache)\n", String::from_utf8_lossy(&found));
    }
    let computed = fib(n).to_string();
    // A cache that cannot take it now costs a computation more, and nothing else.
    let _ = cache.insert(&key, computed.as_bytes(), Some(Duration::from_secs(60)));
    format!("{computed} (computed)\n")
}

fn fib(n: u32) -> u64 {
    if n < 2 { n.into() } else { fib(n - 1) + fib(n - 2) }
}

fn limited(limit: RateLimiter) -> (StatusCode, String) {
    match limit.try_acquire(1) {
        Ok(()) => (StatusCode::OK, "welcome\n".to_string()),
        Err(refused) => {
            let wait = refused.retry_after().unwrap_or_default();
            (StatusCode::TOO_MANY_REQUESTS, format!("come back in {} ms\n", wait.as_millis()))
        }
    }
}

fn overview(worker: &Worker) -> String {
    let lines = shared::snapshot().into_iter().map(|m| format!("{}: {:?}\n", m.name, m.value));
    format!("answered by pid {}\n{}", worker.pid(), lines.collect::<String>())
}
