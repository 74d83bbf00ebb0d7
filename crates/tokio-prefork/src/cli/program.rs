//! A program whose command line consists of the flags of the server.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::Future;

use clap::{Arg, ArgAction, Args as _, Command, FromArgMatches as _};

use super::app_keys::AppKeys;
use super::environment::env_prefix;
use super::key::{EnvAlias, GENERAL_HEADING, all_keys};
use super::output::exit_with_clap_error;
use super::server_args::ServerArgs;
use crate::IntoHttpService;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::error::{BoxError, Result};
use crate::worker::Worker;

/// What the signals do, for the end of a help text.
pub const SIGNALS_HELP: &str = "\
Signals:
  TERM, INT   stop gracefully; a second one stops immediately
  QUIT        stop immediately
  HUP         reload: read the configuration again and replace the workers one by one
  TTIN, TTOU  add or remove one worker
  USR1        reopen the log file and the access log
  USR2        upgrade in place to the binary now installed at the same path";

/// The name and version of a program, as the log, the status and errors show them. A `&'static str` converts into one without a version;
/// [`program!`](crate::program!) takes both from Cargo.
#[derive(Debug, Clone)]
pub struct Program {
    pub(super) name: &'static str,
    pub(super) version: Option<&'static str>,
    about: Option<&'static str>,
}

impl From<&'static str> for Program {
    fn from(name: &'static str) -> Program {
        Program::new(name)
    }
}

impl Program {
    /// Creates a program of this name, which is the prefix of its environment variables, too: `MYAPP_WORKERS`.
    pub const fn new(name: &'static str) -> Program {
        Program { name, version: None, about: None }
    }

    /// Sets the version, which `--version` prints. Without it there is no such flag.
    pub const fn version(mut self, version: &'static str) -> Program {
        self.version = Some(version);
        self
    }

    /// Sets the first line of the help.
    pub const fn about(mut self, about: &'static str) -> Program {
        self.about = Some(about);
        self
    }

    /// Returns clap's definition of the command line: all flags of [`ServerArgs`], `--help` and `--version`.
    pub fn command<A: AppKeys>(&self) -> Command {
        let general = |name: &'static str, letter, action, help: &'static str| {
            let arg = Arg::new(name).long(name).short(letter).action(action);
            arg.help_heading(GENERAL_HEADING).help(help)
        };
        let command = Command::new(self.name).disable_help_flag(true).disable_version_flag(true);
        let command = ServerArgs::<A>::augment_args(command.max_term_width(100));
        let mut command = command
            .arg(general("help", 'h', ArgAction::Help, "Print the common flags; --help prints all"))
            .after_long_help(format!("{}\n\n{SIGNALS_HELP}", self.values_help::<A>()));
        if let Some(version) = self.version {
            let arg = general("version", 'V', ArgAction::Version, "Print the version");
            command = command.version(version).arg(arg);
        }
        match self.about {
            Some(about) => command.about(about),
            None => command,
        }
    }

    /// Returns the paragraphs of the help about values, variables and the file.
    pub fn values_help<A: AppKeys>(&self) -> String {
        let prefix = env_prefix(self.name);
        let keys = all_keys::<A>();
        let aliased: Vec<_> = keys.iter().filter(|key| !key.aliases.is_empty()).collect();
        let list = |names: Vec<String>, and: &str| match names.as_slice() {
            [rest @ .., last] if !rest.is_empty() => format!("{} {and} {last}", rest.join(", ")),
            names => names.concat(),
        };
        let var = |alias: &EnvAlias| alias.var.to_string();
        let aliases =
            list(aliased.iter().flat_map(|key| key.aliases.iter().map(var)).collect(), "and");
        let own = list(aliased.iter().map(|key| key.env_var(&prefix)).collect(), "or");
        // One line per paragraph: clap wraps the text at the width of the terminal.
        let mut text = "DURATION is 30s, 500ms, 2m, 1h or a number of seconds. \
             SIZE is 16KiB, 1MiB or a number of bytes. BOOL is true or false.\n\n"
            .to_string();
        let _ = write!(
            text,
            "Every flag is also an environment variable (--graceful-timeout: {prefix}GRACEFUL_TIMEOUT) and, \
             except for --config, a key of the TOML file (graceful-timeout = \"30s\"). \
             Flags override the environment, and the environment overrides the file. \
             {aliases} are used if {own} is not set."
        );
        text
    }

    /// Parses a command line.
    ///
    /// # Errors
    ///
    /// It is wrong, or asks for the help or the version; [`report_clap_error`](super::report_clap_error) prints either.
    pub fn try_parse_from<A: AppKeys>(
        &self,
        argv: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<ServerArgs<A>, clap::Error> {
        ServerArgs::from_arg_matches(&self.command::<A>().try_get_matches_from(argv)?)
    }

    /// Parses the command line of this process. Exits with status 64 if it is wrong, and with 0 after `--help` or
    /// `--version`.
    pub fn parse<A: AppKeys>(&self) -> ServerArgs<A> {
        self.try_parse_from(std::env::args_os())
            .unwrap_or_else(|error| exit_with_clap_error(&error))
    }
}

/// Resolves the configuration of this process from its flags, environment and TOML file.
///
/// Exits with status 64 if the command line is wrong, and with 0 after `--help`, `--version` or `--check-config`. A
/// reload does not read the sources again; [`cluster`] makes it do so.
///
/// # Errors
///
/// A value, a name or the file is invalid; the exit status is 78.
pub fn config(program: impl Into<Program>) -> Result<Config> {
    let program = program.into();
    program.parse::<()>().into_config(program)
}

/// Creates a cluster with the configuration of [`config`], which each reload (SIGHUP) reads again.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tokio_prefork::{Main, Result, cli};
///
/// fn main() -> Main {
///     run().into()
/// }
///
/// fn run() -> Result<()> {
///     let cluster = cli::cluster(tokio_prefork::program!())?;
///     let cluster = cluster.on_event(|_, event| println!("{event}"));
///     cluster.serve(|_worker| async { Ok(Router::new().route("/", get("hello"))) })
/// }
/// ```
///
/// # Errors
///
/// As [`config`].
pub fn cluster(program: impl Into<Program>) -> Result<Cluster> {
    cluster_with_keys::<()>(program)
}

/// Creates a cluster as [`cluster`] does, for an application with keys of its own.
///
/// # Errors
///
/// As [`config`].
pub fn cluster_with_keys<A: AppKeys>(program: impl Into<Program>) -> Result<Cluster> {
    let program = program.into();
    program.parse::<A>().into_cluster(program)
}

/// Runs a program whose command line consists of the flags of the server: [`cluster`] and
/// [`Cluster::serve`](crate::Cluster::serve) in one call.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tokio_prefork::{Main, cli};
///
/// fn main() -> Main {
///     cli::run(tokio_prefork::program!(), |_worker| async {
///         Ok(Router::new().route("/", get("hello")))
///     })
///     .into()
/// }
/// ```
///
/// # Errors
///
/// As [`config`] and [`Cluster::serve`](crate::Cluster::serve).
pub fn run<F, S, M>(
    program: impl Into<Program>,
    app: impl Fn(Worker) -> F + Send + Sync + 'static,
) -> Result<()>
where
    F: Future<Output = Result<S, BoxError>> + 'static,
    S: IntoHttpService<M>,
{
    cluster(program)?.serve(app)
}

/// Creates a [`Program`] with the name, version and description of the package in Cargo.toml.
///
/// ```
/// let program = tokio_prefork::program!();
/// ```
#[macro_export]
macro_rules! program {
    () => {
        $crate::cli::Program::new(env!("CARGO_PKG_NAME"))
            .version(env!("CARGO_PKG_VERSION"))
            .about(env!("CARGO_PKG_DESCRIPTION"))
    };
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    const PROGRAM: Program = Program::new("my-app").version("1.2.3");

    #[test]
    fn clap_accepts_the_command_definition() {
        PROGRAM.command::<()>().debug_assert();
    }

    #[test]
    fn help_names_the_variables_of_the_program_and_its_signals() {
        let help = PROGRAM.command::<()>().render_long_help().to_string();
        // The width of the terminal decides where lines end.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for text in [
            "MY_APP_GRACEFUL_TIMEOUT",
            "PORT and WEB_CONCURRENCY are used if MY_APP_BIND or",
            "-w, --workers <N>",
            "--check-config[=<FORMAT>]",
            "[default: 127.0.0.1:3000]",
            "Signals:",
        ] {
            assert!(help.contains(text), "{text} is not in\n{help}");
        }
    }

    #[test]
    fn usage_errors_differ_from_requests_for_help_and_suggest_a_flag() {
        for (line, kind) in [
            ("my-app --help", ErrorKind::DisplayHelp),
            ("my-app --version", ErrorKind::DisplayVersion),
            ("my-app --worker 1", ErrorKind::UnknownArgument),
            ("my-app -w 1 -w 2", ErrorKind::ArgumentConflict),
        ] {
            let error = PROGRAM.try_parse_from::<()>(line.split(' ')).expect_err(line);
            assert_eq!(error.kind(), kind, "{line}");
        }
        let error = PROGRAM.try_parse_from::<()>(["my-app", "--worker", "1"]).expect_err("unknown");
        assert!(error.to_string().contains("--workers"), "{error}");
        assert!(PROGRAM.try_parse_from::<()>(["my-app", "-w", "2"]).is_ok());
    }
}
