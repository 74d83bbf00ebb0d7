//! One worker of all does what must be done once: a cron, a consumer. When it dies or drains, another one goes on.
//!
//! ```text
//! cargo run --example leader -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/            # who leads, and how often it has worked
//! kill -9 LEADER                         # another one goes on where it stopped
//! ```

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, Leadership, SharedCounter, Worker};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Declared here, before the fork, these are the same in all workers.
    let cron = Leadership::new("cron")?;
    let ticks = SharedCounter::new("ticks_total")?;
    Cluster::new(config).serve(move |worker: Worker| async move {
        tokio::task::spawn_local(lead(worker, cron, ticks));
        Ok(service_fn(move |_: Request<Incoming>| async move {
            let leader = cron.leader().map_or("nobody".to_string(), |pid| format!("pid {pid}"));
            let text = format!("{leader} leads, {} ticks\n", ticks.value());
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        }))
    })
}

/// Every worker is ready to lead, and one does: the others wait here.
async fn lead(worker: Worker, cron: Leadership, ticks: SharedCounter) {
    tokio::select! {
        led = cron.run_once(tick(ticks)) => if let Err(e) = led { log::error!("{e}") },
        () = worker.draining() => {}
    }
}

async fn tick(ticks: SharedCounter) {
    let mut clock = tokio::time::interval(Duration::from_millis(100));
    loop {
        clock.tick().await;
        ticks.add(1);
    }
}
