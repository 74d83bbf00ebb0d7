//! Server-sent events: each client sees the number of visits of all workers grow. A stream ends cleanly when its worker
//! drains, so that a reload does not wait for it; browsers connect again by themselves.
//!
//! ```text
//! cargo run --example server_sent_events -- 127.0.0.1:3000
//! curl -N http://127.0.0.1:3000/events
//! curl http://127.0.0.1:3000/                      # in another terminal
//! ```

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::stream::{self, Stream, StreamExt};
use tokio_prefork::{Cluster, Config, Main, SharedCounter, Worker};

/// How often the counter is compared with what a client has seen.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How soon a browser connects again after the end of its stream.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct AppState {
    worker: Worker,
    visits: SharedCounter,
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
    Cluster::new(config).serve(move |worker: Worker| async move {
        let state = AppState { worker, visits };
        Ok(Router::new().route("/", get(visit)).route("/events", get(events)).with_state(state))
    })
}

async fn visit(State(state): State<AppState>) -> String {
    state.visits.add(1);
    format!("visit {}\n", state.visits.value())
}

async fn events(
    State(state): State<AppState>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let AppState { worker, visits } = state;
    let pid = worker.pid();
    let greeting = Event::default().retry(RECONNECT_DELAY).comment(format!("worker {pid}"));
    let changes = stream::unfold(None, move |seen| async move {
        loop {
            let now = visits.value();
            if seen != Some(now) {
                let event = Event::default().id(now.to_string()).data(format!("{now} visits"));
                return Some((event, Some(now)));
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    });
    let events = worker.end_on_drain(stream::iter([greeting]).chain(changes));
    Sse::new(events.map(Ok)).keep_alive(KeepAlive::default())
}
