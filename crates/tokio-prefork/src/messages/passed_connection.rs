//! Connections on their way through a mail channel.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Letter, MailError};

/// An open connection (or any other descriptor) that is sent with a message, or came with one. It is closed when it
/// is dropped; what is sent is closed here once the kernel has it.
#[derive(Debug)]
pub struct Connection(pub(crate) OwnedFd);

impl Connection {
    /// The descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// A second descriptor of the same connection: to send it to two workers, or to send it and keep it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<Connection> {
        self.0.try_clone().map(Connection)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Connection {
    fn from(fd: OwnedFd) -> Connection {
        Connection(fd)
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Connection {
        Connection(stream.into())
    }
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Connection {
        Connection(stream.into())
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> OwnedFd {
        connection.0
    }
}

/// A connection that could not be sent, and why. It is not lost: it can be sent again, or served here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unsent {
    /// Why.
    pub error: MailError,
    /// What was to be sent; `None` if the runtime could not give it back.
    pub connection: Option<Connection>,
}

impl Unsent {
    /// It did not even become a letter.
    pub(crate) fn early(error: MailError, connection: Connection) -> Unsent {
        Unsent { error, connection: Some(connection) }
    }

    pub(crate) fn new((error, letter): (MailError, Letter)) -> Unsent {
        let connection = match letter.carried {
            Carried::Here(fd) => Some(Connection(fd)),
            Carried::Nothing | Carried::Lost => None,
        };
        Unsent { error, connection }
    }
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Unsent {}

/// What came with a letter.
#[derive(Debug, Default)]
pub(crate) enum Carried {
    /// No connection.
    #[default]
    Nothing,
    /// One.
    Here(OwnedFd),
    /// There was one, but this process had no descriptor left for it.
    Lost,
}

impl Carried {
    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Carried::Here(_))
    }
}
