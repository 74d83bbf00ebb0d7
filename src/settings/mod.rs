//! Configuration of the command: the keys of the server, which the library reads, and those of the built-in application.

mod app_keys;
mod app_settings;
mod log_filter;

pub(crate) use app_settings::AppSettings;

/// Configuration flags of the command line, unparsed.
pub(crate) type FlagValues = tokio_prefork::cli::ServerArgs<AppSettings>;

/// The complete, validated configuration.
pub(crate) type Settings = tokio_prefork::cli::Settings<AppSettings>;

/// Name of the command, from which the names of its environment variables follow.
pub(crate) const PROGRAM: &str = "prefork";

#[cfg(test)]
mod tests;
