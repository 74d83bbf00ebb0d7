//! The death of the primary: no worker outlives it for long, and nothing stands in the way of the next start.

use nix::sys::signal::Signal;

use crate::support::{Server, process, wait};

#[track_caller]
fn wait_gone(pids: &[u32]) {
    wait::until(&format!("the end of {pids:?}"), || pids.iter().all(|pid| process::is_gone(*pid)));
}

#[test]
fn idle_workers_leave_with_their_primary_and_the_next_start_is_clean() {
    let mut server = Server::start(3);
    let pids = server.worker_pids();
    let mut idle = server.connect();
    assert_eq!(idle.get("/").expect("answer").status, 200);
    server.kill_primary();
    wait_gone(&pids);
    assert!(server.log().contains("has lost its primary"), "{}", server.log());
    let again = Server::builder().bind([server.address().to_string()]).start();
    assert_eq!(again.port(), server.port());
    again.stop();
}

#[test]
fn a_request_in_flight_is_answered_before_the_orphan_leaves() {
    let mut server = Server::start(2);
    let pids = server.worker_pids();
    let mut client = server.connect();
    client.send("GET /sleep/1500 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/1500");
    server.kill_primary();
    let answer = client.read().expect("an answer");
    assert_eq!((answer.status, answer.closes()), (200, true), "{answer:?}");
    wait_gone(&pids);
}

#[test]
fn a_frozen_orphan_is_ended_by_the_kernel() {
    let mut server = Server::with(2, &["--graceful-timeout", "1s"]);
    let pids = server.worker_pids();
    let mut client = server.connect();
    // Minutes of one core, on the event loop: nothing else happens in that worker.
    client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/fib/50");
    server.kill_primary();
    wait_gone(&pids);
}

#[test]
fn a_stopped_orphan_leaves_when_it_goes_on() {
    let mut server = Server::with(2, &["--graceful-timeout", "1s"]);
    let pids = server.worker_pids();
    process::send(pids[0], Signal::SIGSTOP);
    server.kill_primary();
    wait_gone(&pids[1..]);
    process::send(pids[0], Signal::SIGCONT);
    wait_gone(&pids);
}

#[test]
fn a_primary_killed_during_its_start_leaves_nobody() {
    // At many moments, those around the forks among them.
    for lines in 1..=4 {
        let mut server = Server::builder().workers(4).spawn();
        wait::until("the start", || server.log().lines().count() >= lines);
        let pids = server.worker_pids();
        server.kill_primary();
        wait_gone(&pids);
        wait_gone(&crate::support::server::workers_of(&server.log()));
    }
}
