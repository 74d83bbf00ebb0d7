//! An axum `Router` in each worker. Any tower service fits in the same way, through hyper-util's
//! `TowerToHyperService`.
//!
//! ```text
//! cargo run --example axum -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/hello/world
//! ```

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use tokio_prefork::{Cluster, Config};

/// axum's handlers are `Send`, so their state is, too: it holds a pid, not the `Worker` itself.
#[derive(Clone)]
struct Process {
    pid: u32,
}

async fn who(State(process): State<Process>) -> String {
    format!("Handled by PID {}\n", process.pid)
}

async fn hello(State(process): State<Process>, Path(name): Path<String>) -> String {
    format!("hello {name} from pid {}\n", process.pid)
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker| async move {
        let routes = Router::new()
            .route("/", get(who))
            .route("/hello/{name}", get(hello))
            .with_state(Process { pid: worker.pid() });
        Ok(TowerToHyperService::new(routes))
    })
}
