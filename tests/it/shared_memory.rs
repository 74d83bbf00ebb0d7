//! Numbers and bytes that all workers share, waits for their changes, and locks of killed holders.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::concurrency_models::ALL_MODELS;
use crate::shared_state::read_shared;
use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, env_count, process, wait};

/// Waiting threads look again unasked after 10 s, so a wake-up that takes longer was lost.
const WAKE_UP_LIMIT: Duration = Duration::from_secs(8);

fn start(workers: usize) -> Server {
    let program = ProcessBuilder::program("shared-memory");
    program.workers(workers).start().allow_errors(&["SIGKILL"])
}

#[track_caller]
fn value(server: &Server, name: &str) -> u64 {
    read_shared(server, name)["value"].as_u64().expect("a number")
}

/// Returns a connection to a worker for which `accept` returns true.
#[track_caller]
fn connect_to(server: &Server, accept: impl Fn(u32) -> bool) -> (Client, u32) {
    wait::wait_until_some("a connection to the right worker", || {
        let mut client = server.connect();
        let pid = client.get("/pid").ok()?.text().parse().ok()?;
        accept(pid).then_some((client, pid))
    })
}

/// Sends a request whose answer takes a while, and returns when the handler waits.
#[track_caller]
fn send_waiting(server: &Server, mut client: Client, path: &str) -> Client {
    let before = active_requests(server);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n")).expect("sent");
    wait::wait_until("the request is active", || active_requests(server) > before);
    client
}

#[track_caller]
fn active_requests(server: &Server) -> u64 {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    workers.iter().filter_map(|worker| worker["active"].as_u64()).sum()
}

#[test]
fn tickets_are_unique_and_locked_records_whole_through_kills_and_a_reload() {
    let server = start(4);
    server.get("/go");
    let kills = env_count("PREFORK_SHARED_KILLS", 30);
    for kill in 0..kills {
        server.wait_replaced(kill);
        wait::wait_until("all are busy", || value(&server, "busy") == 4);
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
    }
    server.wait_replaced(kills);
    let drawn = value(&server, "tickets");
    server.signal(Signal::SIGHUP);
    server.wait_replaced(kills + 4);
    assert!(value(&server, "tickets") >= drawn, "the reload has reset the number");
    wait::wait_until("all are busy", || value(&server, "busy") == 4);
    server.get("/stop");
    wait::wait_until("no worker is busy", || value(&server, "busy") == 0);

    let drawn = value(&server, "tickets");
    let file = std::fs::read(server.dir().join("tickets")).expect("the file");
    let bytes = file.chunks_exact(8).map(|bytes| bytes.try_into().expect("eight"));
    let mut tickets: Vec<u64> = bytes.map(u64::from_le_bytes).collect();
    let noted = tickets.len() as u64;
    tickets.sort_unstable();
    tickets.dedup();
    assert_eq!(tickets.len() as u64, noted, "a ticket was drawn twice");
    assert!(tickets.last().is_some_and(|last| *last < drawn));
    // A worker that is killed between drawing a ticket and noting it has drawn one more.
    assert!((0..=kills as u64).contains(&(drawn - noted)), "{drawn} drawn, {noted} noted");
    let [torn, told, written] = ["torn", "told", "written"].map(|name| value(&server, name));
    eprintln!("{kills} kills: {drawn} tickets, {written} records written, {told} found poisoned");
    assert_eq!(torn, 0, "half written records that were not poisoned");
    assert!(written > 100 && told <= kills as u64, "{written}, {told}");
    // What is locked belongs to nobody any more.
    assert_eq!(read_shared(&server, "records")["locked"], 0);
    server.stop();
}

#[test]
fn a_killed_lock_holder_is_told_of_and_its_range_repaired() {
    let server = start(3);
    let holder: u32 = server.get("/hold").text().parse().expect("a pid");
    wait::wait_until("the lock is held", || value(&server, "holding") == 1);
    assert_eq!(read_shared(&server, "frame")["locked"], 1);
    let (waiting, _) = connect_to(&server, |pid| pid != holder);
    let mut waiting = send_waiting(&server, waiting, "/lock");
    let killed = Instant::now();
    process::send_signal(holder, Signal::SIGKILL);
    let answer = waiting.read().expect("the lock");
    assert_eq!(answer.text(), "poisoned Some(1000..3000) starting with 255");
    assert!(killed.elapsed() < WAKE_UP_LIMIT, "{:?}", killed.elapsed());
    drop(waiting);
    let described = |server: &Server| server.get("/lock").text().to_string();
    assert_eq!(described(&server), "whole");
    let frame = read_shared(&server, "frame");
    assert_eq!((&frame["kind"], &frame["len"]), (&"bytes".into(), &4096.into()));
    assert_eq!(frame["poisoned"], 2, "the bytes before and after it are still poisoned");
    let table = server.run_verb(&["status"]);
    let value = "4096 bytes, 0 ranges locked, 2 poisoned";
    let is_shown = |line: &str| line.starts_with("frame ") && line.ends_with(value);
    assert!(table.lines().any(is_shown), "{table}");
    server.stop();
}

#[test]
fn a_change_is_noticed_by_all_workers_and_waiting_takes_no_cpu_time() {
    let workers = 4;
    let server = start(workers);
    let waits = |pid: &u32| process::stat(*pid).is_some_and(|stat| stat.threads == 2);
    for round in 1..=20 {
        wait::wait_until("all workers wait", || server.worker_pids().iter().all(waits));
        let changed = Instant::now();
        server.get("/new-version");
        wait::wait_until("all workers have noticed", || {
            value(&server, "noticed") == round * workers as u64
        });
        assert!(changed.elapsed() < WAKE_UP_LIMIT, "{:?}", changed.elapsed());
    }
    for pid in server.worker_pids() {
        let share = process::cpu_share(pid);
        assert!(share < 0.1, "{share}");
    }
    // Tasks that wait keep no old worker.
    server.signal(Signal::SIGHUP);
    server.wait_replaced(workers);
    assert_eq!(value(&server, "version"), 20);
    server.stop();
}

#[test]
fn workers_that_wait_for_each_other_go_on_when_any_of_them_is_killed() {
    // Each change is awaited by exactly one worker. A lost wake-up would stop all of them until they look again unasked.
    let server = start(4);
    server.get("/start-relay");
    let started = Instant::now();
    let kills = env_count("PREFORK_SHARED_KILLS", 30);
    for kill in 0..kills {
        let (before, begun) = (value(&server, "relay"), Instant::now());
        wait::wait_until("the relay goes on", || value(&server, "relay") > before + 50);
        assert!(begun.elapsed() < WAKE_UP_LIMIT, "kill {kill}: {:?}", begun.elapsed());
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
        server.wait_replaced(kill + 1);
    }
    eprintln!("{} changes by turns in {:?}", value(&server, "relay"), started.elapsed());
    server.stop();
}

#[test]
fn each_set_of_a_flag_lets_one_waiter_of_all_workers_pass_even_if_others_are_killed() {
    let server = start(3);
    let waiting: Vec<_> = (0..6)
        .map(|_| connect_to(&server, |_| true))
        .map(|(client, pid)| (send_waiting(&server, client, "/pass"), pid))
        .collect();
    let victim = waiting[0].1;
    process::send_signal(victim, Signal::SIGKILL);
    server.wait_replaced(1);
    let left: Vec<_> = waiting.into_iter().filter(|(_, pid)| *pid != victim).collect();
    for passed in 1..=left.len() as u64 {
        let opened = Instant::now();
        server.get("/open");
        wait::wait_until("one has passed", || value(&server, "passed") == passed);
        assert!(opened.elapsed() < WAKE_UP_LIMIT, "{:?}", opened.elapsed());
        assert_eq!(read_shared(&server, "gate")["set"], false);
    }
    for (mut client, _) in left {
        assert_eq!(client.read().expect("an answer").text(), "passed");
    }
    server.stop();
}

#[test]
fn numbers_bytes_and_poison_continue_after_an_upgrade_and_wake_the_new_workers() {
    let server = start(2);
    let holder: u32 = server.get("/hold").text().parse().expect("a pid");
    wait::wait_until("the lock is held", || value(&server, "holding") == 1);
    process::send_signal(holder, Signal::SIGKILL);
    server.wait_replaced(1);
    server.get("/new-version");
    wait::wait_until("both have noticed", || value(&server, "noticed") >= 2);
    let old = server.worker_pids();
    server.run_verb(&["upgrade"]);
    server.wait_new_workers(2, &old);
    assert_eq!(value(&server, "version"), 1);
    // Those that have just started find that there is a version.
    wait::wait_until("the new ones have noticed it", || value(&server, "noticed") >= 4);
    let before = value(&server, "noticed");
    server.get("/new-version");
    wait::wait_until("the new ones have noticed", || value(&server, "noticed") >= before + 2);
    let told = "poisoned Some(1000..3000) starting with 255";
    assert_eq!(server.get("/lock").text(), told);
    assert_eq!(server.get("/lock").text(), "whole");
    server.stop();
}

#[test]
fn requests_and_isolated_jobs_wait_for_flags_and_locks_in_every_model() {
    for model in ALL_MODELS {
        println!("model {model}");
        let program = ProcessBuilder::program("shared-memory").model(model, 2);
        let server = program.other_workers(1).args(["isolated=1"]).start();
        server.get("/hold");
        wait::wait_until("the lock is held", || value(&server, "holding") == 1);
        let paths = ["/wait", "/isolated/wait"];
        let waiting = paths.map(|path| send_waiting(&server, server.connect(), path));
        server.get("/open");
        for (mut client, text) in waiting.into_iter().zip(["open", "true"]) {
            assert_eq!(client.read().expect("an answer").text(), text);
        }
        let mut job = send_waiting(&server, server.connect(), "/isolated/lock");
        server.get("/release");
        assert_eq!(job.read().expect("an answer").text(), "whole");
        drop(job);
        server.stop();
    }
}
