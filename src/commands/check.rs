//! `prefork check`: validates the configuration and prints every value with its source.

use std::process::ExitCode;

use crate::settings::{FlagValues, PROGRAM, ProgramSettings, RunFlagValues};
use tokio_prefork::cli::{CheckFormat, ConfigSources};
use tokio_prefork::{Result, exit};

/// Prints the effective configuration. Fails if it is invalid or the log file cannot be written. A file with the key `program` is one of
/// `prefork run`.
pub(crate) fn run_check(flags: FlagValues, format: CheckFormat) -> Result<ExitCode> {
    let sources = flags.sources(PROGRAM);
    if sources.sets_key("program")? {
        return check_run(&sources.with_keys(), format);
    }
    sources.resolve()?.print_check(format)?;
    Ok(ExitCode::from(exit::OK))
}

/// Prints the effective configuration of `prefork run`. Fails also if the program cannot be run.
pub(crate) fn run_check_run(flags: RunFlagValues, format: CheckFormat) -> Result<ExitCode> {
    check_run(&flags.sources(PROGRAM), format)
}

fn check_run(sources: &ConfigSources<ProgramSettings>, format: CheckFormat) -> Result<ExitCode> {
    let settings = sources.resolve()?;
    settings.print_check(format)?;
    settings.app().to_program()?.check()?;
    Ok(ExitCode::from(exit::OK))
}
