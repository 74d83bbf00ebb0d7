//! `prefork run`: runs a foreign program in each worker.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::logging;
use crate::settings::{FlagValues, PROGRAM, Settings};
use tokio_prefork::log_output::install_panic_hook;
use tokio_prefork::program::Program;
use tokio_prefork::{Cluster, Config, Result, exit};

/// The arguments of `prefork run`.
#[derive(Debug)]
pub(crate) struct RunCall {
    pub(crate) flags: FlagValues,
    /// The program and its arguments; at least one.
    pub(crate) command: Vec<OsString>,
}

/// Runs the program in each worker until a signal or a control request stops the cluster, and returns the exit status.
pub(crate) fn run_program(call: RunCall) -> Result<ExitCode> {
    let sources = call.flags.sources(PROGRAM);
    let settings = sources.resolve()?;
    tokio_prefork::close_inherited_fds(settings.config())?;
    logging::init_logger(&settings.app().log, settings.app().log_format);
    install_panic_hook();
    settings.log_warnings();
    let command = call.command;
    let config = build_config(settings, &command)?;
    Cluster::new(config)
        .reload_with(move || {
            let settings = sources.resolve()?;
            settings.log_warnings();
            build_config(settings, &command)
        })
        .serve_program()?;
    Ok(ExitCode::from(exit::OK))
}

fn build_config(settings: Settings, command: &[OsString]) -> Result<Config> {
    let mut words = command.iter().cloned();
    let program = Program::new(words.next().unwrap_or_default()).args(words);
    settings.config().clone().into_builder().program(program).build()
}
