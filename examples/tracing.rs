//! Events of `tracing` inside the spans of their worker and their request.
//!
//! ```text
//! cargo run --example tracing -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/
//! ```
//!
//! writes
//!
//! ```text
//! INFO worker{worker=1 slot=0 generation=1 pid=4711 kind="web"}:request{method="GET" path="/" version=HTTP/1.1
//!     client="127.0.0.1:53412" request_id="019acb0e-..."}: tracing: asked the oracle answer=42
//! ```
//!
//! With the second argument `after-fork`, each worker installs a subscriber of its own, as one with a thread has to.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::log_output::LogOutput;
use tokio_prefork::{Cluster, Config, Main};
use tracing::Instrument;

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let is_after_fork = std::env::args().nth(2).is_some_and(|when| when == "after-fork");
    if is_after_fork {
        env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    } else {
        // Also the log records of the library become events.
        tracing_subscriber::fmt().with_ansi(false).with_writer(|| LogOutput).init();
    }
    let config = Config::builder().listen(&address)?.request_id(true).build()?;
    Cluster::new(config).serve(move |_| async move {
        if is_after_fork {
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| LogOutput);
            tracing::subscriber::set_global_default(subscriber.finish())?;
        }
        tracing::info!("booted");
        Ok(service_fn(|_: Request<Incoming>| async {
            let answer = ask_oracle().await;
            tracing::info!(answer, "asked the oracle");
            // A task is in no span by itself.
            let task = async { tracing::info!("in a task") }.in_current_span();
            let _ = tokio::spawn(task).await;
            let text = format!("{answer} from pid {}\n", std::process::id());
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        }))
    })
}

async fn ask_oracle() -> u32 {
    tokio::task::yield_now().await;
    42
}
