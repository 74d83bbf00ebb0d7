//! `--dispatch least-conn`: a program in the kernel picks the worker with the fewest connections, and where that is not
//! allowed, chance with odds does.

use nix::sys::signal::Signal;

use crate::support::held::{Held, MANY, are_spread_evenly, at_most_apart, departures_are_mended};
use crate::support::held::{hold, one_by_one, shares, wait_until_free};
use crate::support::load::Load;
use crate::support::storm::{self, nothing_lost};
use crate::support::{Server, process, wait};

fn start(workers: usize) -> Server {
    Server::builder().workers(workers).dispatch("least-conn").start()
}

/// What chooses, by the word of the primary.
pub fn rung(server: &Server) -> String {
    let status = server.status();
    assert_eq!(status["primary"]["dispatch"], "least-conn");
    status["primary"]["dispatch_rung"].as_str().expect("text").to_string()
}

/// Whether the kernel's program can be tested here.
fn in_kernel(server: &Server) -> bool {
    let rung = rung(server);
    if rung != "ebpf" {
        eprintln!("skipped: this user may not load a program ({rung})");
    }
    rung == "ebpf"
}

/// After a change: who was sent to a worker that gave its place to another counts as waiting for two seconds at most.
#[track_caller]
fn is_even_again(server: &Server) {
    wait::until("an even spread", || {
        wait_until_free(server);
        let shares = shares(&one_by_one(server, MANY), &server.worker_pids());
        at_most_apart(2, &shares).is_ok()
    });
}

#[test]
fn connections_that_stay_are_spread_evenly() {
    for workers in [2, 8] {
        let server = start(workers);
        if !in_kernel(&server) {
            return drop(server.stop());
        }
        are_spread_evenly(&server);
        server.stop();
    }
}

#[test]
fn what_departures_have_left_uneven_is_mended_by_the_next_arrivals() {
    let server = start(4);
    if !in_kernel(&server) {
        return drop(server.stop());
    }
    departures_are_mended(&server, 2);
    server.stop();
}

#[test]
fn a_stopped_worker_gets_no_more_once_it_is_seen_and_nobody_waits_for_it() {
    let server = start(4);
    let stopped = server.worker_pids()[1];
    storm::nobody_waits_for(&server, stopped);
    // From now on at once: although it has fewer connections than all others.
    let held: Vec<Held> = (0..60).map(|_| hold(&server)).collect();
    let workers = server.worker_pids();
    let shares = shares(&held, &workers);
    assert_eq!(shares[&stopped], 0, "{shares:?}");
    process::send(stopped, Signal::SIGCONT);
    wait::until("its own again", || hold(&server).1 == stopped);
    server.stop();
}

#[test]
fn a_full_worker_is_passed_over() {
    let args = ["--worker-connections", "4"];
    let server = Server::builder().workers(3).dispatch("least-conn").args(args).start();
    let mut held: Vec<Held> = (0..12).map(|_| hold(&server)).collect();
    let mut next = server.connect();
    next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let (_, of) = held.swap_remove(5);
    assert_eq!(next.soon().expect("an answer").pid(), of, "who has room takes it");
    server.stop();
}

#[test]
fn killed_workers_refuse_nobody() {
    let server = start(4).allow(&["SIGKILL"]);
    storm::kills(&server, 12);
    server.stop();
}

#[test]
fn fewer_workers_and_more_again_lose_nothing_and_all_get_their_share() {
    let server = start(4);
    let load = Load::new_connections(server.address(), 4).start();
    for workers in [1, 4, 8] {
        load.wait_answered(24);
        server.order(&["scale", &workers.to_string()]);
        server.wait_others(workers, &[]);
        load.wait_answered(24);
    }
    nothing_lost(load);
    if in_kernel(&server) {
        is_even_again(&server);
    }
    server.stop();
}

#[test]
fn reloads_lose_no_connection_and_the_new_workers_share_evenly() {
    let server = start(3);
    storm::reloads(&server);
    if in_kernel(&server) {
        is_even_again(&server);
    }
    server.stop();
}

#[test]
fn upgrades_lose_no_connection_and_the_new_image_steers() {
    let server = Server::builder().copied().workers(3).dispatch("least-conn").start();
    let (before, load) = (rung(&server), Load::new_connections(server.address(), 4).start());
    for generation in 2..4 {
        load.wait_answered(24);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(generation);
        server.wait_others(3, &old);
        assert_eq!(rung(&server), before);
    }
    nothing_lost(load);
    if before == "ebpf" {
        is_even_again(&server);
    }
    server.stop();
}
