//! Changes of the number of workers while others serve.

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::{Server, log};

#[test]
fn sigttin_and_sigttou_change_the_number_of_workers() {
    let server = Server::start(2);
    let first = server.worker_pids();
    server.signal(Signal::SIGTTIN);
    server.wait_log(&["INFO", "SIGTTIN"]);
    let three = server.wait_new_workers(3, &[]);
    assert!(first.iter().all(|pid| three.contains(pid)));
    server.wait_replaced(1);
    server.signal(Signal::SIGTTOU);
    server.wait_log(&["INFO", "SIGTTOU"]);
    assert_eq!(server.wait_new_workers(2, &[]), first);
    server.signal(Signal::SIGTTOU);
    server.wait_new_workers(1, &[]);
    server.signal(Signal::SIGTTOU);
    server.wait_log(&["WARN", "SIGTTOU"]);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.worker_pids().len(), 1);
    server.stop();
}

#[test]
fn scale_takes_a_number_or_a_difference() {
    let server = Server::builder().start();
    for (change, workers) in [("3", 3), ("+1", 4), ("-1", 3), ("-2", 1), ("2", 2)] {
        server.run_verb(&["scale", change]);
        server.wait_new_workers(workers, &[]);
        assert_eq!(server.status()["primary"]["workers_wanted"], workers);
    }
    server.stop();
}

#[test]
fn scale_refuses_numbers_out_of_range() {
    let server = Server::builder().start();
    let pids = server.worker_pids();
    for (change, code, number) in [
        ("0", 64, "0"),
        ("many", 64, "many"),
        ("5000", 1, "5000"),
        ("+5000", 1, "5000"),
        ("-2", 1, "0"),
    ] {
        let ended = server.try_verb(&["scale", change]);
        assert_eq!(ended.status, Some(code), "{change}: {}", ended.stderr);
        assert!(log::contains_word(&ended.stderr, number), "{change}: {}", ended.stderr);
    }
    assert_eq!(server.worker_pids(), pids);
    assert_eq!(server.status()["primary"]["workers_wanted"], 2);
    server.stop();
}

#[test]
fn scaling_down_loses_no_request_on_kept_connections() {
    let server = Server::start(2);
    let load = Load::keep_alive(server.address(), 8).with_posts().with_think_time().start();
    for round in 0..3 {
        load.wait_answered(16);
        server.signal(Signal::SIGTTIN);
        server.wait_replaced(2 * round + 1);
        for workers in [2, 1] {
            load.wait_answered(16);
            server.signal(Signal::SIGTTOU);
            server.wait_new_workers(workers, &[]);
        }
        server.signal(Signal::SIGTTIN);
        server.wait_replaced(2 * round + 2);
    }
    load.wait_answered(16);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused, tally.ended), (0, 0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn a_reload_keeps_the_scaled_number_unless_the_file_changes_it() {
    let text = |workers| format!("workers = {workers}\nbind = \"127.0.0.1:0\"\n");
    let server = Server::builder().config(1, &text(1)).start();
    server.run_verb(&["scale", "3"]);
    let old = server.wait_new_workers(3, &[]);
    server.run_verb(&["reload"]);
    let old = server.wait_new_workers(3, &old);
    std::fs::write(server.dir().join("prefork.toml"), text(2)).expect("write");
    server.run_verb(&["reload"]);
    server.wait_new_workers(2, &old);
    server.stop();
}
