//! One WebSocket connection: the handshake, then messages without waiting.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use socket2::Socket;
use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::handshake::client::Request;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{HandshakeError, WebSocket};

use crate::load::LoadPlan;
use crate::load::plan::split_header;
use crate::load::target_url::ServerAddress;
use crate::load::tls::TlsClient;
use tokio_prefork::{Error, Result};

/// Size of the read buffer of a connection, in bytes. The default of tungstenite is 128 KiB.
const READ_BUFFER_SIZE: usize = 4096;

/// Opens WebSocket connections to one server.
pub(super) struct EchoClient {
    address: ServerAddress,
    tls: Option<TlsClient>,
    url: String,
    headers: Vec<(http::HeaderName, http::HeaderValue)>,
    timeout: Duration,
}

/// A WebSocket connection that does not wait.
pub(super) type EchoConnection = WebSocket<EchoStream>;

/// A socket, with TLS for `https://`.
pub(super) enum EchoStream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl EchoClient {
    /// Creates the client of the plan's target, header fields and timeout.
    ///
    /// # Errors
    /// The target does not accept connections, or the options of TLS or a header field are wrong.
    pub(super) fn from_plan(plan: &LoadPlan) -> Result<EchoClient> {
        let tls = match plan.target.is_https() {
            true => Some(TlsClient::from_options(&plan.tls, plan.target.server_name(), false)?),
            false => None,
        };
        let header = |line: &String| {
            let (name, value) = split_header(line)?;
            let unusable = |why: http::Error| format!("{line:?}: {why}");
            let name = name
                .parse()
                .map_err(|why: http::header::InvalidHeaderName| unusable(why.into()))?;
            let value = value
                .parse()
                .map_err(|why: http::header::InvalidHeaderValue| unusable(why.into()))?;
            Ok((name, value))
        };
        let headers = plan.headers.iter().map(header).collect::<std::result::Result<_, String>>();
        Ok(EchoClient {
            address: plan.target.find_reachable_address()?,
            tls,
            // TLS is below the stream, so tungstenite sees no difference.
            url: format!("ws://{}{}", plan.target.host_header, plan.target.request_target),
            headers: headers.map_err(Error::config)?,
            timeout: plan.timeout,
        })
    }

    pub(super) fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// Says which step failed.
    pub(super) fn connect(&self) -> std::result::Result<EchoConnection, String> {
        let socket = self.address.connect_blocking(self.timeout, |_| Ok(()));
        let socket = socket.map_err(|e| format!("cannot connect: {e}"))?;
        let stream = match &self.tls {
            None => EchoStream::Plain(socket),
            Some(tls) => {
                let session = ClientConnection::new(tls.config.clone(), tls.server_name.clone());
                let session = session.map_err(|e| format!("cannot start TLS: {e}"))?;
                EchoStream::Tls(Box::new(StreamOwned::new(session, socket)))
            }
        };
        let config =
            WebSocketConfig::default().read_buffer_size(READ_BUFFER_SIZE).write_buffer_size(0);
        let (connection, _) = client_with_config(self.handshake_request()?, stream, Some(config))
            .map_err(|e| match e {
            HandshakeError::Failure(why) => format!("WebSocket handshake: {why}"),
            // The timeout of the socket has passed.
            HandshakeError::Interrupted(_) => "WebSocket handshake: timed out".to_string(),
        })?;
        let nonblocking = connection.get_ref().socket().set_nonblocking(true);
        nonblocking.map_err(|e| format!("cannot make the socket nonblocking: {e}"))?;
        Ok(connection)
    }

    fn handshake_request(&self) -> std::result::Result<Request, String> {
        let request = self.url.as_str().into_client_request();
        let mut request = request.map_err(|e| format!("{}: {e}", self.url))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        Ok(request)
    }
}

impl EchoStream {
    fn socket(&self) -> &Socket {
        match self {
            EchoStream::Plain(socket) => socket,
            EchoStream::Tls(stream) => &stream.sock,
        }
    }
}

impl AsFd for EchoStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for EchoStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            EchoStream::Plain(socket) => socket.read(buffer),
            EchoStream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for EchoStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            EchoStream::Plain(socket) => socket.write(bytes),
            EchoStream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            EchoStream::Plain(socket) => socket.flush(),
            EchoStream::Tls(stream) => stream.flush(),
        }
    }
}
