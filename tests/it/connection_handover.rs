//! The handover of idle connections between workers: a reload closes none of them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::{Client, Server, env_count, process, wait};

/// Reloads, waits until the old workers are gone, and returns the new pids.
#[track_caller]
fn reload_and_wait(server: &Server, generation: usize) -> Vec<u32> {
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(generation);
    server.wait_new_workers(old.len(), &old)
}

#[test]
fn idle_connections_survive_reloads_without_delaying_them() {
    // Without handover, the reloads would wait for longer than this test.
    let server = Server::with(2, &["--linger-timeout", "100s", "--graceful-timeout", "200s"]);
    let count = env_count("PREFORK_IDLE", 64);
    let mut idle: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").expect("answer").status, 200);
    }
    // Connections without any request.
    idle.extend((0..8).map(|_| server.connect()));
    for round in 0..3 {
        // The old workers end although the connections were idle.
        reload_and_wait(&server, 2 + 2 * round);
        assert_eq!(idle.iter().filter(|client| client.is_closed()).count(), 0);
        let new = reload_and_wait(&server, 3 + 2 * round);
        for client in &mut idle {
            let answer = client.get("/").expect("an answer");
            assert!(new.contains(&answer.pid()) && !answer.closes(), "{answer:?}");
        }
    }
    let totals = server.cluster()["totals"].clone();
    assert!(totals["handed_over"].as_u64() >= Some(count as u64), "{totals}");
    assert_eq!(totals["handed_over"], totals["taken_over"]);
    drop(idle);
    server.stop();
}

#[test]
fn reloads_close_no_connection_between_two_requests() {
    let server = Server::start(2);
    let load = Load::keep_alive(server.address(), 8).with_posts().with_think_time().start();
    for generation in 2..7 {
        load.wait_answered(20);
        server.signal(Signal::SIGHUP);
        server.wait_generation(generation);
    }
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused, tally.ended), (0, 0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn without_handover_idle_connections_close_after_the_linger_timeout() {
    let server = Server::with(2, &["--hand-over=false", "--linger-timeout", "300ms"]);
    let mut idle = server.connect();
    idle.get("/").expect("answer");
    reload_and_wait(&server, 2);
    assert_eq!(idle.read_to_end(), Ok(Vec::new()));
    assert_eq!(server.cluster()["totals"]["handed_over"], 0);
    server.stop();
}

#[test]
fn without_handover_a_draining_worker_sends_connection_close() {
    let server = Server::with(2, &["--hand-over=false", "--linger-timeout", "25s"]);
    let mut client = server.connect();
    let old = client.get("/").expect("answer").pid();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    let answers = std::iter::from_fn(|| Some(client.get("/").expect("an answer")));
    let last = answers.take(100_000).find(|answer| answer.closes()).expect("the last one");
    assert_eq!(last.pid(), old);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

/// Sends batches of sixteen pipelined requests and reads their responses, until `stop` is set.
fn run_pipelining_client(server: &Server, number: usize, stop: &AtomicBool, batches: &AtomicUsize) {
    let mut client = server.connect();
    while !stop.load(Relaxed) {
        let bodies: Vec<String> = (0..16).map(|n| format!("client {number}, {n}")).collect();
        let all = bodies.iter().map(|body| {
            let length = body.len();
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
        });
        client.send(all.collect::<String>()).expect("send");
        for body in &bodies {
            let answer = client.read().expect("an answer to each");
            assert_eq!((answer.status, answer.text()), (200, body.as_str()));
            assert!(!answer.closes());
        }
        batches.fetch_add(1, Relaxed);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_during_reloads() {
    let server = Server::start(2);
    let (stop, batches) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (server, stop, batches) = (&server, &stop, &batches);
        let begin =
            |number| scope.spawn(move || run_pipelining_client(server, number, stop, batches));
        let clients: Vec<_> = (0..4).map(begin).collect();
        for generation in 2..8 {
            let goal = batches.load(Relaxed) + 8;
            let failed = || clients.iter().any(|client| client.is_finished());
            wait::wait_until("batches", || batches.load(Relaxed) >= goal || failed());
            server.signal(Signal::SIGHUP);
            server.wait_generation(generation);
        }
        stop.store(true, Relaxed);
    });
    server.stop();
}

#[test]
fn a_slow_reader_receives_everything_during_a_reload() {
    let server = Server::start(2);
    let size = 40 << 20;
    let mut slow: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.send(format!("GET /bytes/{size} HTTP/1.1\r\nHost: a\r\n\r\n")).expect("send");
    }
    server.wait_in_flight("/bytes/");
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    for client in &mut slow {
        let answer = client.read().expect("all of it");
        assert_eq!((answer.status, answer.body.len()), (200, size));
        assert!(!answer.closes());
    }
    let new = server.wait_new_workers(2, &old);
    for client in &mut slow {
        assert!(new.contains(&client.get("/").expect("an answer").pid()));
    }
    server.stop();
}

#[test]
fn connections_handed_over_to_a_frozen_worker_are_not_lost() {
    let server = Server::with(3, &["--linger-timeout", "100s", "--graceful-timeout", "200s"]);
    let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").expect("answer").status, 200);
    }
    let workers = server.worker_pids();
    let (leaving, frozen) = (workers[0], workers[1]);
    process::send_signal(frozen, Signal::SIGSTOP);
    process::send_signal(leaving, Signal::SIGTERM);
    server.wait_new_workers(3, &[leaving]);
    // Connections that were passed to the frozen worker are answered when it resumes.
    process::send_signal(frozen, Signal::SIGCONT);
    for client in &mut clients {
        assert_ne!(client.get("/").expect("an answer").pid(), leaving);
    }
    drop(clients);
    server.stop();
}
