//! Output of the command: results on standard output, errors on standard error.

use std::fmt::Display;
use std::process::ExitCode;

pub(crate) use tokio_prefork::cli::print_stdout;
use tokio_prefork::log_output;
use tokio_prefork::{Result, exit};

/// Prints one line to standard error, with unprintable characters escaped: prefixed with `prefork: `, or as JSON if that is the
/// format of the log.
pub(crate) fn print_error(text: &dyn Display) {
    log_output::write_final_error("prefork", &text.to_string());
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
