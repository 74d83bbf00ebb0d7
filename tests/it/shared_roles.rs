//! Roles that one worker has, and who takes them over. `PREFORK_LEADERS` killed leaders (50).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::shared_state::read;
use crate::support::command::Builder;
use crate::support::{Server, amount, process, wait};

fn start(program: &str, workers: usize) -> Server {
    Builder::program(program).workers(workers).start().allow(&["SIGKILL"])
}

fn leader(server: &Server, role: &str) -> Option<u32> {
    read(server, role)["leader"].as_u64().map(|pid| pid as u32)
}

#[track_caller]
fn some_leader(server: &Server, role: &str) -> u32 {
    wait::until_some("a leader", || leader(server, role))
}

#[test]
fn when_a_leader_dies_another_leads_and_never_two() {
    let kills = amount("PREFORK_LEADERS", 50);
    let server = start("shared-roles", 3);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        server.wait_replaced(kill);
        let old = some_leader(&server, "cron");
        assert!(server.worker_pids().contains(&old), "the leader is a worker");
        let killed = Instant::now();
        process::send(old, Signal::SIGKILL);
        let next = |server: &Server| leader(server, "cron").filter(|pid| *pid != old);
        let new = wait::until_some("another leader", || next(&server));
        slowest = slowest.max(killed.elapsed());
        assert!(server.worker_pids().contains(&new));
    }
    server.wait_replaced(kills);
    eprintln!(
        "{kills} leaders killed: the slowest succession took {slowest:?}, as seen from outside"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let alone = || read(&server, "alone")["value"].as_u64().expect("a number");
    let before = alone();
    wait::until("the leader works", || alone() > before);
    assert_eq!(read(&server, "together")["value"], 0, "two have led at the same time");
    assert_eq!(read(&server, "leading")["value"], 1);
    server.stop();
}

#[test]
fn a_leader_that_drains_resigns_and_one_of_the_new_workers_leads() {
    let server = start("shared-roles", 2);
    let old = server.worker_pids();
    assert!(old.contains(&some_leader(&server, "cron")));
    server.signal(Signal::SIGHUP);
    server.wait_replaced(2);
    wait::until("a new leader", || leader(&server, "cron").is_some_and(|pid| !old.contains(&pid)));
    assert_eq!(read(&server, "together")["value"], 0);
    server.stop();
}

#[test]
fn a_role_in_a_file_is_one_for_all_clusters_and_outlives_each() {
    let dir = tempfile::tempdir().expect("directory");
    let file = format!("file={}", dir.path().join("cron").display());
    let cluster = || Builder::program("shared-roles").workers(2).args([&file]).start();
    let (first, second) = (cluster(), cluster());
    let led = some_leader(&first, "cron");
    assert!(first.worker_pids().contains(&led));
    assert_eq!(leader(&second, "cron"), Some(led), "the other cluster waits, and knows for whom");
    first.stop();
    let next = wait::until_some("another leader", || leader(&second, "cron"));
    assert!(second.worker_pids().contains(&next));
    second.stop();
}

#[test]
fn waiting_for_a_role_costs_no_processor_time() {
    let server = start("shared-roles", 2);
    let led = some_leader(&server, "cron");
    let waits = server.worker_pids().into_iter().find(|pid| *pid != led).expect("another worker");
    // The thread that sleeps in the kernel is there, so it is waiting.
    wait::until("the thread that waits", || process::stat(waits).is_some_and(|s| s.threads == 2));
    let share = process::share_of_a_core(waits);
    assert!(share < 0.1, "{share}");
    server.stop();
}

#[test]
fn workers_that_wait_for_each_others_roles_are_no_deadlock() {
    // One of the two is refused to wait in a circle by the kernel; which one, is chance. So each dies twice.
    for round in 0..4 {
        let server = start("shared-circle", 2);
        let pair = || (leader(&server, "one"), leader(&server, "two"));
        wait::until("both ask for the other's", || read(&server, "waiting")["value"] == 2);
        let (Some(one), Some(two)) = pair() else { panic!("nobody leads: {:?}", pair()) };
        assert_ne!(one, two);
        for pid in [one, two] {
            wait::until("both wait", || process::stat(pid).is_some_and(|s| s.threads == 2));
        }
        let (victim, heir) = if round % 2 == 0 { (one, two) } else { (two, one) };
        process::send(victim, Signal::SIGKILL);
        wait::until("the other leads both", || pair() == (Some(heir), Some(heir)));
        server.wait_replaced(1);
        server.stop();
    }
}
