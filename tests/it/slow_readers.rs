//! Clients that send many requests at once and read no responses: what a worker keeps for them is bounded.

use std::fs;

use crate::support::{Client, Server, wait};

const CLIENTS: usize = 16;
const REQUESTS: usize = 1_000;

/// How much the memory of a worker may grow for each such client, in KiB: hyper's buffers and those of `HyperIo`, with room for the
/// allocator. Without a bound it would be the responses, which are 6 to 100 MB for each client.
const MAX_GROWTH_KIB: u64 = 150;

/// Without the pages of the program, of which a worker maps more with each piece of code that it first needs.
fn private_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).expect("RssAnon")
}

/// Waits until the worker serves nothing between two looks but these.
fn wait_until_stuck(server: &Server) {
    let mut before = u64::MAX;
    wait::wait_until("no progress", || {
        let requests = server.cluster()["totals"]["requests"].as_u64().expect("requests");
        std::mem::replace(&mut before, requests).checked_add(1) == Some(requests)
    });
}

fn assert_bounded(server: &Server, path: &str, length: usize) {
    let pid = server.worker_pids()[0];
    let requests = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(REQUESTS);
    let before = private_kib(pid);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(&requests).expect("send");
    }
    wait_until_stuck(server);
    let growth = private_kib(pid).saturating_sub(before);
    assert!(growth < MAX_GROWTH_KIB * CLIENTS as u64, "{path}: {growth} KiB");
    // Nothing was lost.
    let mut reader = clients.swap_remove(0);
    for _ in 0..REQUESTS {
        let answer = reader.read().expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (200, length));
    }
}

#[test]
fn memory_for_pipelined_responses_that_are_not_read_is_bounded() {
    let server = Server::start(1);
    // Responses that are collected, copied alone, and sent without a copy.
    for length in [6_000, 20_000, 100_000] {
        assert_bounded(&server, &format!("/bytes/{length}"), length);
    }
    server.stop();
}
