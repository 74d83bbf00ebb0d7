//! The error of the library: opaque, with a kind for callers, a text for people and the cause as its source.
//!
//! Every text names the operation and the object in lower case and, where there is something to do, what to do next.

use std::path::Path;
use std::{fmt, io};

use crate::text::Printable;

/// The result of the library's fallible calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cluster could not start, or ended other than asked.
///
/// [`Error::kind`] is for callers that react to it, the text is for people, and [`Error::exit_status`] is for the service
/// manager.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value of the configuration is wrong, wherever it came from.
    Config,
    /// A listening address cannot be bound.
    Bind,
    /// The operating system refused an operation: fork, memory, file descriptors.
    System,
    /// No primary listens on the control socket.
    ControlUnreachable,
    /// A primary holds the control socket and does not answer in time.
    ControlUnresponsive,
    /// The server that a load test is meant for does not answer.
    TargetUnreachable,
    /// A running primary refused or failed to do what it was asked.
    Refused,
    /// The application's own code failed.
    Application,
    /// The library broke an invariant of its own: a bug.
    Internal,
}

/// Exit statuses, as in `sysexits.h`; `docs/src/signals.md` has a row for each.
pub mod exit {
    /// Stopped as asked.
    pub const OK: u8 = 0;
    /// The primary itself failed, or refused what it was asked.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// An address cannot be bound, or no process answers at it (`EX_UNAVAILABLE`).
    pub const UNAVAILABLE: u8 = 69;
    /// The workers cannot boot, or the library has a bug (`EX_SOFTWARE`).
    pub const WORKERS_CANNOT_BOOT: u8 = 70;
    /// The system refused something: fork, memory, file descriptors (`EX_OSERR`).
    pub const OS: u8 = 71;
    /// The configuration is wrong (`EX_CONFIG`).
    pub const CONFIG: u8 = 78;
}

impl ErrorKind {
    /// Returns the status with which a process that ends with an error of this kind should exit (see [`exit`]).
    pub fn exit_status(self) -> u8 {
        match self {
            ErrorKind::Config => exit::CONFIG,
            ErrorKind::Bind
            | ErrorKind::ControlUnreachable
            | ErrorKind::ControlUnresponsive
            | ErrorKind::TargetUnreachable => exit::UNAVAILABLE,
            ErrorKind::Refused => exit::FAILURE,
            ErrorKind::System => exit::OS,
            ErrorKind::Application | ErrorKind::Internal => exit::WORKERS_CANNOT_BOOT,
        }
    }
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// Keeps the cause for [`std::error::Error::source`]; the message is expected to contain its text.
    fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Creates an error of the configuration: `workers = 0 is out of range: give 1 to 1024, or auto`.
    pub fn config(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, message)
    }

    /// Creates an error of a listening address: `cannot bind ADDR: WHY`.
    pub fn bind(addr: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Bind, format!("cannot bind {addr}: {why}"))
    }

    /// Creates an error of the operating system: `cannot OPERATION: CAUSE`, with the operation as a verb phrase.
    pub fn system(operation: impl fmt::Display, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        let message = format!("cannot {operation}: {source}");
        Error::new(ErrorKind::System, message).with_source(source)
    }

    /// Creates an error of a control socket at which no primary answers, and why.
    pub fn unreachable(path: &Path, why: impl fmt::Display) -> Error {
        let message = format!(
            "no primary answers at {} ({why}): start one, or name the control socket of a running one",
            path.display()
        );
        Error::new(ErrorKind::ControlUnreachable, message)
    }

    pub(crate) fn unresponsive(path: &Path, why: impl fmt::Display) -> Error {
        let message = format!("the primary at {} does not answer: {why}", path.display());
        Error::new(ErrorKind::ControlUnresponsive, message)
    }

    /// Creates an error of a server that is to be loaded: `cannot reach TARGET: WHY; ...`.
    pub fn target(target: impl fmt::Display, why: impl fmt::Display) -> Error {
        let message =
            format!("cannot reach {target}: {why}; start the server first, or check the address");
        Error::new(ErrorKind::TargetUnreachable, message)
    }

    /// Creates an error for a request that a running primary refused, with the primary's reason.
    pub fn refused(why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Refused, why)
    }

    /// Creates an error of the application: `OPERATION: WHY`.
    pub fn application(operation: &'static str, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Application, format!("{operation}: {why}"))
    }

    /// Creates an error of the library itself, which is a bug.
    pub(crate) fn internal(message: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Internal, format!("bug in tokio-prefork: {message}"))
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the status with which a process that ends with this error should exit (see [`exit`]).
    pub fn exit_status(&self) -> u8 {
        self.kind().exit_status()
    }
}

impl From<prefork_os::OsError> for Error {
    fn from(error: prefork_os::OsError) -> Error {
        Error::system(error.operation, error.source)
    }
}

impl fmt::Debug for Error {
    /// The same as `Display`: this is what people see when `main` returns the error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The message may contain bytes of applications, files and workers.
        Printable(&self.0.message).fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
