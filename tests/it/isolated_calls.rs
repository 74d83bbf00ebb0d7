//! The ways to call an isolated job: from any thread and model, with progress, priorities and waiting for room.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::http::Client;
use crate::support::{Server, log, process, wait};

/// How a test program calls its jobs: `/HOW/JOB`.
const BLOCKING_CALLS: [&str; 3] = ["wait-pool", "wait-blocking", "wait-thread"];

fn calling_cluster(queue: usize) -> ProcessBuilder {
    ProcessBuilder::program("isolated-calls")
        .workers(1)
        .other_workers(1)
        .args([format!("queue={queue}")])
}

fn journal(server: &Server) -> Vec<String> {
    let text = std::fs::read_to_string(server.dir().join("journal")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

fn count_begun(server: &Server, job: &str) -> usize {
    journal(server).iter().filter(|line| *line == job).count()
}

#[track_caller]
fn wait_begun(server: &Server, job: &str) {
    wait::wait_until(&format!("{job} begins"), || count_begun(server, job) == 1);
}

fn create_file(server: &Server, name: &str) {
    std::fs::write(server.dir().join(name), "").expect("write");
}

#[track_caller]
fn read_text(client: &mut Client) -> String {
    client.read().expect("an answer").text().to_string()
}

/// Starts a job that runs until the file `go` exists.
fn start_busy_job(server: &Server) -> Client {
    let busy = server.send_get("/run/wait-go");
    wait_begun(server, "wait-go");
    busy
}

#[test]
fn isolated_jobs_are_run_from_every_loop_and_thread_of_each_model() {
    for model in ["prefork", "thread-per-core", "threads"] {
        let builder = ProcessBuilder::program("isolated-calls").model(model, 2).other_workers(1);
        let server = builder.start();
        // Several connections, so that every loop and thread gets some.
        for n in 0..8 {
            assert_eq!(server.get(&format!("/run/{n}")).text(), format!("ok {n}"), "{model}");
        }
        for how in BLOCKING_CALLS {
            let text = server.get(&format!("/{how}/hello")).text().to_string();
            assert_eq!(text, "ok hello", "{model} {how}");
        }
        server.stop();
    }
}

#[test]
fn waiting_on_the_event_loop_is_refused() {
    let server = calling_cluster(1).start();
    assert_eq!(server.get("/wait-loop/hello").text(), "error begun=false WouldDeadlock");
    assert_eq!(count_begun(&server, "hello"), 0);
    server.stop();
}

#[test]
fn the_state_is_made_once_in_each_process_and_again_after_a_panic() {
    let server = calling_cluster(1).start().allow_errors(&["panicked at"]);
    assert_eq!(journal(&server), ["init"], "before the first job");
    assert_eq!(server.get("/run/count").text(), "ok job 1");
    assert_eq!(server.get("/run/count").text(), "ok job 2");
    let text = server.get("/run/panic").text().to_string();
    assert!(text.contains("begun=true Panicked") && text.contains("isolated_calls.rs:"), "{text}");
    assert_eq!(server.get("/run/count").text(), "ok job 1");
    assert_eq!(count_begun(&server, "init"), 2);
    server.stop();
}

#[test]
fn a_process_whose_state_cannot_be_made_does_not_boot() {
    for init in ["init=fails", "init=panics"] {
        let server =
            calling_cluster(1).args([init]).spawn().allow_errors(&["kind=calls", "panicked at"]);
        server.wait_log(&["kind=calls", "no model to load"]);
        assert!(!journal(&server).contains(&"init".to_string()), "{init}");
        server.stop();
    }
}

#[test]
fn the_error_of_the_application_keeps_its_type() {
    let server = calling_cluster(1).start();
    assert_eq!(server.get("/run/fail-7").text(), "error begun=true Failed(JobFailure { code: 7 })");
    server.stop();
}

#[test]
fn progress_reports_arrive_in_order_before_the_result() {
    let server = calling_cluster(1).start();
    assert_eq!(server.get("/progress/progress-5").text(), "ok 0 1 2 3 4 done");
    assert_eq!(server.get("/run/progress-1000").text(), "ok done", "reports need not be read");
    assert_eq!(server.get("/run/left").text(), "ok true");
    server.stop();
}

#[test]
fn jobs_of_a_higher_priority_begin_first() {
    let server = calling_cluster(8).start();
    let mut busy = start_busy_job(&server);
    let mut calls = Vec::new();
    for (n, path) in ["/run/first", "/run/second", "/high/third"].into_iter().enumerate() {
        calls.push(server.send_get(path));
        wait_submitted(&server, 2 + n as u64);
    }
    create_file(&server, "go");
    assert_eq!(read_text(&mut busy), "ok waited for go");
    calls.iter_mut().for_each(|call| drop(read_text(call)));
    let order: Vec<String> = journal(&server).split_off(2);
    assert_eq!(order[0], "third", "{order:?}");
    server.stop();
}

/// Waits until `requests` are in progress and their jobs are submitted.
#[track_caller]
fn wait_submitted(server: &Server, requests: u64) {
    server.wait_active_requests(requests);
    // The only worker sends jobs in order, and this one times out in the queue.
    let text = server.get("/short/late").text().to_string();
    assert_eq!(text, "error begun=false TimedOut { has_begun: false }");
}

#[test]
fn jobs_that_wait_for_room_are_not_refused() {
    let server = calling_cluster(1).start();
    let mut busy = start_busy_job(&server);
    let mut waiting: Vec<Client> =
        (0..20).map(|n| server.send_get(&format!("/room/{n}"))).collect();
    server.wait_active_requests(21);
    create_file(&server, "go");
    assert_eq!(read_text(&mut busy), "ok waited for go");
    for (n, call) in waiting.iter_mut().enumerate() {
        assert_eq!(read_text(call), format!("ok {n}"));
    }
    server.stop();
}

#[test]
fn a_refused_job_gives_its_input_back() {
    let server = calling_cluster(0).start();
    let mut busy = start_busy_job(&server);
    assert_eq!(server.get("/try/hello").text(), "error begun=false Full");
    create_file(&server, "go");
    read_text(&mut busy);
    assert_eq!(server.get("/try/fail-1").text(), "error begun=true Failed(JobFailure { code: 1 })");
    assert_eq!(count_begun(&server, "hello"), 0);
    server.stop();
}

#[test]
fn a_detached_job_runs_although_its_caller_is_killed() {
    for how in ["detach", "start-detach"] {
        let server = calling_cluster(4).start().allow_errors(&["SIGKILL"]);
        let mut busy = start_busy_job(&server);
        let mut client = server.connect();
        assert_eq!(client.get(&format!("/{how}/later")).expect("answer").text(), "ok detached");
        let caller: u32 = client.get("/pid").expect("answer").text()[3..].parse().expect("a pid");
        // The busy job is abandoned if the same worker has submitted it: either way the detached one is next.
        process::send_signal(caller, Signal::SIGKILL);
        create_file(&server, "go");
        let _ = busy.read();
        wait_begun(&server, "later");
        server.stop();
    }
}

#[test]
fn a_job_whose_handle_is_dropped_in_the_queue_does_not_begin() {
    let server = calling_cluster(4).start();
    let mut busy = start_busy_job(&server);
    let mut client = server.connect();
    assert_eq!(client.get("/drop/dropped").expect("answer").text(), "ok dropped");
    // From the same worker, so behind it.
    client.send("GET /run/next HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    server.wait_active_requests(2);
    create_file(&server, "go");
    read_text(&mut busy);
    assert_eq!(read_text(&mut client), "ok next");
    assert_eq!(count_begun(&server, "dropped"), 0);
    server.stop();
}

#[test]
fn values_that_are_too_large_are_refused_with_their_size() {
    let server = calling_cluster(1).start();
    let input = server.get("/big/17000000").text().to_string();
    assert!(input.starts_with("error begun=false TooLarge { value: Input, size: 17000"), "{input}");
    let output = server.get("/run/big-17000000").text().to_string();
    assert!(
        output.starts_with("error begun=true TooLarge { value: Output, size: 17000"),
        "{output}"
    );
    assert_eq!(server.get("/run/hello").text(), "ok hello");
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["WARN"]).count(), 0, "{text}");
}
