//! `Main`: what a program's `main` returns, so that its exit status and its last words are those that the field expects.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::error::{BoxError, Error, exit, text_of_chain};
use crate::log_output::write_final_error;

/// The return type of `main` for programs that a service manager starts.
///
/// An error is printed to standard error as one line, `NAME: TEXT`, and decides the exit status: that of the first
/// [`Error`] in its chain of causes (see [`exit`]), or 1 for any other error. So `RestartPreventExitStatus=64 78` in a
/// systemd unit means what it says.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tokio_prefork::{BoxError, Cluster, Config, Main};
///
/// fn main() -> Main {
///     run().into()
/// }
///
/// fn run() -> Result<(), BoxError> {
///     let address = std::env::var("ADDRESS")?;
///     let config = Config::builder().listen(&address)?.build()?;
///     Cluster::new(config).serve(|_| async { Ok(Router::new().route("/", get("hello"))) })?;
///     Ok(())
/// }
/// ```
///
/// `fn main() -> tokio_prefork::Result<()>`, `Result<(), Box<dyn std::error::Error>>` and `anyhow::Result<()>` work too: they
/// print the error and its causes, and exit with status 1 whatever the error is.
#[must_use = "main has to return it"]
pub struct Main(Result<(), BoxError>);

impl<E: Into<BoxError>> From<Result<(), E>> for Main {
    fn from(result: Result<(), E>) -> Main {
        Main(result.map_err(Into::into))
    }
}

impl Main {
    /// Returns the exit status: 0, or that of the error.
    pub fn exit_status(&self) -> u8 {
        let Err(error) = &self.0 else { return exit::OK };
        Error::exit_status_of_chain(&**error)
    }
}

impl Termination for Main {
    fn report(self) -> ExitCode {
        let status = self.exit_status();
        if let Err(error) = &self.0 {
            if let Some(error) = Error::find_in_chain(&**error) {
                crate::upgrade::report_failed_start(error);
            }
            print_error(&text_of_chain(&**error));
        }
        ExitCode::from(status)
    }
}

impl fmt::Debug for Main {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Main").field(&self.0).finish()
    }
}

impl Error {
    /// Writes the error to standard error as one line, `NAME: TEXT`, and returns the exit code. Waits at most 500 ms for
    /// space. NAME is the name of the application.
    ///
    /// For a `main` that ends with `error.report()`; [`Main`] does the same for every type of error.
    pub fn report(&self) -> ExitCode {
        crate::upgrade::report_failed_start(self);
        print_error(&self.to_string());
        ExitCode::from(self.exit_status())
    }
}

pub(crate) fn print_error(text: &str) {
    write_final_error(&crate::app_name::app_name(), text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_that_of_the_first_error_of_the_library_in_the_chain() {
        let config = || Error::config("workers = 0 is out of range");
        assert_eq!(Main::from(Ok::<(), Error>(())).exit_status(), exit::OK);
        assert_eq!(Main::from(Err::<(), _>(config())).exit_status(), exit::CONFIG);
        assert_eq!(Main::from(Err::<(), BoxError>(config().into())).exit_status(), exit::CONFIG);
        let wrapped = Error::application("start", config());
        assert_eq!(Main::from(Err::<(), _>(wrapped)).exit_status(), exit::SOFTWARE);
        let wrapped = std::io::Error::other(config());
        assert_eq!(Main::from(Err::<(), _>(wrapped)).exit_status(), exit::CONFIG);
        assert_eq!(Main::from(Err::<(), _>("no database")).exit_status(), exit::FAILURE);
    }

    #[test]
    fn exit_status_survives_the_conversion_of_anyhow() {
        let unbindable = || Error::bind("127.0.0.1:7", "address in use");
        assert_eq!(
            Main::from(Err::<(), _>(anyhow::Error::from(unbindable()))).exit_status(),
            exit::UNAVAILABLE
        );
        let with_context = anyhow::Error::from(unbindable()).context("start the server");
        assert_eq!(Main::from(Err::<(), _>(with_context)).exit_status(), exit::UNAVAILABLE);
        assert_eq!(
            Main::from(Err::<(), _>(anyhow::anyhow!("no database"))).exit_status(),
            exit::FAILURE
        );
    }
}
