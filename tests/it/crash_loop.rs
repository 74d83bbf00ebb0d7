//! Workers that cannot boot: tried with patience, told about, and given up in the end.

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{process, wait};

#[test]
fn a_cluster_that_cannot_boot_gives_up_and_says_why() {
    let ended = Builder::program("boot-fails").workers(4).args(["boot-attempts=3"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    assert!(ended.err.contains("cannot boot: open the database: no such host"), "{}", ended.err);
    assert!(ended.err.contains("giving up: "), "{}", ended.err);
    // All at first, then one a round.
    let tries = ended.err.lines().filter(|line| line.contains(" cannot boot: ")).count();
    assert!((3..=4 + 2).contains(&tries), "{tries} tries:\n{}", ended.err);
}

#[test]
fn a_worker_that_exits_while_it_boots_is_told_by_its_status() {
    let ended = Builder::program("boot-exits").workers(2).args(["boot-attempts=2"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    assert!(ended.err.contains("died before it was ready: exit status 3 (up "), "{}", ended.err);
}

#[test]
fn a_worker_that_hangs_while_it_boots_is_killed_at_the_boot_timeout() {
    let args = ["boot-attempts=2", "boot-timeout-ms=300"];
    let ended = Builder::program("boot-hangs").workers(2).args(args).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    assert!(ended.err.contains("was not ready within 300 ms (boot-timeout)"), "{}", ended.err);
    assert!(ended.err.contains("was killed: never ready"), "{}", ended.err);
}

#[test]
fn a_replacement_that_cannot_boot_is_tried_again_until_it_can() {
    let server = Builder::program("boot-fails-if-broken").workers(2).start();
    let server =
        server.allow(&["killed by SIGKILL", "they are broken", "died before it was ready"]);
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    process::send(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_log("cannot boot: read the settings: they are broken");
    server.wait_log("(2 in a row)");
    // The other one serves on, and nobody gives up: this cluster has been ready before.
    assert_eq!(server.get("/").status, 200);
    std::fs::remove_file(&broken).expect("remove");
    server.wait_replaced(1);
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

#[test]
fn a_stop_during_a_crash_loop_wins() {
    let server = Builder::program("boot-fails").workers(2).args(["boot-attempts=1000"]).spawn();
    let server = server.allow(&["cannot boot", "died before it was ready"]);
    server.wait_log("(3 in a row): next try in ");
    server.stop();
}

#[test]
fn a_stop_while_workers_boot_wins() {
    let server = Builder::program("boot-hangs").workers(2).spawn();
    server.wait_log("listening on ");
    wait::until("two workers", || server.worker_pids().len() == 2);
    server.stop();
}
