//! Configuration of the command: the keys of the server, which the library reads, and those of the built-in application.

mod app_keys;
mod app_settings;
mod log_filter;

pub(crate) use app_settings::AppSettings;
use tokio_prefork::cli::Program;

/// Configuration flags of the command line, unparsed.
pub(crate) type FlagValues = tokio_prefork::cli::ServerArgs<AppSettings>;

/// The complete, validated configuration.
pub(crate) type Settings = tokio_prefork::cli::Settings<AppSettings>;

/// Name and version of the command. The names of its environment variables follow from the name.
pub(crate) const PROGRAM: Program = Program::new("prefork").version(env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
