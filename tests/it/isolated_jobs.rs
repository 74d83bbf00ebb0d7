//! Isolated jobs: a crashing, hanging or leaking job fails alone, and its caller learns of it at once.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, env_count, log, process, wait};

fn isolated_cluster(processes: usize) -> ProcessBuilder {
    ProcessBuilder::program("isolated-jobs")
        .workers(2)
        .other_workers(processes)
        .args([format!("processes={processes}")])
}

#[track_caller]
fn run_job(server: &Server, job: &str) -> String {
    server.get(&format!("/{job}")).text().to_string()
}

/// Requests a job on another thread, which returns its result.
fn start_job(server: &Server, job: &str) -> std::thread::JoinHandle<Option<String>> {
    let (mut client, path) = (server.connect(), format!("/{job}"));
    std::thread::spawn(move || client.get(&path).ok().map(|answer| answer.text().to_string()))
}

/// Requests several jobs at the same time, and returns a channel of their results, in any order.
fn start_jobs(server: &Server, job: &str, count: usize) -> Receiver<Option<String>> {
    let (sender, results) = channel();
    for _ in 0..count {
        let (one, sender) = (start_job(server, job), sender.clone());
        std::thread::spawn(move || sender.send(one.join().expect("thread")));
    }
    results
}

#[track_caller]
fn next_result(results: &Receiver<Option<String>>) -> Option<String> {
    results.recv_timeout(Duration::from_secs(30)).expect("a result")
}

/// Returns the pid of the process that runs jobs.
#[track_caller]
fn isolated_worker_pid(server: &Server) -> u32 {
    let body = run_job(server, "hello");
    let pid = body.strip_prefix("hello by ").and_then(|pid| pid.parse().ok());
    pid.unwrap_or_else(|| panic!("{body}"))
}

#[test]
fn an_isolated_job_runs_in_another_process() {
    let server = isolated_cluster(1).start();
    let worker = isolated_worker_pid(&server);
    assert_ne!(run_job(&server, ""), worker.to_string());
    assert_eq!(isolated_worker_pid(&server), worker);
    assert_eq!(run_job(&server, "error"), "Failed(\"no\")");
    assert_eq!(run_job(&server, "unknown"), "NotRegistered { pool: \"unregistered\" }");
    server.stop();
}

#[test]
fn the_built_in_application_runs_isolated_jobs() {
    let server = ProcessBuilder::serve().args(["--faults"]).start();
    let web = server.worker_pids();
    server.run_verb(&["scale", "isolated=1"]);
    let body = server.get("/isolated/pid");
    assert!(body.text().starts_with("done by PID "), "{}", body.text());
    let died = server.connect().get("/isolated/exit").expect("answer");
    assert_eq!(died.status, 500);
    assert_eq!(server.get("/isolated/pid").status, 200);
    let now = server.worker_pids();
    assert!(web.iter().all(|pid| now.contains(pid)), "{web:?} {now:?}");
    server.allow_errors(&["42"]).stop();
}

#[test]
fn a_panicking_isolated_job_keeps_its_process() {
    let server = isolated_cluster(1).start().allow_errors(&["panicked at"]);
    let worker = isolated_worker_pid(&server);
    let body = run_job(&server, "panic");
    assert!(
        body.starts_with("Panicked")
            && body.contains("the job has had enough")
            && body.contains("isolated_jobs.rs:"),
        "{body}"
    );
    assert_eq!(isolated_worker_pid(&server), worker);
    server.stop();
}

#[test]
fn a_segfaulting_isolated_job_fails_at_once_and_alone() {
    let server = isolated_cluster(1).start().allow_errors(&["SIGSEGV", "37"]);
    let web = run_job(&server, "").len();
    // The deadline of a job is longer than this test. Repeated crashes by jobs are not a crash loop.
    for _ in 0..5 {
        assert_eq!(run_job(&server, "segv/600000"), "Died { code: None, signal: Some(11) }");
        assert!(run_job(&server, "hello").starts_with("hello by "));
    }
    assert_eq!(run_job(&server, "exit/600000"), "Died { code: Some(37), signal: None }");
    assert!(web > 0 && run_job(&server, "hello").starts_with("hello by "));
    let text = server.stop();
    // A crash loop would be warned about.
    assert_eq!(log::lines_with(&text, &["WARN"]).count(), 0, "{text}");
    assert_eq!(log::lines_with(&text, &["kind=danger", "SIGSEGV"]).count(), 5, "{text}");
}

#[test]
fn crashed_isolated_processes_leak_no_descriptor() {
    let server = isolated_cluster(1).start().allow_errors(&["SIGSEGV"]);
    assert!(run_job(&server, "hello").starts_with("hello by "));
    let descriptors = || process::descriptors(server.pid()).len();
    let before = descriptors();
    for _ in 0..env_count("PREFORK_ISOLATED_CRASHES", 20) {
        assert_eq!(run_job(&server, "segv/15000"), "Died { code: None, signal: Some(11) }");
    }
    assert!(run_job(&server, "hello").starts_with("hello by "));
    wait::wait_until("as many descriptors as before", || descriptors() <= before);
    assert!(process::zombies(server.pid()).is_empty());
    assert_eq!(process::children(server.pid()).len(), 3);
    server.stop();
}

#[test]
fn an_endless_isolated_job_is_killed_at_its_deadline() {
    let server = isolated_cluster(1).start().allow_errors(&["SIGKILL"]);
    let worker = isolated_worker_pid(&server);
    assert_eq!(run_job(&server, "hang/300"), "TimedOut { has_begun: true }");
    assert_ne!(isolated_worker_pid(&server), worker);
    let text = server.stop();
    let pid = format!("pid={worker}");
    assert_eq!(log::lines_with(&text, &["WARN", "kind=danger", &pid]).count(), 1, "{text}");
}

#[test]
fn the_deadline_of_the_isolated_pool_limits_every_job() {
    let server = isolated_cluster(1).args(["deadline-ms=300"]).start().allow_errors(&["SIGKILL"]);
    assert_eq!(run_job(&server, "hang/20000"), "TimedOut { has_begun: true }");
    server.stop();
}

#[test]
fn an_isolated_job_over_max_rss_is_killed() {
    let server =
        isolated_cluster(1).args(["max-rss-mib=128"]).start().allow_errors(&["kind=danger"]);
    assert_eq!(run_job(&server, "leak/20000"), "LimitExceeded { limit: Memory }");
    assert!(run_job(&server, "hello").starts_with("hello by "));
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["WARN"]).count(), 0, "{text}");
}

#[test]
fn isolated_jobs_wait_in_a_bounded_queue() {
    let server = isolated_cluster(1).args(["waiting=1"]).start();
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    let others = start_jobs(&server, "hello", 3);
    for _ in 0..2 {
        assert_eq!(next_result(&others).as_deref(), Some("Full"));
    }
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(first.join().expect("thread").as_deref(), Some("through the barrier"));
    assert!(next_result(&others).is_some_and(|body| body.starts_with("hello by ")));
    server.stop();
}

#[test]
fn an_isolated_job_that_times_out_in_the_queue_is_not_started() {
    let server = isolated_cluster(1).start();
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    assert_eq!(run_job(&server, "segv/200"), "TimedOut { has_begun: false }");
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(first.join().expect("thread").as_deref(), Some("through the barrier"));
    // The job would have crashed this process.
    assert!(run_job(&server, "hello").starts_with("hello by "));
    server.stop();
}

#[test]
fn an_isolated_job_of_a_disconnected_client_is_not_started() {
    let server = isolated_cluster(1).start();
    let isolated = isolated_worker_pid(&server);
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    let mut gone = server.connect();
    gone.send(b"GET /segv HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    server.wait_active_requests(2);
    drop(gone);
    server.wait_active_requests(1);
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(first.join().expect("thread").as_deref(), Some("through the barrier"));
    assert_eq!(isolated_worker_pid(&server), isolated, "what would have killed it was not begun");
    server.stop();
}

#[test]
fn queued_isolated_jobs_of_a_killed_worker_are_not_started() {
    let server = isolated_cluster(1)
        .args(["waiting=4", "on-abandon=finish"])
        .start()
        .allow_errors(&["SIGKILL"]);
    let isolated = isolated_worker_pid(&server);
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    // Two of six are refused, so four wait in the queue.
    let waiting = start_jobs(&server, "segv", 6);
    for _ in 0..2 {
        assert_eq!(next_result(&waiting).as_deref(), Some("Full"));
    }
    let callers = server.worker_pids().into_iter().filter(|pid| *pid != isolated);
    callers.for_each(|pid| process::send_signal(pid, Signal::SIGKILL));
    for _ in 0..4 {
        assert_eq!(next_result(&waiting), None, "its caller is dead");
    }
    assert_eq!(first.join().expect("thread"), None);
    // Wait until the primary has noticed both deaths.
    server.wait_log_count(&["SIGKILL"], 2);
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(isolated_worker_pid(&server), isolated, "what its callers died of, it survives");
    server.stop();
}

#[test]
fn a_reload_lets_a_running_isolated_job_finish() {
    let server = isolated_cluster(1).start();
    let worker = isolated_worker_pid(&server);
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    server.run_verb(&["reload"]);
    // The new process runs jobs while the old one finishes its job.
    assert_ne!(isolated_worker_pid(&server), worker);
    assert!(server.worker_pids().contains(&worker));
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(first.join().expect("thread").as_deref(), Some("through the barrier"));
    wait::wait_until("it has left", || process::has_ended(worker));
    server.stop();
}

#[test]
fn a_stop_finishes_running_isolated_jobs_and_refuses_queued_ones() {
    let server = isolated_cluster(1).start();
    let first = start_job(&server, "barrier");
    server.wait_log(&["waits for the barrier"]);
    let second = start_job(&server, "hello");
    server.wait_active_requests(2);
    server.signal(Signal::SIGTERM);
    let second = second.join().expect("thread");
    assert!(second.as_deref() == Some("Closed"), "{second:?}");
    std::fs::write(server.dir().join("barrier"), "").expect("write");
    assert_eq!(first.join().expect("thread").as_deref(), Some("through the barrier"));
    server.wait_clean_exit(0);
}
