//! Tests of the precedence of configuration sources, and of their errors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::environment::{Environment, env_prefix};
use super::settings::resolve_settings;
use super::*;
use crate::config::{Config, WorkerCount};
use crate::error::{Error, Result, exit};

/// Keys of a program that reads no names but these.
#[derive(Debug, Clone, Default, PartialEq)]
struct OwnKeys {
    root: Option<PathBuf>,
    max_body_size: u64,
    log: String,
}

impl AppKeys for OwnKeys {
    const KEYS: &'static [Key<OwnKeys>] = &[
        Key::new("root", "Files", Field::Directory(|s| &mut s.root), "Serve this directory"),
        Key::new(
            "max-body-size",
            "Files",
            Field::ByteCount(|s| &mut s.max_body_size),
            "Maximum size of a request body",
        ),
        Key::<OwnKeys>::new(
            "log",
            "General",
            Field::Text {
                value_name: "FILTER",
                parse: |text| Ok(text.to_string()),
                field: |s| &mut s.log,
            },
            "What to log",
        )
        .env_aliases(&[EnvAlias::same_text("RUST_LOG")]),
    ];

    const READS_OTHER_NAMES: bool = false;

    fn check(&self, _config: &Config) -> Result<()> {
        match self.max_body_size {
            n if n > 1 << 30 => {
                Err(Error::config(format!("max-body-size = {n} is out of range: give 0 to 1GiB")))
            }
            _ => Ok(()),
        }
    }
}

fn resolve_with<A: AppKeys>(
    program: &'static str,
    flag_values: &[(&'static str, &str)],
    env: &[(&str, &str)],
    toml: Option<&str>,
) -> Result<Settings<A>> {
    let mut flags: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for (key, value) in flag_values {
        flags.entry(key).or_default().push(value.to_string());
    }
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let file = toml.map(|text| ("prefork.toml".into(), text.to_string()));
    resolve_settings(&program.into(), &flags, &Environment::new(env_prefix(program), env), file)
}

fn resolve(
    flag_values: &[(&'static str, &str)],
    env: &[(&str, &str)],
    toml: Option<&str>,
) -> Result<Settings<OwnKeys>> {
    resolve_with("prefork", flag_values, env, toml)
}

fn resolve_error(
    flag_values: &[(&'static str, &str)],
    env: &[(&str, &str)],
    toml: Option<&str>,
) -> String {
    let error = resolve(flag_values, env, toml).expect_err("error");
    assert_eq!(error.exit_status(), exit::CONFIG);
    error.to_string()
}

fn value_and_source(settings: &Settings<OwnKeys>, key: &str) -> String {
    let effective = settings.effective_values().iter().find(|one| one.key == key).expect(key);
    format!("{} {}", effective.value, effective.source)
}

#[test]
fn flags_win_over_environment_file_and_defaults() {
    const FILE: &str = "workers = 3\ngraceful-timeout = \"3s\"\n";
    let flags = [("workers", "5"), ("graceful-timeout", "5s")];
    let env = [("PREFORK_WORKERS", "4"), ("PREFORK_GRACEFUL_TIMEOUT", "4000ms")];
    for mask in 0..8 {
        let flags: &[_] = if mask & 4 != 0 { &flags } else { &[] };
        let vars: &[_] = if mask & 2 != 0 { &env } else { &[] };
        let settings = resolve(flags, vars, (mask & 1 != 0).then_some(FILE)).expect("resolves");
        let (workers, grace) = match mask {
            4.. => ("5 --workers", "5s --graceful-timeout"),
            2.. => ("4 PREFORK_WORKERS", "4s PREFORK_GRACEFUL_TIMEOUT"),
            1 => ("3 prefork.toml:1", "3s prefork.toml:2"),
            _ => ("auto default", "30s default"),
        };
        assert_eq!(value_and_source(&settings, "workers"), workers, "{mask}");
        assert_eq!(value_and_source(&settings, "graceful-timeout"), grace, "{mask}");
        let seconds: u64 = grace[..grace.find('s').expect("s")].parse().expect("number");
        assert_eq!(settings.config().graceful_timeout, Duration::from_secs(seconds));
    }
}

#[test]
fn alias_variables_rank_between_own_variables_and_the_file() {
    let aliases = [("WEB_CONCURRENCY", "7"), ("PORT", "8080"), ("RUST_LOG", "debug")];
    let file = "workers = 3\nbind = \":1\"\nlog = \"warn\"";
    let settings = resolve(&[], &aliases, Some(file)).expect("resolves");
    assert_eq!(value_and_source(&settings, "workers"), "7 WEB_CONCURRENCY");
    assert_eq!(value_and_source(&settings, "bind"), "0.0.0.0:8080 PORT");
    assert_eq!(settings.app().log, "debug");

    let ours = [("PREFORK_WORKERS", "2"), ("PREFORK_BIND", ":1"), ("PREFORK_LOG", "off")];
    let settings = resolve(&[], &[aliases, ours].concat(), Some(file)).expect("resolves");
    assert_eq!(value_and_source(&settings, "workers"), "2 PREFORK_WORKERS");
    assert_eq!(value_and_source(&settings, "bind"), "[::]:1 PREFORK_BIND");
    assert_eq!(value_and_source(&settings, "log"), "off PREFORK_LOG");
    assert_eq!(
        resolve_error(&[], &[("PORT", "x")], None),
        "PORT = \"x\" is not a port: give 0 to 65535"
    );
}

#[test]
fn empty_variables_count_as_unset() {
    let empty = [("PREFORK_WORKERS", ""), ("PORT", ""), ("PREFORK_NONSENSE", "")];
    let settings = resolve(&[], &empty, None).expect("resolves");
    assert!(settings.effective_values().iter().all(|one| one.source == ValueSource::Default));
    assert!(settings.warnings().is_empty());
}

#[test]
fn every_source_can_set_several_addresses() {
    let both = ["127.0.0.1:1", "unix:/run/a"].map(|text| text.parse().expect(text));
    for settings in [
        resolve(&[("bind", "127.0.0.1:1"), ("bind", "unix:/run/a")], &[], None),
        resolve(&[], &[("PREFORK_BIND", "127.0.0.1:1, unix:/run/a,")], None),
        resolve(&[], &[], Some("bind = [\n\"127.0.0.1:1\",\n\"unix:/run/a\" ]")),
    ] {
        assert_eq!(settings.expect("resolves").config().bind, both);
    }
    let one = resolve(&[], &[], Some("bind = \"127.0.0.1:1\"")).expect("resolves");
    assert_eq!(one.config().bind, both[..1]);
}

#[test]
fn values_of_every_type_are_read_from_toml() {
    let text = "\u{feff}graceful-timeout = 45\r\nlinger-timeout = 0.25\nmax-header-size = 0x4000\n\
                backlog = 1_024\nhttp2 = false\nmax-body-size = \"2m\"\nroot = \"/\"\nworkers = \"auto\"";
    let settings = resolve(&[], &[], Some(text)).expect("resolves");
    let (config, app) = (settings.config(), settings.app());
    assert_eq!(config.graceful_timeout, Duration::from_secs(45));
    assert_eq!(config.linger_timeout, Duration::from_millis(250));
    assert_eq!((config.max_header_size, config.backlog), (16_384, 1024));
    assert_eq!((config.http2, config.workers), (false, WorkerCount::Auto));
    assert_eq!((app.max_body_size, app.root.clone()), (2 << 20, Some("/".into())));
}

#[test]
fn file_errors_name_the_line() {
    for (text, error) in [
        ("\n\nworker = 2", "3: unknown key \"worker\" (did you mean \"workers\"?)"),
        ("threads = 2", "1: unknown key \"threads\""),
        ("config = \"a\"", "1: unknown key \"config\""),
        (
            "\n\n\n\ngraceful-timeout = \"fast\"",
            "5: graceful-timeout = \"fast\" is not a duration: write 500ms, 30s, 2m, 1h or a number of seconds",
        ),
        (
            "header-timeout = -1",
            "1: header-timeout = -1 is not a duration: write 500ms, 30s, 2m, 1h or a number of seconds",
        ),
        ("http2 = 1", "1: http2 = 1 is not a switch: write true or false"),
        ("workers = [1, 2]", "1: workers = [1, 2] is a list: give a single value"),
        ("bind = []", "1: bind = [] is empty: give at least one value"),
        (
            "bind = [\":1\", \":x\"]",
            "1: bind = \":x\" is not an address: the port must be 0 to 65535",
        ),
        ("bind = [\":1\", \":1\"]", "1: bind = [::]:1 is given twice"),
        ("workers = 5000", "1: workers = 5000 is out of range: give auto or 0 to 1024"),
        ("\nbacklog = 0", "2: backlog = 0 is out of range: give 1 to 65535"),
        ("max-body-size = \"2g\"", "1: max-body-size = \"2g\" is out of range: give 0 to 1GiB"),
        (
            "root = \"/nowhere/at/all\"",
            "1: root = \"/nowhere/at/all\" cannot be read: No such file or directory (os error 2): \
             give a directory that exists",
        ),
        (
            "root = \"/dev/null\"",
            "1: root = \"/dev/null\" is not a directory: give one that exists",
        ),
        (
            "http2 = true\n[server]\nworkers = 1",
            "2: unknown key \"server\": it is a table, but keys are flat: write KEY = VALUE lines only",
        ),
        (
            "[[workers]]",
            "1: unknown key \"workers\": it is a table, but keys are flat: write KEY = VALUE lines only",
        ),
    ] {
        assert_eq!(resolve_error(&[], &[], Some(text)), format!("prefork.toml:{error}"));
    }
}

#[test]
fn toml_syntax_errors_are_one_line_with_the_line_number() {
    for (text, line) in [("a = 1\nb =", 2), ("= 1", 1), ("http2 = true\nhttp2 = true", 2)] {
        let error = resolve_error(&[], &[], Some(text));
        assert!(error.starts_with(&format!("prefork.toml:{line}: not TOML: ")), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn flag_and_variable_errors_name_the_flag_or_variable() {
    for (flag, env, error) in [
        (
            None,
            Some(("PREFORK_WORKERS", "many")),
            "PREFORK_WORKERS = \"many\" is not a number of workers: give auto or 0 to 1024",
        ),
        (
            Some(("workers", "many")),
            None,
            "--workers = \"many\" is not a number of workers: give auto or 0 to 1024",
        ),
        (
            None,
            Some(("WEB_CONCURRENCY", "5000")),
            "WEB_CONCURRENCY = \"5000\" is out of range: give auto or 0 to 1024",
        ),
        (
            Some(("backlog", "99999999999")),
            None,
            "--backlog = \"99999999999\" is out of range: give 1 to 65535",
        ),
        (Some(("backlog", "+1")), None, "--backlog = \"+1\" is not a number: give a whole number"),
        (
            None,
            Some(("PREFORK_MAX_HEADER_SIZE", "1k")),
            "PREFORK_MAX_HEADER_SIZE = \"1k\" is out of range: give 8192 to 1048576",
        ),
        (None, Some(("PREFORK_BIND", ":1,:1")), "PREFORK_BIND: bind = [::]:1 is given twice"),
        (None, Some(("PREFORK_BIND", ",")), "PREFORK_BIND = [] is empty: give at least one value"),
        (Some(("http2", "si")), None, "--http2 = \"si\" is not a switch: give true or false"),
    ] {
        let (flag, env): (Vec<_>, Vec<_>) = (flag.into_iter().collect(), env.into_iter().collect());
        assert_eq!(resolve_error(&flag, &env, None), error);
    }
}

#[test]
fn unknown_prefork_variables_give_warnings() {
    let env = [("PREFORK_WORKER", "2"), ("PREFORK_SERVICE_HOST", "x"), ("PREFORK_CONFIG", "x")];
    assert_eq!(
        resolve(&[], &env, None).expect("resolves").warnings(),
        [
            "environment variable PREFORK_SERVICE_HOST is unknown and ignored",
            "environment variable PREFORK_WORKER is unknown and ignored \
             (did you mean PREFORK_WORKERS?)",
        ]
    );
}

/// Sources with this file and these variables.
fn sources(config_file: Option<PathBuf>, env: &[(&str, &str)]) -> ConfigSources<OwnKeys> {
    let args = <ServerArgs<OwnKeys>>::default();
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let sources = args.sources("prefork").with_environment(env);
    ConfigSources { config_file, ..sources }
}

#[test]
fn unreadable_config_files_give_an_error_with_path_and_reason() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("large"), vec![b'#'; (1 << 20) + 1]).expect("write");
    std::fs::write(at("binary"), [0xff, 0xfe]).expect("write");
    for (name, why) in [
        ("missing", "No such file or directory (os error 2); give --config a file that exists"),
        (".", "Is a directory (os error 21)"),
        ("large", "it is larger than 1 MiB: is it a configuration file?"),
        ("binary", "it is not UTF-8 text"),
    ] {
        let error = sources(Some(at(name).into()), &[]).resolve().expect_err(name);
        assert_eq!(error.to_string(), format!("cannot read {}: {why}", at(name)));
        assert_eq!(error.exit_status(), exit::CONFIG);
    }
}

#[test]
fn every_resolve_reads_the_file_again_and_the_flag_wins_over_the_variable() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (one, two) = (dir.path().join("one.toml"), dir.path().join("two.toml"));
    std::fs::write(&one, "workers = 1").expect("write");
    std::fs::write(&two, "workers = 2").expect("write");
    let env = [("PREFORK_CONFIG", two.to_str().expect("UTF-8"))];
    let (by_env, by_flag) = (sources(None, &env), sources(Some(one), &env));
    let workers =
        |sources: &ConfigSources<OwnKeys>| sources.read_config().expect("resolves").workers;
    assert_eq!(
        (workers(&by_flag), workers(&by_env)),
        (WorkerCount::Count(1), WorkerCount::Count(2))
    );
    std::fs::write(&two, "workers = 3").expect("write");
    assert_eq!(workers(&by_env), WorkerCount::Count(3));
}

#[test]
fn programs_have_variables_of_their_own() {
    let env = [("MY_APP_WORKERS", "3"), ("PREFORK_WORKERS", "9"), ("WEB_CONCURRENCY", "8")];
    let settings = resolve_with::<()>("my-app", &[], &env, None).expect("resolves");
    assert_eq!(settings.config().workers, WorkerCount::Count(3));
    assert_eq!((settings.config().name(), settings.config().version()), ("my-app", None));
    let env = [("MY_APP_WORKER", "3"), ("MY_APP_DATABASE_URL", "x")];
    let settings = resolve_with::<()>("my-app", &[], &env, None).expect("resolves");
    // The second may be one that the program reads itself.
    assert_eq!(
        settings.warnings(),
        [
            "environment variable MY_APP_WORKER is unknown and ignored (did you mean MY_APP_WORKERS?)"
        ]
    );
}

#[test]
fn the_table_app_belongs_to_the_application() {
    #[derive(serde::Deserialize, Debug, PartialEq, Default)]
    #[serde(default, deny_unknown_fields)]
    struct Shop {
        currency: String,
        retries: u32,
    }
    let shop = |toml| {
        let settings = resolve_with::<()>("shop", &[], &[], toml)?;
        assert_eq!(settings.config().workers, WorkerCount::Auto);
        settings.app_table::<Shop>()
    };
    let text = "backlog = 5\n[app]\ncurrency = \"EUR\"\nretries = 3\nworkers = 1";
    let error = shop(Some(text)).expect_err("workers is no field of it").to_string();
    assert!(error.starts_with("prefork.toml: [app]: unknown field `workers`"), "{error}");
    let text = "backlog = 5\n[app]\ncurrency = \"EUR\"\nretries = 3";
    let expected = Shop { currency: "EUR".to_string(), retries: 3 };
    assert_eq!(shop(Some(text)).expect("valid"), expected);
    assert_eq!(shop(Some("backlog = 5")).expect("valid"), Shop::default());
    assert_eq!(shop(None).expect("valid"), Shop::default());
    for text in ["[application]\nx = 1", "app = 1"] {
        assert!(shop(Some(text)).is_err(), "{text}");
    }
    assert!(resolve(&[], &[], Some("[app]\nx = 1")).is_err(), "this program has no such table");
}

#[test]
fn own_values_are_attached_to_the_configuration() {
    let settings = resolve(&[("max-body-size", "1k")], &[], None).expect("resolves");
    let config = settings.into_config();
    assert_eq!(config.app_settings::<OwnKeys>().map(|own| own.max_body_size), Some(1024));
}

#[test]
fn an_address_that_is_added_later_replaces_only_the_default() {
    let listen = |env: &[(&str, &str)]| {
        let config = resolve(&[], env, None).expect("resolves").into_config();
        let config = config.into_builder().listen("unix:a.sock").expect("address").build();
        config.expect("valid").bind().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(listen(&[]), ["unix:a.sock"]);
    assert_eq!(listen(&[("PREFORK_BIND", "127.0.0.1:1")]), ["127.0.0.1:1", "unix:a.sock"]);
}

#[test]
fn key_names_are_unique() {
    let keys = all_keys::<OwnKeys>();
    let mut names: Vec<_> = keys.iter().map(|key| key.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), keys.len());
    let key = keys.iter().find(|key| key.name == "keep-alive-timeout").expect("key");
    assert_eq!(key.env_var("PREFORK_"), "PREFORK_KEEP_ALIVE_TIMEOUT");
}

/// Keys of a program that runs another one, and takes no certificates.
#[derive(Debug, Clone, Default)]
struct RunKeys {
    words: Vec<String>,
}

impl AppKeys for RunKeys {
    const KEYS: &'static [Key<RunKeys>] = &[Key::<RunKeys>::new(
        "words",
        "General",
        Field::Words {
            value_name: "WORDS",
            split: |text| Ok(text.split(' ').map(str::to_string).collect()),
            join: |words| words.join(" "),
            field: |s| &mut s.words,
        },
        "Words",
    )
    .positional()];

    const REFUSED_KEYS: &'static [RefusedKey] = &[
        RefusedKey { name: "tls-cert", reason: "is refused here" },
        RefusedKey { name: "root", reason: "belongs to another program" },
    ];

    const READS_OTHER_NAMES: bool = false;
}

#[test]
fn words_are_positional_arguments_a_text_to_split_or_a_list() {
    const PROGRAM: Program = Program::new("prefork");
    let words = |line: &str, env: &[(&str, &str)], toml: Option<&str>| {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), toml.unwrap_or_default()).expect("write");
        let path = file.path().to_str().expect("UTF-8");
        let argv = ["prefork", "-c", path].into_iter().chain(line.split_terminator(' '));
        let args = PROGRAM.try_parse_from::<RunKeys>(argv).expect("arguments");
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let settings = args.sources(PROGRAM).with_environment(env).resolve().expect("resolves");
        let effective = settings.effective_values().iter().find(|one| one.key == "words");
        let source = effective.expect("a key").source.to_string().replace(path, "FILE");
        (settings.app().words.join("|"), source)
    };
    let expected = |words: &str, source: &str| (words.to_string(), source.to_string());
    let line = "-w 2 node app.js --http2 -w 3 -- x";
    assert_eq!(words(line, &[], None), expected("node|app.js|--http2|-w|3|--|x", "command line"));
    let line = "-w 2 -- --odd -c";
    assert_eq!(words(line, &[], None), expected("--odd|-c", "command line"));
    let env = [("PREFORK_WORDS", "a,b c")];
    assert_eq!(words("", &env, Some("words = 'x'")), expected("a,b|c", "PREFORK_WORDS"));
    assert_eq!(words("", &[], Some("words = 'a b'")), expected("a|b", "FILE:1"));
    assert_eq!(words("", &[], Some("words = ['a b', 3]")), expected("a b|3", "FILE:1"));
    assert_eq!(words("y", &env, Some("words = ['x']")), expected("y", "command line"));
}

#[test]
fn refused_keys_are_errors_with_their_reason_from_every_source() {
    let error = |flags: &[(&'static str, &str)], env: &[(&str, &str)], toml: Option<&str>| {
        resolve_with::<RunKeys>("prefork", flags, env, toml).expect_err("refused").to_string()
    };
    assert_eq!(error(&[("tls-cert", "a.pem")], &[], None), "--tls-cert is refused here");
    assert_eq!(
        error(&[], &[("PREFORK_ROOT", "/srv")], None),
        "PREFORK_ROOT: root belongs to another program"
    );
    assert_eq!(
        error(&[], &[], Some("workers = 2\ntls-cert = 'a.pem'")),
        "prefork.toml:2: tls-cert is refused here"
    );
    let names: Vec<&str> = all_keys::<RunKeys>().iter().map(|key| key.name).collect();
    assert!(!names.contains(&"tls-cert") && names.contains(&"words"), "{names:?}");
    const PROGRAM: Program = Program::new("prefork");
    let help = PROGRAM.command::<RunKeys>().render_long_help().to_string();
    assert!(!help.contains("--tls-cert") && help.contains("[WORDS]..."), "{help}");
    let args = PROGRAM.try_parse_from::<RunKeys>(["prefork", "--tls-cert", "a.pem", "node"]);
    let sources = args.expect("a hidden flag").sources(PROGRAM).with_environment([]);
    let error = sources.resolve().expect_err("refused").to_string();
    assert_eq!(error, "--tls-cert is refused here");
}

#[test]
fn other_keys_read_the_same_sources() {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), "words = 'a b'\nworkers = 3").expect("write");
    let sources = sources(Some(file.path().to_path_buf()), &[("PREFORK_BACKLOG", "7")]);
    for (name, is_set) in [("words", true), ("workers", true), ("backlog", true), ("bind", false)] {
        assert_eq!(sources.sets_key(name).expect("readable"), is_set, "{name}");
    }
    assert!(sources.resolve().is_err(), "words is no key of this program");
    let settings = sources.with_keys::<RunKeys>().resolve().expect("resolves");
    assert_eq!((settings.app().words.len(), settings.config().backlog()), (2, 7));
}
