//! argv to a verb and its flags: syntax only. The flags of a configuration come from the key table.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::commands::bench::{self, BenchCall};
use crate::commands::compare::{self, CompareCall};
use crate::commands::control::{self, ControlCall};
use crate::commands::demo::{self, DemoCall};
use crate::commands::health::{self, HealthCall};
use crate::commands::man_pages::{self, GenerateCall};
use crate::commands::reference_pages::{self, ReferenceCall};
use crate::settings::FlagValues;
use crate::settings::key::Key;
use crate::settings::key_table::KEYS;

/// What the binary is asked to do.
#[derive(Debug)]
pub(crate) enum Verb {
    /// Run the server.
    Serve(FlagValues),
    /// Check the configuration and print it.
    Check {
        /// The same flags as those of `serve`.
        flags: FlagValues,
        /// For programs instead of people.
        json: bool,
    },
    /// Print the programs that choose the worker for a connection.
    DispatchProgram(FlagValues),
    /// Ask a running primary.
    Control(ControlCall),
    /// Ask a server whether it is ready.
    Health(HealthCall),
    /// Put load on a server.
    Bench(Box<BenchCall>),
    /// Write manual pages or completions.
    Generate(GenerateCall),
    /// Write the reference pages of the book.
    Reference(ReferenceCall),
    /// Show what computing does to a server.
    Demo(DemoCall),
    /// Measure servers side by side.
    Compare(CompareCall),
}

// One line a paragraph: clap wraps them at the width of the terminal.
const VALUES_HELP: &str = "\
DURATION is 30s, 500ms, 2m, 1h or a bare number of seconds. \
SIZE is 16KiB, 1MiB or a bare number of bytes. BOOL is true or false.

Every flag is also an environment variable (--graceful-timeout: PREFORK_GRACEFUL_TIMEOUT) and, \
but for --config, a key of the TOML file (graceful-timeout = \"30s\"). \
Flags win over the environment, and that wins over the file. \
PORT, WEB_CONCURRENCY and RUST_LOG are honoured below PREFORK_BIND, PREFORK_WORKERS and PREFORK_LOG.";

const SIGNALS_HELP: &str = "\
Signals:
  TERM, INT   stop gracefully; a second one stops now
  QUIT        stop now
  HUP         reload: replace the workers one by one
  TTIN, TTOU  one worker more, one less
  USR2        upgrade to the binary that now stands at the same path";

const SERVE_EXAMPLES: &str = "\
Examples:
  prefork serve --root ./public
  prefork serve -b 0.0.0.0:8080 -w 4 --graceful-timeout 10s
  prefork serve -c /etc/prefork.toml -b unix:/run/prefork.sock";

const CHECK_EXAMPLES: &str = "\
Examples:
  prefork check -c /etc/prefork.toml
  prefork check --json --workers 4";

const PROGRAM_EXAMPLES: &str = "\
Examples:
  prefork dispatch-program --dispatch least-conn --workers 4
  prefork dispatch-program -c /etc/prefork.toml";

/// The whole command line, as data.
pub(crate) fn command() -> Command {
    Command::new("prefork")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A prefork HTTP server: one primary process, and workers that share its port")
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        // One line for each verb.
        .subcommand(serve_command())
        .subcommand(check_command())
        .subcommand(dispatch_program_command())
        .subcommands(control::control_commands())
        .subcommand(health::health_command())
        .subcommand(bench::bench_command())
        .subcommand(compare::compare_command())
        .subcommand(demo::demo_command())
        .subcommands(man_pages::generate_commands())
        .subcommand(reference_pages::reference_command())
}

fn serve_command() -> Command {
    with_config_flags(Command::new("serve"))
        .about("Run the server in the foreground until a signal stops it")
        .after_help(format!("{VALUES_HELP}\n\n{SIGNALS_HELP}\n\n{SERVE_EXAMPLES}"))
}

fn check_command() -> Command {
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help_heading("General")
        .help("Print a JSON object: key to value and source");
    with_config_flags(Command::new("check"))
        .about("Check the configuration and print every value with its source")
        .arg(json)
        .after_help(format!("{VALUES_HELP}\n\n{CHECK_EXAMPLES}"))
}

fn dispatch_program_command() -> Command {
    with_config_flags(Command::new("dispatch-program"))
        .about("Print the program that would choose the worker for a connection in the kernel")
        .after_help(format!("{VALUES_HELP}\n\n{PROGRAM_EXAMPLES}"))
}

/// Adds the flags of a configuration: those of the key table and `--config`.
fn with_config_flags(command: Command) -> Command {
    let config = Arg::new("config")
        .long("config")
        .short('c')
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help_heading("General")
        .help("Read this TOML file [default: none]");
    let help = Arg::new("help")
        .long("help")
        .short('h')
        .action(ArgAction::Help)
        .help_heading("General")
        .help("Print this help");
    command.disable_help_flag(true).args(KEYS.iter().map(key_arg)).arg(config).arg(help)
}

fn key_arg(key: &'static Key) -> Arg {
    let default = Some(key.default_text()).filter(|text| !text.is_empty());
    let arg = Arg::new(key.name)
        .long(key.name)
        .value_name(key.value_name())
        .help_heading(key.group)
        .help(format!("{} [default: {}]", key.help, default.as_deref().unwrap_or("none")))
        .action(if key.is_list() { ArgAction::Append } else { ArgAction::Set });
    let arg = match key.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    match key.is_switch() {
        true => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        false => arg,
    }
}

/// Reads a command line; the error knows how to print itself, be it a mistake or a call for help.
pub(crate) fn parse_args(
    argv: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Verb, clap::Error> {
    let matches = command().try_get_matches_from(argv)?;
    match matches.subcommand() {
        Some(("serve", matches)) => Ok(Verb::Serve(flag_values(matches))),
        Some(("check", matches)) => {
            Ok(Verb::Check { flags: flag_values(matches), json: matches.get_flag("json") })
        }
        Some(("dispatch-program", matches)) => Ok(Verb::DispatchProgram(flag_values(matches))),
        Some(("bench", matches)) => bench::parse_bench(matches)
            .map(|call| Verb::Bench(Box::new(call)))
            .map_err(|why| command().error(clap::error::ErrorKind::ValueValidation, why)),
        Some(("compare", matches)) => compare::parse_compare(matches)
            .map(Verb::Compare)
            .map_err(|why| command().error(clap::error::ErrorKind::ValueValidation, why)),
        Some(("demo", matches)) => demo::parse_demo(matches)
            .map(Verb::Demo)
            .map_err(|why| command().error(clap::error::ErrorKind::ValueValidation, why)),
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

/// Cannot be reached while every verb of `command` has its arm above.
fn unknown_verb() -> clap::Error {
    command().error(clap::error::ErrorKind::InvalidSubcommand, "unknown verb")
}

fn flag_values(matches: &ArgMatches) -> FlagValues {
    let said = |key: &Key| Some(matches.get_many::<String>(key.name)?.cloned().collect());
    FlagValues {
        config: matches.get_one::<PathBuf>("config").cloned(),
        values: KEYS.iter().filter_map(|key| Some((key.name, said(key)?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn serve_flags(line: &str) -> FlagValues {
        match parse_args(line.split(' ')).expect(line) {
            Verb::Serve(flags) => flags,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault() {
        command().debug_assert();
    }

    #[test]
    fn flags_are_the_key_table() {
        let settings =
            |verb: &&Command| ["serve", "check", "dispatch-program"].contains(&verb.get_name());
        for verb in command().get_subcommands().filter(settings) {
            let keys = KEYS.iter().map(|key| key.name);
            let mut wanted: Vec<&str> = keys.chain(["config", "help"]).collect();
            if verb.get_name() == "check" {
                wanted.push("json");
            }
            let mut flags: Vec<&str> = verb.get_arguments().filter_map(Arg::get_long).collect();
            flags.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(flags, wanted, "{}", verb.get_name());
        }
    }

    #[test]
    fn flags_keep_their_text() {
        let flags =
            serve_flags("prefork serve -b :1 --bind :2 -w 4 --http2=false --faults -c a.toml");
        assert_eq!(flags.config, Some("a.toml".into()));
        let said: Vec<_> = flags.values.iter().map(|(k, v)| (*k, v.join(" "))).collect();
        let text = |value: &str| value.to_string();
        assert_eq!(
            said,
            [
                ("bind", text(":1 :2")),
                ("faults", text("true")),
                ("http2", text("false")),
                ("workers", text("4"))
            ]
        );
        assert!(serve_flags("prefork serve").values.is_empty());
    }

    #[test]
    fn a_switch_does_not_swallow_the_next_word() {
        let error = parse_args("prefork serve --http2 false".split(' ')).expect_err("stray word");
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }

    #[test]
    fn mistakes_are_told_from_calls_for_help() {
        for (line, kind) in [
            ("prefork", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("prefork --help", ErrorKind::DisplayHelp),
            ("prefork serve --help", ErrorKind::DisplayHelp),
            ("prefork help serve", ErrorKind::DisplayHelp),
            ("prefork --version", ErrorKind::DisplayVersion),
            ("prefork run", ErrorKind::InvalidSubcommand),
            ("prefork serve --worker 1", ErrorKind::UnknownArgument),
            ("prefork serve -w 1 -w 2", ErrorKind::ArgumentConflict),
        ] {
            assert_eq!(parse_args(line.split(' ')).expect_err(line).kind(), kind, "{line}");
        }
    }

    #[test]
    fn help_names_defaults_and_headings() {
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
