//! Programs of `prefork run` that do what programs should not: they fork, daemonise, ignore signals, hang, or end at once.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::control::serving;
use crate::support::load::Load;
use crate::support::{Server, admin_listener, process, wait};

/// Where the output of the programs goes, so that tests can read pids in it.
const OUTPUT: [&str; 2] = ["--output", "file:output"];

fn start(words: &[&str], args: &[&str]) -> Server {
    ProcessBuilder::run_foreign_program(words).workers(1).args(OUTPUT).args(args).start()
}

/// Waits until `count` lines `WORD PID` were printed, and returns the pids.
#[track_caller]
fn wait_printed_pids(server: &Server, word: &str, count: usize) -> Vec<u32> {
    wait::wait_until_some(&format!("{count} pids of {word}"), || {
        let text = fs::read_to_string(server.dir().join("output")).unwrap_or_default();
        let pids: Vec<u32> =
            text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect();
        (pids.len() >= count).then_some(pids)
    })
}

fn programs(server: &Server) -> BTreeSet<u32> {
    let pid = |worker: &Value| worker["pid"].as_u64().expect("a pid") as u32;
    serving(&server.status()).map(pid).collect()
}

#[test]
fn descendants_in_sessions_of_their_own_end_with_their_worker() {
    let server = start(&["has-descendants"], &["--graceful-timeout", "1s"]);
    let descendants = wait_printed_pids(&server, "descendant", 1);
    server.run_verb(&["reload"]);
    process::wait_ended(&descendants);
    let descendants = wait_printed_pids(&server, "descendant", 2);
    server.stop();
    process::wait_ended(&descendants);
}

#[test]
fn a_killed_program_is_replaced_and_its_descendants_end() {
    let server = start(&["has-descendants"], &["--graceful-timeout", "1s"]);
    let descendants = wait_printed_pids(&server, "descendant", 1);
    let program = programs(&server);
    program.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
    process::wait_ended(&descendants);
    server.wait_replaced(1);
    assert!(programs(&server).is_disjoint(&program));
    assert_eq!(server.get("/").status, 200);
    server.allow_errors(&["died", "killed"]).stop();
}

#[test]
fn a_killed_guard_takes_its_program_and_descendants_along() {
    let server = start(&["has-descendants"], &["--graceful-timeout", "1s"]);
    let mut ended = wait_printed_pids(&server, "descendant", 1);
    ended.extend(programs(&server));
    let guards = server.worker_pids();
    assert_eq!(guards.len(), 1);
    process::send_signal(guards[0], Signal::SIGKILL);
    process::wait_ended(&ended);
    server.wait_replaced(1);
    assert_eq!(server.get("/").status, 200);
    server.allow_errors(&["died", "killed"]).stop();
}

#[test]
fn a_program_that_daemonises_cannot_boot_and_leaves_nothing() {
    let builder = ProcessBuilder::run_foreign_program(&["daemonises"]).workers(1).args(OUTPUT);
    let server = builder.args(["--boot-attempts", "1"]).spawn();
    let server = server.allow_errors(&["boot", "died", "giving"]);
    let descendants = wait_printed_pids(&server, "descendant", 1);
    let log = server.wait_clean_exit(70);
    process::wait_ended(&descendants);
    assert!(log.contains("background"), "{log}");
}

#[test]
fn programs_that_end_at_once_or_never_become_ready_end_the_start() {
    for words in [&["exits", "3"][..], &["exits", "0"], &["never-ready"]] {
        let args = ["--boot-attempts", "2", "--boot-timeout", "1s"];
        let builder = ProcessBuilder::run_foreign_program(words).workers(1);
        let server = builder.args(args).spawn().allow_errors(&["boot", "died", "ready", "giving"]);
        let log = server.wait_clean_exit(70);
        assert!(log.contains("test_programs"), "the reason names the program: {log}");
    }
}

#[test]
fn programs_end_after_the_death_of_the_primary_whatever_they_ignore() {
    for is_stopped in [false, true] {
        let mut server = start(&["has-descendants", "ignores-term"], &["--graceful-timeout", "1s"]);
        let mut ended = wait_printed_pids(&server, "descendant", 1);
        ended.extend(programs(&server));
        ended.extend(server.worker_pids());
        if is_stopped {
            programs(&server).iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
        }
        server.kill_primary();
        process::wait_ended(&ended);
    }
}

#[test]
fn a_stopped_program_is_killed_after_the_graceful_timeout() {
    let server = start(&["has-descendants", "ignores-term"], &["--graceful-timeout", "1s"]);
    let old = programs(&server);
    old.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    server.run_verb(&["reload"]);
    process::wait_ended(&old.into_iter().collect::<Vec<_>>());
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn the_old_program_serves_until_the_new_one_says_that_it_is_ready() {
    let builder = ProcessBuilder::run_foreign_program(&["ready-late"]).workers(1).args(OUTPUT);
    fs::write(builder.dir().join("go"), "").expect("write");
    let server = builder.args(["--ready", "notify"]).start();
    let old = programs(&server);
    fs::remove_file(server.dir().join("go")).expect("remove");
    server.run_verb(&["reload", "--no-wait"]);
    let new = wait_printed_pids(&server, "accepting", 2);
    for _ in 0..20 {
        let pid = server.get("/").pid();
        assert!(old.contains(&pid), "{pid} of {new:?} is not ready");
    }
    fs::write(server.dir().join("go"), "").expect("write");
    wait::wait_until("the new program", || programs(&server).is_disjoint(&old));
    assert!(programs(&server).contains(&server.get("/").pid()));
    server.stop();
}

#[test]
fn a_program_that_reports_its_status_never_waits_for_a_reader() {
    let server = start(&["reports-status"], &["--ready", "listening"]);
    server.run_verb(&["reload"]);
    assert_eq!(wait_printed_pids(&server, "reported", 1).len(), 1);
    server.stop();
}

#[test]
fn an_upgrade_in_place_refuses_no_connection_and_keeps_the_pids() {
    let server = ProcessBuilder::run_foreign_server(&[]).start();
    let load = Load::new_connections(server.address(), 4).start();
    load.wait_answered(24);
    let primary = server.pid();
    server.run_verb(&["upgrade"]);
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert_eq!(server.status()["primary"]["pid"], primary);
    for pid in programs(&server) {
        let parent = process::stat(pid).expect("it runs").parent;
        assert!(server.worker_pids().contains(&parent), "its parent is the guard");
    }
    server.stop();
}

#[test]
fn the_status_shows_programs_guards_and_processes_but_no_requests() {
    let args = ["--name", "api", "--admin", "127.0.0.1:0", "--graceful-timeout", "1s"];
    let server = start(&["has-descendants"], &args);
    let descendants = wait_printed_pids(&server, "descendant", 1);
    let status = wait::wait_until_some("the figures of the program", || {
        let text = server.run_verb(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).expect("JSON");
        (status["workers"][0]["program"]["processes"] == 2).then_some(status)
    });
    let worker = &status["workers"][0];
    let guard = worker["guard_pid"].as_u64().expect("a guard") as u32;
    let program = worker["pid"].as_u64().expect("a program") as u32;
    assert_eq!(server.worker_pids(), [guard]);
    assert_eq!(process::stat(program).expect("it runs").parent, guard);
    assert!(descendants.iter().all(|pid| *pid != program));
    assert!(worker["rss_bytes"].as_u64() > Some(1 << 16), "{worker:#}");
    for absent in ["counters", "active", "serving"] {
        assert_eq!(worker.get(absent), None, "{absent} is not known");
    }
    assert_eq!(status.get("totals"), None);
    assert_eq!(status["primary"]["name"], "api");
    assert!(
        status["primary"]["program"].as_str().is_some_and(|text| text.contains("foreign-program"))
    );
    let text = server.run_verb(&["status"]);
    let first = text.lines().next().expect("a line");
    assert!(text.contains("2 processes") && !first.contains("requests"), "{text}");
    let by_name = server.run_verb(&["top", "--batch", "-n", "1"]);
    assert!(by_name.contains("2 processes"), "{by_name}");
    let metrics = admin_listener::get(&admin_listener::admin_address(&server), "/metrics");
    let metrics = metrics.text().to_string();
    assert!(metrics.contains("prefork_program_processes{kind=\"web\",slot=\"0\"} 2"), "{metrics}");
    assert!(!metrics.contains("prefork_http_requests"), "{metrics}");
    server.stop();
}

#[test]
fn memory_of_all_processes_of_a_program_counts_for_max_rss() {
    let server = start(
        &["has-descendants"],
        &["--max-rss", "1MiB", "--min-uptime", "0s", "--graceful-timeout", "1s"],
    );
    server.wait_replaced(1);
    server.stop();
}
