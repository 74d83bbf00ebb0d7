//! The flags of the server as clap arguments, alone or within the parser of a program.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::app_keys::{AppKeys, COMMON_SERVER_KEYS};
use super::check::CheckFormat;
use super::config_sources::ConfigSources;
use super::key::{GENERAL_HEADING, KeyInfo, RefusedKey, all_keys};
use super::program::Program;
use crate::app_name::set_app_name;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::error::{Result, exit};

/// The flags of the server, unparsed: one for each key, `--config FILE` and `--check-config`.
///
/// Add them to your own parser with `#[command(flatten)]`. `A` has the keys of your own that are to be variables and
/// TOML keys as well ([`AppKeys`]); flags of your parser stay yours.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use clap::Parser;
/// use tokio_prefork::{Main, cli, cli::ServerArgs};
///
/// #[derive(Parser)]
/// #[command(version)]
/// struct Args {
///     #[command(flatten)]
///     server: ServerArgs,
///     /// Where the database is
///     #[arg(long, env = "MYAPP_DATABASE_URL", default_value = "sqlite::memory:")]
///     database_url: String,
/// }
///
/// fn main() -> Main {
///     let args: Args = cli::parse();
///     run(args).into()
/// }
///
/// fn run(args: Args) -> tokio_prefork::Result<()> {
///     let database_url = args.database_url;
///     args.server.into_cluster("myapp")?.serve(move |_worker| {
///         let database_url = database_url.clone();
///         async move { Ok(Router::new().route("/", get(|| async move { database_url }))) }
///     })
/// }
/// ```
#[derive(Debug, Clone)]
pub struct ServerArgs<A: AppKeys = ()> {
    config_file: Option<PathBuf>,
    check: Option<CheckFormat>,
    /// Values by key name; several if the flag was repeated.
    values: BTreeMap<&'static str, Vec<String>>,
    keys: PhantomData<fn() -> A>,
}

impl<A: AppKeys> ServerArgs<A> {
    /// Returns the arguments for the keys, and `--config`. The implementation of [`clap::Args`] adds `--check-config`.
    pub fn config_args() -> Vec<Arg> {
        let config = Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help_heading(GENERAL_HEADING)
            .help("Read the configuration from this TOML file [default: none]");
        let refused = A::REFUSED_KEYS.iter().map(refused_key_arg);
        let key_args = all_keys::<A>().into_iter().map(|key| {
            let is_short = is_in_short_help::<A>(key.name);
            // Positional arguments are in the usage.
            key_arg(&key).hide_short_help(!is_short && !key.is_positional)
        });
        key_args.chain([config]).chain(refused).collect()
    }

    /// Returns the format in which `--check-config` asks for the effective configuration, if it was given.
    pub fn check_format(&self) -> Option<CheckFormat> {
        self.check
    }

    /// Combines the flags with the environment of this process and the configuration file.
    ///
    /// `program` is a name, or [`program!()`](crate::program!) for a name with a version: those of the application in the
    /// log, the status and errors. The program's variables begin with the name in capitals: `MY_APP_WORKERS` for `my-app`.
    /// The file is that of `--config`, else of the variable `MY_APP_CONFIG`.
    pub fn sources(self, program: impl Into<Program>) -> ConfigSources<A> {
        let program = program.into();
        set_app_name(program.name);
        // A value that is not UTF-8 is never valid; the replacement characters make its check fail.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        ConfigSources {
            program,
            flags: self.values,
            config_file: self.config_file,
            env: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            keys: PhantomData,
        }
    }

    /// Resolves the configuration. With `--check-config`, prints it and exits with status 0.
    ///
    /// A reload does not read it again; [`ServerArgs::into_cluster`] makes it do so.
    ///
    /// # Errors
    ///
    /// As [`ConfigSources::resolve`].
    pub fn into_config(self, program: impl Into<Program>) -> Result<Config> {
        let check = self.check;
        self.sources(program).config_or_check(check)
    }

    /// Creates a cluster with the resolved configuration, which each reload (SIGHUP) resolves again, with the file as it
    /// is then. With `--check-config`, prints the configuration and exits with status 0.
    ///
    /// # Errors
    ///
    /// As [`ConfigSources::resolve`].
    pub fn into_cluster(self, program: impl Into<Program>) -> Result<Cluster> {
        let check = self.check;
        let sources = self.sources(program);
        let config = sources.config_or_check(check)?;
        Ok(Cluster::new(config).reload_with(move || sources.read_config()))
    }
}

impl<A: AppKeys> ConfigSources<A> {
    /// Resolves the configuration; prints it and exits instead if `check` says so.
    fn config_or_check(&self, check: Option<CheckFormat>) -> Result<Config> {
        let Some(format) = check else { return self.read_config() };
        self.resolve()?.print_check(format)?;
        std::process::exit(exit::OK.into())
    }
}

impl<A: AppKeys> Default for ServerArgs<A> {
    /// No flag is given.
    fn default() -> ServerArgs<A> {
        let (config_file, check) = (None, None);
        ServerArgs { config_file, check, values: BTreeMap::new(), keys: PhantomData }
    }
}

impl<A: AppKeys> Args for ServerArgs<A> {
    fn augment_args(command: Command) -> Command {
        let check = Arg::new("check-config")
            .long("check-config")
            .value_name("FORMAT")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("table")
            .value_parser(|text: &str| text.parse::<CheckFormat>())
            .help_heading(GENERAL_HEADING)
            .help("Print every value with its source and exit; as a table, or =json");
        command.args(ServerArgs::<A>::config_args()).arg(check)
    }

    fn augment_args_for_update(command: Command) -> Command {
        ServerArgs::<A>::augment_args(command)
    }
}

impl<A: AppKeys> FromArgMatches for ServerArgs<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ServerArgs<A>, clap::Error> {
        let mut args = ServerArgs::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = |name: &'static str| {
            let texts = matches.try_get_many::<String>(name).ok().flatten()?;
            Some((name, texts.cloned().collect::<Vec<_>>()))
        };
        let names = all_keys::<A>().into_iter().map(|key| key.name);
        self.values
            .extend(names.chain(A::REFUSED_KEYS.iter().map(|key| key.name)).filter_map(given));
        if let Some(path) = matches.try_get_one::<PathBuf>("config").ok().flatten() {
            self.config_file = Some(path.clone());
        }
        // Verbs that print the configuration anyway do not have this flag.
        if let Some(format) = matches.try_get_one::<CheckFormat>("check-config").ok().flatten() {
            self.check = Some(*format);
        }
        Ok(())
    }
}

fn is_in_short_help<A: AppKeys>(name: &str) -> bool {
    match A::SHORT_HELP_KEYS {
        Some(names) => names.contains(&name),
        None => COMMON_SERVER_KEYS.contains(&name) || A::KEYS.iter().any(|key| key.name == name),
    }
}

/// Returns a hidden flag, so that the error about it tells the reason.
fn refused_key_arg(key: &RefusedKey) -> Arg {
    let arg = Arg::new(key.name).long(key.name).hide(true).action(ArgAction::Append);
    arg.num_args(0..=1).default_missing_value("true")
}

fn key_arg(key: &KeyInfo) -> Arg {
    if key.is_positional {
        let arg = Arg::new(key.name).value_name(key.value_name).action(ArgAction::Append);
        return arg.num_args(1..).trailing_var_arg(true).help(key.help);
    }
    let default = if key.default.is_empty() { "none" } else { &key.default };
    let arg = Arg::new(key.name)
        .long(key.name)
        .value_name(key.value_name)
        .help_heading(key.heading)
        .help(format!("{} [default: {default}]", key.help))
        .action(if key.is_list { ArgAction::Append } else { ArgAction::Set });
    let arg = match key.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    match (key.is_switch, key.value_if_missing) {
        (true, _) => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        (false, Some(text)) => arg.num_args(0..=1).default_missing_value(text),
        // So that the error about -1 says which values are valid.
        (false, None) => arg.allow_negative_numbers(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Own {
        #[command(flatten)]
        server: ServerArgs,
        #[arg(long)]
        database_url: Option<String>,
    }

    fn parse(line: &str) -> Own {
        <Own as clap::Parser>::try_parse_from(line.split(' ')).expect(line)
    }

    #[test]
    fn flags_are_kept_as_text_beside_those_of_the_program() {
        let own = parse("myapp -b :1 --bind :2 -w 4 --http2=false -c a.toml --database-url x");
        assert_eq!(own.database_url.as_deref(), Some("x"));
        assert_eq!(own.server.config_file, Some("a.toml".into()));
        let values: Vec<_> = own.server.values.iter().map(|(k, v)| (*k, v.join(" "))).collect();
        let text = |value: &str| value.to_string();
        let expected = [("bind", text(":1 :2")), ("http2", text("false")), ("workers", text("4"))];
        assert_eq!(values, expected);
        assert!(parse("myapp").server.values.is_empty());
    }

    #[test]
    fn check_config_has_a_format() {
        for (line, format) in [
            ("myapp", None),
            ("myapp --check-config", Some(CheckFormat::Table)),
            ("myapp --check-config=json", Some(CheckFormat::Json)),
        ] {
            assert_eq!(parse(line).server.check_format(), format, "{line}");
        }
        let error = <Own as clap::Parser>::try_parse_from(["myapp", "--check-config=xml"]);
        let Err(error) = error else { panic!("xml is no format") };
        assert!(error.to_string().contains("give table or json"), "{error}");
    }
}
