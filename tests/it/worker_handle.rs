//! The worker's handle on threads other than the worker's event loop, in every concurrency model.

use crate::support::command::ProcessBuilder;
use crate::support::{Server, wait};

const MODELS: [&str; 4] = ["prefork", "single", "thread-per-core", "threads"];

/// Starts the program with one worker process; with two threads in the models that have several.
fn start(model: &str) -> Server {
    let count = if model.starts_with("thread") { 2 } else { 1 };
    ProcessBuilder::program("worker-handle").model(model, count).other_workers(1).start()
}

#[test]
fn every_thread_of_a_worker_process_knows_its_worker() {
    for model in MODELS {
        let server = start(model);
        let expected = ["true Some(1)"; 4].join(", ");
        assert_eq!(server.get("/current").text(), expected, "{model}");
        server.stop();
    }
}

#[test]
fn drain_that_another_thread_orders_is_visible_at_once() {
    for model in MODELS {
        let server = start(model);
        assert_eq!(server.get("/retire").text(), "true false", "{model}");
        server.wait_replaced(1);
        assert_eq!(server.get("/disconnect").text(), "true false", "{model}");
        wait::wait_until("the worker has left", || server.worker_pids().len() == 1);
        server.stop();
    }
}

#[test]
fn messages_are_sent_and_received_on_other_threads() {
    for model in MODELS {
        let server = start(model);
        // Several connections, so that several threads serve them.
        for _ in 0..4 {
            assert_eq!(server.get("/echo").text(), "ping", "{model}");
            assert_eq!(server.get("/inbox").text(), "the answer", "{model}");
        }
        server.stop();
    }
}

#[test]
fn isolated_jobs_and_the_status_are_available_on_other_threads() {
    for model in MODELS {
        let server = start(model);
        assert_eq!(server.get("/isolated").text(), "42 42 42", "{model}");
        assert_eq!(server.get("/cluster-status").text(), "2", "{model}");
        server.stop();
    }
}

#[test]
fn threads_that_wait_for_the_drain_are_woken() {
    for model in MODELS {
        let server = start(model);
        let mut waiting = server.send_get("/draining");
        server.wait_request_in_status("/draining");
        server.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(waiting.read().expect("an answer").text(), "drained", "{model}");
        server.wait_clean_exit(0);
    }
}
