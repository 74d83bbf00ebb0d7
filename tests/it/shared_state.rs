//! What workers share, while they are killed at it. `PREFORK_SHARED_KILLS` kills (30).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::Builder;
use crate::support::{Server, amount, process, wait};

/// What the piece of shared state `name` says.
#[track_caller]
pub fn read(server: &Server, name: &str) -> Value {
    let all = wait::until_some("a snapshot", || Some(server.try_get("/").ok()?.json()));
    let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
    found.unwrap_or_else(|| panic!("no {name} in {all}")).clone()
}

#[track_caller]
fn value(server: &Server, name: &str) -> u64 {
    read(server, name)["value"].as_u64().expect("a number")
}

fn start(program: &str) -> Server {
    start_with(program, 4)
}

fn start_with(program: &str, workers: usize) -> Server {
    Builder::program(program).workers(workers).start().allow(&["SIGKILL"])
}

/// Kills workers that are busy, one after the other, and waits for the replacements.
fn storm(server: &Server) -> usize {
    let kills = amount("PREFORK_SHARED_KILLS", 30);
    for kill in 0..kills {
        server.wait_replaced(kill);
        wait::until("all are busy", || value(server, "busy") == 4);
        let pids = server.worker_pids();
        process::send(pids[kill % pids.len()], Signal::SIGKILL);
    }
    server.wait_log_count(&["SIGKILL"], kills);
    server.wait_replaced(kills);
    kills
}

fn halt(server: &Server) {
    server.get("/stop");
    wait::until("nobody is busy", || value(server, "busy") == 0);
}

#[test]
fn a_counter_loses_nothing_when_workers_are_killed_or_reloaded() {
    let server = start("shared-counter");
    server.get("/go");
    let kills = storm(&server) as u64;
    let before = value(&server, "count");
    server.signal(Signal::SIGHUP);
    server.wait_replaced(kills as usize + 4);
    wait::until("all are busy", || value(&server, "busy") == 4);
    halt(&server);
    let counted = value(&server, "count");
    let file = std::fs::metadata(server.dir().join("acknowledged")).expect("the file");
    let acknowledged = file.len();
    assert!(before > 0 && counted >= before, "{before}, {counted}");
    // Killed between the addition and its acknowledgement, a worker has counted one more.
    assert!((0..=kills).contains(&(counted - acknowledged)), "{counted} of {acknowledged}");
    eprintln!("{kills} kills: {counted} counted, {acknowledged} acknowledged");
    // Named where operators look.
    let status = server.status();
    let shared = status["shared"].as_array().expect("what is shared");
    let named = shared.iter().find(|one| one["name"] == "count").expect("named");
    assert_eq!((&named["kind"], &named["value"]), (&"counter".into(), &counted.into()));
    let table = server.order(&["status"]);
    assert!(table.lines().any(|line| line == format!("count   {counted}")), "{table}");
    server.stop();
}

#[test]
fn a_rate_limiter_admits_exactly_what_it_may_over_all_workers() {
    let server = start_with("shared-limiter", 8);
    wait::until("all are busy", || value(&server, "busy") == 8);
    let before = Instant::now();
    server.get("/go");
    let begun = Instant::now();
    wait::measure_for(Duration::from_secs(2));
    let least = begun.elapsed().as_secs_f64() * 2000.0;
    server.get("/stop");
    wait::until("nobody is busy", || value(&server, "busy") == 0);
    let most = 1000.0 + before.elapsed().as_secs_f64() * 2000.0;
    let admitted = value(&server, "second_admitted") as f64;
    eprintln!("{admitted} admitted; at most {most:.0}");
    assert!(admitted <= most, "{admitted} of {most}");
    // A machine that lets nobody ask for half a second wastes tokens.
    assert!(admitted >= 0.8 * least, "{admitted} of {least}");
    assert_eq!(value(&server, "day_admitted"), 5000);
    assert!(value(&server, "day_refused") > 0);
    server.stop();
}

#[test]
fn writers_of_a_cache_that_are_killed_leave_no_torn_value_and_no_lock() {
    let server = start("shared-cache");
    server.get("/go");
    let kills = storm(&server);
    halt(&server);
    let [torn, whole, repairs] = ["torn", "whole", "cache_repairs"].map(|n| value(&server, n));
    eprintln!("{kills} kills: {whole} whole values read, {torn} torn, {repairs} entries repaired");
    assert_eq!(torn, 0);
    assert!(whole > 100, "{whole}");
    assert_eq!(server.get("/mend").text(), "16", "every key can be written again");
    server.stop();
}

#[test]
fn what_is_declared_in_a_worker_is_refused() {
    let ended = Builder::program("shared-too-late").args(["boot-attempts=1"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    assert!(ended.err.contains("\"late\""), "{}", ended.err);
}
