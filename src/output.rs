//! Output of the command: results on standard output, errors on standard error.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio_prefork::log_output;
use tokio_prefork::text::Printable;
use tokio_prefork::{Error, Result, exit};

/// Prints the help, version or usage error of clap and returns the exit status. Usage errors exit with 64.
pub(crate) fn print_clap_error(error: &clap::Error) -> ExitCode {
    // A closed pipe (`| head`) is not a failure.
    if let Err(e) = error.print().and_then(|()| io::stdout().flush())
        && e.kind() != io::ErrorKind::BrokenPipe
        && !error.use_stderr()
    {
        print_error(&Error::system("write to standard output", e));
        return ExitCode::from(exit::OS);
    }
    ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK })
}

/// Prints one line to standard error, prefixed with `prefork: `, with unprintable characters escaped.
pub(crate) fn print_error(text: &dyn Display) {
    log_output::write_final_line(format!("prefork: {}\n", Printable(text)).as_bytes());
}

/// Prints the result of a verb and returns exit status 0.
///
/// # Errors
///
/// Standard output cannot be written. A closed pipe (`| head`) is not an error.
pub(crate) fn print_result(text: &str) -> Result<ExitCode> {
    print_stdout(text)?;
    Ok(ExitCode::from(exit::OK))
}

/// Prints to standard output. Returns `false` if the reader has closed the pipe (`| head`).
///
/// # Errors
///
/// Standard output cannot be written.
pub(crate) fn print_stdout(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::system("write to standard output", error)),
    }
}
