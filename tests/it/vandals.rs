//! Workers that write random bytes into their channels and over their own shared pages: nobody else is affected.
//! `PREFORK_GARBAGE_SECONDS` seconds of each (2).

use std::time::{Duration, Instant};

use crate::support::command::Builder;
use crate::support::{Client, Server, amount, process, wait};

fn start() -> Server {
    let server = Builder::program("vandals").workers(3).control().start();
    server.allow(&[
        "is condemned",
        "killed for what it said",
        "frozen",
        "stalled",
        "died",
        "event loop",
    ])
}

/// A kept connection to each of the workers at two slots, with their pids.
fn bystanders(server: &Server) -> Vec<(Client, u32)> {
    let mut found: Vec<(Client, u32)> = Vec::new();
    let mut slots = Vec::new();
    wait::until("two bystanders", || {
        let mut client = server.connect();
        let slot = client.get("/").expect("answer").text().to_string();
        if !slots.contains(&slot) {
            let status = server.status();
            let workers = status["workers"].as_array().expect("workers").clone();
            let its = |one: &&serde_json::Value| slot.ends_with(&format!("slot {}", one["slot"]));
            let pid = workers.iter().find(its).and_then(|one| one["pid"].as_u64()).expect("a pid");
            found.push((client, pid as u32));
            slots.push(slot);
        }
        found.len() == 2
    });
    found
}

/// Makes one worker after the other a vandal, while two others must not notice.
fn rage(path: &str) -> usize {
    let server = start();
    let span = Duration::from_secs(amount("PREFORK_GARBAGE_SECONDS", 2) as u64);
    let (begun, mut vandals, mut echoes) = (Instant::now(), 0, 0);
    let mut safe = bystanders(&server);
    let safe_pids: Vec<u32> = safe.iter().map(|(_, pid)| *pid).collect();
    while begun.elapsed() < span {
        let third = server.worker_pids().into_iter().find(|pid| !safe_pids.contains(pid));
        // Whoever answers a new connection and is not one of the two.
        let mut client = server.connect();
        let slot = client.get("/").ok().map(|answer| answer.text().to_string());
        let same = |(kept, _): &mut (Client, u32)| kept.get("/").expect("alive").text().to_string();
        let texts: Vec<String> = safe.iter_mut().map(same).collect();
        echoes += texts.len();
        assert!(texts.iter().all(|text| text.starts_with("same: true")), "{texts:?}");
        if third.is_some()
            && slot.is_some_and(|slot| slot.starts_with("same: true") && !texts.contains(&slot))
        {
            // It may be killed before it answers.
            let _ = client
                .send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
                .and_then(|()| client.soon());
            vandals += 1;
        }
    }
    for (kept, pid) in &mut safe {
        assert!(kept.get("/").expect("alive").text().starts_with("same: true"));
        assert!(server.worker_pids().contains(pid) && process::stat(*pid).is_some());
    }
    let status = server.status();
    assert_eq!(status["primary"]["pid"], server.pid());
    assert!(vandals > 0, "nobody raged");
    eprintln!("{path}: {vandals} vandals, {echoes} echoes of 100 kB beside them, all right");
    drop(safe);
    server.stop();
    vandals
}

#[test]
fn random_bytes_in_a_channel_cost_their_writer_alone() {
    rage("/channels");
}

#[test]
fn random_bytes_over_its_own_shared_pages_cost_a_worker_nothing_but_itself() {
    rage("/pages");
}
