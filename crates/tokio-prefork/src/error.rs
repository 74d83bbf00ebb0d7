//! The error type of the library: a kind for callers, a text for people and the cause as its source.
//!
//! Every text names the operation and the object in lower case, why it failed and, if possible, what to do next.

use std::cell::RefCell;
use std::path::Path;
use std::{fmt, io};

use crate::text::Printable;

/// A result whose error is an [`Error`] by default.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the application's own code: any error converts to it by `?`, `anyhow::Error` and texts included.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a cluster could not start or ended without being asked to, or why a request to a primary failed.
///
/// Match on [`Error::kind`], not on the text, which is for people and may change. [`std::error::Error::source`] returns the
/// cause if there is one; the text contains that of the cause already. [`Error::exit_status`] is for the service manager.
///
/// ```
/// use std::error::Error as _;
/// use tokio_prefork::{Error, ErrorKind, exit};
///
/// let cause = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
/// let error = Error::system("write the pid file", cause);
/// assert_eq!(error.kind(), ErrorKind::System);
/// assert!(error.source().is_some_and(|cause| cause.is::<std::io::Error>()));
/// assert_eq!(error.exit_status(), exit::OS);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<BoxError>,
}

thread_local! {
    /// The text and kind of the error that this thread created last, for [`Error::exit_status_of_chain`].
    static LATEST_ERROR: RefCell<Option<(String, ErrorKind)>> = const { RefCell::new(None) };
}

/// The kind of failure of an [`Error`], from which the exit status follows ([`ErrorKind::exit_status`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A configuration value is invalid, whether it came from a file, a flag, the environment or code.
    Config,
    /// A listening address cannot be bound, or another running process holds the pid file.
    Bind,
    /// The operating system refused an operation: fork, memory, file descriptors.
    System,
    /// No primary listens on the control socket.
    ControlUnreachable,
    /// A primary holds the control socket but does not answer in time.
    ControlUnresponsive,
    /// A server that is asked or load-tested does not answer.
    TargetUnreachable,
    /// A running primary refused a request or failed to carry it out.
    Refused,
    /// No worker boots, so the cluster has stopped.
    WorkersCannotBoot,
    /// The application's own code failed.
    Application,
    /// The library has a bug: one of its invariants does not hold.
    Internal,
}

/// Exit statuses as in `sysexits.h`, for programs that supervise the primary.
///
/// [`ErrorKind::exit_status`] maps each kind of error to one of them.
pub mod exit {
    /// Stopped as asked.
    pub const OK: u8 = 0;
    /// The primary failed or refused a request.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// An address cannot be bound, or nothing answers there (`EX_UNAVAILABLE`).
    pub const UNAVAILABLE: u8 = 69;
    /// The workers cannot boot, the application failed, or the library has a bug (`EX_SOFTWARE`).
    pub const SOFTWARE: u8 = 70;
    /// The operating system refused an operation: fork, memory, file descriptors (`EX_OSERR`).
    pub const OS: u8 = 71;
    /// The configuration is invalid (`EX_CONFIG`).
    pub const CONFIG: u8 = 78;
}

impl ErrorKind {
    /// Returns the exit status for a process that ends because of an error of this kind (see [`exit`]).
    pub const fn exit_status(self) -> u8 {
        match self {
            ErrorKind::Config => exit::CONFIG,
            ErrorKind::Bind
            | ErrorKind::ControlUnreachable
            | ErrorKind::ControlUnresponsive
            | ErrorKind::TargetUnreachable => exit::UNAVAILABLE,
            ErrorKind::Refused => exit::FAILURE,
            ErrorKind::System => exit::OS,
            ErrorKind::WorkersCannotBoot | ErrorKind::Application | ErrorKind::Internal => {
                exit::SOFTWARE
            }
        }
    }
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        let message = message.into();
        LATEST_ERROR.set(Some((message.clone(), kind)));
        Error(Box::new(Inner { kind, message, source: None }))
    }

    /// Sets the cause that [`std::error::Error::source`] returns. The text of the error has to contain that of the cause.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Creates an [`ErrorKind::Config`] error: `workers = 0 is out of range: give 1 to 1024, or auto`.
    pub fn config(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, message)
    }

    /// Creates an [`ErrorKind::Bind`] error: `cannot bind ADDR: WHY`.
    pub fn bind(addr: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Bind, format!("cannot bind {addr}: {why}"))
    }

    /// Creates an error for a pid file that another running process holds.
    pub(crate) fn pid_file_held(path: &Path, pid: &str) -> Error {
        let message = format!(
            "cannot lock the pid file {}: it is held by a running process (pid {pid}); stop it, or choose another pid-file",
            path.display()
        );
        Error::new(ErrorKind::Bind, message)
    }

    /// Creates an [`ErrorKind::System`] error: `cannot OPERATION: CAUSE`, with the operation as a verb phrase.
    pub fn system(operation: impl fmt::Display, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        let message = format!("cannot {operation}: {source}");
        Error::new(ErrorKind::System, message).with_source(source)
    }

    /// Creates an [`ErrorKind::ControlUnreachable`] error for the control socket at `path`.
    pub fn unreachable(path: &Path, why: impl fmt::Display) -> Error {
        let message = format!(
            "no primary answers at {} ({why}): start one, or name the control socket of a running one",
            path.display()
        );
        Error::new(ErrorKind::ControlUnreachable, message)
    }

    /// Creates an [`ErrorKind::ControlUnresponsive`] error for the control socket at `path`.
    pub(crate) fn unresponsive(path: &Path, why: impl fmt::Display) -> Error {
        let message = format!("the primary at {} does not answer: {why}", path.display());
        Error::new(ErrorKind::ControlUnresponsive, message)
    }

    /// Creates an [`ErrorKind::TargetUnreachable`] error: `cannot reach TARGET: CAUSE; start the server first, ...`.
    pub fn target(target: impl fmt::Display, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        let message = format!(
            "cannot reach {target}: {source}; start the server first, or check the address"
        );
        Error::new(ErrorKind::TargetUnreachable, message).with_source(source)
    }

    /// Creates an [`ErrorKind::Refused`] error with the reason of the primary.
    pub fn refused(why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Refused, why)
    }

    /// Creates an [`ErrorKind::WorkersCannotBoot`] error.
    pub(crate) fn workers_cannot_boot(why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::WorkersCannotBoot, format!("the workers cannot boot: {why}"))
    }

    /// Creates an [`ErrorKind::Application`] error: `OPERATION: CAUSE`. The cause is another error or a text.
    pub fn application(operation: impl fmt::Display, source: impl Into<BoxError>) -> Error {
        let source = source.into();
        let message = format!("{operation}: {}", text_of_chain(&*source));
        Error::new(ErrorKind::Application, message).with_source(source)
    }

    /// Converts an error that a function of the application returned: an [`Error`] stays what it is, any other becomes
    /// one of [`ErrorKind::Application`] with the texts of its causes.
    pub(crate) fn from_app(error: BoxError) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => {
                Error::new(ErrorKind::Application, text_of_chain(&*error)).with_source(error)
            }
        }
    }

    /// Returns the first [`Error`] among `error` and its causes.
    pub(crate) fn find_in_chain<'a>(
        error: &'a (dyn std::error::Error + 'static),
    ) -> Option<&'a Error> {
        error_chain(error).find_map(|error| error.downcast_ref::<Error>())
    }

    /// Returns the exit status for a process that ends because of `error`: that of the first [`Error`] in its chain of causes, or
    /// [`exit::FAILURE`].
    pub(crate) fn exit_status_of_chain(error: &(dyn std::error::Error + 'static)) -> u8 {
        let kind = match Error::find_in_chain(error) {
            Some(found) => Some(found.kind()),
            // `anyhow` hides the type of the outermost error when it is boxed, but not its text.
            None => LATEST_ERROR.with_borrow(|latest| {
                let (message, kind) = latest.as_ref()?;
                (error.to_string() == Printable(message).to_string()).then_some(*kind)
            }),
        };
        kind.map_or(exit::FAILURE, ErrorKind::exit_status)
    }

    /// Creates an [`ErrorKind::Internal`] error for an invariant that does not hold.
    pub(crate) fn internal(message: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::Internal,
            format!("bug in tokio-prefork: {message}; please report it"),
        )
    }

    /// Returns the kind of failure, which callers can match.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the kind of the first [`io::Error`] among the causes: `AddrInUse` (`EADDRINUSE`) or `PermissionDenied`
    /// (`EACCES`) if an address cannot be bound, for example. `None` if the system refused nothing.
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use tokio_prefork::Error;
    ///
    /// let taken = std::io::Error::from(ErrorKind::AddrInUse);
    /// let error = Error::bind("127.0.0.1:3000", "address already in use").with_source(taken);
    /// assert_eq!(error.io_kind(), Some(ErrorKind::AddrInUse));
    /// ```
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        let mut causes = error_chain(self);
        causes.find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()))
    }

    /// Returns the exit status for a process that ends because of this error: that of its kind (see [`exit`]).
    pub fn exit_status(&self) -> u8 {
        self.kind().exit_status()
    }
}

/// Iterates over `error` and its causes.
fn error_chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| match error.downcast_ref::<io::Error>() {
        // `source` of such an error skips the error that it wraps.
        Some(wrapper) => wrapper.get_ref().map(|wrapped| wrapped as _),
        None => error.source(),
    })
}

/// Returns the texts of `error` and its causes, separated by colons. Leaves out those that the text before contains.
pub(crate) fn text_of_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    for cause in error_chain(error).skip(1) {
        let cause = cause.to_string();
        if !last.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        last = cause;
    }
    text
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Error {
        match never {}
    }
}

impl From<prefork_os::OsError> for Error {
    fn from(error: prefork_os::OsError) -> Error {
        Error::system(error.operation, error.source)
    }
}

impl fmt::Debug for Error {
    /// Writes the same text as `Display`, because it is what people see when `main` returns the error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The message may contain text from applications, files and workers.
        Printable(&self.0.message).fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn exit_status_follows_from_the_kind() {
        for (kind, status) in [
            (ErrorKind::Refused, exit::FAILURE),
            (ErrorKind::Bind, exit::UNAVAILABLE),
            (ErrorKind::ControlUnreachable, exit::UNAVAILABLE),
            (ErrorKind::ControlUnresponsive, exit::UNAVAILABLE),
            (ErrorKind::TargetUnreachable, exit::UNAVAILABLE),
            (ErrorKind::WorkersCannotBoot, exit::SOFTWARE),
            (ErrorKind::Application, exit::SOFTWARE),
            (ErrorKind::Internal, exit::SOFTWARE),
            (ErrorKind::System, exit::OS),
            (ErrorKind::Config, exit::CONFIG),
        ] {
            assert_eq!(kind.exit_status(), status, "{kind:?}");
            assert_eq!(Error::new(kind, "text").exit_status(), status, "{kind:?}");
        }
    }

    #[test]
    fn constructors_set_the_kind() {
        let path = Path::new("/run/s");
        for (error, kind) in [
            (Error::config("a"), ErrorKind::Config),
            (Error::bind("a", "b"), ErrorKind::Bind),
            (Error::pid_file_held(path, "7"), ErrorKind::Bind),
            (Error::system("a", io::ErrorKind::Other), ErrorKind::System),
            (Error::unreachable(path, "a"), ErrorKind::ControlUnreachable),
            (Error::unresponsive(path, "a"), ErrorKind::ControlUnresponsive),
            (Error::target("a", io::ErrorKind::TimedOut), ErrorKind::TargetUnreachable),
            (Error::refused("a"), ErrorKind::Refused),
            (Error::workers_cannot_boot("a"), ErrorKind::WorkersCannotBoot),
            (Error::application("a", "b"), ErrorKind::Application),
            (Error::internal("a"), ErrorKind::Internal),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    #[test]
    fn source_is_the_original_cause_and_the_text_contains_it() {
        let cause = || io::Error::from(nix::errno::Errno::ENOSPC);
        for error in [
            Error::system("write the pid file", cause()),
            Error::target("127.0.0.1:1", cause()),
            Error::application("open the database", cause()),
            Error::bind("127.0.0.1:1", cause()).with_source(cause()),
        ] {
            let source = error.source().expect("a cause").downcast_ref::<io::Error>();
            assert_eq!(source.and_then(io::Error::raw_os_error), cause().raw_os_error());
            assert!(error.to_string().contains(&cause().to_string()), "{error}");
        }
        assert!(Error::config("workers = 0").source().is_none());
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(Error::refused("a\nb").to_string(), r"a\nb");
    }
}
