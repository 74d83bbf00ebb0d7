//! Kept connections and how evenly they are spread over the workers.

use std::collections::BTreeMap;

use super::{Client, Server, wait};

/// A kept connection and the pid of the worker that serves it.
pub type KeptConnection = (Client, u32);

/// Number of connections in a test of balance.
pub const BALANCE_CONNECTIONS: usize = 64;

/// How often a test of balance is retried: which worker accepts first depends on the scheduler, and other tests run
/// at the same time.
const MAX_ATTEMPTS: usize = 25;

/// Repeats a check until it succeeds, up to [`MAX_ATTEMPTS`] times.
#[track_caller]
pub fn retry(mut holds: impl FnMut() -> Result<(), String>) {
    let mut complaints = Vec::new();
    for _ in 0..MAX_ATTEMPTS {
        match holds() {
            Ok(()) => return,
            Err(complaint) => complaints.push(complaint),
        }
    }
    panic!("no attempt succeeded: {complaints:?}");
}

/// Opens a connection, and learns from one request which worker serves it.
pub fn keep_connection(server: &Server) -> KeptConnection {
    let mut client = server.connect();
    let pid = client.get("/").expect("an answer").pid();
    (client, pid)
}

/// Opens `count` connections, each after the previous one was answered.
pub fn open_one_by_one(server: &Server, count: usize) -> Vec<KeptConnection> {
    (0..count).map(|_| keep_connection(server)).collect()
}

/// Opens `count` connections before the first request is sent.
pub fn open_in_a_burst(server: &Server, count: usize) -> Vec<KeptConnection> {
    let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    let answers = clients.into_iter().map(|mut client| {
        let pid = client.read().expect("an answer").pid();
        (client, pid)
    });
    answers.collect()
}

/// Counts the connections of each worker.
pub fn connections_per_worker(held: &[KeptConnection], workers: &[u32]) -> BTreeMap<u32, usize> {
    let count = |pid: &u32| held.iter().filter(|(_, by)| by == pid).count();
    workers.iter().map(|pid| (*pid, count(pid))).collect()
}

/// Checks that no worker has more than `max_spread` connections more than another.
pub fn check_spread(max_spread: usize, counts: &BTreeMap<u32, usize>) -> Result<(), String> {
    let (max, min) = (counts.values().max(), counts.values().min());
    let spread = max.zip(min).map_or(0, |(max, min)| max - min);
    if spread <= max_spread { Ok(()) } else { Err(format!("{:?}", counts.values())) }
}

/// Returns the open connections of each worker by the scoreboard, including the one of this request.
pub fn scoreboard_connections(server: &Server) -> Vec<u64> {
    let cluster = server.cluster();
    let workers = cluster["workers"].as_array().expect("workers");
    workers.iter().map(|worker| worker["connections"].as_u64().expect("a number")).collect()
}

/// Waits until no worker has an open connection but the one of this request.
pub fn wait_until_idle(server: &Server) {
    wait::wait_until("all connections closed", || {
        scoreboard_connections(server).iter().sum::<u64>() <= 1
    });
}

/// Opens kept connections one by one and in a burst; no worker may have three more than another.
#[track_caller]
pub fn assert_even_spread(server: &Server) {
    for open in [open_one_by_one, open_in_a_burst] {
        retry(|| {
            wait_until_idle(server);
            let kept = open(server, BALANCE_CONNECTIONS);
            check_spread(2, &connections_per_worker(&kept, &server.worker_pids()))
        });
    }
}

/// Closes all connections of one worker and opens as many again; then no worker may have more than `max_spread` more
/// connections than another.
#[track_caller]
pub fn assert_rebalancing(server: &Server, max_spread: usize) {
    retry(|| {
        wait_until_idle(server);
        let mut kept = open_one_by_one(server, BALANCE_CONNECTIONS);
        let leaving = kept[0].1;
        kept.retain(|(_, pid)| *pid != leaving);
        let closed = BALANCE_CONNECTIONS - kept.len();
        wait::wait_until("its connections are closed", || {
            scoreboard_connections(server).iter().any(|open| *open <= 1)
        });
        kept.extend((0..closed).map(|_| keep_connection(server)));
        check_spread(max_spread, &connections_per_worker(&kept, &server.worker_pids()))
    });
}
