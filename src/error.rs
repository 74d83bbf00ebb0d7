//! The error of the library: opaque outside, and precise in what it says.
//!
//! Every text names the operation and the object, in lower case, and where there is one, what to do next.

use std::path::Path;
use std::{fmt, io};

use crate::printable::Printable;

/// What the library's fallible calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cluster could not start, or ended other than asked.
///
/// The text is for people; [`Error::exit_status`] is for the service manager.
pub struct Error(Box<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    /// A value that makes no sense, wherever it came from.
    #[error("{0}")]
    Config(String),
    /// A listening address that could not be had.
    #[error("cannot bind {addr}: {why}")]
    Bind { addr: String, why: String },
    /// A system call that failed: the operation with its object, and the cause.
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
    /// Nobody at the control socket.
    #[error(
        "nobody answers at {path} ({why}): start one with `prefork serve`, or name its --control PATH"
    )]
    Unreachable { path: String, why: String },
    /// Somebody is at the control socket, and does not answer.
    #[error("the primary at {path} does not answer: {why}")]
    Unresponsive { path: String, why: String },
    /// Nobody answers at the address that a load is meant for.
    #[error("cannot reach {target}: {why}; start the server first, or check the address")]
    Target { target: String, why: String },
    /// A running primary did not do what it was asked.
    #[error("{0}")]
    Refused(String),
    /// What the application's own code said.
    #[error("{what}: {why}")]
    Application { what: &'static str, why: String },
}

/// Exit statuses, as in `sysexits.h`; `docs/src/signals.md` has a row for each.
pub mod exit {
    /// Stopped as asked.
    pub const OK: u8 = 0;
    /// The primary itself failed (a bug or a system call that should not fail), or refused what it was asked.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// An address cannot be bound, or is taken, or nobody answers at it (`EX_UNAVAILABLE`).
    pub const UNAVAILABLE: u8 = 69;
    /// The workers cannot boot (`EX_SOFTWARE`).
    pub const WORKERS_CANNOT_BOOT: u8 = 70;
    /// The system refused something: fork, memory, file descriptors (`EX_OSERR`).
    pub const OS: u8 = 71;
    /// The configuration is wrong (`EX_CONFIG`).
    pub const CONFIG: u8 = 78;
}

impl Error {
    pub(crate) fn config(text: impl Into<String>) -> Error {
        Kind::Config(text.into()).into()
    }

    pub(crate) fn bind(addr: impl fmt::Display, why: impl fmt::Display) -> Error {
        Kind::Bind { addr: addr.to_string(), why: why.to_string() }.into()
    }

    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Kind::System { what: what.into(), source: source.into() }.into()
    }

    pub(crate) fn unreachable(path: &Path, why: impl fmt::Display) -> Error {
        Kind::Unreachable { path: path.display().to_string(), why: why.to_string() }.into()
    }

    pub(crate) fn unresponsive(path: &Path, why: impl fmt::Display) -> Error {
        Kind::Unresponsive { path: path.display().to_string(), why: why.to_string() }.into()
    }

    /// Whether somebody is there and did not answer in time.
    pub(crate) fn is_unresponsive(&self) -> bool {
        matches!(*self.0, Kind::Unresponsive { .. })
    }

    pub(crate) fn target(target: impl fmt::Display, why: impl fmt::Display) -> Error {
        Kind::Target { target: target.to_string(), why: why.to_string() }.into()
    }

    pub(crate) fn refused(why: impl Into<String>) -> Error {
        Kind::Refused(why.into()).into()
    }

    /// An error of the application: what it was doing, and why that failed.
    pub fn application(what: &'static str, why: impl fmt::Display) -> Error {
        Kind::Application { what, why: why.to_string() }.into()
    }

    /// Whether an address could not be had.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(*self.0, Kind::Bind { .. })
    }

    /// The status a process that ends with this error should exit with (see [`exit`]).
    pub fn exit_status(&self) -> u8 {
        match *self.0 {
            Kind::Config(_) => exit::CONFIG,
            Kind::Bind { .. }
            | Kind::Unreachable { .. }
            | Kind::Unresponsive { .. }
            | Kind::Target { .. } => exit::UNAVAILABLE,
            Kind::Refused(_) => exit::FAILURE,
            Kind::System { .. } => exit::OS,
            Kind::Application { .. } => exit::WORKERS_CANNOT_BOOT,
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Error {
        Error(Box::new(kind))
    }
}

impl From<prefork_os::OsError> for Error {
    fn from(error: prefork_os::OsError) -> Error {
        Error::system(error.operation, error.source)
    }
}

impl fmt::Debug for Error {
    /// As `Display`: this is what people see when `main` returns the error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What applications, files and workers said is in it.
        Printable(&self.0).fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
