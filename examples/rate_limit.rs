//! Rate limits over all workers: bursts of 5 requests and one per second, for all clients of `/` together, and for each client
//! of the other paths.
//!
//! ```text
//! cargo run --example rate_limit -- 127.0.0.1:3000
//! for i in $(seq 8); do curl http://127.0.0.1:3000/; done          # five are admitted
//! for i in $(seq 8); do curl http://127.0.0.1:3000/mine; done      # five more are admitted, and as many from elsewhere
//! ```
//!
//! Behind a proxy, give its address as the second argument, such as 10.0.0.0/8: then a client is the one that the proxy names.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{
    ClientInfo, Cluster, Config, Error, KeyedRateLimiter, Main, RateLimiter, SharedCounter,
    TrustedProxies, Worker,
};

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let proxies = std::env::args().nth(2).unwrap_or_default().parse::<TrustedProxies>();
    let proxies =
        proxies.map_err(|e| Error::application("read the addresses of the proxies", e))?;
    let config = Config::builder().listen(&address)?.trusted_proxies(proxies).build()?;
    // Shared state is declared before the fork, so that all workers share it. `prefork status` shows the counter.
    let all = RateLimiter::new("all", 1, Duration::from_secs(1), 5)?;
    let each = KeyedRateLimiter::new("each", 1, Duration::from_secs(1), 5, 10_000)?;
    let refused = SharedCounter::new("refused_total")?;
    Cluster::new(config).serve(move |_: Worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let admitted = match request.uri().path() {
                "/" => all.try_acquire(1),
                _ => each.try_acquire(&ClientInfo::of(&request).client().rate_limit_key(), 1),
            };
            let mut response = Response::new(Full::new(Bytes::from("welcome\n")));
            if let Err(why) = admitted {
                refused.add(1);
                let wait = why.retry_after().unwrap_or_default().as_millis();
                let text = format!("retry in {wait} ms; {} were refused\n", refused.value());
                *response.body_mut() = Full::new(Bytes::from(text));
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            }
            async move { Ok::<_, Infallible>(response) }
        }))
    })
}
