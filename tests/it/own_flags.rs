//! Programs with the flags, variables and file of `prefork serve`, and the control verbs on them.

use std::fs;

use crate::support::command::{ProcessBuilder, ProcessOutput};
use crate::support::wait;

/// Runs a program that ends by itself.
fn run(name: &str, args: &[&str]) -> ProcessOutput {
    without_server_flags(name).args(args).run()
}

fn without_server_flags(name: &str) -> ProcessBuilder {
    ProcessBuilder::example_with_flags(name).bind([""; 0]).workers(0)
}

#[test]
fn a_wrong_command_line_exits_with_64_and_suggests_the_nearest_flag() {
    for name in ["own_flags", "one_call"] {
        let ended = run(name, &["--wrokers", "2"]);
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(64), ""), "{name}");
        assert!(ended.stderr.contains("--workers"), "{}", ended.stderr);
    }
}

#[test]
fn help_and_version_are_those_of_the_program() {
    let help = run("own_flags", &["--help"]);
    assert_eq!((help.status, help.stderr.as_str()), (Some(0), ""));
    for text in ["--shout", "--greeting <TEXT>", "--graceful-timeout <DURATION>", "--check-config"]
    {
        assert!(help.stdout.contains(text), "{text} is not in\n{}", help.stdout);
    }
    let version = run("one_call", &["--version"]);
    assert_eq!((version.status, version.stdout.as_str()), (Some(0), "one-call 1.2.3\n"));
}

#[test]
fn an_invalid_value_exits_with_78_and_names_its_source() {
    for (args, source) in [
        (["--workers", "many"], "--workers = \"many\""),
        (["--greeting", ""], "--greeting = \"\" is empty"),
        (["--config", "/nonexistent"], "/nonexistent"),
    ] {
        let ended = run("own_flags", &args);
        assert_eq!(ended.status, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(source), "{}", ended.stderr);
    }
    let ended = without_server_flags("one_call").env("ONE_CALL_WORKERS", "many").run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("ONE_CALL_WORKERS = \"many\""), "{}", ended.stderr);
}

#[test]
fn check_config_prints_every_value_with_its_source() {
    let builder = without_server_flags("own_flags").env("OWN_FLAGS_BACKLOG", "9").env("PORT", "81");
    fs::write(builder.dir().join("a.toml"), "greeting = \"good day\"\n").expect("write");
    let ended = builder.args(["--config", "a.toml", "-w", "3", "--check-config=json"]).run();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    for (key, value, source) in [
        ("greeting", "good day", "a.toml:1"),
        ("backlog", "9", "OWN_FLAGS_BACKLOG"),
        ("bind", "0.0.0.0:81", "PORT"),
        ("workers", "3", "--workers"),
        ("graceful-timeout", "30s", "default"),
    ] {
        assert_eq!((&json[key]["value"], &json[key]["source"]), (&value.into(), &source.into()));
    }
    let table = run("one_call", &["--check-config"]);
    assert_eq!(table.status, Some(0), "{}", table.stderr);
    assert!(table.stdout.starts_with("KEY "), "{}", table.stdout);
}

#[test]
fn a_reload_reads_the_file_again_and_keeps_flags_of_the_program() {
    let builder = ProcessBuilder::example_with_flags("own_flags").args(["--shout"]);
    let file = builder.dir().join("a.toml");
    fs::write(&file, "greeting = \"good day\"\n").expect("write");
    let server = builder.args(["--config", "a.toml"]).start().allow_errors(&["reload failed"]);
    assert_eq!(server.get("/").text(), "GOOD DAY\n");
    fs::write(&file, "greeting = \"good night\"\n").expect("write");
    server.run_verb(&["reload"]);
    assert_eq!(server.get("/").text(), "GOOD NIGHT\n");
    fs::write(&file, "greetings = 1\n").expect("write");
    let refused = server.assert_verb_fails(&["reload"], 1);
    assert!(refused.contains("did you mean \"greeting\""), "{refused}");
    assert_eq!(server.get("/").text(), "GOOD NIGHT\n");
    server.stop();
}

#[test]
fn the_control_verbs_find_a_program_by_its_name() {
    use std::os::unix::fs::PermissionsExt;
    let runtime = tempfile::tempdir().expect("directory");
    fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    let runtime = runtime.path().to_str().expect("UTF-8");
    let start = |name: &str| {
        let builder = ProcessBuilder::example_with_flags(name).env("RUNTIME_DIRECTORY", runtime);
        builder.control_at("auto".into()).spawn()
    };
    let servers = [start("own_flags"), start("one_call")];
    let verb = |args: &[&str]| {
        let builder = ProcessBuilder::verb("status").env("RUNTIME_DIRECTORY", runtime);
        // The support sets it for servers; it names no socket.
        builder.env("PREFORK_CONTROL", "auto").args(args).run()
    };
    for name in ["own_flags", "one-call"] {
        wait::wait_until(name, || {
            let ended = verb(&["--name", name]);
            ended.stdout.starts_with(name) && ended.stdout.contains("2 of 2 workers serve")
        });
    }
    let ended = verb(&["--name", "no-such-application"]);
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("no-such-application"), "{}", ended.stderr);
    let ended = verb(&[]);
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("--name") && ended.stderr.contains("one-call"),
        "{}",
        ended.stderr
    );
    for server in servers {
        server.stop();
    }
}

#[test]
fn every_control_verb_works_on_the_program() {
    let server = ProcessBuilder::example_with_flags("one_call").start();
    assert!(server.get("/").text().starts_with("hello from pid "));
    let status = server.run_verb(&["status"]);
    assert!(status.starts_with("one-call 1.2.3: primary "), "{status}");
    server.run_verb(&["scale", "3"]);
    server.wait_serving(3);
    server.run_verb(&["reload"]);
    server.wait_generation(2);
    server.run_verb(&["upgrade"]);
    server.wait_generation(3);
    wait::wait_until("the events of the upgrade", || {
        server.run_verb(&["events", "--json"]).lines().count() > 1
    });
    assert_eq!(server.get("/").status, 200);
    assert!(server.run_verb(&["stop"]).ends_with("stopped\n"));
    server.wait_clean_exit(0);
}
