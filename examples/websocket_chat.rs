//! A chat over WebSocket: each text reaches the clients of all workers. A reload closes no connection in the middle of a
//! message: each client gets a close frame with code 1012 (service restart), and connects again to a new worker.
//!
//! ```text
//! cargo run --example websocket_chat -- 127.0.0.1:3000
//! websocat ws://127.0.0.1:3000/chat                # in several terminals, so at different workers
//! ```

use std::pin::pin;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::broadcast;
use tokio_prefork::{Cluster, Config, Main, Worker};

/// How many texts are queued for one client. A slower client misses the oldest ones.
const CLIENT_QUEUE_LENGTH: usize = 64;

#[derive(Clone)]
struct AppState {
    worker: Worker,
    /// The clients of this worker subscribe to it.
    texts: broadcast::Sender<String>,
}

impl AppState {
    /// Sends a text to all clients: those of this worker, and through the primary those of the others.
    async fn publish(&self, text: String) {
        if let Err(e) = self.worker.broadcast("chat", &text).await {
            log::warn!("the clients of other workers miss a text: {e}");
        }
        // An error means that this worker has no client.
        let _ = self.texts.send(text);
    }
}

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker: Worker| async move {
        let (texts, _) = broadcast::channel(CLIENT_QUEUE_LENGTH);
        let mut inbox = worker.open_inbox("chat");
        let of_others = texts.clone();
        tokio::task::spawn_local(async move {
            while let Some(message) = inbox.recv().await {
                match message.decode() {
                    Ok(text) => drop(of_others.send(text)),
                    Err(e) => log::warn!("dropped a text of another worker: {e}"),
                }
            }
        });
        let state = AppState { worker, texts };
        Ok(Router::new().route("/chat", get(connect)).with_state(state))
    })
}

async fn connect(State(state): State<AppState>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| async move {
        // A client that has gone only ends its connection.
        if let Err(e) = chat(state, socket).await {
            log::debug!("a client has left: {e}");
        }
    })
}

/// Serves one client, until it leaves or the worker drains. The worker waits for that up to `graceful-timeout`.
async fn chat(state: AppState, mut socket: WebSocket) -> Result<(), axum::Error> {
    let mut texts = state.texts.subscribe();
    let mut draining = pin!(state.worker.draining());
    socket.send(format!("welcome to pid {}", state.worker.pid()).into()).await?;
    loop {
        tokio::select! {
            text = texts.recv() => match text {
                Ok(text) => socket.send(text.into()).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            received = socket.recv() => match received.transpose()? {
                Some(Message::Text(text)) => state.publish(text.to_string()).await,
                Some(_) => {}
                None => return Ok(()),
            },
            () = &mut draining => break,
        }
    }
    let reason = "the server restarts: connect again".into();
    let close = CloseFrame { code: close_code::RESTART, reason };
    socket.send(Message::Close(Some(close))).await?;
    // Texts that were under way arrive before the client's own close frame.
    while let Some(received) = socket.recv().await.transpose()? {
        if let Message::Text(text) = received {
            state.publish(text.to_string()).await;
        }
    }
    Ok(())
}
