//! Keys of `prefork run` besides those of the server.

use tokio_prefork::cli::{Field, Key, parse_duration, parse_value};

use super::ProgramSettings;
use super::dev_keys::{DEVELOPMENT, dev_keys};
use super::env_file::parse_variable;
use super::log_keys::log_keys;
use super::program_settings::ReadyMode;

/// Heading of the keys in the help.
const PROGRAM: &str = "Program";

/// The keys, grouped by heading.
pub(super) static KEYS: &[Key<ProgramSettings>] = &{
    let [log, log_format] = log_keys!(ProgramSettings);
    let [watch, watch_ignore, watch_poll, overlay] = dev_keys!(
        ProgramSettings,
        "the current directory and the configuration file",
        "Show the error of a build or reload over the page in the browser, and load the page again after a good one"
    );
    [
        Key::<ProgramSettings>::new(
            "program",
            PROGRAM,
            Field::Words {
                value_name: "PROGRAM",
                split: split_words,
                join: join_words,
                field: |s| &mut s.command,
            },
            "The program and its arguments, in which {fd}, {fd:N}, {port}, {slot} and {worker} are replaced",
        )
        .positional(),
        Key::new(
            "directory",
            PROGRAM,
            Field::Directory(|s| &mut s.directory),
            "Current directory of the program",
        ),
        Key::new(
            "env",
            PROGRAM,
            Field::List {
                value_name: "NAME=VALUE",
                may_be_empty: true,
                clear: |s| s.env.clear(),
                add: |s, text| parse_variable(text).map(|variable| s.env.push(variable)),
                format: |s| {
                    let variables = s.env.iter().map(|(name, value)| format!("{name}={value}"));
                    variables.collect::<Vec<_>>().join(", ")
                },
            },
            "Environment variable of the program (may be repeated)",
        ),
        Key::new(
            "env-file",
            PROGRAM,
            Field::File(|s| &mut s.env_file),
            "File with environment variables of the program, NAME=VALUE on each line; read at each start and reload",
        ),
        Key::new(
            "ready",
            PROGRAM,
            Field::Other {
                value_name: "SIGN",
                parse: |s, text| ReadyMode::parse(text).map(|mode| s.ready = mode),
                format: |s| s.ready.name().to_string(),
            },
            "When a worker is ready: notify (READY=1 to NOTIFY_SOCKET), listening (waits on its socket), or auto: what comes first",
        ),
        Key::new(
            "ready-http",
            PROGRAM,
            Field::OptionalText {
                value_name: "PATH",
                parse: parse_probe_path,
                field: |s| &mut s.ready_http,
            },
            "A worker is ready when it answers GET for this path with a status from 200 to 399; without an answer it is frozen",
        ),
        Key::new(
            "ready-after",
            PROGRAM,
            Field::Other {
                value_name: "DURATION",
                parse: |s, text| parse_duration(text).map(|time| s.ready_after = Some(time)),
                format: |s| s.ready_after.map_or(String::new(), |time| format!("{time:?}")),
            },
            "A worker is ready when its program has run for this long",
        ),
        Key::new(
            "stop-signal",
            PROGRAM,
            Field::Other {
                value_name: "SIGNAL",
                parse: |s, text| parse_value(text).map(|signal| s.stop_signal = signal),
                format: |s| s.stop_signal.to_string(),
            },
            "Signal that asks the program to stop: TERM, INT, QUIT, HUP, USR1, USR2 or WINCH; KILL follows at graceful-timeout",
        ),
        Key::new(
            "node-shim",
            PROGRAM,
            Field::Switch(|s| &mut s.node_shim),
            "Let a Node program that binds a port take the inherited socket, by a script that Node loads first",
        ),
        Key::new(
            "output",
            PROGRAM,
            Field::Other {
                value_name: "WHERE",
                parse: |s, text| parse_value(text).map(|output| s.output = output),
                format: |s| s.output.to_string(),
            },
            "Output of the program: prefix (lines with worker and stream), plain, json, or file:PATH with {slot}; SIGUSR1 reopens it",
        ),
        watch,
        watch_ignore,
        watch_poll,
        Key::new(
            "build",
            DEVELOPMENT,
            Field::OptionalText {
                value_name: "COMMAND",
                parse: parse_build,
                field: |s| &mut s.build,
            },
            "With watch: run this command of the shell before the start and each reload; a failure leaves the program as it is",
        ),
        overlay,
        Key::new(
            "name",
            "General",
            Field::OptionalText {
                value_name: "NAME",
                parse: parse_name,
                field: |s| &mut s.name,
            },
            "Name of the service in process titles, log and status, by which prefork status --name finds it",
        ),
        log,
        log_format,
    ]
};

fn split_words(text: &str) -> Result<Vec<String>, String> {
    shlex::split(text).ok_or_else(|| "has a quote without an end".to_string())
}

fn join_words(words: &[String]) -> String {
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

fn parse_build(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: give a command such as \"npm run build\"".to_string()),
        command => Ok(command.to_string()),
    }
}

/// Parses the path of a probe: the target of a request line.
fn parse_probe_path(text: &str) -> Result<String, String> {
    match text.trim() {
        path if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(path.to_string())
        }
        _ => Err("is not a path: give one that begins with /, such as /healthz".to_string()),
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    const MAX_NAME_BYTES: usize = 64;
    match text.trim() {
        name if name.is_empty() || name.len() > MAX_NAME_BYTES => {
            Err(format!("is not a name: give 1 to {MAX_NAME_BYTES} characters"))
        }
        name if name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c)) => {
            Ok(name.to_string())
        }
        _ => Err("is not a name: give letters, digits, -, _, . and @ only".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does_and_joined_again() {
        let text = r#"node "my app.js" --title='a b' x\ y"#;
        let words = split_words(text).expect("words");
        assert_eq!(words, ["node", "my app.js", "--title=a b", "x y"]);
        assert_eq!(split_words(&join_words(&words)), Ok(words));
        assert!(split_words("node 'app").is_err());
    }

    #[test]
    fn probe_paths_and_names_are_checked() {
        assert_eq!(parse_probe_path("/healthz?a=b").as_deref(), Ok("/healthz?a=b"));
        for text in ["", "healthz", "/a b", "/\r\nX: y", "http://a/"] {
            assert!(parse_probe_path(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_name("api@1").as_deref(), Ok("api@1"));
        for text in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(parse_name(text).is_err(), "{text:?}");
        }
    }
}
