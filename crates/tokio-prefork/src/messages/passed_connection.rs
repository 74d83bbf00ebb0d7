//! Open connections that are sent along with messages.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bytes::Bytes;

use super::{Envelope, MessageError, PassedHistory};

/// An open connection (or another descriptor) that is sent or received with a message.
///
/// Closed when dropped. The sender's descriptor is closed once the kernel has taken the message.
///
/// Made from a `TcpStream` or `UnixStream` of std, an [`AcceptedStream`](crate::AcceptedStream), any descriptor, or an HTTP
/// connection after its upgrade ([`hyper::upgrade::Upgraded`]), such as a WebSocket. Bytes that were read from it already
/// travel with it, and what its PROXY header has said. A worker that receives it converts it into an
/// [`AcceptedStream`](crate::AcceptedStream).
///
/// ```no_run
/// use hyper::{Request, body::Incoming};
/// use tokio_prefork::{AcceptedStream, BoxError, Inbox, PassedConnection, Slot, Worker};
///
/// /// Sends a WebSocket to the worker that has its chat room. The response with status 101 is sent by then.
/// async fn send_to_room(worker: Worker, request: &mut Request<Incoming>) -> Result<(), BoxError> {
///     let upgraded = hyper::upgrade::on(request).await?;
///     let socket = PassedConnection::try_from(upgraded)?;
///     worker.send_connection_to(Slot(0), "room", "lobby", socket).await?;
///     Ok(())
/// }
///
/// /// Receives it: `stream` is what tokio-tungstenite's `WebSocketStream::from_raw_socket` takes.
/// async fn receive(inbox: &mut Inbox) -> Result<Option<AcceptedStream>, BoxError> {
///     let Some(mut message) = inbox.recv().await else { return Ok(None) };
///     let stream = message.take_connection().map(AcceptedStream::try_from).transpose()?;
///     Ok(stream)
/// }
/// ```
#[derive(Debug)]
pub struct PassedConnection {
    pub(crate) fd: OwnedFd,
    pub(crate) history: PassedHistory,
}

impl PassedConnection {
    /// Returns the descriptor, without [`PassedConnection::unread_bytes`].
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Returns the bytes that were read from the connection before it was sent, and that come before what the descriptor
    /// has. Most connections have none.
    pub fn unread_bytes(&self) -> &Bytes {
        &self.history.unread
    }

    /// Duplicates the descriptor, to send the connection to two workers or to keep it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<PassedConnection> {
        let history = self.history.clone();
        self.fd.try_clone().map(|fd| PassedConnection { fd, history })
    }
}

impl AsFd for PassedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for PassedConnection {
    fn from(fd: OwnedFd) -> PassedConnection {
        PassedConnection { fd, history: PassedHistory::default() }
    }
}

impl From<TcpStream> for PassedConnection {
    fn from(stream: TcpStream) -> PassedConnection {
        OwnedFd::from(stream).into()
    }
}

impl From<UnixStream> for PassedConnection {
    fn from(stream: UnixStream) -> PassedConnection {
        OwnedFd::from(stream).into()
    }
}

impl From<PassedConnection> for OwnedFd {
    fn from(connection: PassedConnection) -> OwnedFd {
        connection.fd
    }
}

/// A connection that could not be sent. It is still open: send it again, or serve it here.
#[derive(Debug)]
#[non_exhaustive]
pub struct SendConnectionError {
    /// Why it could not be sent.
    pub error: MessageError,
    /// The connection; `None` if the runtime could not return it.
    pub connection: Option<PassedConnection>,
}

impl SendConnectionError {
    /// Creates the error for a connection that was not queued.
    pub(crate) fn not_sent(
        error: MessageError,
        connection: PassedConnection,
    ) -> SendConnectionError {
        SendConnectionError { error, connection: Some(connection) }
    }

    pub(crate) fn new((error, mut envelope): (MessageError, Envelope)) -> SendConnectionError {
        let connection = match envelope.attached {
            AttachedConnection::Present(fd) => {
                Some(PassedConnection { fd, history: envelope.payload.take_history() })
            }
            AttachedConnection::Absent | AttachedConnection::Lost => None,
        };
        SendConnectionError { error, connection }
    }
}

impl fmt::Display for SendConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for SendConnectionError {}

/// The connection of an envelope.
#[derive(Debug, Default)]
pub(crate) enum AttachedConnection {
    /// No connection.
    #[default]
    Absent,
    /// An open connection.
    Present(OwnedFd),
    /// A connection was sent, but this process had no free descriptor for it.
    Lost,
}

impl AttachedConnection {
    pub(crate) fn is_present(&self) -> bool {
        matches!(self, AttachedConnection::Present(_))
    }

    /// Takes the descriptor out. An envelope that has lost its connection stays marked.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        match std::mem::take(self) {
            AttachedConnection::Present(fd) => Some(fd),
            AttachedConnection::Absent => None,
            AttachedConnection::Lost => {
                *self = AttachedConnection::Lost;
                None
            }
        }
    }
}
