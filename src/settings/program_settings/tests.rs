//! Tests of the settings of `prefork run`.

use tokio_prefork::cli::{Settings, ValueSource};

use super::*;
use crate::args::{Verb, parse_args};
use crate::settings::PROGRAM;

fn resolve(line: &str, env: &[(&str, &str)], toml: &str) -> Result<Settings<ProgramSettings>> {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), toml).expect("write");
    let path = file.path().to_str().expect("UTF-8");
    let argv = ["prefork", "run", "-c", path].into_iter().chain(line.split_terminator(' '));
    let flags = match parse_args(argv).expect("arguments") {
        Verb::Run(flags) => flags,
        other => panic!("{other:?}"),
    };
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    flags.sources(PROGRAM).with_environment(env).resolve()
}

fn error(line: &str, env: &[(&str, &str)], toml: &str) -> String {
    let error = resolve(line, env, toml).expect_err("an error");
    assert_eq!(error.exit_status(), tokio_prefork::exit::CONFIG);
    error.to_string()
}

#[test]
fn keys_of_the_program_come_from_flags_environment_and_file() {
    let toml = "program = ['node', 'app.js', '--port={port}']\nready-http = '/healthz'\n\
        stop-signal = 'INT'\nenv = ['A=1', 'B=x y']\noutput = 'file:/tmp/{slot}.log'\nworkers = 3";
    let settings = resolve("--name api --node-shim=false", &[("PREFORK_BIND", ":1")], toml);
    let settings = settings.expect("resolves");
    let app = settings.app();
    assert_eq!(app.command, ["node", "app.js", "--port={port}"]);
    assert_eq!((app.name.as_deref(), app.node_shim), (Some("api"), false));
    assert_eq!(app.readiness(), Readiness::Http("/healthz".to_string()));
    assert_eq!(settings.config().dispatch(), Dispatch::Reuseport);
    let program = app.to_program().expect("a program");
    assert_eq!(program.command_line(), "node app.js '--port={port}'".replace('\'', ""));
    let value = |key: &str| {
        let all = settings.effective_values();
        all.iter().find(|one| one.key == key).map(|one| (one.value.clone(), one.source.clone()))
    };
    let (text, source) = value("program").expect("a key");
    assert_eq!(text, "node app.js '--port={port}'");
    assert!(matches!(source, ValueSource::File { line: 1, .. }), "{source}");
    assert_eq!(value("stop-signal").map(|(text, _)| text).as_deref(), Some("INT"));
    assert_eq!(value("env").map(|(text, _)| text).as_deref(), Some("A=1, B=x y"));
}

#[test]
fn the_command_line_overrides_the_program_of_the_file() {
    let settings = resolve("-w 2 -- ./server -w 9", &[], "program = 'node app.js'");
    let settings = settings.expect("resolves");
    assert_eq!(settings.app().command, ["./server", "-w", "9"]);
    assert_eq!(settings.config().workers(), WorkerCount::Count(2));
}

#[test]
fn exactly_one_thing_decides_readiness() {
    for (line, part) in [
        ("--ready notify --ready-http /a x", "ready-http = /a conflicts with ready = notify"),
        ("--ready-after 2s --ready-http /a x", "conflicts with ready-after = 2s"),
        ("--ready-after 2s --ready listening x", "conflicts with ready = listening"),
        ("--ready-after 30s x", "not within boot-timeout"),
        ("--ready-http /a --dispatch shared x", "ready-http = /a cannot reach one worker"),
        ("--ready-http /a --bind unix:/tmp/a x", "ready-http = /a cannot reach one worker"),
        ("--ready soon x", "give auto, notify or listening"),
    ] {
        let text = error(line, &[], "");
        assert!(text.contains(part), "{line}: {text}");
    }
    for (line, expected) in [
        ("--ready auto --ready-http /a x", Readiness::Http("/a".to_string())),
        ("--ready-after 2s x", Readiness::After(Duration::from_secs(2))),
        ("--ready notify x", Readiness::Notify),
        ("x", Readiness::Auto),
    ] {
        let settings = resolve(line, &[], "").expect(line);
        assert_eq!(settings.app().readiness(), expected, "{line}");
    }
}

#[test]
fn keys_about_requests_are_refused_with_the_source_and_the_reason() {
    let reason = "is about requests, which the program handles: give it its certificate itself";
    let text = error("--tls-cert a.pem x", &[], "");
    assert!(text.starts_with(&format!("--tls-cert {reason}")), "{text}");
    let text = error("x", &[("PREFORK_MAX_REQUESTS", "5")], "");
    assert!(text.starts_with("PREFORK_MAX_REQUESTS: max-requests counts requests"), "{text}");
    let text = error("x", &[], "workers = 2\nroot = '/srv'");
    assert!(text.contains(":2: root is a key of the application of prefork serve"), "{text}");
    let text = error("--port-per-worker x", &[], "");
    assert!(text.contains("cannot be had"), "{text}");
    let text = error("--dispatch round-robin x", &[], "");
    assert!(text.starts_with("--dispatch: dispatch = round-robin does not fit"), "{text}");
}

#[test]
fn a_program_is_needed_and_a_worker_to_run_it() {
    assert!(error("", &[], "").contains("give it after the flags"));
    assert!(error("-w 0 x", &[], "").starts_with("--workers = \"0\" is out of range"));
    let text = error("--env-file /none x", &[], "");
    assert!(text.starts_with("--env-file: env-file = /none"), "{text}");
}
