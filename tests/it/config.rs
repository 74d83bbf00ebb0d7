//! Configuration by flags, environment and file, and errors that name their source.

use crate::support::Server;
use crate::support::command::ProcessBuilder;

/// Runs `prefork serve` with these arguments, and returns its exit status and standard error.
fn run_serve(args: &[&str]) -> (Option<i32>, String) {
    let ended = ProcessBuilder::verb("serve").args(args).run();
    (ended.status, ended.stderr)
}

#[test]
fn an_unknown_flag_is_a_usage_error_that_suggests_the_nearest() {
    let (status, err) = run_serve(&["--wrokers", "2"]);
    assert_eq!(status, Some(64), "{err}");
    assert!(err.contains("--workers"), "{err}");
}

#[test]
fn a_missing_or_unknown_verb_is_a_usage_error() {
    for verb in ["", "sevre"] {
        let ended = ProcessBuilder::verb(verb).run();
        assert_eq!(ended.status, Some(64), "{}", ended.stderr);
    }
}

#[test]
fn help_and_version_succeed() {
    for verb in ["--help", "--version"] {
        let ended = ProcessBuilder::verb(verb).run();
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{verb}");
        assert!(ended.stdout.contains("prefork"), "{}", ended.stdout);
    }
}

#[test]
fn invalid_values_are_named_with_their_source() {
    for (args, names) in [
        (["--workers", "0"], ["--workers", "\"0\""]),
        (["--workers", "many"], ["--workers", "\"many\""]),
        (["--bind", "nonsense"], ["--bind", "\"nonsense\""]),
        (["--graceful-timeout", "soon"], ["--graceful-timeout", "\"soon\""]),
        (["--max-header-size", "1"], ["max-header-size", "1"]),
        (["--root", "/nonexistent"], ["--root", "/nonexistent"]),
        (["--config", "/nonexistent"], ["/nonexistent", ""]),
    ] {
        let (status, err) = run_serve(&args);
        assert_eq!(status, Some(78), "{err}");
        let has_names = names.iter().all(|name| err.contains(name));
        assert!(err.starts_with("prefork: ") && has_names, "{names:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn an_invalid_environment_variable_is_named() {
    let ended = ProcessBuilder::verb("serve").env("WEB_CONCURRENCY", "many").run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("WEB_CONCURRENCY"), "{}", ended.stderr);
}

#[test]
fn an_unknown_config_key_is_named_with_its_line_and_the_nearest() {
    let builder = ProcessBuilder::verb("serve");
    std::fs::write(builder.dir().join("a.toml"), "workers = 2\nbnid = \":1\"\n").expect("write");
    let ended = builder.args(["--config", "a.toml"]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    for name in ["a.toml:2", "\"bnid\"", "\"bind\""] {
        assert!(ended.stderr.contains(name), "{name}: {}", ended.stderr);
    }
}

#[test]
fn a_failed_start_leaves_no_socket_file() {
    let builder = ProcessBuilder::verb("serve");
    let socket = builder.dir().join("socket");
    let args = ["--bind", "unix:socket", "--bind", "192.0.2.1:0"];
    let ended = builder.args(args).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(!socket.exists());
}

#[test]
fn check_prints_every_value_with_its_source() {
    let builder = ProcessBuilder::verb("check").env("PORT", "8080");
    std::fs::write(builder.dir().join("a.toml"), "backlog = 10\nworkers = 3\n").expect("write");
    let ended = builder.args(["--config", "a.toml", "--workers", "2"]).run();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
    let rows: Vec<Vec<&str>> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        ["KEY", "VALUE", "SOURCE"],
        ["bind", "0.0.0.0:8080", "PORT"],
        ["backlog", "10", "a.toml:1"],
        ["workers", "2", "--workers"],
        ["graceful-timeout", "30s", "default"],
    ] {
        assert!(rows.iter().any(|r| r[..] == row), "{row:?} is not in\n{}", ended.stdout);
    }
}

#[test]
fn check_prints_json() {
    let ended = ProcessBuilder::verb("check").args(["--json", "--workers", "2"]).run();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(json["workers"]["value"], "2");
    assert_eq!(json["workers"]["source"], "--workers");
}

#[test]
fn check_reports_the_same_errors_as_serve() {
    for args in [["--workers", "0"], ["--bind", "nonsense"], ["--root", "/nonexistent"]] {
        let check = ProcessBuilder::verb("check").args(args).run();
        assert_eq!((check.status, check.stderr), run_serve(&args));
    }
}

#[test]
fn web_concurrency_sets_the_number_of_workers() {
    let server = Server::builder().workers(0).env("WEB_CONCURRENCY", "3").spawn();
    server.wait_serving(3);
    assert_eq!(server.worker_pids().len(), 3);
    server.stop();
}
