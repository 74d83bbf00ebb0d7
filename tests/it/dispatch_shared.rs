//! `--dispatch shared`, the default: balance, wake-ups and delays on one shared socket.
//!
//! Balance and delays depend on the scheduler, and other tests run at the same time. So these tests are retried;
//! without the mechanism under test, no attempt comes close.

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::kept_connections::{
    BALANCE_CONNECTIONS, KeptConnection, assert_even_spread, assert_rebalancing,
};
use crate::support::kept_connections::{
    connections_per_worker, keep_connection, open_one_by_one, retry,
};
use crate::support::{Server, process, wait};

#[test]
fn shared_dispatch_spreads_kept_connections_evenly() {
    for workers in [2, 8] {
        let server = Server::start(workers);
        assert_even_spread(&server);
        server.stop();
    }
}

#[test]
fn shared_dispatch_rebalances_with_new_connections() {
    let server = Server::start(4);
    assert_rebalancing(&server, 4);
    server.stop();
}

#[test]
fn a_replacement_worker_gets_most_of_the_next_connections() {
    let server = Server::start(3).allow_errors(&["SIGKILL"]);
    let mut deaths = 0;
    // Each attempt kills another worker.
    retry(|| {
        let mut held: Vec<KeptConnection> = (0..30).map(|_| keep_connection(&server)).collect();
        let (dead, born) = (held[0].1, server.worker_pids());
        process::send_signal(dead, Signal::SIGKILL);
        deaths += 1;
        server.wait_replaced(deaths);
        held.retain(|(_, pid)| *pid != dead);
        let workers = server.worker_pids();
        let fresh = workers.iter().find(|pid| !born.contains(pid)).expect("the replacement");
        // The connections of the killed worker are gone.
        let first: Vec<KeptConnection> = (0..12).map(|_| keep_connection(&server)).collect();
        let shares = connections_per_worker(&first, &workers);
        if shares[fresh] >= 7 { Ok(()) } else { Err(format!("{shares:?} of twelve")) }
    });
    server.stop();
}

/// Sums the voluntary context switches of these processes.
fn voluntary_context_switches(pids: &[u32]) -> u64 {
    let of_one = |pid: &u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse().ok()).expect("a number")
    };
    pids.iter().map(of_one).sum()
}

#[test]
fn a_new_connection_wakes_few_workers() {
    const CONNECTION_COUNT: u32 = 500;
    let server = Server::start(16);
    let workers = server.worker_pids();
    retry(|| {
        let (before, begun) = (voluntary_context_switches(&workers), Instant::now());
        wait::wait_for_duration(Duration::from_millis(500));
        let idle =
            (voluntary_context_switches(&workers) - before) as f64 / begun.elapsed().as_secs_f64();
        let (before, begun) = (voluntary_context_switches(&workers), Instant::now());
        for _ in 0..CONNECTION_COUNT {
            server.get("/");
        }
        let beats = idle * begun.elapsed().as_secs_f64();
        let each = ((voluntary_context_switches(&workers) - before) as f64 - beats)
            / f64::from(CONNECTION_COUNT);
        // Waking all workers would be 16.
        if each <= 3.0 { Ok(()) } else { Err(format!("{each} wake-ups for a connection")) }
    });
    server.stop();
}

/// Sends `count` requests on new connections, and returns their durations in milliseconds, sorted.
fn request_delays_ms(server: &Server, count: usize) -> Vec<u128> {
    let delay = || {
        let begun = Instant::now();
        server.get("/");
        begun.elapsed().as_millis()
    };
    let mut delays: Vec<u128> = (0..count).map(|_| delay()).collect();
    delays.sort_unstable();
    delays
}

#[test]
fn a_stopped_idle_worker_delays_no_connection() {
    let server = Server::start(4);
    let workers = server.worker_pids();
    // The other workers have far more connections than the stopped one.
    let mut held = open_one_by_one(&server, BALANCE_CONNECTIONS);
    let stopped = held[0].1;
    held.retain(|(_, pid)| *pid != stopped);
    retry(|| {
        process::send_signal(stopped, Signal::SIGSTOP);
        let delays = request_delays_ms(&server, 200);
        process::send_signal(stopped, Signal::SIGCONT);
        // A heartbeat is 100 ms. Only a worker stopped in the middle of an accept delays a connection by that much, and
        // once.
        let late = delays.iter().filter(|delay| **delay >= 90).count();
        if late <= 1 { Ok(()) } else { Err(format!("{late} waited: {:?}", &delays[190..])) }
    });
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}

#[test]
fn a_stopped_worker_never_accepts_a_connection() {
    let server = Server::start(3);
    let workers = server.worker_pids();
    for round in 0..30 {
        let stopped = workers[round % 3];
        process::send_signal(stopped, Signal::SIGSTOP);
        wait::wait_until("the worker is stopped", || {
            process::stat(stopped).expect("a living process").state == 'T'
        });
        for _ in 0..10 {
            assert_ne!(server.get("/").pid(), stopped, "round {round}");
        }
        process::send_signal(stopped, Signal::SIGCONT);
    }
    server.stop();
}

#[test]
fn full_workers_accept_again_when_a_client_leaves() {
    let server = Server::with(3, &["--worker-connections", "4"]);
    let mut held: Vec<KeptConnection> = (0..12).map(|_| keep_connection(&server)).collect();
    let mut next = server.connect();
    next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let (_, of) = held.swap_remove(5);
    assert_eq!(next.read().expect("an answer").pid(), of, "the worker with room accepts");
    server.stop();
}

/// How many silent connections are kept open.
const MAX_SILENT_CONNECTIONS: usize = 1000;

#[test]
fn silent_connections_barely_delay_other_requests() {
    let server = Server::start(2);
    retry(|| {
        let before = request_delays_ms(&server, 400)[395];
        let over = AtomicBool::new(false);
        let during = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut silent, mut opened) = (VecDeque::new(), 0);
                let begun = Instant::now();
                while !over.load(Ordering::Relaxed) {
                    // 500 connections per second.
                    while opened < begun.elapsed().as_millis() / 2 {
                        silent.push_back(server.connect());
                        opened += 1;
                        // On a slow machine this takes long, and descriptors are limited.
                        silent.drain(..silent.len().saturating_sub(MAX_SILENT_CONNECTIONS));
                    }
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            });
            let during = request_delays_ms(&server, 400)[395];
            over.store(true, Ordering::Relaxed);
            during
        });
        // Durations are whole milliseconds.
        if during <= 2 * (before + 1) { Ok(()) } else { Err(format!("{before} to {during} ms")) }
    });
    server.stop();
}
