//! Serves an axum `Router` in each worker, with state, JSON, middleware of tower-http and the address of the client.
//!
//! Any tower service is served the same way.
//!
//! ```text
//! cargo run --example axum -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/hello/world
//! curl -H 'content-type: application/json' -d '{"numbers": [1, 2, 3]}' http://127.0.0.1:3000/sum
//! ```

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderValue, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio_prefork::{Cluster, Config, Main, SharedCounter, Worker};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::set_header::SetResponseHeaderLayer;

/// Longest accepted request body in bytes.
const MAX_BODY_SIZE: usize = 64 * 1024;

/// State of the handlers: a worker's own, and a counter of all workers.
#[derive(Clone)]
struct AppState {
    worker: Worker,
    visits: SharedCounter,
}

#[derive(Deserialize)]
struct SumRequest {
    numbers: Vec<i64>,
}

#[derive(Serialize)]
struct SumResponse {
    sum: i64,
    pid: u32,
}

/// The address of the client needs the Cargo feature `axum` of tokio-prefork, and nothing else.
async fn index(
    State(state): State<AppState>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
) -> String {
    state.visits.add(1);
    let (pid, visits) = (state.worker.pid(), state.visits.value());
    format!("Handled by PID {pid} for {client}; visit {visits} of all workers\n")
}

async fn hello(State(state): State<AppState>, Path(name): Path<String>) -> String {
    format!("hello {name} from pid {}\n", state.worker.pid())
}

async fn sum(State(state): State<AppState>, Json(request): Json<SumRequest>) -> Json<SumResponse> {
    let sum = request.numbers.iter().fold(0, |sum: i64, number| sum.wrapping_add(*number));
    Json(SumResponse { sum, pid: state.worker.pid() })
}

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Before the fork, so that there is one for all workers.
    let visits = SharedCounter::new("visits_total")?;
    Cluster::new(config).serve(move |worker| async move {
        Ok(Router::new()
            .route("/", get(index))
            .route("/hello/{name}", get(hello))
            .route("/sum", post(sum))
            .with_state(AppState { worker, visits })
            .layer(RequestBodyLimitLayer::new(MAX_BODY_SIZE))
            .layer(SetResponseHeaderLayer::overriding(
                header::SERVER,
                HeaderValue::from_static("axum-on-tokio-prefork"),
            )))
    })
}
