//! Workers whose event loop is stalled: warning, kill, and service by the other workers.

use std::process::{Child, Command};

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::{Client, Server, log, process};

const STALL_FLAGS: [&str; 5] = ["--faults", "--stall-warn", "600ms", "--stall-timeout", "2s"];

/// A process that uses a core in a busy loop.
struct BusyLoop(Child);

impl BusyLoop {
    fn new() -> BusyLoop {
        BusyLoop(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh"))
    }
}

impl Drop for BusyLoop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asserts that every error of this log is about the worker with this tag.
#[track_caller]
fn assert_all_errors_contain(text: &str, tag: &str) {
    let errors = log::lines_with(text, &["ERROR"]).count();
    assert_eq!(log::lines_with(text, &["ERROR", tag]).count(), errors, "{text}");
}

#[test]
fn a_blocking_handler_is_named_and_its_worker_killed() {
    for (path, query) in [("/fault/hang", ""), ("/fib/50", "?on=loop")] {
        // All errors are about one worker, as checked below.
        let server = Server::with(2, &STALL_FLAGS).allow_errors(&["worker="]);
        let mut client = server.connect();
        let pid = client.get("/").expect("answer").pid();
        let (tag, request) = (format!("pid={pid}"), format!("GET {path}"));
        client.send(format!("GET {path}{query} HTTP/1.1\r\nHost: a\r\n\r\n")).expect("send");
        server.wait_log(&["WARN", &tag, &request]);
        server.wait_log(&["ERROR", &tag, &request]);
        assert!(client.read().is_err(), "the connection ends");
        server.wait_log(&["ERROR", &tag, "SIGABRT"]);
        server.wait_replaced(1);
        server.wait_new_workers(2, &[pid]);
        assert_all_errors_contain(&server.stop(), &tag);
    }
}

#[test]
fn a_stopped_worker_is_killed_at_the_stall_timeout() {
    let server = Server::with(2, &STALL_FLAGS).allow_errors(&["worker="]);
    let pid = server.worker_pids()[0];
    process::send_signal(pid, Signal::SIGSTOP);
    let tag = format!("pid={pid}");
    server.wait_log(&["WARN", &tag]);
    // One line for the reason, and one for the exit.
    server.wait_log_count(&["ERROR", &tag], 2);
    server.wait_replaced(1);
    server.wait_new_workers(2, &[pid]);
    assert_all_errors_contain(&server.stop(), &tag);
}

#[test]
fn a_worker_that_recovers_from_a_stall_is_kept() {
    let server = Server::with(2, &["--stall-warn", "600ms", "--stall-timeout", "100s"]);
    let workers = server.worker_pids();
    process::send_signal(workers[0], Signal::SIGSTOP);
    let tag = format!("pid={}", workers[0]);
    server.wait_log(&["WARN", &tag]);
    process::send_signal(workers[0], Signal::SIGCONT);
    // The first INFO line was its start, the second one is its recovery.
    server.wait_log_count(&["INFO", &tag], 2);
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}

#[test]
fn a_resumed_primary_kills_no_worker_as_stalled() {
    let server = Server::with(2, &["--stall-timeout", "2s"]);
    let workers = server.worker_pids();
    server.signal(Signal::SIGSTOP);
    // Workers serve without the primary.
    assert_eq!(server.get("/sleep/3000").status, 200);
    server.signal(Signal::SIGCONT);
    // The primary checks the heartbeats several times.
    assert_eq!(server.get("/sleep/1500").status, 200);
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}

#[test]
fn cpu_load_does_not_count_as_a_stall() {
    let server = Server::with(2, &["--stall-timeout", "2s"]);
    let workers = server.worker_pids();
    let load = Load::keep_alive(server.address(), 4).start();
    let busy = [BusyLoop::new(), BusyLoop::new()];
    assert_eq!(server.get("/sleep/4000").status, 200);
    drop(busy);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}

#[test]
fn no_connection_waits_behind_a_blocking_handler() {
    let server = Server::with(2, &["--graceful-timeout", "0s"]);
    let workers = server.worker_pids();
    // All connections are in the accept queue before a worker runs.
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    let mut blocking = server.connect();
    blocking.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let mut others: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut others {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGCONT));
    // A worker that had accepted more than the blocking connection could not answer the others for minutes.
    let stuck =
        others.iter_mut().map(Client::read_within_10_seconds).filter(Result::is_err).count();
    assert_eq!(stuck, 0, "of {} connections", others.len());
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn other_workers_serve_while_one_is_stopped() {
    let server = Server::start(2);
    let stopped = server.worker_pids()[0];
    process::send_signal(stopped, Signal::SIGSTOP);
    for _ in 0..50 {
        assert_ne!(server.get("/").pid(), stopped);
    }
    process::send_signal(stopped, Signal::SIGCONT);
    server.stop();
}

#[test]
fn workers_serve_while_the_primary_is_stopped() {
    let server = Server::start(2);
    let workers = server.worker_pids();
    server.signal(Signal::SIGSTOP);
    // Workers serve without the primary.
    assert_eq!(server.get("/sleep/1500").status, 200);
    server.signal(Signal::SIGCONT);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}
