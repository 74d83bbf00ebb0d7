//! `prefork run`: runs a program in each worker; `prefork dev`: the same during development.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::dev::{self, AUTO_PATHS, BuildStep, CargoRun, DevState, WatchSettings};
use crate::logging;
use crate::settings::{PROGRAM, ProgramSettings, RunFlagValues};
use tokio_prefork::cli::{Settings, ValueSource};
use tokio_prefork::log_output::install_panic_hook;
use tokio_prefork::program::Program;
use tokio_prefork::{Cluster, Config, ConfigBuilder, Error, Result, exit};

/// `graceful-timeout` of `prefork dev`, if none is given: the old program should be gone when the page is loaded again.
const DEV_GRACEFUL_TIMEOUT: Duration = Duration::from_secs(2);

/// `boot-timeout` of the workers that wait for the first build: a day, the longest one.
const FIRST_BUILD_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Which verb runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunMode {
    Run,
    /// `prefork dev`: watches, with the defaults of development.
    Dev,
}

/// Runs the program in each worker until a signal or a control request stops the cluster, and returns the exit status.
pub(crate) fn run_program(flags: RunFlagValues, mode: RunMode) -> Result<ExitCode> {
    let sources = flags.sources(PROGRAM);
    let settings = sources.resolve()?;
    tokio_prefork::close_inherited_fds(settings.config())?;
    logging::init_logger(&settings.app().log, settings.app().log_format);
    install_panic_hook();
    settings.log_warnings();
    let (log_filter, log_format) = (settings.app().log.clone(), settings.app().log_format);
    let watched = watch_settings(&settings, mode)?;
    if watched.is_some() {
        dev::record_project_dir();
    }
    let build = Build::of_settings(&settings, watched.is_some())?;
    let dev_state = DevState::new(watched, build.step.clone());
    if settings.app().overlay {
        // The primary logs the element; the program's pages include it.
        dev_state.show_overlay(|_| {});
    }
    let dev_of_reload = dev_state.clone();
    let config = build_config(&settings, mode, &build, &dev_state)?;
    let cluster = Cluster::new(config).reload_with(move || {
        let settings = sources.resolve()?;
        settings.log_warnings();
        logging::warn_about_changed_log(
            (&settings.app().log, settings.app().log_format),
            (&log_filter, log_format),
        );
        dev_of_reload.set_settings(watch_settings(&settings, mode)?);
        build_config(&settings, mode, &build, &dev_of_reload)
    });
    dev_state.watch(cluster).serve_program()?;
    Ok(ExitCode::from(exit::OK))
}

/// How the program is built, and what is run then.
struct Build {
    step: Option<BuildStep>,
    /// The arguments of a program that cargo builds.
    program_args: Vec<String>,
}

impl Build {
    /// # Errors
    /// The settings say two things, or a build without changes that begin it.
    fn of_settings(settings: &Settings<ProgramSettings>, is_watched: bool) -> Result<Build> {
        let app = settings.app();
        let none = Build { step: None, program_args: Vec::new() };
        if !is_watched {
            return match &app.build {
                None => Ok(none),
                Some(build) => Err(Error::config(format!(
                    "build = {build} needs watch, as changes begin it: add --watch, or use prefork dev"
                ))),
            };
        }
        let cargo = CargoRun::parse(&app.command).map_err(Error::config)?;
        match (cargo, &app.build) {
            (None, None) => Ok(none),
            (None, Some(line)) => Ok(Build { step: Some(BuildStep::Shell(line.clone())), ..none }),
            (Some(CargoRun { build, program_args }), None) => {
                Ok(Build { step: Some(BuildStep::Cargo(build)), program_args })
            }
            (Some(_), Some(line)) => Err(Error::config(format!(
                "build = {line} conflicts with cargo run, which builds: give the built program as the command, or leave build out"
            ))),
        }
    }
}

fn is_default<A: tokio_prefork::cli::AppKeys>(settings: &Settings<A>, key: &str) -> bool {
    let values = settings.effective_values().iter();
    values.filter(|one| one.key == key).all(|one| matches!(one.source, ValueSource::Default))
}

/// Returns what to watch: with `auto` the current directory and the configuration file. `prefork dev` always watches.
fn watch_settings(
    settings: &Settings<ProgramSettings>,
    mode: RunMode,
) -> Result<Option<WatchSettings>> {
    let app = settings.app();
    let dir = app.directory.clone().unwrap_or_else(|| PathBuf::from("."));
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    let defaults: Vec<PathBuf> =
        std::iter::once(dir).chain(settings.config_file().map(PathBuf::from)).collect();
    let mut keys = app.watch.clone();
    if mode == RunMode::Dev && keys.paths.is_empty() {
        keys.paths.push(PathBuf::from(AUTO_PATHS));
    }
    keys.resolve(&defaults)
}

/// Builds the cluster's configuration with the program.
fn build_config(
    settings: &Settings<ProgramSettings>,
    mode: RunMode,
    build: &Build,
    dev_state: &DevState,
) -> Result<Config> {
    let app = settings.app();
    let mut config = settings.config().clone().into_builder();
    if mode == RunMode::Dev {
        config = with_dev_defaults(settings, config);
    }
    if app.overlay {
        config = dev::overlay_config(settings.config(), config)?;
    }
    if let Some(name) = &app.name {
        config = config.name(name);
    }
    if !dev_state.is_built() {
        return config.program(Program::not_built()).boot_timeout(FIRST_BUILD_TIMEOUT).build();
    }
    let program = match dev_state.program() {
        Some(built) => {
            let arguments = build.program_args.iter().cloned();
            let command = std::iter::once(built.executable).chain(arguments).collect();
            let program = ProgramSettings { command, ..app.clone() }.to_program()?;
            program.env("CARGO_MANIFEST_DIR", built.manifest_dir)
        }
        None => app.to_program()?,
    };
    let project_dir = dev::project_dir().filter(|_| app.directory.is_none());
    let program = project_dir.into_iter().fold(program, Program::current_dir);
    config.program(program).build()
}

/// Sets what is not configured to what fits development: one worker, and old ones that are gone soon.
fn with_dev_defaults(settings: &Settings<ProgramSettings>, config: ConfigBuilder) -> ConfigBuilder {
    let config = if is_default(settings, "workers") { config.workers(1) } else { config };
    match is_default(settings, "graceful-timeout") {
        true => config.graceful_timeout(DEV_GRACEFUL_TIMEOUT),
        false => config,
    }
}
