//! Connections that are kept, and who serves them.

use std::collections::BTreeMap;

use super::{Client, Server, wait};

/// A kept connection, and who serves it.
pub type Held = (Client, u32);

/// Connections in a test of balance.
pub const MANY: usize = 64;

/// How often a test of balance tries: that depends on who is given a processor, and other tests run beside it.
const TRIES: usize = 25;

/// Tries until `holds` says nothing against it.
#[track_caller]
pub fn in_one_of_several_tries(mut holds: impl FnMut() -> Result<(), String>) {
    let mut complaints = Vec::new();
    for _ in 0..TRIES {
        match holds() {
            Ok(()) => return,
            Err(complaint) => complaints.push(complaint),
        }
    }
    panic!("in no try: {complaints:?}");
}

pub fn hold(server: &Server) -> Held {
    let mut client = server.connect();
    let pid = client.get("/").expect("an answer").pid();
    (client, pid)
}

/// So many, each after the one before was answered.
pub fn one_by_one(server: &Server, count: usize) -> Vec<Held> {
    (0..count).map(|_| hold(server)).collect()
}

/// So many, all connected before the first request is sent.
pub fn in_a_burst(server: &Server, count: usize) -> Vec<Held> {
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

/// How many connections each of `workers` has.
pub fn shares(held: &[Held], workers: &[u32]) -> BTreeMap<u32, usize> {
    let count = |pid: &u32| held.iter().filter(|(_, by)| by == pid).count();
    workers.iter().map(|pid| (*pid, count(pid))).collect()
}

pub fn at_most_apart(most: usize, shares: &BTreeMap<u32, usize>) -> Result<(), String> {
    let (max, min) = (shares.values().max(), shares.values().min());
    let apart = max.zip(min).map_or(0, |(max, min)| max - min);
    if apart <= most { Ok(()) } else { Err(format!("{:?}", shares.values())) }
}

/// How many connections each worker has open, the one that asks for it included.
pub fn open(server: &Server) -> Vec<u64> {
    let cluster = server.cluster();
    let workers = cluster["workers"].as_array().expect("workers");
    workers.iter().map(|worker| worker["connections"].as_u64().expect("a number")).collect()
}

/// Waits until the workers have seen that their clients are gone.
pub fn wait_until_free(server: &Server) {
    wait::until("nothing open but the question", || open(server).iter().sum::<u64>() <= 1);
}

/// Connections that stay, opened one by one and in a burst: nobody has three more than another.
#[track_caller]
pub fn are_spread_evenly(server: &Server) {
    for open in [one_by_one, in_a_burst] {
        in_one_of_several_tries(|| {
            wait_until_free(server);
            at_most_apart(2, &shares(&open(server, MANY), &server.worker_pids()))
        });
    }
}

/// All clients of one worker go, and as many come: nobody then has more than `most` more than another.
#[track_caller]
pub fn departures_are_mended(server: &Server, most: usize) {
    in_one_of_several_tries(|| {
        wait_until_free(server);
        let mut held = one_by_one(server, MANY);
        let leaving = held[0].1;
        held.retain(|(_, pid)| *pid != leaving);
        let left = MANY - held.len();
        wait::until("its clients are gone", || open(server).iter().any(|open| *open <= 1));
        held.extend((0..left).map(|_| hold(server)));
        at_most_apart(most, &shares(&held, &server.worker_pids()))
    });
}
