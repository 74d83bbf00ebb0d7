//! Output of a command line: results on standard output, usage errors with their exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::app_name::app_name;
use crate::error::{Error, Result, exit};

/// Prints the help, the version or the usage error of clap and returns the exit status: 64 for a usage error, else 0.
///
/// clap's own `Error::exit` would exit with 2, which no service manager can tell from a failure of the program.
pub fn report_clap_error(error: &clap::Error) -> ExitCode {
    ExitCode::from(print_clap_error(error))
}

/// Prints the text of [`report_clap_error`] and exits.
pub(super) fn exit_with_clap_error(error: &clap::Error) -> ! {
    std::process::exit(print_clap_error(error).into())
}

fn print_clap_error(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if let Some(text) = text.strip_prefix("error: ") {
        // All other errors of the program begin like this. A closed standard error leaves nothing to do.
        let _ = write!(io::stderr(), "{}: {text}", app_name());
        return exit::USAGE;
    }
    // A closed pipe (`| head`) is not a failure.
    if let Err(e) = error.print().and_then(|()| io::stdout().flush())
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        let error = Error::system("write to standard output", e);
        error.report();
        return error.exit_status();
    }
    // Without arguments, the help is the answer to a usage error.
    if error.use_stderr() { exit::USAGE } else { exit::OK }
}

/// Prints to standard output. Returns `false` if the reader has closed the pipe (`| head`).
///
/// # Errors
///
/// Standard output cannot be written.
pub fn print_stdout(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::system("write to standard output", error)),
    }
}
