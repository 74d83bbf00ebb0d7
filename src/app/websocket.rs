//! `/websocket`: sends each WebSocket message back.

use std::pin::pin;

use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::routes::{AppResponse, full_body, text_response};
use tokio_prefork::Worker;

/// Size of the read buffer of a connection, in bytes. The default of tungstenite is 128 KiB.
const READ_BUFFER_SIZE: usize = 4096;

/// Answers the handshake and echoes in a task of its own, with messages of up to `max_size` bytes.
pub(super) fn accept_websocket(
    request: Request<Incoming>,
    worker: &Worker,
    max_size: usize,
) -> AppResponse {
    let response = create_response_with_body(&request, || full_body(""));
    let Ok(response) = response else {
        let why = "this path is a WebSocket: connect with a WebSocket client over HTTP/1.1\n";
        let mut response = text_response(StatusCode::UPGRADE_REQUIRED, why);
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    let worker = worker.clone();
    tokio::spawn(async move {
        // A client that has gone only ends its connection.
        if let Err(e) = echo_messages(request, &worker, max_size).await {
            log::debug!("a WebSocket has ended: {e}");
        }
    });
    response
}

/// Echoes until the client leaves, or the worker drains.
async fn echo_messages(
    request: Request<Incoming>,
    worker: &Worker,
    max_size: usize,
) -> Result<(), Error> {
    let upgraded = hyper::upgrade::on(request).await;
    let upgraded = upgraded.map_err(|e| Error::Io(std::io::Error::other(e)))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_SIZE)
        .write_buffer_size(0)
        .max_message_size(Some(max_size))
        .max_frame_size(Some(max_size));
    let stream = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let mut draining = pin!(worker.draining());
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = &mut draining => break,
        };
        match message.transpose()? {
            Some(message) if message.is_text() || message.is_binary() => {
                socket.send(message).await?
            }
            // tungstenite answers pings and close frames itself.
            Some(_) => {}
            None => return Ok(()),
        }
    }
    let reason = "the server restarts: connect again".into();
    socket.close(Some(CloseFrame { code: CloseCode::Restart, reason })).await?;
    // Messages that were under way come before the client's own close frame.
    while socket.next().await.transpose()?.is_some() {}
    Ok(())
}
