//! Workers of several kinds in one cluster.

use nix::sys::signal::Signal;

use crate::boot::BOOT_FAILED;
use crate::support::command::ProcessBuilder;
use crate::support::{Server, log, process, wait};

fn consumer_cluster(consumers: usize) -> ProcessBuilder {
    let argument = format!("consumers={consumers}");
    ProcessBuilder::program("worker-kinds").workers(2).other_workers(consumers).args([argument])
}

/// Lets a consumer run a job, and returns its slot and pid.
#[track_caller]
fn run_job(server: &Server, number: u32) -> (u32, u32) {
    let body = server.get(&format!("/job/{number}/sum")).text().to_string();
    let words: Vec<&str> = body.split(' ').collect();
    assert_eq!(words[..3], ["sum", "by", "consumer"], "{body}");
    (words[3].parse().expect("slot"), words[4].parse().expect("pid"))
}

/// Waits until another process than `before` runs the jobs of this consumer, and returns its pid.
#[track_caller]
fn wait_other_consumer(server: &Server, number: u32, before: u32) -> u32 {
    wait::wait_until_some("another consumer", || {
        let body = server.get(&format!("/job/{number}/sum")).text().to_string();
        let pid = body.split(' ').nth(4)?.parse().ok()?;
        (pid != before).then_some(pid)
    })
}

/// Counts the serving workers of this kind, by the status.
#[track_caller]
fn serving_count(server: &Server, kind: &str) -> usize {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    let of_kind = workers.iter().filter(|one| one["kind"] == kind && one["state"] == "serving");
    of_kind.count()
}

#[test]
fn each_worker_kind_has_its_own_number_and_name() {
    let server = consumer_cluster(2).start();
    assert_eq!((serving_count(&server, "web"), serving_count(&server, "consumer")), (2, 2));
    assert_eq!((run_job(&server, 0).0, run_job(&server, 1).0), (1024, 1025));
    let table = server.run_verb(&["status"]);
    assert_eq!(table.matches("2 of 2").count(), 2, "{table}");
    assert_eq!(table.matches("  consumer  ").count(), 2, "{table}");
    let text = server.stop();
    // One line each for READY and the exit, and no warning.
    for slot in ["slot=1024", "slot=1025"] {
        assert_eq!(log::lines_with(&text, &[slot, "kind=consumer"]).count(), 2, "{text}");
    }
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn a_killed_consumer_is_replaced_without_affecting_web_workers() {
    let server = consumer_cluster(1).start().allow_errors(&["SIGKILL"]);
    let (_, before) = run_job(&server, 0);
    let mut web = server.worker_pids();
    web.retain(|pid| *pid != before);
    process::send_signal(before, Signal::SIGKILL);
    let now = wait_other_consumer(&server, 0, before);
    let mut after = server.worker_pids();
    after.retain(|pid| *pid != now);
    assert_eq!((after.len(), after), (2, web));
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["kind=consumer", "SIGKILL"]).count(), 1, "{text}");
}

#[test]
fn a_consumer_has_no_listening_socket() {
    for dispatch in ["shared", "reuseport", "round-robin", "least-conn"] {
        let server = consumer_cluster(1).args([format!("dispatch={dispatch}")]).start();
        let (_, consumer) = run_job(&server, 0);
        let listening = process::listening_socket(server.port()).expect("it listens");
        let inside = process::descriptors(consumer);
        assert!(!inside.iter().any(|(_, target)| *target == listening), "{dispatch}: {inside:?}");
        for _ in 0..50 {
            let body = server.get("/").text().to_string();
            assert!(body.starts_with("web "), "{dispatch}: {body}");
        }
        server.stop();
    }
}

#[test]
fn a_reload_replaces_consumers() {
    let server = consumer_cluster(2).start();
    let before = [run_job(&server, 0).1, run_job(&server, 1).1];
    server.run_verb(&["reload"]);
    assert_eq!((serving_count(&server, "web"), serving_count(&server, "consumer")), (2, 2));
    assert_eq!(server.status()["primary"]["generation"], 2);
    for (number, before) in (0..).zip(before) {
        assert_ne!(run_job(&server, number).1, before);
    }
    server.stop();
}

#[test]
fn a_consumer_that_cannot_boot_fails_the_reload() {
    let server = consumer_cluster(1).start().allow_errors(&["broken", "reload", BOOT_FAILED]);
    let (_, before) = run_job(&server, 0);
    std::fs::write(server.dir().join("broken"), "").expect("write");
    let why = server.assert_verb_fails(&["reload"], 1);
    assert!(why.contains("broken"), "{why}");
    assert_eq!(run_job(&server, 0).1, before);
    server.stop();
}

#[test]
fn a_worker_kind_is_scaled_by_its_name() {
    let server = consumer_cluster(1).start();
    server.run_verb(&["scale", "consumer=3"]);
    wait::wait_until("three consumers", || serving_count(&server, "consumer") == 3);
    assert_eq!(run_job(&server, 2).0, 1026);
    server.run_verb(&["scale", "+1"]);
    wait::wait_until("three that serve", || serving_count(&server, "web") == 3);
    server.run_verb(&["scale", "consumer=0"]);
    wait::wait_until("no consumer", || server.worker_pids().len() == 3);
    assert_eq!((serving_count(&server, "web"), serving_count(&server, "consumer")), (3, 0));
    let body = server.get("/job/0/sum").text().to_string();
    assert!(body.starts_with("Refused("), "{body}");
    let why = server.assert_verb_fails(&["scale", "unknown=1"], 1);
    assert!(why.contains("\"unknown\""), "{why}");
    server.stop();
}

#[test]
fn fork_kind_with_adds_a_consumer_with_its_own_environment() {
    let server = consumer_cluster(1).start();
    let body = server.get("/more").text().to_string();
    assert!(body.starts_with("worker "), "{body}");
    wait::wait_until("the second consumer", || {
        server.get("/job/1/sum").text().to_string().ends_with(" sweet")
    });
    assert!(!server.get("/job/0/sum").text().ends_with("sweet"));
    server.stop();
}

#[test]
fn consumers_are_recycled_by_their_own_limits() {
    let server = consumer_cluster(1).args(["age-ms=1500"]).start();
    let (_, before) = run_job(&server, 0);
    let old = server.worker_pids();
    wait_other_consumer(&server, 0, before);
    let now = server.worker_pids();
    let web = old.iter().filter(|pid| **pid != before);
    assert!(web.into_iter().all(|pid| now.contains(pid)), "{old:?} {now:?}");
    let text = server.stop();
    assert!(log::lines_with(&text, &["kind=consumer", "max-lifetime"]).count() > 0, "{text}");
}

#[test]
fn a_hanging_consumer_is_cut_at_the_graceful_timeout() {
    let server = consumer_cluster(1).args(["graceful-timeout-ms=300"]).start();
    assert_eq!(server.get("/throw/hang").text(), "thrown");
    server.wait_log(&["a job hangs"]);
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["WARN", "kind=consumer"]).count(), 1, "{text}");
}

#[test]
fn a_worker_kind_whose_function_returns_is_restarted() {
    let fragile = ProcessBuilder::program("worker-kinds").workers(1).other_workers(1);
    let server = fragile.args(["consumers=0", "fragile=1"]).start().allow_errors(&["kind=fragile"]);
    assert_eq!(server.get("/end").text(), "sent");
    server.wait_log(&["WARN", "kind=fragile"]);
    server.wait_replaced(1);
    server.stop();
}

#[test]
fn an_upgrade_replaces_consumers() {
    let server = consumer_cluster(1).start();
    let (_, before) = run_job(&server, 0);
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    server.wait_new_workers(3, &old);
    wait::wait_until("the new consumer answers", || {
        server.get("/job/0/sum").text().starts_with("sum by consumer 1024 ")
    });
    assert_ne!(run_job(&server, 0).1, before);
    // Each image logs a line with the pid of the primary when it starts.
    let primary = format!("pid={}", server.pid());
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &[&primary]).count(), 2, "{text}");
}
