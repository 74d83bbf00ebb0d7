//! Tips in usage errors: what is meant by a flag of another server, or by a word where none is expected.

use std::path::Path;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use tokio_prefork::BindAddr;

/// The verbs that take the flags of the server.
const SERVER_VERBS: [&str; 5] = ["serve", "run", "dev", "check", "dispatch-program"];
/// Those of them that take no words besides flags.
const VERBS_WITHOUT_WORDS: [&str; 3] = ["serve", "check", "dispatch-program"];

/// Flags of PM2, gunicorn, uvicorn, Puma, nginx and others that have another name here, with the tip for each group.
const FOREIGN_FLAGS: &[(&[&str], &str)] = &[
    (
        &["-p", "--port", "-H", "--host", "-l", "--listen", "-a", "--address"],
        "give the address as --bind: --bind :8080, or --bind 127.0.0.1:8080",
    ),
    (
        &["-i", "--instances", "-n", "--processes", "-t", "--threads"],
        "give the number of workers as --workers: --workers 4, or --workers auto",
    ),
    (
        &["-d", "-D", "--daemon", "--daemonize", "--background"],
        "the server stays in the foreground: let systemd start it (systemctl start prefork)",
    ),
    (&["-v", "-V", "--version"], "prefork --version prints the version"),
    (&["--reload", "--autoreload"], "--watch reloads when files change"),
    (&["--dir", "--public", "--static", "--docroot"], "give the directory as --root"),
    (
        &[
            "--cert",
            "--certfile",
            "--ssl-cert",
            "--ssl-certfile",
            "--key",
            "--keyfile",
            "--ssl-keyfile",
        ],
        "give the files as --tls-cert and --tls-key",
    ),
    (&["--max-memory-restart"], "--max-rss replaces a worker that uses more memory"),
    (
        &["--timeout"],
        "--graceful-timeout limits a stop, --request-timeout a request, and --stall-timeout a blocked event loop",
    ),
    (&["--log-level", "--loglevel"], "give the level as --log: --log debug"),
    (
        &["--cwd", "--chdir"],
        "prefork run has --directory; other paths are those of the current directory",
    ),
];

/// Adds a tip to the usage error of a command line, if it can be told what was meant.
pub(crate) fn add_usage_tip(error: &mut clap::Error, verb: Option<&str>) {
    let Some(verb) = verb.filter(|verb| SERVER_VERBS.contains(verb)) else { return };
    let argument = match (error.kind(), verb) {
        (ErrorKind::UnknownArgument, _) => error.get(ContextKind::InvalidArg),
        // It has a verb of its own.
        (ErrorKind::InvalidSubcommand, "check") => error.get(ContextKind::InvalidSubcommand),
        _ => None,
    };
    let Some(ContextValue::String(argument)) = argument else { return };
    let tip = match argument.starts_with('-') {
        true => foreign_flag_tip(argument),
        false if VERBS_WITHOUT_WORDS.contains(&verb) => stray_word_tip(argument),
        false => None,
    };
    if let Some(tip) = tip {
        // A flag that only looks similar, such as --demo for --daemon, and a usage of it.
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
        let tips = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tips);
    }
}

fn foreign_flag_tip(flag: &str) -> Option<String> {
    let name = flag.split('=').next().unwrap_or(flag);
    let group = FOREIGN_FLAGS.iter().find(|(names, _)| names.contains(&name));
    group.map(|(_, tip)| tip.to_string())
}

/// Returns what is meant by a word that stands where a flag is expected.
fn stray_word_tip(word: &str) -> Option<String> {
    let path = Path::new(word);
    let tip = match word {
        "true" | "false" | "on" | "off" => {
            "a switch takes its value after an equals sign: --http2=false".to_string()
        }
        "s" | "ms" | "m" | "h" | "k" | "KiB" | "MiB" | "GiB" => {
            "write a value and its unit as one word: 30s, 16KiB".to_string()
        }
        port if port.parse::<u16>().is_ok() => {
            format!("give the address as --bind: --bind :{port}")
        }
        address if address.parse::<BindAddr>().is_ok() => {
            format!("give the address as --bind: --bind {address}")
        }
        directory if path.is_dir() => {
            format!("to serve the files of a directory: prefork serve --root {directory}")
        }
        file if file.ends_with(".toml") => format!("give the configuration as --config {file}"),
        _ if path.is_file() => {
            "to run a program in each worker: prefork run -- PROGRAM, such as node app.js"
                .to_string()
        }
        _ => return None,
    };
    Some(tip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{parse_args, prefork_command};

    fn error_of(line: &str) -> String {
        parse_args(line.split(' ')).expect_err(line).to_string()
    }

    #[test]
    fn what_newcomers_try_is_answered_with_the_right_flag() {
        for (line, tip) in [
            ("prefork serve 80", "--bind :80"),
            ("prefork serve 127.0.0.1:80", "--bind 127.0.0.1:80"),
            ("prefork serve -p 8080", "--bind :8080"),
            ("prefork serve --port=8080", "--bind :8080"),
            ("prefork run --instances 4 -- node app.js", "--workers 4"),
            ("prefork serve --daemon", "systemd"),
            ("prefork serve --graceful-timeout 30 s", "as one word: 30s"),
            ("prefork serve --http2 false", "--http2=false"),
            ("prefork serve src", "--root src"),
            ("prefork serve app.toml", "--config app.toml"),
            ("prefork check app.toml", "--config app.toml"),
            ("prefork serve build.rs", "prefork run -- PROGRAM"),
            ("prefork serve --version", "prefork --version"),
        ] {
            let error = error_of(line);
            assert!(error.contains("tip: ") && error.contains(tip), "{line}: {error}");
        }
    }

    #[test]
    fn unknown_words_and_similar_flags_get_no_tip_of_another_server() {
        assert!(!error_of("prefork serve walk").contains("tip: "));
        assert!(!error_of("prefork reload -p").contains("--bind"));
        let error = error_of("prefork serve --wrokers 2");
        assert_eq!(error.matches("tip: ").count(), 1, "{error}");
    }

    #[test]
    fn no_foreign_flag_is_one_of_the_server() {
        for verb in ["serve", "run"] {
            let command = prefork_command();
            let verb = command.find_subcommand(verb).expect("a verb");
            for name in FOREIGN_FLAGS.iter().flat_map(|(names, _)| names.iter()) {
                let is_own = verb.get_arguments().any(|arg| {
                    arg.get_long().is_some_and(|long| *name == format!("--{long}"))
                        || arg.get_short().is_some_and(|short| *name == format!("-{short}"))
                });
                assert!(!is_own, "{name}");
            }
        }
    }
}
