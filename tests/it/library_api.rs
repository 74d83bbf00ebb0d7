//! Programs on the library: preload, handlers that are not `Send`, axum, other protocols, and retiring workers.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, log, process, wait};

/// Returns the fields of a response of `preload`: pid, pid of the loader, number of loads, address, sum.
fn preload_fields(server: &Server) -> Vec<String> {
    server.get("/").text().split(' ').map(str::to_string).collect()
}

#[test]
fn preloaded_data_is_loaded_once_for_all_workers() {
    let server = ProcessBuilder::program("preload").workers(2).start().allow_errors(&["SIGKILL"]);
    let before = preload_fields(&server);
    assert_eq!(before[1..3], [server.pid().to_string(), "1".to_string()], "{before:?}");
    assert_eq!(before[4], (7u64 * (4 << 20)).to_string());
    // A replacement has the data at the same address, without another load.
    let pid: u32 = before[0].parse().expect("pid");
    process::send_signal(pid, Signal::SIGKILL);
    server.wait_replaced(1);
    let after = preload_fields(&server);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..]);
    server.stop();
}

/// Returns the private memory of a process in kB.
fn private_memory_kb(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[test]
fn preloaded_memory_is_not_copied_when_it_is_read() {
    let server = ProcessBuilder::program("preload").workers(2).start();
    // Each request reads all 32 MiB.
    let pid: u32 = preload_fields(&server)[0].parse().expect("pid");
    let private = private_memory_kb(pid);
    assert!(private < 16 << 10, "{private} kB of its own");
    server.stop();
}

#[test]
fn preloaded_data_reaches_workers_of_every_kind_and_door() {
    // Under `serve`, the worker that answers asks one of another kind.
    let server = ProcessBuilder::program("preload-everywhere").workers(1).other_workers(1);
    let server = server.args(["door=serve"]).start();
    assert_eq!(server.get("/").text(), "hello world");
    server.stop();
    let server = ProcessBuilder::program("preload-everywhere").workers(1).other_workers(1);
    let server = server.args(["door=threads", "model=threads"]).start();
    assert_eq!(server.get("/").text(), "hello world");
    server.stop();
    let server = ProcessBuilder::program("preload-everywhere").workers(1).other_workers(1);
    let server = server.args(["door=connections"]).start();
    assert_eq!(server.connect().read_to_end().expect("greeting"), b"hello world");
    server.stop();
}

#[test]
fn before_fork_runs_once_in_a_process_that_may_use_a_runtime() {
    let server = ProcessBuilder::program("migrates-before-fork").workers(2).start();
    let migrations =
        || std::fs::read_to_string(server.dir().join("migrated")).expect("a migration");
    let pid: u32 = migrations().trim().parse().expect("one migration");
    assert!(pid != server.pid() && process::has_ended(pid), "{pid} is a child that has ended");
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    assert_eq!(migrations().lines().count(), 1, "a reload does not run it");
    server.stop();
}

#[test]
fn an_upgrade_runs_before_fork_in_its_check_and_fails_with_it() {
    let server = ProcessBuilder::program("migrates-before-fork").workers(1).start();
    let server = server.allow_errors(&["upgrade", "schema"]);
    let migrations =
        || std::fs::read_to_string(server.dir().join("migrated")).expect("a migration");
    server.run_verb(&["upgrade"]);
    assert_eq!(migrations().lines().count(), 2, "not again when the new binary takes over");
    std::fs::write(server.dir().join("broken"), "").expect("write");
    let why = server.assert_verb_fails(&["upgrade"], 1);
    assert!(why.contains("before_fork failed: the schema is newer"), "{why}");
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_failed_before_fork_ends_the_start_before_any_fork_of_a_worker() {
    let ended = ProcessBuilder::program("before-fork-panics").run();
    assert_eq!(ended.status, Some(70), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("before_fork failed: it panicked: no schema"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("worker="), "{}", ended.stderr);
}

#[test]
fn a_failed_preload_ends_the_start_before_any_fork() {
    for (program, why) in
        [("preload-fails", "load: the disk is gone"), ("preload-panics", "preload panics")]
    {
        let ended = ProcessBuilder::program(program).run();
        assert_eq!(ended.status, Some(70), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
        assert!(!ended.stderr.contains("worker="), "{}", ended.stderr);
    }
}

#[test]
fn a_process_with_several_threads_is_not_forked() {
    let ended = ProcessBuilder::program("preload-leaves-a-thread").args(["boot-attempts=2"]).run();
    assert_ne!(ended.status, Some(0), "{}", ended.stderr);
    for piece in ["2 threads", "left-running", "preload"] {
        assert!(ended.stderr.contains(piece), "{piece}: {}", ended.stderr);
    }
    assert!(log::worker_pids(&ended.stderr).is_empty(), "{}", ended.stderr);
}

#[test]
fn handlers_need_not_be_send() {
    let server = ProcessBuilder::program("not-send").workers(1).start();
    let mut client = server.connect();
    let pid = server.worker_pids()[0];
    for n in 1..=3 {
        let answer = client.get("/").expect("answer");
        assert_eq!(answer.text(), format!("{n} by PID {pid}"));
    }
    drop(client);
    server.stop();
}

#[test]
fn an_axum_application_is_served() {
    let server = ProcessBuilder::program("axum").workers(2).start();
    let answer = server.get("/hello/world");
    assert!(answer.text().starts_with("hello world, from PID "), "{}", answer.text());
    assert!(server.worker_pids().contains(&answer.pid()));
    assert_eq!(server.get("/nowhere").status, 404);
    server.stop();
}

/// Reads one line, with its end.
fn read_line(client: &mut crate::support::Client) -> String {
    let mut text = String::new();
    while !text.ends_with('\n') {
        let byte = client.read_exactly(1).expect("a line");
        text.push(byte[0] as char);
    }
    text
}

#[test]
fn serve_connections_supports_other_protocols() {
    let server = ProcessBuilder::program("connections")
        .workers(2)
        .args(["graceful-timeout-ms=20000"])
        .start();
    let mut client = server.connect();
    // The server sends the first line.
    assert!(read_line(&mut client).starts_with("hello from "));
    client.send("ping\n").expect("send");
    assert_eq!(read_line(&mut client), "ping\n");
    // During a stop, the connection can finish.
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    client.send("still there?\n").expect("send");
    assert_eq!(read_line(&mut client), "still there?\n");
    client.send("bye\n").expect("send");
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.wait_clean_exit(0);
}

#[test]
fn serve_connections_cuts_connections_at_the_graceful_timeout() {
    let server =
        ProcessBuilder::program("connections").workers(1).args(["graceful-timeout-ms=500"]).start();
    let mut client = server.connect();
    assert!(read_line(&mut client).starts_with("hello from "));
    server.signal(Signal::SIGTERM);
    client.read_to_end().expect("an end");
    server.wait_clean_exit(0);
}

#[test]
fn retiring_workers_lose_no_request() {
    let server = ProcessBuilder::program("retiring").workers(2).start();
    let load = crate::support::load::Load::keep_alive(server.address(), 4).start();
    // Each worker retires at its third request.
    server.wait_worker_id(12);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    wait::wait_until("the replacements", || server.worker_pids().len() == 2);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}
