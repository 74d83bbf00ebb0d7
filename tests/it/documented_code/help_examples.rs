//! The examples in the help of each verb run.

use std::io::Write as _;

use super::shell_session::ShellSession;
use super::{Findings, check_all, reason_without_sessions};
use crate::support::prefork;

/// A server with all that the examples ask it for.
const SERVER: &str = "prefork serve -w 2 -b http://127.0.0.1:3000 -b http://:8080 -b https://127.0.0.1:8443 \
                      -b unix:/run/app.sock --tls-cert dev-cert.pem --tls-key dev-key.pem --admin 127.0.0.1:9090";

/// A server that has a name.
const NAMED_SERVER: &str = "prefork run --name greeter -w 2 -- node app.js";

/// Verbs whose examples need a running server.
const VERBS_FOR_A_SERVER: [&str; 11] = [
    "reload", "scale", "stop", "upgrade", "status", "top", "events", "stack", "health", "bench",
    "check",
];

/// Returns the help of a verb, given as words.
fn help(verb: &str) -> String {
    let output = prefork().args(verb.split(' ')).arg("--help").output().expect("prefork");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the verbs of the command, and that of `demo`.
fn verbs() -> Vec<String> {
    let output = prefork().arg("--help").output().expect("prefork");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let names = help.lines().filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let names = names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help");
    names
        .flat_map(|name| {
            if name == "demo" { vec!["demo", "demo cpu"] } else { vec![name] }
                .into_iter()
                .map(str::to_string)
        })
        .collect()
}

fn examples(help: &str) -> Vec<&str> {
    let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    lines.map_while(|line| line.strip_prefix("  ")).collect()
}

fn check_verb(verb: &str) -> Findings {
    let mut found = Findings::default();
    let place = format!("prefork {verb} --help");
    let help = help(verb);
    let examples = examples(&help);
    if examples.is_empty() {
        found.failures.push(format!("{place} has no example"));
        return found;
    }
    let mut session = ShellSession::start().expect("a session");
    let needs_server = VERBS_FOR_A_SERVER.contains(&verb);
    if needs_server {
        let made = session.run("prefork dev-cert && cp dev-cert.pem cert.pem", &[]);
        found.failures.extend(made.err());
    }
    for example in examples {
        let server = if example.contains("--name greeter") { NAMED_SERVER } else { SERVER };
        if needs_server && let Err(why) = session.run(server, &[]) {
            found.failures.push(format!("{place}: before {example}: {why}"));
        }
        found.record(&place, example, session.run(example, &[]));
    }
    found
}

#[test]
fn every_verb_has_examples_in_its_help_and_they_run() {
    if let Some(why) = reason_without_sessions() {
        let text = format!("examples of the help: not run: no namespaces here: {why}\n");
        return std::io::stderr().write_all(text.as_bytes()).expect("standard error");
    }
    let verbs = verbs();
    assert!(verbs.len() > 15, "{verbs:?}");
    check_all(&verbs, |verb| check_verb(verb)).report("examples of the help");
}
