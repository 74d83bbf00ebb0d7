//! What makes a program of `prefork run` ready, and what makes it count as frozen later.

use std::fs;

use nix::sys::signal::Signal;

use crate::run_sockets::serving_programs;
use crate::support::command::ProcessBuilder;
use crate::support::control::serving;
use crate::support::{Server, process, wait};

/// A program that hangs is noticed and killed soon. A machine that is busy may cost one that does not, too.
const STALL_FLAGS: [&str; 4] = ["--stall-warn", "500ms", "--stall-timeout", "1s"];

/// Builds a server that answers `/healthz` with the status in the file `health`.
fn with_health(health: &str, args: &[&str]) -> ProcessBuilder {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(1).dispatch("reuseport");
    fs::write(builder.dir().join("health"), health).expect("write");
    builder.args(["--ready-http", "/healthz"]).args(args)
}

/// Waits until another program serves in place of `old`.
#[track_caller]
fn wait_program_replaced(server: &Server, old: u32) {
    process::wait_ended(&[old]);
    wait::wait_until("another program", || {
        serving(&server.status()).any(|worker| worker["pid"].as_u64() != Some(old.into()))
    });
    assert_eq!(server.get("/").status, 200);
}

fn only_program(server: &Server) -> u32 {
    let programs: Vec<u32> = serving_programs(server).into_iter().collect();
    assert_eq!(programs.len(), 1);
    programs[0]
}

#[test]
fn the_status_of_the_probe_decides_and_not_that_the_program_listens() {
    let server = with_health("503 Not Yet", &[]).spawn().listening();
    assert_eq!(server.get("/").status, 200, "it serves, as there is no other worker");
    assert_eq!(serving(&server.status()).count(), 0);
    fs::write(server.dir().join("health"), "204 No Content").expect("write");
    server.wait_serving(1);
    server.wait_log(&["decided_by=ready-http"]);
    server.stop();
}

#[test]
fn a_program_whose_probe_fails_or_hangs_is_not_ready_and_the_error_says_what_it_answers() {
    for (health, part) in [("500 Oops", "answered with status 500"), ("hang", "gets no answer")] {
        let args = ["--boot-timeout", "1s", "--boot-attempts", "1"];
        let output = with_health(health, &args).run();
        assert_eq!(output.status, Some(70), "{}", output.stderr);
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
}

#[test]
fn a_program_that_answers_no_probe_any_more_is_replaced() {
    let server = with_health("200 OK", &STALL_FLAGS).start().allow_errors(&["worker="]);
    let old = only_program(&server);
    fs::write(server.dir().join("health"), "hang once").expect("write");
    wait_program_replaced(&server, old);
    server.wait_log(&["WARN", "ready-http"]);
    server.stop();
}

#[test]
fn a_program_that_says_no_more_that_it_lives_is_replaced() {
    let builder = ProcessBuilder::run_foreign_program(&["watched"]).workers(1);
    let server = builder.args(STALL_FLAGS).start().allow_errors(&["worker="]);
    let old = only_program(&server);
    fs::write(server.dir().join("freeze"), "").expect("write");
    wait_program_replaced(&server, old);
    server.wait_log(&["WARN", "WATCHDOG=1"]);
    server.stop();
}

#[test]
fn a_program_that_a_signal_has_stopped_is_replaced() {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(1);
    let server = builder.args(STALL_FLAGS).start().allow_errors(&["worker="]);
    let old = only_program(&server);
    process::send_signal(old, Signal::SIGSTOP);
    wait_program_replaced(&server, old);
    server.stop();
}

#[test]
fn time_alone_makes_a_program_ready_that_gives_no_sign() {
    let builder = ProcessBuilder::run_foreign_program(&["never-ready"]).workers(1);
    let server = builder.args(["--ready-after", "50ms"]).start();
    server.wait_log(&["decided_by=ready-after"]);
    server.stop();
}

#[test]
fn a_program_that_is_too_busy_to_wait_for_connections_is_ready_when_it_has_accepted_one() {
    let builder = ProcessBuilder::run_foreign_server(&["never-waits"]).workers(1);
    let args = ["--ready", "listening", "--graceful-timeout", "120s"];
    let server = builder.args(args).spawn().listening();
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    server.wait_serving(1);
    // It never closes the connection that its client has left, which must not hold up the end.
    drop(client);
    server.stop();
}
