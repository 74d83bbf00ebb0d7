//! Graceful and immediate stops, and `drain-delay`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::load::Load;
use crate::support::{Failure, Server, env_count, log, process, wait};

#[test]
fn an_idle_server_stops_with_status_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::start(2);
        let idle = server.connect();
        server.signal(signal);
        server.wait_log(&["INFO", signal.as_str()]);
        drop(idle);
        let text = server.wait_clean_exit(0);
        assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
    }
}

#[test]
fn a_request_in_flight_is_answered_during_a_stop() {
    let server = Server::start(2);
    let mut client = server.start_request("/sleep/700");
    server.signal(Signal::SIGTERM);
    let answer = client.read().expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "slept for 700 ms\n"));
    assert!(answer.closes(), "{answer:?}");
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.wait_clean_exit(0);
}

#[test]
fn a_kept_connection_gets_connection_close_during_a_stop() {
    // Long enough for the next request to arrive before it ends.
    let server = Server::with(2, &["--linger-timeout", "25s"]);
    let mut client = server.connect();
    assert!(!client.get("/").expect("answer").closes());
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    // The worker learns of the stop a moment later.
    let answers = std::iter::from_fn(|| Some(client.get("/").expect("an answer")));
    assert!(answers.take(100_000).any(|answer| answer.closes()));
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.wait_clean_exit(0);
}

#[test]
fn an_idle_connection_is_closed_after_the_linger_timeout() {
    let server = Server::with(1, &["--linger-timeout", "300ms"]);
    let mut client = server.connect();
    client.get("/").expect("answer");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.wait_clean_exit(0);
}

#[test]
fn readyz_is_503_while_draining() {
    let server = Server::with(1, &["--linger-timeout", "25s"]);
    let mut client = server.connect();
    assert_eq!(client.get("/readyz").expect("answer").status, 200);
    server.signal(Signal::SIGTERM);
    let answers = std::iter::from_fn(|| Some(client.get("/readyz").expect("an answer")));
    let last = answers.take(100_000).find(|answer| answer.closes()).expect("the last one");
    assert_eq!(last.status, 503);
    server.wait_clean_exit(0);
}

#[test]
fn a_stop_under_load_loses_no_request() {
    for _ in 0..env_count("PREFORK_STOPS", 3) {
        // Longer than any client is idle, even on a busy machine.
        let server = Server::with(2, &["--linger-timeout", "20s"]);
        let load = Load::keep_alive(server.address(), 8)
            .with_posts()
            .with_think_time()
            .until_refused()
            .start();
        load.wait_answered(100);
        server.signal(Signal::SIGTERM);
        let tally = load.join();
        assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
        server.wait_clean_exit(0);
    }
}

#[test]
fn new_connections_are_answered_until_they_are_refused() {
    for _ in 0..env_count("PREFORK_STOPS", 3) {
        let server = Server::start(2);
        let load = Load::new_connections(server.address(), 4).until_refused().start();
        load.wait_answered(50);
        server.signal(Signal::SIGTERM);
        let tally = load.join();
        assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
        server.wait_clean_exit(0);
    }
}

#[test]
fn a_second_stop_signal_stops_immediately() {
    let server = Server::start(2);
    let mut client = server.start_request("/sleep/600000");
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    // Two signals within 100 ms count as one.
    wait::wait_until_elapsed(Instant::now(), Duration::from_millis(150));
    server.signal(Signal::SIGINT);
    let failure = client.read().expect_err("it was not finished");
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    let text = server.wait_clean_exit(0);
    assert_eq!(log::lines_with(&text, &["INFO", "SIGINT"]).count(), 1, "{text}");
}

#[test]
fn simultaneous_stop_signals_count_once() {
    let server = Server::start(2);
    let mut client = server.start_request("/sleep/700");
    // Both signals are pending when the primary resumes.
    server.signal(Signal::SIGSTOP);
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGINT);
    server.signal(Signal::SIGCONT);
    assert_eq!(client.read().expect("an answer").status, 200);
    // Killed workers would be warned about.
    let text = server.wait_clean_exit(0);
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn sigquit_stops_immediately() {
    let server = Server::start(2);
    let mut client = server.start_request("/sleep/600000");
    server.signal(Signal::SIGQUIT);
    let failure = client.read().expect_err("it was not finished");
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    let text = server.wait_clean_exit(0);
    assert_eq!(log::lines_with(&text, &["INFO", "SIGQUIT"]).count(), 1, "{text}");
}

#[test]
fn the_graceful_timeout_cuts_and_names_requests_in_flight() {
    let server = Server::with(2, &["--graceful-timeout", "1s"]);
    let mut client = server.start_request("/sleep/600000");
    server.signal(Signal::SIGTERM);
    let failure = client.read().expect_err("it was cut");
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    let text = server.wait_clean_exit(0);
    assert_eq!(log::lines_with(&text, &["WARN", "GET /sleep/600000"]).count(), 1, "{text}");
}

#[test]
fn a_frozen_worker_is_killed_at_the_graceful_timeout() {
    let server = Server::with(2, &["--graceful-timeout", "1s"]);
    let _client = server.start_request("/fib/50?on=loop");
    server.signal(Signal::SIGTERM);
    let text = server.wait_clean_exit(0);
    // One line for the reason, and one for the exit.
    assert_eq!(log::lines_with(&text, &["WARN", "graceful-timeout"]).count(), 1, "{text}");
    assert!(log::lines_with(&text, &["WARN", "worker="]).count() >= 2, "{text}");
}

#[test]
fn a_stopped_worker_does_not_block_the_stop() {
    let server = Server::with(2, &["--graceful-timeout", "1s"]);
    process::send_signal(server.worker_pids()[0], Signal::SIGSTOP);
    server.stop();
}

#[test]
fn a_long_poll_can_end_when_the_worker_drains() {
    let server = ProcessBuilder::program("waiting").workers(2).start();
    let mut client = server.start_request("/poll");
    server.signal(Signal::SIGTERM);
    let answer = client.read().expect("an answer");
    assert_eq!((answer.text(), answer.closes()), ("goodbye", true));
    server.wait_clean_exit(0);
}

#[test]
fn unrelated_signals_end_no_process() {
    let server = Server::start(2);
    for signal in [Signal::SIGWINCH, Signal::SIGPIPE, Signal::SIGCHLD] {
        server.signal(signal);
    }
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("answer").status, 200);
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

/// A drain delay longer than any test; only a second stop ends it.
const LONG_DRAIN_DELAY: [&str; 2] = ["--drain-delay", "300s"];

#[test]
fn drain_delay_answers_not_ready_and_accepts_until_a_second_signal() {
    let server = Server::with(2, &LONG_DRAIN_DELAY);
    let load = Load::new_connections(server.address(), 2).until_refused().start();
    load.wait_answered(10);
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    // Every worker answers 503, on new connections.
    for _ in 0..8 {
        assert_eq!((server.get("/readyz").status, server.get("/healthz").status), (503, 200));
    }
    assert_eq!(server.cluster()["primary"]["phase"], "stopping");
    load.wait_answered(20);
    let announced = std::time::Instant::now();
    wait::wait_until_elapsed(announced, std::time::Duration::from_millis(150));
    server.signal(Signal::SIGTERM);
    let tally = load.join();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    // Killed workers would be warned about.
    let text = server.wait_clean_exit(0);
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn drain_delay_ends_by_itself_and_loses_no_request() {
    let server = Server::with(2, &["--drain-delay", "500ms"]);
    let load = Load::new_connections(server.address(), 4).until_refused().start();
    load.wait_answered(20);
    server.signal(Signal::SIGTERM);
    let tally = load.join();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    let text = server.wait_clean_exit(0);
    assert_eq!(log::lines_with(&text, &["SIGTERM", "500 ms"]).count(), 1, "{text}");
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn during_drain_delay_workers_are_replaced_and_reloads_refused() {
    let server = Server::builder().workers(2).args(LONG_DRAIN_DELAY).start();
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    crate::support::process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/").status, 200);
    let why = server.assert_verb_fails(&["reload"], 1);
    assert!(why.contains("stopping"), "{why}");
    assert_eq!(server.status()["primary"]["phase"], "stopping");
    server.signal(Signal::SIGQUIT);
    server.allow_errors(&["SIGKILL"]).wait_clean_exit(0);
}
