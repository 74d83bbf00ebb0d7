//! Open connections that are sent along with messages.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Envelope, MessageError};

/// An open connection (or another descriptor) that is sent or received with a message.
///
/// Closed when dropped. The sender's descriptor is closed once the kernel has taken the message.
#[derive(Debug)]
pub struct PassedConnection(pub(crate) OwnedFd);

impl PassedConnection {
    /// Returns the descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Duplicates the descriptor, to send the connection to two workers or to keep it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<PassedConnection> {
        self.0.try_clone().map(PassedConnection)
    }
}

impl AsFd for PassedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for PassedConnection {
    fn from(fd: OwnedFd) -> PassedConnection {
        PassedConnection(fd)
    }
}

impl From<TcpStream> for PassedConnection {
    fn from(stream: TcpStream) -> PassedConnection {
        PassedConnection(stream.into())
    }
}

impl From<UnixStream> for PassedConnection {
    fn from(stream: UnixStream) -> PassedConnection {
        PassedConnection(stream.into())
    }
}

impl From<PassedConnection> for OwnedFd {
    fn from(connection: PassedConnection) -> OwnedFd {
        connection.0
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

    pub(crate) fn new((error, envelope): (MessageError, Envelope)) -> SendConnectionError {
        let connection = match envelope.attached {
            AttachedConnection::Present(fd) => Some(PassedConnection(fd)),
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
