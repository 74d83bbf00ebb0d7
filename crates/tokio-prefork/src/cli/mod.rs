//! The command line, environment variables and TOML file of `prefork serve`, for your own program. Feature `cli`.
//!
//! Three ways in:
//!
//! - [`run`] and [`cluster`]: the whole command line is that of the server.
//! - [`ServerArgs`]: the flags of the server within your own clap parser, by `#[command(flatten)]`.
//! - [`AppKeys`]: keys of your own that are flags, variables and TOML keys like those of the server.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use tokio_prefork::{Main, cli};
//!
//! fn main() -> Main {
//!     cli::run("myapp", |_worker| async { Ok(Router::new().route("/", get("hello"))) }).into()
//! }
//! ```
//!
//! Such a program takes `--bind 0.0.0.0:8080`, `--workers 4` and every other key of the
//! [configuration](crate::ConfigBuilder) as a flag, as a variable (`MYAPP_WORKERS=4`; also `WEB_CONCURRENCY` and `PORT`)
//! and as a line of the TOML file (`workers = 4`) that `--config FILE` or `MYAPP_CONFIG` names. Flags override the
//! environment, and the environment overrides the file. SIGHUP reads the file again and replaces the workers.
//! `--check-config` prints every value with its source.
//!
//! A wrong command line exits with 64 and suggests the nearest flag; an invalid value, an unknown key or an unreadable file
//! is an error with exit status 78 (return [`Main`](crate::Main) from `main`). Its control socket is on, so the
//! verbs of the `prefork` command work on it: `prefork status`, `reload`, `scale`, `stop`, `upgrade`, `events`.
//!
//! Values of your own that are too rich for flags belong in the table `[app]` of the file: [`Settings::app_table`].

mod app_keys;
mod check;
mod config_sources;
mod configured_value;
mod did_you_mean;
mod environment;
mod field;
mod file;
mod heading;
mod key;
mod output;
mod program;
mod server_args;
mod server_keys;
mod settings;
mod value_syntax;

pub use app_keys::{AppKeys, COMMON_SERVER_KEYS};
pub use check::CheckFormat;
pub use clap;
pub use config_sources::ConfigSources;
pub use configured_value::ValueSource;
pub use did_you_mean::nearest_name;
pub use field::{Field, parse_value};
pub use key::{EnvAlias, Key, KeyInfo, RefusedKey, all_keys};
pub use output::{print_stdout, report_clap_error};
pub use program::{Program, SIGNALS_HELP, cluster, cluster_with_keys, config, run};
pub use server_args::ServerArgs;
pub use settings::{EffectiveValue, Settings};
pub use value_syntax::{parse_duration, parse_size};

/// Parses the command line of this process with your own parser, as `Parser::parse` does, but exits with status 64 if it is
/// wrong. See [`ServerArgs`].
pub fn parse<P: clap::Parser>() -> P {
    P::try_parse().unwrap_or_else(|error| output::exit_with_clap_error(&error))
}

#[cfg(test)]
mod tests;
