//! Serves an axum `Router` in each worker.
//!
//! Any tower service is served the same way.
//!
//! ```text
//! cargo run --example axum -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/hello/world
//! ```

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use tokio_prefork::{Cluster, Config, Main};

/// State of the handlers. axum requires it to be `Send`, which `Worker` is not, so it holds the pid.
#[derive(Clone)]
struct AppState {
    pid: u32,
}

async fn index(State(state): State<AppState>) -> String {
    format!("Handled by PID {}\n", state.pid)
}

async fn hello(State(state): State<AppState>, Path(name): Path<String>) -> String {
    format!("hello {name} from pid {}\n", state.pid)
}

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker| async move {
        Ok(Router::new()
            .route("/", get(index))
            .route("/hello/{name}", get(hello))
            .with_state(AppState { pid: worker.pid() }))
    })
}
