//! `prefork check`: validates the configuration and prints every value with its source.

use std::process::ExitCode;

use crate::settings::{FlagValues, PROGRAM};
use tokio_prefork::cli::CheckFormat;
use tokio_prefork::{Result, exit};

/// Prints the effective configuration. Fails if it is invalid or the log file cannot be written.
pub(crate) fn run_check(flags: FlagValues, format: CheckFormat) -> Result<ExitCode> {
    flags.sources(PROGRAM).resolve()?.print_check(format)?;
    Ok(ExitCode::from(exit::OK))
}
