//! Counters, limiters, caches and leadership shared by all workers, while workers are killed.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, env_count, process, wait};

/// Returns the snapshot of the shared state with this name.
#[track_caller]
pub fn read_shared(server: &Server, name: &str) -> Value {
    let all = wait::wait_until_some("a snapshot", || Some(server.try_get("/").ok()?.json()));
    let found = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
    found.unwrap_or_else(|| panic!("no {name} in {all}")).clone()
}

#[track_caller]
fn shared_value(server: &Server, name: &str) -> u64 {
    read_shared(server, name)["value"].as_u64().expect("a number")
}

/// Kills busy workers one after the other, waits for their replacements, and returns the number of kills.
fn kill_busy_workers(server: &Server) -> usize {
    let kills = env_count("PREFORK_SHARED_KILLS", 30);
    for kill in 0..kills {
        server.wait_replaced(kill);
        wait::wait_until("all are busy", || shared_value(server, "busy") == 4);
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
    }
    server.wait_log_count(&["SIGKILL"], kills);
    server.wait_replaced(kills);
    kills
}

fn stop_work(server: &Server) {
    server.get("/stop");
    wait::wait_until("no worker is busy", || shared_value(server, "busy") == 0);
}

#[test]
fn a_shared_counter_survives_kills_and_reloads() {
    let server = start_shared("shared-counter", 4);
    server.get("/go");
    let kills = kill_busy_workers(&server) as u64;
    let before = shared_value(&server, "count");
    server.signal(Signal::SIGHUP);
    server.wait_replaced(kills as usize + 4);
    wait::wait_until("all are busy", || shared_value(&server, "busy") == 4);
    stop_work(&server);
    let counted = shared_value(&server, "count");
    let file = std::fs::metadata(server.dir().join("acknowledged")).expect("the file");
    let acknowledged = file.len();
    assert!(before > 0 && counted >= before, "{before}, {counted}");
    // A worker killed between addition and acknowledgement has counted one more.
    assert!((0..=kills).contains(&(counted - acknowledged)), "{counted} of {acknowledged}");
    eprintln!("{kills} kills: {counted} counted, {acknowledged} acknowledged");
    // The status shows the counter.
    let status = server.status();
    let shared = status["shared"].as_array().expect("what is shared");
    let named = shared.iter().find(|one| one["name"] == "count").expect("named");
    assert_eq!((&named["kind"], &named["value"]), (&"counter".into(), &counted.into()));
    let table = server.run_verb(&["status"]);
    assert!(table.lines().any(|line| line == format!("count   {counted}")), "{table}");
    server.stop();
}

#[test]
fn a_rate_limiter_is_exact_over_all_workers() {
    let server = start_shared("shared-limiter", 8);
    wait::wait_until("all are busy", || shared_value(&server, "busy") == 8);
    let before = Instant::now();
    server.get("/go");
    // More than the burst, so that refilled tokens are among them.
    wait::wait_until("5000 tokens are taken", || shared_value(&server, "second_admitted") >= 5000);
    server.get("/stop");
    wait::wait_until("no worker is busy", || shared_value(&server, "busy") == 0);
    let most = 1000.0 + before.elapsed().as_secs_f64() * 2000.0;
    let admitted = shared_value(&server, "second_admitted") as f64;
    eprintln!("{admitted} admitted; at most {most:.0}");
    assert!(admitted <= most, "{admitted} of {most}");
    assert_eq!(shared_value(&server, "day_admitted"), 5000);
    assert!(shared_value(&server, "day_refused") > 0);
    server.stop();
}

#[test]
fn killed_writers_leave_no_torn_value_and_no_lock_in_a_shared_cache() {
    let server = start_shared("shared-cache", 4);
    server.get("/go");
    let kills = kill_busy_workers(&server);
    stop_work(&server);
    let [torn, whole, repairs] =
        ["torn", "whole", "cache_repairs"].map(|n| shared_value(&server, n));
    eprintln!("{kills} kills: {whole} whole values read, {torn} torn, {repairs} entries repaired");
    assert_eq!(torn, 0);
    assert!(whole > 100, "{whole}");
    assert_eq!(server.get("/mend").text(), "16", "every key can be written again");
    server.stop();
}

#[test]
fn shared_state_declared_in_a_worker_is_refused() {
    let ended = ProcessBuilder::program("shared-too-late").args(["boot-attempts=1"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.stderr);
    assert!(ended.stderr.contains("\"late\""), "{}", ended.stderr);
}

fn start_shared(program: &str, workers: usize) -> Server {
    ProcessBuilder::program(program).workers(workers).start().allow_errors(&["SIGKILL"])
}

fn leader_pid(server: &Server, role: &str) -> Option<u32> {
    read_shared(server, role)["leader"].as_u64().map(|pid| pid as u32)
}

#[track_caller]
fn wait_leader(server: &Server, role: &str) -> u32 {
    wait::wait_until_some("a leader", || leader_pid(server, role))
}

#[test]
fn a_dead_leader_is_succeeded_and_there_are_never_two() {
    let kills = env_count("PREFORK_LEADERS", 50);
    let server = start_shared("leadership", 3);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        server.wait_replaced(kill);
        let old = wait_leader(&server, "cron");
        assert!(server.worker_pids().contains(&old), "the leader is a worker");
        let killed = Instant::now();
        process::send_signal(old, Signal::SIGKILL);
        let next = |server: &Server| leader_pid(server, "cron").filter(|pid| *pid != old);
        let new = wait::wait_until_some("another leader", || next(&server));
        slowest = slowest.max(killed.elapsed());
        assert!(server.worker_pids().contains(&new));
    }
    server.wait_replaced(kills);
    eprintln!(
        "{kills} leaders killed: the slowest succession took {slowest:?}, as seen from outside"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let alone = || read_shared(&server, "alone")["value"].as_u64().expect("a number");
    let before = alone();
    wait::wait_until("the leader works", || alone() > before);
    assert_eq!(read_shared(&server, "together")["value"], 0, "two have led at the same time");
    assert_eq!(read_shared(&server, "leading")["value"], 1);
    server.stop();
}

#[test]
fn a_draining_leader_is_succeeded_by_a_new_worker() {
    let server = start_shared("leadership", 2);
    let old = server.worker_pids();
    assert!(old.contains(&wait_leader(&server, "cron")));
    server.signal(Signal::SIGHUP);
    server.wait_replaced(2);
    wait::wait_until("a new leader", || {
        leader_pid(&server, "cron").is_some_and(|pid| !old.contains(&pid))
    });
    assert_eq!(read_shared(&server, "together")["value"], 0);
    server.stop();
}

#[test]
fn leadership_in_a_file_is_shared_by_several_clusters() {
    let dir = tempfile::tempdir().expect("directory");
    let file = format!("file={}", dir.path().join("cron").display());
    let cluster = || ProcessBuilder::program("leadership").workers(2).args([&file]).start();
    let (first, second) = (cluster(), cluster());
    let led = wait_leader(&first, "cron");
    assert!(first.worker_pids().contains(&led));
    assert_eq!(leader_pid(&second, "cron"), Some(led), "the other cluster knows the leader");
    first.stop();
    let next = wait::wait_until_some("another leader", || leader_pid(&second, "cron"));
    assert!(second.worker_pids().contains(&next));
    second.stop();
}

#[test]
fn waiting_for_leadership_uses_no_cpu() {
    let server = start_shared("leadership", 2);
    let led = wait_leader(&server, "cron");
    let waits = server.worker_pids().into_iter().find(|pid| *pid != led).expect("another worker");
    // The second thread waits for the lock in the kernel.
    wait::wait_until("the thread that waits", || {
        process::stat(waits).is_some_and(|s| s.threads == 2)
    });
    let share = process::cpu_share(waits);
    assert!(share < 0.1, "{share}");
    server.stop();
}

#[test]
fn workers_waiting_for_each_others_leadership_do_not_deadlock() {
    // The kernel refuses one of the two lock requests, as they form a cycle; which one is random, so each worker dies
    // twice.
    for round in 0..4 {
        let server = start_shared("leadership-cycle", 2);
        let pair = || (leader_pid(&server, "one"), leader_pid(&server, "two"));
        wait::wait_until("both ask for the other's", || {
            read_shared(&server, "waiting")["value"] == 2
        });
        let (Some(one), Some(two)) = pair() else { panic!("no leader: {:?}", pair()) };
        assert_ne!(one, two);
        for pid in [one, two] {
            wait::wait_until("both wait", || process::stat(pid).is_some_and(|s| s.threads == 2));
        }
        let (victim, successor) = if round % 2 == 0 { (one, two) } else { (two, one) };
        process::send_signal(victim, Signal::SIGKILL);
        wait::wait_until("the other leads both", || pair() == (Some(successor), Some(successor)));
        server.wait_replaced(1);
        server.stop();
    }
}
