//! What a cluster is put through under load, whatever the policy, and what that may cost.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::load::{Load, Running};
use super::{Client, Server, amount, process};

/// Longer than anybody waits behind a loop that stands still, in any case: half a second, and what a busy machine adds.
const RELIEVED: Duration = Duration::from_secs(2);

/// Kills one worker after the other, each when the one before is replaced: nobody is refused, and a kill costs at most
/// two requests, as a worker dies with what it had begun.
#[track_caller]
pub fn kills(server: &Server, usual: usize) {
    let load = Load::new_connections(server.address(), 4).start();
    let kills = amount("PREFORK_STORM", usual);
    for kill in 0..kills {
        load.wait_answered(8);
        let pids = server.worker_pids();
        process::send(pids[kill % pids.len()], Signal::SIGKILL);
        server.wait_replaced(kill + 1);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failures() <= 2 * kills as u64, "{tally:?}");
}

/// Reloads under new and kept connections: none is lost.
#[track_caller]
pub fn reloads(server: &Server) {
    let load = Load::new_connections(server.address(), 4).start();
    let kept = Load::keep_alive(server.address(), 4).posting().thinking().start();
    for _ in 0..amount("PREFORK_RELOADS", 5) {
        load.wait_answered(24);
        server.order(&["reload"]);
    }
    nothing_lost(load);
    nothing_lost(kept);
}

/// The end of a load: no connection was refused, and no request lost.
#[track_caller]
pub fn nothing_lost(load: Running) {
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
}

/// Stops a worker: whoever connects then is answered soon, by others.
#[track_caller]
pub fn nobody_waits_for(server: &Server, stopped: u32) {
    process::send(stopped, Signal::SIGSTOP);
    let mut clients: Vec<(Client, Instant)> = (0..48)
        .map(|_| {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
            (client, Instant::now())
        })
        .collect();
    for (client, since) in &mut clients {
        let answer = client.soon().expect("an answer");
        assert!(answer.pid() != stopped && since.elapsed() < RELIEVED, "{:?}", since.elapsed());
    }
}
