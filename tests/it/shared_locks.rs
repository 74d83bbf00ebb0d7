//! Locks by a name made at run time, while workers are killed, reloaded and upgraded.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::shared_state::read_shared;
use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, env_count, process, wait};

fn start(workers: usize) -> Server {
    ProcessBuilder::program("shared-locks").workers(workers).start().allow_errors(&["SIGKILL"])
}

fn value(server: &Server, name: &str) -> Value {
    read_shared(server, name)["value"].clone()
}

/// Returns how many numbers are in the journal `name`, after checking that no addition was lost.
#[track_caller]
fn count_journal(server: &Server, name: &str) -> usize {
    let journal = std::fs::read_to_string(server.dir().join(format!("journal-{name}")));
    let journal = journal.unwrap_or_default();
    let numbers: Vec<u64> = journal.lines().map(|line| line.parse().expect("a number")).collect();
    let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(distinct.len(), numbers.len(), "an addition to {name} was lost");
    assert!(numbers.is_sorted(), "{name}");
    numbers.len()
}

/// Returns how many additions were made under the locks that the workers contend for.
#[track_caller]
fn count_additions(server: &Server) -> usize {
    assert!(!server.dir().join("changed-while-shared").exists(), "changed while it was shared");
    ["one", "two", "three"].iter().map(|name| count_journal(server, name)).sum()
}

#[track_caller]
fn wait_progress(server: &Server) {
    let before = count_additions(server);
    wait::wait_until("additions", || count_additions(server) > before + 20);
}

fn get_pid(server: &Server, path: &str) -> u32 {
    server.get(path).text().parse().expect("a pid")
}

/// Requests `path` until another worker than `pid` answers with its own pid.
fn get_pid_of_another(server: &Server, path: &str, pid: u32) -> u32 {
    wait::wait_until_some("another worker", || Some(get_pid(server, path)).filter(|p| *p != pid))
}

#[test]
fn no_addition_under_a_lock_is_lost_while_holders_are_killed_and_reloaded() {
    let server = start(4);
    server.get("/go");
    let kills = env_count("PREFORK_SHARED_KILLS", 30);
    for kill in 0..kills {
        server.wait_replaced(kill);
        wait_progress(&server);
        let pids: Vec<u32> = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
    }
    server.wait_replaced(kills);
    server.signal(Signal::SIGHUP);
    server.wait_replaced(kills + 4);
    wait_progress(&server);
    eprintln!("{kills} kills: {} additions", count_additions(&server));
    server.get("/stop");
    wait::wait_until("no worker is busy", || value(&server, "busy") == 0);
    // All locks are free again but the one that a worker holds on purpose.
    wait::wait_until("one lock is held", || value(&server, "locks_held") == 1);
    server.stop();
}

#[test]
fn a_killed_holder_passes_its_lock_on_and_two_never_hold_it() {
    let server = start(3);
    let holder = |server: &Server| server.get("/holder/chain").text().parse::<u32>().ok();
    for kill in 0..env_count("PREFORK_LOCK_HOLDERS", 20) {
        server.wait_replaced(kill);
        let old = wait::wait_until_some("a holder", || holder(&server));
        wait::wait_until("it counts itself", || value(&server, "holding_chain") == 1);
        process::send_signal(old, Signal::SIGKILL);
        wait::wait_until("another holder", || holder(&server).is_some_and(|pid| pid != old));
        assert!(value(&server, "holding_chain").as_i64() <= Some(1));
    }
    server.stop();
}

#[test]
fn a_lock_excludes_other_workers_and_isolated_processes_until_its_holder_dies() {
    let server = ProcessBuilder::program("shared-locks")
        .args(["isolated=1"])
        .other_workers(1)
        .start()
        .allow_errors(&["SIGKILL"]);
    let holder = get_pid(&server, "/hold/customer-4711");
    let asks = ["/try/", "/try-shared/", "/within/", "/isolated/"];
    for ask in asks {
        assert_eq!(server.get(&format!("{ask}customer-4711")).text(), "false", "{ask}");
        assert_eq!(server.get(&format!("{ask}customer-4712")).text(), "true", "{ask}");
    }
    assert_eq!(get_pid(&server, "/holder/customer-4711"), holder);
    process::send_signal(holder, Signal::SIGKILL);
    server.wait_replaced(1);
    for ask in asks {
        assert_eq!(server.get(&format!("{ask}customer-4711")).text(), "true", "{ask}");
    }
    assert_eq!(server.get("/holder/customer-4711").text(), "");
    server.stop();
}

#[test]
fn a_process_waits_for_many_locks_in_one_thread_and_gets_them_when_the_holder_dies() {
    let server = start(2);
    let holder = get_pid(&server, "/hold-many/");
    let waits = get_pid_of_another(&server, "/wait-many/", holder);
    wait::wait_until("all wait", || value(&server, "locks_waiting").as_i64() >= Some(300));
    let threads = process::stat(waits).map(|stat| stat.threads);
    assert_eq!(threads, Some(2), "the event loop and the thread that waits");
    let share = process::cpu_share(waits);
    assert!(share < 0.2, "{share}");
    process::send_signal(holder, Signal::SIGKILL);
    wait::wait_until("all are held", || value(&server, "locks_held").as_i64() >= Some(300));
    server.stop();
}

/// Returns a connection to each of two workers, with the pids of these.
fn connect_to_two(server: &Server) -> [(u32, Client); 2] {
    let connect = || {
        let mut client = server.connect();
        let pid = client.get("/pid/").expect("an answer").text().parse().expect("a pid");
        (pid, client)
    };
    let first: (u32, Client) = connect();
    let another = || Some(connect()).filter(|second| second.0 != first.0);
    let second = wait::wait_until_some("another worker", another);
    [first, second]
}

/// Returns how often the thread of a process that waits for locks has slept.
fn count_sleeps_of_lock_thread(pid: u32) -> Option<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let status = threads.flatten().find_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        (name.trim() == "shared-locks").then_some(thread.path().join("status"))
    })?;
    let status = std::fs::read_to_string(status).ok()?;
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count?.trim().parse().ok()
}

#[test]
fn a_stopped_process_that_waits_for_a_lock_does_not_keep_others_from_it() {
    let server = start(3);
    let [(holder, mut holding), (waiter, mut waiting)] = connect_to_two(&server);
    let waiting_tasks = || value(&server, "locks_waiting").as_i64();
    wait::wait_until("two workers wait for the lock of the third", || waiting_tasks() == Some(2));
    std::thread::scope(|scope| {
        let held = scope.spawn(move || holding.get("/hold-until-released/pen"));
        wait::wait_until("the lock is held", || {
            server.get("/holder/pen").text() == holder.to_string()
        });
        let waited = scope.spawn(move || waiting.get("/hold-until-released/pen"));
        wait::wait_until("another task waits", || waiting_tasks() == Some(3));
        let sleeps = || count_sleeps_of_lock_thread(waiter).unwrap_or(0);
        let before = sleeps();
        // From the second attempt on it goes before others.
        wait::wait_until("more attempts", || sleeps() > before + 3);
        process::send_signal(waiter, Signal::SIGSTOP);
        std::fs::write(server.dir().join("released"), "").expect("a file");
        let first = held.join().expect("no panic").expect("an answer");
        assert_eq!(first.text(), holder.to_string());
        wait::wait_until("others get it", || server.get("/try/pen").text() == "true");
        process::send_signal(waiter, Signal::SIGCONT);
        let second = waited.join().expect("no panic").expect("an answer");
        assert_eq!(second.text(), waiter.to_string());
    });
    server.stop();
}

#[test]
fn locks_exclude_the_workers_of_both_images_of_an_upgrade_and_of_its_check() {
    let server = start(4);
    server.get("/go");
    for _ in 0..3 {
        wait_progress(&server);
        let old = server.worker_pids();
        server.run_verb(&["upgrade"]);
        server.wait_new_workers(4, &old);
        wait_progress(&server);
    }
    // The workers of four images and of three checks.
    assert_eq!(count_journal(&server, "boot"), 4 * 4 + 3);
    server.stop();
}

#[test]
fn an_old_worker_holds_its_lock_until_it_exits_after_an_upgrade() {
    let server = start(2);
    let old = server.worker_pids();
    let mut held = server.send_get("/hold-until-released/kept");
    let holder = || server.get("/holder/kept").text().parse::<u32>().ok();
    wait::wait_until("the lock is held", || holder().is_some());
    server.run_verb(&["upgrade"]);
    // The old worker drains until its request has been answered.
    assert!(holder().is_some_and(|pid| old.contains(&pid)));
    assert_eq!(server.get("/try/kept").text(), "false");
    let mut waiting = server.send_get("/hold/kept");
    wait::wait_until("a new worker waits", || value(&server, "locks_waiting").as_i64() >= Some(2));
    std::fs::write(server.dir().join("released"), "").expect("a file");
    assert_eq!(held.read().expect("answered").status, 200);
    let next = waiting.read().expect("answered").text().parse::<u32>().expect("a pid");
    assert_eq!(holder(), Some(next));
    assert!(!old.contains(&next));
    server.stop();
}

#[test]
fn threads_of_one_process_exclude_each_other() {
    let server = ProcessBuilder::program("shared-locks").model("thread-per-core", 2).start();
    wait::wait_until("both threads are busy", || value(&server, "busy") == 2);
    server.get("/go");
    wait_progress(&server);
    wait_progress(&server);
    server.stop();
}
