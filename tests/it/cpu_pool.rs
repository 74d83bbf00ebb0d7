//! The CPU pool of the workers: `/fib` and `/hash` of the built-in application.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::concurrency_models;
use crate::support::command::ProcessBuilder;
use crate::support::{Client, Failure, Server, log, process, wait};

/// A job of half a minute in a release build, and much longer in a debug build.
const ENDLESS_PATH: &str = "/fib/50";

/// Starts a worker with one pool thread, a queue of `queue` jobs, and a graceful timeout of 1 s.
fn start_pool(queue: &str, args: &[&str]) -> Server {
    start_pool_with(queue, "1", "1s", args)
}

fn start_pool_with(queue: &str, threads: &str, grace: &str, args: &[&str]) -> Server {
    let pool = ["--pool-threads", threads, "--pool-queue", queue, "--graceful-timeout", grace];
    Server::builder().workers(1).args(pool).args(args.iter().copied()).start()
}

/// Returns a figure of the pool of the first worker; 0 before the first job.
fn pool_figure(server: &Server, name: &str) -> u64 {
    let status = server.status();
    match &status["workers"][0]["pools"] {
        Value::Null => 0,
        pools => pools[0][name].as_u64().unwrap_or_else(|| panic!("{name} in {status}")),
    }
}

#[track_caller]
fn wait_pool_figure(server: &Server, name: &str, value: u64) {
    wait::wait_until(&format!("{name} = {value}"), || pool_figure(server, name) == value);
}

/// Returns id and nice value of each pool thread of a worker.
fn pool_threads(pid: u32) -> Vec<(u32, i32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let found = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let nice = rest.split(' ').nth(16)?.parse().ok()?;
        let id = task.file_name().to_str()?.parse().ok()?;
        name.contains("(pool-").then_some((id, nice))
    });
    found.collect()
}

#[test]
fn a_worker_serves_while_pool_jobs_run() {
    let server = start_pool("8", &["--stall-warn", "5s", "--stall-timeout", "20s"]);
    let clients: Vec<Client> = (0..3).map(|_| server.send_get(ENDLESS_PATH)).collect();
    wait_pool_figure(&server, "depth", 2);
    let mut client = server.connect();
    // The jobs take minutes, so on the event loop they would block all of these.
    for _ in 0..200 {
        assert_eq!(client.get("/").expect("answer").status, 200);
    }
    let status = server.status();
    let serving = status["workers"][0]["serving"].as_array().cloned().expect("requests");
    assert_eq!(serving.iter().filter(|r| r["request"] == "GET /fib/50").count(), 3, "{status}");
    assert!(serving.iter().all(|r| r["on_loop"] == false), "{status}");
    // A stalled event loop would be warned about.
    assert_eq!(log::warnings_and_errors(&server.log()), Vec::<&str>::new());
    drop(clients);
    server.stop();
}

#[test]
fn a_full_pool_queue_is_503_with_retry_after() {
    let server = start_pool("1", &[]);
    let _runs = server.send_get(ENDLESS_PATH);
    wait_pool_figure(&server, "running", 1);
    let _waits = server.send_get(ENDLESS_PATH);
    wait_pool_figure(&server, "depth", 1);
    let refused = server.get("/fib/1");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert_eq!(server.get("/").status, 200);
    assert_eq!(pool_figure(&server, "rejected"), 1);
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn a_disconnected_clients_pool_job_is_cancelled() {
    let server = start_pool("8", &[]);
    let runs = server.send_get(ENDLESS_PATH);
    wait_pool_figure(&server, "running", 1);
    let waits = [server.send_get(ENDLESS_PATH), server.send_get(ENDLESS_PATH)];
    wait_pool_figure(&server, "depth", 2);
    drop(waits);
    wait_pool_figure(&server, "depth", 0);
    assert_eq!((pool_figure(&server, "running"), pool_figure(&server, "cancelled")), (1, 2));
    drop(runs);
    // The job checks its cancel flag.
    wait_pool_figure(&server, "running", 0);
    assert_eq!((pool_figure(&server, "done"), pool_figure(&server, "cancelled")), (0, 3));
    server.stop();
}

#[test]
fn a_draining_worker_finishes_running_and_queued_pool_jobs() {
    // At normal priority: niced threads may starve on a busy machine.
    let server = start_pool_with("8", "1", "25s", &["--pool-nice", "0"]);
    let mut clients = [server.send_get("/fib/36"), server.send_get("/fib/30")];
    wait::wait_until("a job", || {
        pool_figure(&server, "running") + pool_figure(&server, "done") > 0
    });
    server.signal(Signal::SIGTERM);
    let answers = clients.each_mut().map(|client| client.read().expect("an answer"));
    assert_eq!(answers[0].text(), "fib(36) = 14930352\n");
    assert_eq!(answers[1].text(), "fib(30) = 832040\n");
    let text = server.wait_clean_exit(0);
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn an_endless_pool_job_does_not_keep_a_worker_alive() {
    let server = start_pool("8", &["--faults"]);
    let mut client = server.send_get("/fault/job-hang");
    wait_pool_figure(&server, "running", 1);
    let mut waits = server.send_get("/fib/1");
    wait_pool_figure(&server, "depth", 1);
    server.signal(Signal::SIGTERM);
    for client in [&mut client, &mut waits] {
        let failure = client.read().expect_err("it was cut");
        assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    }
    let text = server.wait_clean_exit(0);
    // The worker logs that it cut the job and two connections; the primary does not have to kill it.
    assert_eq!(log::lines_with(&text, &["WARN", "worker=1", "job"]).count(), 1, "{text}");
    assert_eq!(log::lines_with(&text, &["graceful-timeout"]).count(), 0, "{text}");
}

#[test]
fn an_orphaned_worker_exits_despite_an_endless_pool_job() {
    let mut server = start_pool("8", &["--faults"]);
    let pids = server.worker_pids();
    let _client = server.send_get("/fault/job-hang");
    wait_pool_figure(&server, "running", 1);
    server.kill_primary();
    wait::wait_until("its end", || pids.iter().all(|pid| process::has_ended(*pid)));
}

#[test]
fn a_panicking_pool_job_is_500_and_its_thread_is_replaced() {
    let server = start_pool("8", &["--faults"]).allow_errors(&["/fault/job-panic", "panicked at"]);
    let pid = server.worker_pids()[0];
    assert_eq!(pool_threads(pid), [], "none before the first job");
    server.get("/fib/1");
    let before = pool_threads(pid);
    assert_eq!(before.len(), 1);
    let answer = server.get("/fault/job-panic");
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.text().contains("/fault/job-panic"), "{answer:?}");
    assert_eq!(server.get("/fib/10").text(), "fib(10) = 55\n");
    wait::wait_until("the old thread's end", || pool_threads(pid).len() == 1);
    assert_ne!(pool_threads(pid)[0].0, before[0].0);
    assert_eq!((pool_figure(&server, "panicked"), pool_figure(&server, "done")), (1, 2));
    assert_eq!(server.worker_pids(), [pid]);
    server.stop();
}

#[test]
fn pool_threads_run_at_pool_nice() {
    let args = ["--pool-nice", "12", "--pool-min-threads", "3"];
    let server = start_pool_with("8", "3", "1s", &args);
    let pid = server.worker_pids()[0];
    server.get("/fib/1");
    wait::wait_until("three threads", || pool_threads(pid).len() == 3);
    // Each thread sets its own nice value when it starts.
    wait::wait_until("their priority", || pool_threads(pid).iter().all(|(_, nice)| *nice == 12));
    server.stop();
}

#[test]
fn status_shows_the_pool() {
    let server = start_pool("8", &[]);
    let text = server.run_verb(&["status"]);
    assert!(!text.contains("pool default"), "nothing to show yet: {text}");
    server.get("/fib/1");
    let clients: Vec<Client> = (0..3).map(|_| server.send_get(ENDLESS_PATH)).collect();
    wait_pool_figure(&server, "depth", 2);
    wait_pool_figure(&server, "utilisation", 100);
    let text = server.run_verb(&["status"]);
    assert_eq!(log::lines_with(&text, &["GET /fib/50"]).count(), 1, "{text}");
    let line = ["pool default: 1/1 busy (100%), 2 of 8 queued, 1 done,"];
    assert_eq!(log::lines_with(&text, &line).count(), 1, "{text}");
    assert_eq!(log::lines_with(&text, &["waited p50 ", ", ran p50 "]).count(), 1, "{text}");
    let pool = server.status()["workers"][0]["pools"][0].clone();
    assert_eq!(
        (&pool["threads"], &pool["capacity"], &pool["done"]),
        (&1.into(), &8.into(), &1.into())
    );
    let jobs = ["wait", "run"].map(|name| pool[name]["count"].as_u64().expect(name));
    assert_eq!(jobs, [2, 1], "{pool}");
    assert!(pool["run"]["p50_us"].is_u64() && pool["wait"]["p99_us"].is_u64(), "{pool}");
    assert_eq!(server.cluster()["workers"][0]["pools"][0]["depth"], 2);
    assert_eq!(server.cluster()["pools"][0]["name"], "default");
    drop(clients);
    server.stop();
}

#[test]
fn a_query_parameter_selects_pool_or_event_loop() {
    let server = start_pool("8", &[]);
    for (path, in_pool) in [("/fib/20", 1), ("/fib/20?on=pool", 2), ("/fib/20?on=loop", 2)] {
        assert_eq!(server.get(path).text(), "fib(20) = 6765\n");
        assert_eq!(pool_figure(&server, "done"), in_pool, "{path}");
    }
    assert_eq!(server.get("/fib/20?on=moon").status, 400);
    server.stop();
}

#[test]
fn a_body_is_hashed_in_the_pool() {
    let server = start_pool("8", &["--max-body-size", "300KiB"]);
    let post = |path: &str, body: &[u8]| server.connect().post(path, body).expect("an answer");
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    assert_eq!(post("/hash", b"abc").text(), abc);
    let twice = "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358\n";
    assert_eq!(post("/hash?rounds=2", b"abc").text(), twice);
    // The same as sha256sum of 300 KiB of zeros.
    let zeros = "7818f5542a0404157573be6cffc0e0c8e68ce3c0f5d17d07ccdd9313fb700baf\n";
    assert_eq!(post("/hash", &vec![0; 300 << 10]).text(), zeros);
    assert_eq!(pool_figure(&server, "done"), 3);
    assert_eq!(post("/hash", &vec![0; (300 << 10) + 1]).status, 413);
    assert_eq!(post("/hash?rounds=0", b"").status, 400);
    assert_eq!(server.get("/hash").status, 405);
    server.stop();
}

#[test]
fn every_model_runs_and_counts_pool_jobs() {
    concurrency_models::for_each_model(&["--faults"], |_, server| {
        let server = server.allow_errors(&["/fault/job-panic", "panicked at"]);
        assert_eq!(server.get("/fib/20").text(), "fib(20) = 6765\n");
        let mut client = server.connect();
        let hash = client.post("/hash", b"abc").expect("answer");
        assert!(hash.text().starts_with("ba7816bf"), "{hash:?}");
        // A panicking job fails alone.
        assert_eq!(client.get("/fault/job-panic").expect("answer").status, 500);
        assert_eq!(client.get("/fib/10").expect("answer").text(), "fib(10) = 55\n");
        let status = server.status();
        let counted = |name: &str| status["pools"][0][name].as_u64().expect(name);
        assert_eq!((counted("done"), counted("panicked")), (3, 1));
        drop(client);
        server.stop();
    });
}

/// Returns the blocked and the ignored signals of a program that this thread starts.
fn own_child_signals() -> String {
    let status = std::process::Command::new("cat").arg("/proc/self/status").output().expect("cat");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let lines = status.lines().filter(|line| ["SigBlk", "SigIgn"].contains(&&line[..6]));
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn programs_that_a_worker_starts_have_no_signal_blocked() {
    for model in ["prefork", "thread-per-core"] {
        let server = ProcessBuilder::program("cpu-pool").model(model, 1).other_workers(2).start();
        let expected = own_child_signals();
        assert!(expected.contains("SigBlk:\t0000000000000000"), "{expected}");
        for place in ["loop", "pool", "blocking"] {
            let seen = server.get(&format!("/signals/{place}"));
            assert_eq!(seen.text(), expected, "{model} {place}");
        }
        // An isolated process is in a process group of its own, and ignores the signals that would stop it when it uses the terminal.
        let isolated = server.get("/signals/isolated");
        assert!(isolated.text().starts_with("SigBlk:\t0000000000000000 "), "{isolated:?}");
        let of_kind = server.dir().join("kind-signals");
        wait::wait_until("the worker of the kind", || of_kind.exists());
        assert_eq!(fs::read_to_string(of_kind).expect("written"), expected, "{model} kind");
        server.stop();
    }
}

fn start_program(model: &str, args: &[&str]) -> Server {
    let count = if model.starts_with("thread") { 2 } else { 1 };
    let program = ProcessBuilder::program("cpu-pool").model(model, count).other_workers(2);
    program.args(args.iter().copied()).start()
}

/// Returns what the program has recorded, sorted.
fn events(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(server.dir().join("events")).unwrap_or_default();
    let mut events: Vec<String> = text.lines().map(str::to_string).collect();
    events.sort();
    events
}

/// Returns a figure of all pools of all workers together.
fn figure_of_all_pools(server: &Server, name: &str) -> u64 {
    let status = server.status();
    let pools = status["pools"].as_array().cloned().unwrap_or_default();
    pools.iter().filter_map(|pool| pool[name].as_u64()).sum()
}

fn release(server: &Server) {
    fs::write(server.dir().join("release"), "").expect("write");
}

const MODELS: [&str; 4] = ["prefork", "single", "thread-per-core", "threads"];

#[test]
fn results_of_background_jobs_are_delivered_before_a_worker_exits() {
    for model in MODELS {
        let mut server = start_program(model, &[]);
        assert_eq!(server.get("/background").text(), "submitted", "{model}");
        // The pool that the worker does not know is in no status.
        wait::wait_until("the jobs to begin", || figure_of_all_pools(&server, "running") == 3);
        server.signal(Signal::SIGTERM);
        server.wait_log(&["stopping"]);
        release(&server);
        assert_eq!(server.wait_exit().code(), Some(0), "{model}");
        let expected = [
            "default 1",
            "detached",
            "images 2",
            "job of the kind",
            "own 3",
            "queued 5",
            "state dropped",
            "tasks 4",
        ];
        assert_eq!(events(&server), expected, "{model}");
    }
}

#[test]
fn jobs_that_outlast_the_graceful_timeout_are_told_so() {
    for model in ["prefork", "thread-per-core"] {
        let mut server = start_program(model, &["graceful-timeout-ms=500"]);
        assert_eq!(server.get("/background").text(), "submitted", "{model}");
        wait::wait_until("the jobs to begin", || figure_of_all_pools(&server, "running") == 3);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait_exit().code(), Some(0), "{model}");
        let expected = ["default Cut", "images Cut", "own Cut", "queued Closed", "tasks Cut"];
        let mut seen = events(&server);
        // Other threads of the default pool may have been free for these.
        seen.retain(|event| !["job of the kind", "detached"].contains(&event.as_str()));
        assert_eq!(seen, expected, "{model}");
        assert!(server.count_log(&["WARN", "abandoned 4 running jobs"]) >= 1, "{}", server.log());
    }
}

#[test]
fn a_request_in_progress_may_use_the_pool_while_another_event_loop_has_drained() {
    for model in MODELS {
        let server = start_program(model, &[]);
        let mut client = server.send_get("/late");
        server.wait_request_in_status("/late");
        server.signal(Signal::SIGTERM);
        server.wait_log(&["stopping"]);
        release(&server);
        assert_eq!(client.read().expect("an answer").text(), "42", "{model}");
        server.wait_clean_exit(0);
    }
}

#[test]
fn all_event_loops_of_a_process_share_its_pools() {
    for model in ["thread-per-core", "threads"] {
        let server = start_program(model, &["pool-threads=1"]);
        // New connections, which go to both event loops.
        let threads: std::collections::BTreeSet<String> =
            (0..8).map(|_| server.get("/thread").text().to_string()).collect();
        assert_eq!(threads.len(), 1, "{model}: {threads:?}");
        let status = server.status();
        let names = status["pools"].as_array().expect("pools").iter();
        let names: Vec<&str> = names.filter_map(|pool| pool["name"].as_str()).collect();
        assert_eq!(names, ["default", "images", "tasks"], "{model}");
        server.stop();
    }
}

#[test]
fn a_job_that_waits_for_its_own_saturated_pool_gets_an_error() {
    let server = start_program("prefork", &[]);
    let answer = server.get("/nested").text().to_string();
    assert!(answer.contains("all threads of the pool wait"), "{answer}");
    server.stop();
}

#[test]
fn a_state_that_cannot_be_made_is_an_error_of_the_boot() {
    let output = ProcessBuilder::program("cpu-pool").workers(1).args(["model-state=broken"]).run();
    assert_eq!(output.status, Some(70), "{}", output.stderr);
    assert!(output.stderr.contains("no model"), "{}", output.stderr);
}
