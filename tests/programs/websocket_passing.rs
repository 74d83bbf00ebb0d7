//! Workers that send each WebSocket to another worker.

use std::convert::Infallible;

use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{AcceptedStream, BoxError, Cluster, PassedConnection, Result, Slot, Worker};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::ProgramArguments;

/// Answers each handshake, and sends the WebSocket to the worker of the other slot, which echoes.
pub(super) fn pass_websockets(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        tokio::task::spawn_local(receive_websockets(worker.clone()));
        Ok(service_fn(move |mut request: Request<Incoming>| {
            let worker = worker.clone();
            async move {
                let key = request.headers().get(SEC_WEBSOCKET_KEY).cloned();
                let key = key.map(|key| derive_accept_key(key.as_bytes())).unwrap_or_default();
                tokio::task::spawn_local(async move {
                    if let Err(e) = pass_on(&worker, &mut request).await {
                        log::error!("cannot pass a WebSocket on: {e}");
                    }
                });
                let response = Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header(CONNECTION, "upgrade")
                    .header(UPGRADE, "websocket")
                    .header(SEC_WEBSOCKET_ACCEPT, key)
                    .body(Empty::<Bytes>::new());
                Ok::<_, Infallible>(response.unwrap_or_default())
            }
        }))
    })
}

async fn pass_on(
    worker: &Worker,
    request: &mut Request<Incoming>,
) -> std::result::Result<(), BoxError> {
    let path = request.uri().path().to_string();
    let socket = PassedConnection::try_from(hyper::upgrade::on(request).await?)?;
    let other = Slot(1 - worker.slot().0);
    Ok(worker.send_connection_to(other, "websocket", &path, socket).await?)
}

async fn receive_websockets(worker: Worker) {
    let mut inbox = worker.open_inbox("websocket");
    while let Some(mut message) = inbox.recv().await {
        let path: String = message.decode().unwrap_or_default();
        let Some(connection) = message.take_connection() else { continue };
        tokio::task::spawn_local(async move {
            if let Err(e) = echo(connection, &path).await {
                log::info!("a WebSocket has ended: {e}");
            }
        });
    }
}

/// Answers each text with the path, the pid and the address of the client before it.
async fn echo(connection: PassedConnection, path: &str) -> std::result::Result<(), BoxError> {
    let stream = AcceptedStream::try_from(connection)?;
    let info = stream.connection_info();
    let proxied = info.proxy_header().map(|header| header.source().to_string());
    let client = proxied.unwrap_or_else(|| info.peer().to_string());
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(message) = socket.next().await.transpose()? {
        if message.is_text() {
            let pid = std::process::id();
            let text = format!("{path} {pid} {client} {}", message.to_text()?);
            socket.send(text.into()).await?;
        }
    }
    Ok(())
}
