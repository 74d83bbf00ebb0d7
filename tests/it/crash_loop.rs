//! Workers that cannot boot: tried with patience, told about, and given up in the end.

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{log, process, wait};

/// The exit status of a worker whose boot failed, in the line about its end.
pub const BOOT_FAILED: &str = "70";

#[test]
fn a_cluster_that_cannot_boot_gives_up_and_says_why() {
    let ended = Builder::program("boot-fails").workers(4).args(["boot-attempts=3"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    let why = "open the database: no such host";
    assert!(ended.err.contains(why), "{}", ended.err);
    // All at first, then one a round.
    let tries =
        ended.err.lines().filter(|line| line.contains("worker=") && line.contains(why)).count();
    assert!((3..=4 + 2).contains(&tries), "{tries} tries:\n{}", ended.err);
}

#[test]
fn a_worker_that_exits_while_it_boots_is_told_by_its_status() {
    let ended = Builder::program("boot-exits").workers(2).args(["boot-attempts=2"]).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    assert!(log::lines_with(&ended.err, &["ERROR", "worker=1", "37"]).count() > 0, "{}", ended.err);
}

#[test]
fn a_worker_that_hangs_while_it_boots_is_killed_at_the_boot_timeout() {
    let args = ["boot-attempts=2", "boot-timeout-ms=300"];
    let ended = Builder::program("boot-hangs").workers(2).args(args).run();
    assert_eq!(ended.status, Some(70), "{}", ended.err);
    let about = |words: &[&str]| log::lines_with(&ended.err, words).count();
    assert_eq!(about(&["ERROR", "worker=1", "boot-timeout"]), 1, "{}", ended.err);
    assert!(about(&["ERROR", "worker=1"]) > 1, "its end is told, too: {}", ended.err);
}

#[test]
fn a_replacement_that_cannot_boot_is_tried_again_until_it_can() {
    let server = Builder::program("boot-fails-if-broken").workers(2).start();
    let server = server.allow(&["SIGKILL", "they are broken", BOOT_FAILED]);
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    process::send(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_log_count(&["worker=", "read the settings: they are broken"], 2);
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
    let server = server.allow(&["no such host", BOOT_FAILED]);
    server.wait_log_count(&["worker=", "no such host"], 3);
    server.stop();
}

#[test]
fn a_stop_while_workers_boot_wins() {
    let server = Builder::program("boot-hangs").workers(2).spawn();
    wait::until("two workers", || server.worker_pids().len() == 2);
    server.stop();
}
