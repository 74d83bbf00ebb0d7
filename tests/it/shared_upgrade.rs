//! Shared state over upgrades in place: it continues, unless its layout has changed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::shared_state::read_shared;
use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

fn start() -> Server {
    ProcessBuilder::program("shared-upgrade").workers(2).start()
}

/// Creates an empty file in the directory of the program, which reads its name as a switch.
fn switch_on(server: &Server, name: &str) {
    std::fs::write(server.dir().join(name), "").expect("a file");
}

fn switch_off(server: &Server, name: &str) {
    std::fs::remove_file(server.dir().join(name)).expect("a file");
}

/// Upgrades, and waits until only workers of the new image run.
#[track_caller]
fn upgrade(server: &Server) -> Vec<u32> {
    let old = server.worker_pids();
    server.run_verb(&["upgrade"]);
    server.wait_new_workers(2, &old)
}

#[track_caller]
fn value(server: &Server, name: &str) -> Value {
    read_shared(server, name)["value"].clone()
}

/// Asserts that all pieces have the values that one `/change` gives them.
#[track_caller]
fn assert_unchanged(server: &Server) {
    assert_eq!(value(server, "counter"), 5);
    assert_eq!(read_shared(server, "flag")["set"], true);
    assert_eq!(read_shared(server, "histogram")["counts"], json!([0, 1, 0]));
    assert_eq!(value(server, "limiter_admitted"), 3);
    assert_eq!(server.get("/hidden").text(), "value true true 9");
    assert_eq!(value(server, "number"), 7);
}

#[test]
fn shared_state_continues_after_upgrades_in_any_order_of_declaration() {
    let server = start();
    assert_eq!(server.get("/change").text(), "true true");
    let descriptors = process::descriptors(server.pid()).len();
    for round in 0..4 {
        if round % 2 == 0 {
            switch_on(&server, "reordered")
        } else {
            switch_off(&server, "reordered")
        }
        upgrade(&server);
        assert_unchanged(&server);
        // Each image has booted two workers; the worker of a check counts for itself.
        assert_eq!(value(&server, "boots"), 2 * (round + 2));
        wait::wait_until("the old workers do not count", || value(&server, "gauge") == 2);
    }
    wait::wait_until("as many descriptors as before", || {
        process::descriptors(server.pid()).len() == descriptors
    });
    server.stop();
}

#[test]
fn workers_keep_no_descriptor_of_shared_memory() {
    let server = start();
    let is_memory = |fd: &(i32, String)| fd.1.contains("prefork-shared-state");
    assert!(process::descriptors(server.pid()).iter().any(is_memory));
    for pid in upgrade(&server) {
        assert!(!process::descriptors(pid).iter().any(is_memory));
    }
    server.stop();
}

#[test]
fn a_changed_layout_begins_anew_and_the_rest_continues() {
    let server = start();
    server.get("/change");
    switch_on(&server, "changed");
    upgrade(&server);
    assert_eq!(read_shared(&server, "histogram")["counts"], json!([0, 0, 0]));
    assert_eq!(server.get("/hidden").text(), " true true 9");
    assert_eq!(value(&server, "counter"), 5);
    // What is new can be changed, and continues.
    server.get("/change");
    upgrade(&server);
    assert_eq!(read_shared(&server, "histogram")["counts"], json!([0, 1, 0]));
    assert_eq!(server.get("/hidden").text(), "value true true 18");
    assert_eq!(value(&server, "counter"), 10);
    server.stop();
}

#[test]
fn a_failed_upgrade_leaves_shared_state_as_it_was() {
    let server = start().allow_errors(&["upgrade", "worker", "broken"]);
    server.get("/change");
    let boots = value(&server, "boots");
    switch_on(&server, "broken");
    for _ in 0..3 {
        let error = server.assert_verb_fails(&["upgrade"], 1);
        assert!(error.contains("broken"), "{error}");
        assert_unchanged(&server);
        assert_eq!(value(&server, "boots"), boots);
    }
    switch_off(&server, "broken");
    upgrade(&server);
    assert_unchanged(&server);
    server.stop();
}

#[test]
fn a_leadership_passes_from_the_old_image_to_the_new_one() {
    let server = start();
    let leader = || read_shared(&server, "role")["leader"].as_u64().map(|pid| pid as u32);
    let mut workers: BTreeSet<u32> = server.worker_pids().into_iter().collect();
    wait::wait_until("a leader", || leader().is_some());
    for _ in 0..3 {
        let new = upgrade(&server);
        workers.extend(&new);
        wait::wait_until("a leader of the new image", || {
            leader().is_some_and(|pid| new.contains(&pid))
        });
    }
    let leaders = std::fs::read_to_string(server.dir().join("leaders")).expect("the leaders");
    let leaders: Vec<u32> = leaders.lines().map(|pid| pid.parse().expect("a pid")).collect();
    // The worker of a check waited for the leadership in vain.
    assert!(leaders.iter().all(|pid| workers.contains(pid)), "{leaders:?} of {workers:?}");
    server.stop();
}
