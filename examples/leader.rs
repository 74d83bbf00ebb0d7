//! Runs a periodic task in exactly one worker at a time. When that worker dies or drains, another one takes over.
//!
//! ```text
//! cargo run --example leader -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/            # the pid of the leader, and how often the task has run
//! kill -9 LEADER                         # another worker continues where it stopped
//! ```

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, Leadership, Main, SharedCounter, Worker};

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Shared state is declared before the fork, so that all workers share it.
    let cron = Leadership::new("cron")?;
    let ticks = SharedCounter::new("ticks_total")?;
    Cluster::new(config).serve(move |worker: Worker| async move {
        tokio::task::spawn_local(run_as_leader(worker, cron, ticks));
        Ok(service_fn(move |_: Request<Incoming>| async move {
            let leader = cron.leader_pid().map_or("none".to_string(), |pid| format!("pid {pid}"));
            let text = format!("leader {leader}, {} ticks\n", ticks.value());
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        }))
    })
}

/// Runs the task while this worker is the leader. Until then, and for all other workers, this future waits.
async fn run_as_leader(worker: Worker, cron: Leadership, ticks: SharedCounter) {
    tokio::select! {
        result = cron.run_as_leader(tick(ticks)) => if let Err(e) = result { log::error!("{e}") },
        () = worker.draining() => {}
    }
}

/// Counts every 100 ms, in place of a real task.
async fn tick(ticks: SharedCounter) {
    let mut clock = tokio::time::interval(Duration::from_millis(100));
    loop {
        clock.tick().await;
        ticks.add(1);
    }
}
