//! Connections on their way through a mail channel.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Envelope, MessageError};

/// An open connection (or any other descriptor) that is sent with a message, or came with one. It is closed when it
/// is dropped; what is sent is closed here once the kernel has it.
#[derive(Debug)]
pub struct PassedConnection(pub(crate) OwnedFd);

impl PassedConnection {
    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// A second descriptor of the same connection: to send it to two workers, or to send it and keep it.
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

/// A connection that could not be sent, and why. It is not lost: it can be sent again, or served here.
#[derive(Debug)]
#[non_exhaustive]
pub struct SendConnectionError {
    /// Why.
    pub error: MessageError,
    /// What was to be sent; `None` if the runtime could not give it rejected.
    pub connection: Option<PassedConnection>,
}

impl SendConnectionError {
    /// It did not even become a envelope.
    pub(crate) fn early(error: MessageError, connection: PassedConnection) -> SendConnectionError {
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

/// What came with a envelope.
#[derive(Debug, Default)]
pub(crate) enum AttachedConnection {
    /// No connection.
    #[default]
    Absent,
    /// One.
    Present(OwnedFd),
    /// There was one, but this process had no descriptor left for it.
    Lost,
}

impl AttachedConnection {
    pub(crate) fn is_present(&self) -> bool {
        matches!(self, AttachedConnection::Present(_))
    }
}
