//! `prefork run` and `prefork check run`: the program, its keys, and those that are refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::command::{ProcessBuilder, test_programs};
use crate::support::wait;

/// Runs `prefork VERB`, which must fail with status 78, and returns standard error.
#[track_caller]
fn configuration_error(builder: ProcessBuilder) -> String {
    let ended = builder.run();
    assert_eq!(ended.status, Some(78), "{}{}", ended.stdout, ended.stderr);
    ended.stderr
}

fn verb(words: &[&str]) -> ProcessBuilder {
    ProcessBuilder::verb(words[0]).args(&words[1..])
}

#[test]
fn a_program_that_cannot_be_run_is_an_error_of_the_configuration_with_its_name() {
    let plain = tempfile::NamedTempFile::new().expect("file");
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o644)).expect("chmod");
    let plain = plain.path().to_str().expect("UTF-8");
    for verb_words in [&["run"][..], &["check", "run"]] {
        for (program, word) in
            [("no-such-program", "no-such-program"), (plain, plain), ("/nowhere/x", "/nowhere/x")]
        {
            let error = configuration_error(verb(&[verb_words, &["--", program]].concat()));
            assert!(error.contains(word), "{verb_words:?}: {error}");
        }
        assert!(!configuration_error(verb(verb_words)).is_empty());
    }
    let error = configuration_error(verb(&["run", "--", "true", "{nothing}"]));
    assert!(error.contains("{nothing}"), "{error}");
}

#[test]
fn keys_about_requests_are_refused_wherever_they_are_set() {
    let error = configuration_error(verb(&["run", "--max-requests", "5", "--", "true"]));
    assert!(error.contains("--max-requests"), "{error}");
    let by_variable = verb(&["run", "--", "true"]).env("PREFORK_ACCESS_LOG", "-");
    let error = configuration_error(by_variable);
    assert!(error.contains("PREFORK_ACCESS_LOG"), "{error}");
    for verb_words in [&["run"][..], &["check"], &["check", "run"]] {
        let builder = verb(verb_words).config(0, "program = 'true'\ntls-cert = 'a.pem'");
        let error = configuration_error(builder);
        assert!(error.contains("prefork.toml:2") && error.contains("tls-cert"), "{error}");
    }
    let ended = verb(&["run", "--help"]).run();
    assert_eq!(ended.status, Some(0));
    assert!(ended.stdout.contains("--ready-http") && !ended.stdout.contains("--tls-cert"));
    let ended = verb(&["serve", "--ready", "notify"]).run();
    assert_eq!(ended.status, Some(64), "run's keys are no keys of serve");
}

#[test]
fn check_prints_the_program_with_its_source() {
    let ended = verb(&["check", "run", "--json", "-w", "3", "--", "true", "a b"]).run();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(json["program"]["value"], "true 'a b'");
    assert_eq!((&json["dispatch"]["value"], json.get("root")), (&"reuseport".into(), None));
    let of_file = verb(&["check", "--json"]).config(0, "program = ['true', 'x']").run();
    assert_eq!(of_file.status, Some(0), "{}", of_file.stderr);
    let json: serde_json::Value = serde_json::from_str(&of_file.stdout).expect("JSON");
    assert_eq!(json["program"]["value"], "true x");
}

#[test]
fn a_reload_brings_the_program_of_the_changed_file() {
    let text = |value: &str| {
        format!(
            "program = [{:?}, 'foreign-program', 'prints-variable', 'VALUE']\nenv = ['VALUE={value}']\n\
             bind = '127.0.0.1:0'\nworkers = 2\noutput = 'file:./'\nname = 'api'\n",
            test_programs().to_str().expect("UTF-8")
        )
    };
    let server = ProcessBuilder::run_configured().config(2, &text("one")).start();
    let read = |slot: u32| {
        let path = server.dir().join(format!("api-{slot}.log"));
        fs::read_to_string(path).unwrap_or_default()
    };
    wait::wait_until("the first value", || [0, 1].iter().all(|n| read(*n).contains("VALUE=one")));
    assert_eq!(server.status()["primary"]["name"], "api");
    fs::write(server.dir().join("prefork.toml"), text("two")).expect("write");
    server.run_verb(&["reload"]);
    wait::wait_until("the second value", || [0, 1].iter().all(|n| read(*n).contains("VALUE=two")));
    assert_eq!(server.get("/").status, 200);
    fs::write(server.dir().join("prefork.toml"), "program = 'no-such-program'").expect("write");
    server.assert_verb_fails(&["reload"], 1);
    assert_eq!(server.get("/").status, 200);
    server.allow_errors(&["reload"]).stop();
}
