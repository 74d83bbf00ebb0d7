//! Configuration of the command: the keys of the server, which the library reads, those of the built-in application, and those of
//! programs.

mod app_keys;
mod app_settings;
mod dev_keys;
mod env_file;
mod log_filter;
mod log_keys;
mod program_keys;
mod program_settings;
mod refused_keys;

pub(crate) use app_settings::AppSettings;
pub(crate) use program_settings::ProgramSettings;
use tokio_prefork::cli::Program;

/// Configuration flags of the command line, unparsed.
pub(crate) type FlagValues = tokio_prefork::cli::ServerArgs<AppSettings>;

/// Configuration flags of `prefork run`, unparsed.
pub(crate) type RunFlagValues = tokio_prefork::cli::ServerArgs<ProgramSettings>;

/// The complete, validated configuration of the built-in application.
pub(crate) type Settings = tokio_prefork::cli::Settings<AppSettings>;

/// Name and version of the command. The names of its environment variables follow from the name.
pub(crate) const PROGRAM: Program = Program::new("prefork").version(env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
