//! The boot of a server, up to its first request: boot, worker processes, and boots that fail.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Address, Client, Server, log, process, wait};

#[test]
fn startup_logs_one_line_for_each_step() {
    let server = Server::start(2);
    let pid = server.pid();
    // The last line is written a moment after the status changes.
    wait::wait_until("five lines", || server.log().lines().count() >= 5);
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() == 5 && lines.iter().all(|line| line.contains(" INFO ")), "{log}");
    let has = |line: &str, words: &[&str]| log::lines_with(line, words).count() == 1;
    assert!(has(lines[0], &[env!("CARGO_PKG_VERSION"), &format!("pid={pid}")]), "{log}");
    assert!(has(lines[1], &[&server.address().to_string()]), "{log}");
    for id in 1..=2 {
        let tag = format!("worker={id} slot={} gen=1 pid={}", id - 1, server.worker_pid(id));
        assert_eq!(lines[2..4].iter().filter(|line| has(line, &[&tag])).count(), 1, "{log}");
    }
    assert!(has(lines[4], &[&pid.to_string()]), "how to stop it: {log}");
    server.stop();
}

#[test]
fn every_worker_answers_connections() {
    let server = Server::start(4);
    let mut held = Vec::new();
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        let mut client = server.connect();
        seen.insert(client.get("/").expect("answer").pid());
        held.push(client);
    }
    assert_eq!(seen, server.worker_pids().into_iter().collect());
    drop(held);
    server.stop();
}

#[test]
fn a_started_server_answers_healthz_and_readyz() {
    let server = Server::start(1);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server.stop();
}

/// Counts descriptors by kind, without their numbers and inodes.
fn descriptor_kinds(descriptors: &[(i32, String)]) -> BTreeMap<&str, usize> {
    let mut kinds = BTreeMap::new();
    for (_, target) in descriptors.iter().filter(|(number, _)| *number > 2) {
        // The inode of a socket is left out; the name of an anonymous inode is its kind.
        let kind = if target.starts_with("socket:") { "socket" } else { target };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

#[test]
fn a_worker_inherits_only_the_descriptors_it_needs() {
    let builder = Server::builder().workers(3);
    let path = format!("unix:{}", builder.dir().join("socket").display());
    let server = builder.bind(["127.0.0.1:0", &path]).start().allow_errors(&["SIGKILL"]);
    // A replacement is forked by a primary that has more descriptors than at the start.
    process::send_signal(server.worker_pids()[0], nix::sys::signal::Signal::SIGKILL);
    server.wait_replaced(1);
    let of_primary = process::descriptors(server.pid());
    let mut channels = BTreeSet::new();
    for pid in server.worker_pids() {
        let own = process::descriptors(pid);
        // Two listeners and the two channels to the primary; two epoll instances and a waker of tokio; the timer of the
        // heartbeat.
        let wanted = BTreeMap::from([
            ("anon_inode:[eventpoll]", 2),
            ("anon_inode:[eventfd]", 1),
            ("anon_inode:[timerfd]", 1),
            ("socket", 4),
        ]);
        assert_eq!(descriptor_kinds(&own), wanted, "{own:?}");
        let is_shared = |target: &String| of_primary.iter().any(|(_, of_other)| of_other == target);
        let sockets = own.iter().map(|(_, t)| t).filter(|target| target.starts_with("socket:"));
        let (shared, private): (Vec<_>, Vec<_>) = sockets.partition(|target| is_shared(target));
        assert_eq!((shared.len(), private.len()), (2, 2), "{own:?}");
        channels.extend(private.into_iter().cloned());
    }
    assert_eq!(channels.len(), 6, "each has channels of its own");
    server.stop();
}

#[test]
fn primary_and_workers_have_one_thread_each() {
    let server = Server::start(2);
    // A runtime starts its threads, if any, at the first task.
    assert_eq!(server.get("/sleep/1").status, 200);
    for pid in server.worker_pids().into_iter().chain([server.pid()]) {
        assert_eq!(process::stat(pid).expect("a living process").threads, 1, "{pid}");
    }
    server.stop();
}

#[test]
fn workers_have_different_hash_map_keys() {
    // Three: what the primary does with the first worker may draw the keys that the next ones inherit.
    let server = Server::with(3, &["--faults"]);
    let mut first = BTreeMap::new();
    let mut held = Vec::new();
    // Random keys copied by fork would yield the same numbers in the same order.
    wait::wait_until("all workers", || {
        let mut client = server.connect();
        let pid = client.get("/").expect("pid").pid();
        first.entry(pid).or_insert_with(|| {
            let mut draw = || client.get("/fault/random").expect("number").text().to_string();
            (0..8).map(|_| draw()).collect::<Vec<_>>()
        });
        held.push(client);
        first.len() == 3
    });
    let numbers: BTreeSet<&String> = first.values().flatten().collect();
    assert_eq!(numbers.len(), 24, "{first:?}");
    server.stop();
}

#[test]
fn service_manager_variables_are_removed_from_workers() {
    let mut builder = ProcessBuilder::program("environment").workers(1).env("KEPT", "yes");
    for (name, value) in [
        // A missing notification socket must not change this.
        ("NOTIFY_SOCKET", "/nonexistent/notify"),
        ("LISTEN_FDNAMES", "http"),
        ("WATCHDOG_USEC", "3000000000"),
        ("WATCHDOG_PID", "1"),
        ("LISTEN_FDS", "1"),
        ("LISTEN_PID", "1"),
    ] {
        builder = builder.env(name, value);
    }
    let server = builder.start();
    let answer = server.get("/");
    let names: Vec<&str> =
        answer.text().lines().filter_map(|l| l.split_once('=')).map(|p| p.0).collect();
    assert!(names.contains(&"KEPT"), "{names:?}");
    let foreign = |name: &&str| {
        ["NOTIFY_", "LISTEN_", "WATCHDOG_"].iter().any(|prefix| name.starts_with(prefix))
    };
    assert_eq!(names.into_iter().find(foreign), None);
    server.stop();
}

#[test]
fn closed_standard_streams_are_opened_on_dev_null() {
    let builder = Server::builder().workers(1).script(r#"exec "$0" "$@" <&- >&- 2>&-"#);
    let path = builder.dir().join("socket");
    let mut server = builder.bind([format!("unix:{}", path.display())]).spawn();
    // The log is closed, so this polls the socket.
    let address = Address::Unix(path);
    let answer =
        wait::wait_until_some("an answer", || Client::connect(&address).ok()?.get("/").ok());
    for pid in [server.pid(), answer.pid()] {
        let descriptors = process::descriptors(pid);
        for number in 0..=2 {
            assert_eq!(descriptors[number as usize], (number, "/dev/null".to_string()), "{pid}");
        }
    }
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait_exit().success());
}

/// The exit status of a worker whose boot failed (EX_SOFTWARE), as logged at its end.
pub const BOOT_FAILED: &str = "70";

#[test]
fn a_cluster_whose_workers_crash_at_boot_gives_up_after_boot_attempts_and_tells_the_reason() {
    let ended = ProcessBuilder::program("boot-exits").workers(4).args(["boot-attempts=3"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("cannot boot") && last.contains("37"), "{}", ended.stderr);
    // All workers at first, then one in each round.
    let tries = log::worker_pids(&ended.stderr).len();
    assert!((3..=4 + 2).contains(&tries), "{tries} tries:\n{}", ended.stderr);
}

#[test]
fn the_exit_status_of_a_worker_that_dies_during_boot_is_logged() {
    let ended = ProcessBuilder::program("boot-exits").workers(2).args(["boot-attempts=2"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.stderr);
    assert!(
        log::lines_with(&ended.stderr, &["ERROR", "worker=1", "37"]).count() > 0,
        "{}",
        ended.stderr
    );
}

#[test]
fn a_worker_that_hangs_during_boot_is_killed_at_the_boot_timeout() {
    let args = ["boot-attempts=2", "boot-timeout-ms=300"];
    let ended = ProcessBuilder::program("boot-hangs").workers(2).args(args).run();
    assert_eq!(ended.status, Some(70), "{}", ended.stderr);
    let about = |words: &[&str]| log::lines_with(&ended.stderr, words).count();
    assert_eq!(about(&["ERROR", "worker=1", "boot-timeout"]), 1, "{}", ended.stderr);
    assert!(about(&["ERROR", "worker=1"]) > 1, "its exit is logged, too: {}", ended.stderr);
}

#[test]
fn a_replacement_that_fails_to_boot_is_retried() {
    let server = ProcessBuilder::program("boot-fails-if-broken").workers(2).start();
    let server = server.allow_errors(&["SIGKILL", "they are broken", BOOT_FAILED]);
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_log_count(&["worker=", "read the settings: they are broken"], 2);
    // The other worker serves, and the primary retries: this cluster has been ready before.
    assert_eq!(server.get("/").status, 200);
    std::fs::remove_file(&broken).expect("remove");
    server.wait_replaced(1);
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

#[test]
fn a_stop_during_a_crash_loop_ends_the_server() {
    let server =
        ProcessBuilder::program("boot-exits").workers(2).args(["boot-attempts=1000"]).spawn();
    let server = server.allow_errors(&["37"]);
    server.wait_log_count(&["ERROR", "worker=", "37"], 3);
    server.stop();
}

#[test]
fn a_stop_while_workers_boot_ends_the_server() {
    let server = ProcessBuilder::program("boot-hangs").workers(2).spawn();
    wait::wait_until("two workers", || server.worker_pids().len() == 2);
    server.stop();
}
