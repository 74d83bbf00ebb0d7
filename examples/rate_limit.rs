//! One limit over all workers: 5 requests at once and one a second, whichever worker they reach, and as much for each name.
//!
//! ```text
//! cargo run --example rate_limit -- 127.0.0.1:3000
//! for i in $(seq 8); do curl http://127.0.0.1:3000/; done          # five are welcome
//! for i in $(seq 8); do curl http://127.0.0.1:3000/alice; done     # and five of alice's
//! ```

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{Cluster, Config, KeyedRateLimiter, RateLimiter, SharedCounter, Worker};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Declared here, before the fork, these are the same in all workers; `prefork status` shows the counter.
    let all = RateLimiter::new("all", 1, Duration::from_secs(1), 5)?;
    let each = KeyedRateLimiter::new("each", 1, Duration::from_secs(1), 5, 10_000)?;
    let refused = SharedCounter::new("refused_total")?;
    Cluster::new(config).serve(move |_: Worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let admitted = match request.uri().path() {
                "/" => all.try_acquire(1),
                name => each.try_acquire(name.as_bytes(), 1),
            };
            let mut response = Response::new(Full::new(Bytes::from("welcome\n")));
            if let Err(why) = admitted {
                refused.add(1);
                let wait = why.retry_after().unwrap_or_default().as_millis();
                let text = format!("come back in {wait} ms; {} were refused\n", refused.value());
                *response.body_mut() = Full::new(Bytes::from(text));
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            }
            async move { Ok::<_, Infallible>(response) }
        }))
    })
}
