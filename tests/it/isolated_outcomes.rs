//! How isolated jobs end when something ends around them: each begins at most once, and its outcome tells whether it had.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::http::Client;
use crate::support::{Server, process, wait};

fn calling_cluster() -> ProcessBuilder {
    ProcessBuilder::program("isolated-calls").workers(2).other_workers(1)
}

fn count_begun(server: &Server, job: &str) -> usize {
    let text = std::fs::read_to_string(server.dir().join("journal")).unwrap_or_default();
    text.lines().filter(|line| *line == job).count()
}

/// Starts a job, and waits until it has begun.
#[track_caller]
fn start_job(server: &Server, job: &str) -> Client {
    let client = server.send_get(&format!("/run/{job}"));
    wait::wait_until(&format!("{job} begins"), || count_begun(server, job) == 1);
    client
}

fn create_file(server: &Server, name: &str) {
    std::fs::write(server.dir().join(name), "").expect("write");
}

#[track_caller]
fn read_text(client: &mut Client) -> String {
    client.read().expect("an answer").text().to_string()
}

/// Returns the pid of the process that runs jobs.
#[track_caller]
fn isolated_pid(server: &Server) -> u32 {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    let mut calls = workers.iter().filter(|worker| worker["kind"] == "calls");
    let pid = calls.next_back().and_then(|worker| worker["pid"].as_u64());
    pid.expect("a process of the pool") as u32
}

#[test]
fn a_job_that_ends_its_process_during_a_reload_runs_once() {
    let server = calling_cluster().start();
    let mut call = start_job(&server, "exit-0");
    server.run_verb(&["reload"]);
    create_file(&server, "exit");
    assert_eq!(read_text(&mut call), "error begun=true Died { code: Some(0), signal: None }");
    assert_eq!(server.get("/run/next").text(), "ok next");
    assert_eq!(count_begun(&server, "exit-0"), 1);
    server.stop();
}

#[test]
fn a_job_that_does_not_end_before_its_process_has_to_exit_is_cut() {
    let server = calling_cluster().args(["graceful-timeout-ms=300"]).start();
    let mut call = start_job(&server, "wait-never");
    server.run_verb(&["scale", "calls=0"]);
    assert_eq!(read_text(&mut call), "error begun=true Cut");
    server.stop();
}

#[test]
fn a_queued_job_waits_for_the_next_process_when_its_pool_is_scaled_to_none() {
    let server = calling_cluster().start();
    let mut running = start_job(&server, "wait-go");
    let mut queued = server.send_get("/run/queued");
    server.wait_active_requests(2);
    server.run_verb(&["scale", "calls=0"]);
    create_file(&server, "go");
    assert_eq!(read_text(&mut running), "ok waited for go");
    server.run_verb(&["scale", "calls=1"]);
    assert_eq!(read_text(&mut queued), "ok queued");
    server.stop();
}

#[test]
fn the_process_of_a_job_whose_client_has_left_is_replaced_at_once() {
    let server = calling_cluster().start().allow_errors(&["SIGKILL"]);
    let pid = isolated_pid(&server);
    drop(start_job(&server, "wait-never"));
    // It does not wait for the deadline of the job, which is later than the test's own.
    assert_eq!(server.get("/run/next").text(), "ok next");
    wait::wait_until("the process has ended", || process::has_ended(pid));
    server.stop();
}

#[test]
fn the_process_of_a_job_whose_caller_was_killed_is_replaced_at_once() {
    let server = calling_cluster().start().allow_errors(&["SIGKILL"]);
    let pid = isolated_pid(&server);
    let _call = start_job(&server, "wait-never");
    let callers = server.worker_pids().into_iter().filter(|worker| *worker != pid);
    callers.for_each(|caller| process::send_signal(caller, Signal::SIGKILL));
    wait::wait_until("the process has ended", || process::has_ended(pid));
    server.wait_serving(3);
    assert_eq!(server.get("/run/next").text(), "ok next");
    server.stop();
}

#[test]
fn a_job_that_outlives_the_primary_is_reported_as_perhaps_begun() {
    let mut server = calling_cluster().start().allow_errors(&["lost its primary"]);
    let mut call = start_job(&server, "wait-go");
    server.kill_primary();
    assert_eq!(read_text(&mut call), "error begun=true PrimaryGone");
    create_file(&server, "go");
}

#[test]
fn running_and_queued_jobs_are_answered_after_an_upgrade() {
    let server = calling_cluster().workers(1).start();
    let mut running = start_job(&server, "wait-go");
    let mut queued = server.send_get("/run/queued");
    let mut waiting = server.send_get("/progress/progress-3");
    server.wait_active_requests(3);
    // Behind the others of the only worker, so they have reached the primary.
    let late = server.get("/short/late").text().to_string();
    assert_eq!(late, "error begun=false TimedOut { has_begun: false }");
    server.run_verb(&["upgrade", "--no-wait"]);
    // The processes of the new image run what waits, while the old one still runs its job.
    assert_eq!(read_text(&mut queued), "ok queued");
    assert_eq!(read_text(&mut waiting), "ok 0 1 2 done");
    create_file(&server, "go");
    assert_eq!(read_text(&mut running), "ok waited for go");
    for job in ["wait-go", "queued", "progress-3"] {
        assert_eq!(count_begun(&server, job), 1, "{job}");
    }
    assert_eq!(count_begun(&server, "late"), 0);
    server.stop();
}

#[test]
fn a_job_that_dies_in_an_upgrade_is_reported_by_the_new_image() {
    let server = calling_cluster().start();
    let mut call = start_job(&server, "exit-37");
    server.run_verb(&["upgrade", "--no-wait"]);
    server.wait_generation(2);
    create_file(&server, "exit");
    assert_eq!(read_text(&mut call), "error begun=true Died { code: Some(37), signal: None }");
    assert_eq!(server.get("/run/next").text(), "ok next");
    assert_eq!(count_begun(&server, "exit-37"), 1);
    server.allow_errors(&["37"]).stop();
}
