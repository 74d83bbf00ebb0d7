//! `prefork run`: runs a program in each worker.

use std::process::ExitCode;

use crate::logging;
use crate::settings::{PROGRAM, ProgramSettings, RunFlagValues};
use tokio_prefork::cli::Settings;
use tokio_prefork::log_output::install_panic_hook;
use tokio_prefork::{Cluster, Config, Result, exit};

/// Runs the program in each worker until a signal or a control request stops the cluster, and returns the exit status.
pub(crate) fn run_program(flags: RunFlagValues) -> Result<ExitCode> {
    let sources = flags.sources(PROGRAM);
    let settings = sources.resolve()?;
    tokio_prefork::close_inherited_fds(settings.config())?;
    logging::init_logger(&settings.app().log, settings.app().log_format);
    install_panic_hook();
    settings.log_warnings();
    let (log_filter, log_format) = (settings.app().log.clone(), settings.app().log_format);
    Cluster::new(build_config(&settings)?)
        .reload_with(move || {
            let settings = sources.resolve()?;
            settings.log_warnings();
            logging::warn_about_changed_log(
                (&settings.app().log, settings.app().log_format),
                (&log_filter, log_format),
            );
            build_config(&settings)
        })
        .serve_program()?;
    Ok(ExitCode::from(exit::OK))
}

/// Builds the cluster's configuration with the program.
fn build_config(settings: &Settings<ProgramSettings>) -> Result<Config> {
    let app = settings.app();
    let config = settings.config().clone().into_builder().program(app.to_program()?);
    match &app.name {
        Some(name) => config.name(name).build(),
        None => config.build(),
    }
}
