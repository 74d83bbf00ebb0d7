//! Command line: defines verbs and flags for clap, and parses arguments into a [`Verb`].
//!
//! The configuration flags come from the library and from `crate::settings`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches as _};

use crate::commands::bench::{self, BenchCall};
use crate::commands::compare::{self, CompareCall};
use crate::commands::control::{self, ControlCall};
use crate::commands::demo::{self, DemoCall};
use crate::commands::dev_cert::{self, DevCertCall};
use crate::commands::health::{self, HealthCall};
use crate::commands::man_pages::{self, GenerateCall};
use crate::commands::reference_pages::{self, ReferenceCall};
use crate::commands::top::{self, TopCall};
use crate::foreign_verbs::answer_foreign_verb;
use crate::settings::{AppSettings, FlagValues, PROGRAM, ProgramSettings, RunFlagValues};
use crate::usage_tips::add_usage_tip;
use crate::verb_groups::with_verb_groups;
use tokio_prefork::cli::{AppKeys, CheckFormat, SIGNALS_HELP, ServerArgs};

/// A verb of the command with its arguments.
#[derive(Debug)]
pub(crate) enum Verb {
    /// Run the server.
    Serve(FlagValues),
    /// Run a foreign program in each worker.
    Run(RunFlagValues),
    /// Run a program during development: watch its files, build, reload.
    Dev(RunFlagValues),
    /// Validate the configuration and print it.
    Check {
        /// The same flags as for `serve`.
        flags: FlagValues,
        /// How to print it.
        format: CheckFormat,
    },
    /// Validate the configuration of `prefork run` and print it.
    CheckRun {
        /// The same flags as for `run`.
        flags: RunFlagValues,
        /// How to print it.
        format: CheckFormat,
    },
    /// Print the kernel programs of a dispatch policy.
    DispatchProgram(FlagValues),
    /// Write a certificate for trials.
    DevCert(DevCertCall),
    /// Send a request to a running primary.
    Control(ControlCall),
    /// Watch a running primary in a terminal.
    Top(Box<TopCall>),
    /// Check over HTTP whether a server is ready.
    Health(HealthCall),
    /// Generate load and measure a server.
    Bench(Box<BenchCall>),
    /// Write manual pages or shell completions.
    Generate(GenerateCall),
    /// Write the reference pages of the documentation.
    Reference(ReferenceCall),
    /// Demonstrate the effect of CPU-bound work on a server.
    Demo(DemoCall),
    /// Measure several servers side by side.
    Compare(CompareCall),
}

const SERVE_EXAMPLES: &str = "\
Examples:
  prefork serve --root ./public
  prefork serve -b 0.0.0.0:8080 -w 4 --graceful-timeout 10s
  prefork serve -c /etc/prefork.toml -b unix:/run/prefork.sock";

const RUN_EXAMPLES: &str = "\
Examples:
  prefork run -w 4 -b 0.0.0.0:3000 -- node app.js
  prefork run -w 2 -- uvicorn app:app --fd {fd}
  prefork run --ready-http /healthz --stop-signal INT -- ./server --socket-fd={fd}
  prefork run -c /etc/prefork/api.toml";

const DEV_DEFAULTS: &str = "\
Defaults that differ from those of prefork run:
  watch             auto
  workers           1
  graceful-timeout  2s
  build             cargo build, if the program is cargo run
  PROGRAM           cargo run beside a Cargo.toml, else what package.json starts with node";

const DEV_EXAMPLES: &str = "\
Examples:
  prefork dev -- cargo run -- --verbose
  prefork dev --watch src --overlay -- node app.js
  prefork dev --build 'go build -o server .' -- ./server";

const CHECK_EXAMPLES: &str = "\
Examples:
  prefork check -c /etc/prefork.toml
  prefork check --json --workers 4
  prefork check run --ready notify -- node app.js

A file with the key program is checked as that of prefork run.";

const CHECK_RUN_EXAMPLES: &str = "\
Examples:
  prefork check run --ready notify -- node app.js
  prefork check run -c /etc/prefork/api.toml --json";

const DISPATCH_PROGRAM_EXAMPLES: &str = "\
Examples:
  prefork dispatch-program --dispatch least-conn --workers 4
  prefork dispatch-program -c /etc/prefork.toml";

/// Returns clap's definition of the whole command line.
pub(crate) fn prefork_command() -> Command {
    let command = Command::new("prefork")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A prefork server: worker processes that share listening sockets")
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve_command())
        .subcommand(run_command())
        .subcommand(dev_command())
        .subcommand(check_command())
        .subcommand(dispatch_program_command())
        .subcommands(control::control_commands())
        .subcommand(top::top_command())
        .subcommand(health::health_command())
        .subcommand(bench::bench_command())
        .subcommand(compare::compare_command())
        .subcommand(demo::demo_command())
        .subcommand(dev_cert::dev_cert_command())
        .subcommands(man_pages::generate_commands())
        .subcommand(reference_pages::reference_command());
    with_verb_groups(command)
}

fn serve_command() -> Command {
    with_config_flags::<AppSettings>(Command::new("serve"))
        .about("Run the server in the foreground until a signal stops it")
        .after_help(short_help("serve", SERVE_EXAMPLES))
        .after_long_help(config_help::<AppSettings, 2>([SIGNALS_HELP, SERVE_EXAMPLES]))
}

fn run_command() -> Command {
    with_config_flags::<ProgramSettings>(Command::new("run"))
        .about("Run a program in each worker: Node, Python, Ruby, Go, any")
        .override_usage("prefork run [OPTIONS] [--] PROGRAM [ARGS]...")
        .after_help(short_help("run", RUN_EXAMPLES))
        .after_long_help(config_help::<ProgramSettings, 2>([SIGNALS_HELP, RUN_EXAMPLES]))
}

fn dev_command() -> Command {
    with_config_flags::<ProgramSettings>(Command::new("dev"))
        .about("Run a program, watch its files, build and reload it")
        .override_usage("prefork dev [OPTIONS] [--] [PROGRAM] [ARGS]...")
        .after_help(short_help("dev", DEV_EXAMPLES))
        .after_long_help(config_help::<ProgramSettings, 3>([
            DEV_DEFAULTS,
            SIGNALS_HELP,
            DEV_EXAMPLES,
        ]))
}

fn check_command() -> Command {
    let run = with_config_flags::<ProgramSettings>(Command::new("run"))
        .about("Validate the configuration of prefork run, and find the program")
        .override_usage("prefork check run [OPTIONS] [--] [PROGRAM] [ARGS]...")
        .arg(check_format_arg())
        .after_help(short_help("check run", CHECK_RUN_EXAMPLES))
        .after_long_help(config_help::<ProgramSettings, 1>([CHECK_RUN_EXAMPLES]));
    with_config_flags::<AppSettings>(Command::new("check"))
        .about("Validate the configuration, print it with its sources")
        .arg(check_format_arg())
        .subcommand(run)
        .disable_help_subcommand(true)
        .args_conflicts_with_subcommands(true)
        .after_help(short_help("check", CHECK_EXAMPLES))
        .after_long_help(config_help::<AppSettings, 1>([CHECK_EXAMPLES]))
}

fn check_format_arg() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help_heading("General")
        .help("Print a JSON object that maps each key to its value and source")
}

fn dispatch_program_command() -> Command {
    with_config_flags::<AppSettings>(Command::new("dispatch-program"))
        .about("Print the kernel programs that dispatch connections")
        .after_help(short_help("dispatch-program", DISPATCH_PROGRAM_EXAMPLES))
        .after_long_help(config_help::<AppSettings, 1>([DISPATCH_PROGRAM_EXAMPLES]))
}

/// Adds the configuration flags: those of the keys and `--config`.
fn with_config_flags<A: AppKeys>(command: Command) -> Command {
    let help = Arg::new("help")
        .long("help")
        .short('h')
        .action(ArgAction::Help)
        .help_heading("General")
        .help("Print the common flags; --help prints all, the variables and the signals");
    command.disable_help_flag(true).args(ServerArgs::<A>::config_args()).arg(help)
}

/// Returns the end of the short help.
fn short_help(verb: &str, examples: &str) -> String {
    format!("All flags, environment variables and signals: prefork {verb} --help\n\n{examples}")
}

/// Returns the help about values, variables and the file, followed by these paragraphs.
fn config_help<A: AppKeys, const N: usize>(paragraphs: [&str; N]) -> String {
    let values = PROGRAM.values_help::<A>();
    let paragraphs = std::iter::once(values.as_str()).chain(paragraphs);
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// Parses a command line. Requests for help or the version are errors too, with their text.
pub(crate) fn parse_args(
    argv: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Verb, clap::Error> {
    let mut argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
    let mut matches = prefork_command().try_get_matches_from(&argv).map_err(|mut error| {
        if let Some(answer) = answer_foreign_verb(&error) {
            return prefork_command().error(clap::error::ErrorKind::InvalidSubcommand, answer);
        }
        add_usage_tip(&mut error, argv.get(1).and_then(|verb| verb.to_str()));
        error
    })?;
    if needs_default_program(&matches) {
        let dir = std::env::current_dir().unwrap_or_default();
        let command = crate::dev::default_command(&dir).map_err(usage_error("dev"))?;
        argv.push("--".into());
        argv.extend(command.into_iter().map(OsString::from));
        matches = prefork_command().try_get_matches_from(argv)?;
    }
    match matches.subcommand() {
        Some(("serve", matches)) => FlagValues::from_arg_matches(matches).map(Verb::Serve),
        Some(("run", matches)) => RunFlagValues::from_arg_matches(matches).map(Verb::Run),
        Some(("dev", matches)) => RunFlagValues::from_arg_matches(matches).map(Verb::Dev),
        Some(("check", matches)) => parse_check(matches),
        Some(("dispatch-program", matches)) => {
            FlagValues::from_arg_matches(matches).map(Verb::DispatchProgram)
        }
        Some(("bench", matches)) => {
            let call = bench::parse_bench(matches).map_err(usage_error("bench"))?;
            Ok(Verb::Bench(Box::new(call)))
        }
        Some(("compare", matches)) => {
            compare::parse_compare(matches).map(Verb::Compare).map_err(usage_error("compare"))
        }
        Some(("demo", matches)) => {
            demo::parse_demo(matches).map(Verb::Demo).map_err(usage_error("demo"))
        }
        Some(("top", matches)) => {
            top::parse_top(matches).map(|call| Verb::Top(Box::new(call))).ok_or_else(unknown_verb)
        }
        Some(("dev-cert", matches)) => {
            dev_cert::parse_dev_cert(matches).map(Verb::DevCert).ok_or_else(unknown_verb)
        }
        Some(("health", matches)) => {
            health::parse_health(matches).map(Verb::Health).ok_or_else(unknown_verb)
        }
        Some(("reference", matches)) => {
            reference_pages::parse_reference(matches).map(Verb::Reference).ok_or_else(unknown_verb)
        }
        Some((name, matches)) => man_pages::parse_generate(name, matches)
            .map(Verb::Generate)
            .or_else(|| control::parse_control(name, matches).map(Verb::Control))
            .ok_or_else(unknown_verb),
        None => Err(unknown_verb()),
    }
}

/// Returns whether `prefork dev` is to find out what to run. A configuration file may name it.
fn needs_default_program(matches: &ArgMatches) -> bool {
    matches.subcommand_matches("dev").is_some_and(|dev| {
        dev.get_many::<String>("program").is_none() && dev.get_one::<PathBuf>("config").is_none()
    })
}

fn parse_check(matches: &ArgMatches) -> Result<Verb, clap::Error> {
    let format = |matches: &ArgMatches| match matches.get_flag("json") {
        true => CheckFormat::Json,
        false => CheckFormat::Table,
    };
    match matches.subcommand() {
        Some((_, run)) => RunFlagValues::from_arg_matches(run)
            .map(|flags| Verb::CheckRun { flags, format: format(run) }),
        None => FlagValues::from_arg_matches(matches)
            .map(|flags| Verb::Check { flags, format: format(matches) }),
    }
}

/// Returns what makes a usage error of a verb from its reason.
fn usage_error(verb: &'static str) -> impl Fn(String) -> clap::Error {
    move |reason| {
        let mut command = prefork_command();
        // Its verbs get the name of the command, for their usage.
        command.build();
        let mut verb = command.find_subcommand(verb).cloned().unwrap_or(command);
        verb.error(clap::error::ErrorKind::ValueValidation, reason)
    }
}

/// Parses a whole number. The error gives an example of a valid number; that of the standard library does not.
pub(crate) fn parse_number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| "it is no whole number: give one such as 2".to_string())
}

/// Returns the error for a verb that [`parse_args`] does not handle. Unreachable: clap rejects unknown verbs.
fn unknown_verb() -> clap::Error {
    prefork_command().error(clap::error::ErrorKind::InvalidSubcommand, "unknown verb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;
    use tokio_prefork::cli::all_keys;

    #[test]
    fn clap_accepts_the_command_definition() {
        prefork_command().debug_assert();
    }

    #[test]
    fn serve_check_and_dispatch_program_have_a_flag_for_each_key() {
        let has_config_flags =
            |verb: &&Command| ["serve", "check", "dispatch-program"].contains(&verb.get_name());
        for verb in prefork_command().get_subcommands().filter(has_config_flags) {
            let keys = all_keys::<AppSettings>();
            let keys = keys.iter().map(|key| key.name);
            let mut expected: Vec<&str> = keys.chain(["config", "help"]).collect();
            if verb.get_name() == "check" {
                expected.push("json");
            }
            let mut flags: Vec<&str> = verb.get_arguments().filter_map(Arg::get_long).collect();
            flags.sort_unstable();
            expected.sort_unstable();
            assert_eq!(flags, expected, "{}", verb.get_name());
        }
    }

    #[test]
    fn boolean_flags_take_a_value_only_after_an_equals_sign() {
        let error = parse_args("prefork serve --http2 false".split(' ')).expect_err("stray word");
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }

    #[test]
    fn usage_errors_differ_from_requests_for_help() {
        for (line, kind) in [
            ("prefork", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("prefork --help", ErrorKind::DisplayHelp),
            ("prefork serve --help", ErrorKind::DisplayHelp),
            ("prefork help serve", ErrorKind::DisplayHelp),
            ("prefork --version", ErrorKind::DisplayVersion),
            ("prefork walk", ErrorKind::InvalidSubcommand),
            ("prefork run --help", ErrorKind::DisplayHelp),
            ("prefork run --read 1 -- node", ErrorKind::UnknownArgument),
            ("prefork serve --worker 1", ErrorKind::UnknownArgument),
            ("prefork serve -w 1 -w 2", ErrorKind::ArgumentConflict),
        ] {
            assert_eq!(parse_args(line.split(' ')).expect_err(line).kind(), kind, "{line}");
        }
    }

    #[test]
    fn serve_help_has_headings_defaults_signals_and_examples() {
        let help = serve_command().render_long_help().to_string();
        for text in [
            "Listening:",
            "Workers:",
            "Stopping:",
            "HTTP:",
            "Built-in application:",
            "General:",
            "[default: 30s]",
            "[default: 16KiB]",
            "--graceful-timeout <DURATION>",
            "--http2[=<BOOL>]",
            "-w, --workers <N>",
            "Signals:",
            "Examples:",
        ] {
            assert!(help.contains(text), "{text} is not in\n{help}");
        }
    }
}
