//! What a worker finishes before it exits: holds, background tasks, stop functions, and endless responses.

use std::io::Read;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

const MODELS: [&str; 4] = ["prefork", "single", "thread-per-core", "threads"];

/// What the program records at the end of a worker without other work.
const END: [&str; 4] = ["cleanup", "last registered", "first registered", "dropped"];

fn program(model: &str) -> ProcessBuilder {
    ProcessBuilder::program("leaving").model(model, 1)
}

/// Returns what the program has recorded.
fn events(server: &Server) -> Vec<String> {
    let text = std::fs::read_to_string(server.dir().join("events")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

fn release(server: &Server) {
    std::fs::write(server.dir().join("release"), "").expect("write");
}

/// Stops the server, and returns what was recorded.
fn stop_and_read(server: Server) -> Vec<String> {
    server.signal(Signal::SIGTERM);
    read_after_exit(server)
}

/// Waits for a clean exit, and returns what was recorded.
fn read_after_exit(server: Server) -> Vec<String> {
    let path = server.dir().join("events");
    // Opened before the directory is removed.
    let mut file = std::fs::OpenOptions::new().read(true).append(true).create(true).open(path);
    server.wait_clean_exit(0);
    let mut text = String::new();
    file.as_mut().expect("events").read_to_string(&mut text).expect("read");
    text.lines().map(str::to_string).collect()
}

#[test]
fn cleanup_after_the_drain_signal_and_stop_functions_run_to_their_end() {
    for model in MODELS {
        let server = program(model).start();
        assert_eq!(server.get("/").text(), "done");
        assert_eq!(stop_and_read(server), END, "{model}");
    }
}

#[test]
fn background_task_outlives_a_disconnect_of_its_worker() {
    for model in MODELS {
        let server = program(model).start();
        let pid = server.worker_pids()[0];
        server.get("/work");
        server.get("/disconnect");
        // Named in the status while the worker waits for it.
        server.wait_request_in_status("hold: mail");
        assert_eq!(events(&server), ["cleanup"], "{model}");
        release(&server);
        wait::wait_until("the worker's end", || process::has_ended(pid));
        let expected = [END[0], "mail", END[1], END[2], END[3]];
        assert_eq!(events(&server), expected, "{model}");
        server.stop();
    }
}

#[test]
fn replaced_worker_finishes_its_background_task() {
    for model in MODELS {
        let server = program(model).start();
        let old = server.worker_pids()[0];
        server.get("/work");
        server.signal(Signal::SIGHUP);
        server.wait_generation(2);
        server.wait_request_in_status("hold: mail");
        assert!(!process::has_ended(old), "{model}");
        release(&server);
        wait::wait_until("the old worker's end", || process::has_ended(old));
        assert!(events(&server).contains(&"mail".to_string()), "{model}");
        server.stop();
    }
}

#[test]
fn hold_on_another_thread_keeps_the_worker() {
    for model in MODELS {
        let server = program(model).start();
        server.get("/hold-on-thread");
        server.signal(Signal::SIGTERM);
        server.wait_request_in_status("hold: thread");
        release(&server);
        server.wait_clean_exit(0);
    }
}

#[test]
fn unfinished_work_is_cut_and_named_at_the_graceful_timeout() {
    for model in MODELS {
        let server = program(model).args(["graceful-timeout-ms=500"]).start();
        server.get("/stuck-work");
        server.get("/stuck-work");
        server.get("/stuck-stop");
        server.signal(Signal::SIGTERM);
        let log = server.wait_clean_exit(0);
        assert!(log.contains("stuck x2"), "{model}: {log}");
        assert!(log.contains("tests/programs/leaving.rs:"), "{model}: {log}");
    }
}

#[test]
fn service_is_dropped_even_after_work_was_cut() {
    for model in MODELS {
        let server = program(model).args(["graceful-timeout-ms=500"]).start();
        server.get("/stuck-work");
        // No time is left for the stop function that waits.
        assert_eq!(stop_and_read(server), [END[0], END[2], END[3]], "{model}");
    }
}

#[test]
fn panic_of_a_background_task_is_logged_and_ends_only_the_task() {
    for model in MODELS {
        let server = program(model).start().allow_errors(&["panicked"]);
        server.get("/panics");
        let words = ["worker=1", "fragile", "the task fails"];
        server.wait_log(&words);
        assert_eq!(server.get("/").text(), "done", "{model}");
        server.stop();
    }
}

#[test]
fn endless_response_ends_cleanly_when_its_worker_drains() {
    for model in MODELS {
        let server = program(model).start();
        let mut client = server.send_get("/events");
        let head = client.read_head().expect("a response");
        assert_eq!(head.header("transfer-encoding"), Some("chunked"), "{model}");
        assert_eq!(client.read_exactly(11).expect("a part"), b"6\r\nevent\n\r\n", "{model}");
        server.signal(Signal::SIGTERM);
        // The last chunk, and not only the end of the connection.
        assert_eq!(client.read_exactly(5).expect("the end"), b"0\r\n\r\n", "{model}");
        drop(client);
        server.wait_clean_exit(0);
    }
}

#[test]
fn endless_response_that_delays_a_drain_is_named_in_the_status() {
    for model in ["prefork", "threads"] {
        let server = program(model).args(["graceful-timeout-ms=2000"]).start();
        let mut client = server.send_get("/endless");
        client.read_head().expect("a response");
        server.signal(Signal::SIGTERM);
        server.wait_phase("stopping");
        server.wait_request_in_status("GET /endless");
        server.wait_clean_exit(0);
    }
}

#[test]
fn work_of_raw_connections_is_finished() {
    for model in ["prefork", "single", "thread-per-core"] {
        let server = program(model).args(["door=connections"]).start();
        drop(server.connect());
        server.signal(Signal::SIGTERM);
        server.wait_request_in_status("mail");
        release(&server);
        let recorded = read_after_exit(server);
        for event in ["mail", END[0], END[1], END[2], END[3]] {
            assert!(recorded.contains(&event.to_string()), "{model} {event}: {recorded:?}");
        }
    }
}

#[test]
fn work_of_other_kinds_is_finished_after_their_main_loop() {
    let server =
        ProcessBuilder::program("leaving").workers(1).other_workers(1).args(["door=kind"]).start();
    server.signal(Signal::SIGTERM);
    server.wait_request_in_status("hold: mail");
    release(&server);
    let recorded = read_after_exit(server);
    assert!(recorded[..2].contains(&"mail".to_string()), "{recorded:?}");
    assert_eq!(recorded[2..], [END[1], END[2]], "{recorded:?}");
}
