//! Kills, reloads and stopped workers under load, for every dispatch policy, with what they may cost.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::load::{Load, RunningLoad};
use super::{Client, Server, env_count, process};

/// Longest wait of a connection that was queued for a stopped worker: 0.5 s by design, and time for a busy machine.
const MAX_BYPASS_DELAY: Duration = Duration::from_secs(2);

/// Kills workers one after the other, each after the previous one was replaced. No connection may be refused, and a
/// kill may lose at most two requests, which the worker had begun.
#[track_caller]
pub fn assert_kills_lose_little(server: &Server, usual: usize) {
    let load = Load::new_connections(server.address(), 4).start();
    let kills = env_count("PREFORK_KILLS", usual);
    for kill in 0..kills {
        load.wait_answered(8);
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
        server.wait_replaced(kill + 1);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failures() <= 2 * kills as u64, "{tally:?}");
}

/// Reloads under new and kept connections; no request may be lost.
#[track_caller]
pub fn assert_reloads_lose_nothing(server: &Server) {
    let load = Load::new_connections(server.address(), 4).start();
    let kept = Load::keep_alive(server.address(), 4).with_posts().with_think_time().start();
    for _ in 0..env_count("PREFORK_RELOADS", 5) {
        load.wait_answered(24);
        server.run_verb(&["reload"]);
    }
    assert_nothing_lost(load);
    assert_nothing_lost(kept);
}

/// Ends a load, and asserts that no connection was refused and no request lost.
#[track_caller]
pub fn assert_nothing_lost(load: RunningLoad) {
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
}

/// Stops a worker with SIGSTOP, and asserts that new connections are answered soon by other workers.
#[track_caller]
pub fn assert_stopped_worker_is_bypassed(server: &Server, stopped: u32) {
    process::send_signal(stopped, Signal::SIGSTOP);
    let mut clients: Vec<(Client, Instant)> = (0..48)
        .map(|_| {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
            (client, Instant::now())
        })
        .collect();
    for (client, since) in &mut clients {
        let answer = client.read_within_10_seconds().expect("an answer");
        assert!(
            answer.pid() != stopped && since.elapsed() < MAX_BYPASS_DELAY,
            "{:?}",
            since.elapsed()
        );
    }
}
