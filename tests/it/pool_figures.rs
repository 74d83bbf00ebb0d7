//! The figures of CPU pools and isolated pools in the status: they add up whatever happens to the workers.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, process, wait};

/// Returns the sums of the default CPU pool over all workers.
#[track_caller]
fn pool_sums(server: &Server) -> Value {
    let status = server.status();
    assert_eq!(status["pools"][0]["name"], "default", "{status}");
    status["pools"][0].clone()
}

/// Asserts the counts of ended jobs, begun jobs and jobs that have left their thread.
#[track_caller]
fn assert_sums(server: &Server, (done, begun, ran): (u64, u64, u64)) {
    let pool = pool_sums(server);
    let counted = [&pool["done"], &pool["wait"]["count"], &pool["run"]["count"]];
    assert_eq!(counted.map(|count| count.as_u64().expect("a count")), [done, begun, ran], "{pool}");
}

fn run_jobs(server: &Server, count: usize) {
    for _ in 0..count {
        assert_eq!(server.get("/fib/5").text(), "fib(5) = 5\n");
    }
}

#[test]
fn counts_of_cpu_pools_add_up_over_kills_a_reload_and_an_upgrade() {
    let args = ["--pool-threads", "1", "--graceful-timeout", "1s"];
    let server = Server::builder().with_copied_program().workers(2).args(args).start();
    run_jobs(&server, 20);
    assert_sums(&server, (20, 20, 20));
    // A worker that is killed while it runs a job.
    let mut killed: Client = server.send_get("/fib/50");
    wait::wait_until("the job to run", || pool_sums(&server)["running"] == 1);
    let status = server.status();
    let busy =
        status["workers"].as_array().into_iter().flatten().find(|worker| {
            worker["pools"].as_array().is_some_and(|pools| pools[0]["running"] == 1)
        });
    let busy = busy.and_then(|worker| worker["pid"].as_u64()).expect("a busy worker") as u32;
    process::send_signal(busy, Signal::SIGKILL);
    assert!(killed.read_to_end().is_ok_and(|answer| answer.is_empty()));
    let workers = wait::wait_until_some("a new worker", || {
        let workers = server.worker_pids();
        (workers.len() == 2 && !workers.contains(&busy)).then_some(workers)
    });
    assert_sums(&server, (20, 21, 20));
    assert_eq!(pool_sums(&server)["running"], 0, "the dead run nothing");
    run_jobs(&server, 5);
    assert_sums(&server, (25, 26, 25));
    for worker in workers {
        process::send_signal(worker, Signal::SIGKILL);
    }
    server.wait_worker_id(5);
    assert_sums(&server, (25, 26, 25));
    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    server.wait_new_workers(2, &old);
    assert_sums(&server, (25, 26, 25));
    run_jobs(&server, 5);
    // The sums of dead workers cross the exec, and the pages of living ones are read by the new image.
    let old = server.worker_pids();
    server.run_verb(&["upgrade"]);
    assert_sums(&server, (30, 31, 30));
    server.wait_new_workers(2, &old);
    run_jobs(&server, 5);
    assert_sums(&server, (35, 36, 35));
    let seen_by_worker = server.cluster();
    assert_eq!(seen_by_worker["pools"][0]["done"], 35, "{seen_by_worker}");
    let text = server.run_verb(&["status"]);
    assert!(text.contains("pool default: 0/") && text.contains(" queued, 35 done"), "{text}");
    server.allow_errors(&["SIGKILL"]).stop();
}

#[test]
fn thread_per_core_counts_the_jobs_of_all_its_threads() {
    let server = Server::builder().model("thread-per-core", 2).args(["--faults"]).start();
    let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/fib/5").expect("answer").text(), "fib(5) = 5\n");
    }
    assert_sums(&server, (8, 8, 8));
    let old = server.worker_pids();
    drop(clients);
    server.run_verb(&["reload"]);
    server.wait_new_workers(1, &old);
    assert_sums(&server, (8, 8, 8));
    server.stop();
}

/// Returns the figures of the isolated pool, which hold its law: each submitted job waits, runs or has ended in one way.
#[track_caller]
fn isolated_figures(server: &Server) -> Value {
    let status = server.status();
    let pool = status["isolated"][0].clone();
    assert_eq!(pool["name"], "danger", "{status}");
    let sum =
        |names: &[&str]| names.iter().map(|name| pool[name].as_u64().expect(name)).sum::<u64>();
    let ended = sum(&[
        "done",
        "failed",
        "panicked",
        "died",
        "timed_out",
        "cut",
        "refused",
        "closed",
        "abandoned",
        "lost",
    ]);
    assert_eq!(
        sum(&["submitted"]),
        ended + sum(&["depth", "waiting_for_room", "running"]),
        "{pool}"
    );
    pool
}

/// Asserts figures of the isolated pool.
#[track_caller]
fn assert_isolated(server: &Server, expected: &[(&str, u64)]) {
    let pool = isolated_figures(server);
    for (name, count) in expected {
        assert_eq!(pool[name], *count, "{name} in {pool}");
    }
}

fn isolated_job(server: &Server, path: &str) -> String {
    server.get(path).text().to_string()
}

#[test]
fn each_end_of_an_isolated_job_is_counted_over_kills_a_reload_and_an_upgrade() {
    let program = ProcessBuilder::program("isolated-jobs").args(["processes=1"]);
    let program = program.workers(1).other_workers(1).with_copied_program();
    let server =
        program.start().allow_errors(&["panicked at", "SIGSEGV", "SIGKILL", "a job hangs"]);
    assert_isolated(&server, &[("submitted", 0), ("capacity", 8), ("processes", 1)]);
    for (path, answer) in [
        ("/hello", "hello by "),
        ("/hello", "hello by "),
        ("/error", "Failed"),
        ("/panic", "Panicked"),
        ("/segv", "Died"),
        ("/hang/100", "TimedOut"),
    ] {
        let text = isolated_job(&server, path);
        assert!(text.starts_with(answer), "{path}: {text}");
    }
    let expected = [("done", 2), ("failed", 1), ("panicked", 1), ("died", 1), ("timed_out", 1)];
    assert_isolated(&server, &expected);
    let pool = isolated_figures(&server);
    assert_eq!((&pool["wait"]["count"], &pool["run"]["count"]), (&6.into(), &6.into()), "{pool}");
    // Its timeout includes the time in the queue.
    let longest =
        ["wait", "run"].iter().filter_map(|kind| pool[kind]["max_us"].as_u64()).sum::<u64>();
    assert!(longest >= 100_000, "the job that hung ran: {pool}");
    let text = server.run_verb(&["status"]);
    assert!(text.contains("isolated danger: ") && text.contains("1 died, 1 timed out"), "{text}");
    // A worker reads the same.
    let seen_by_worker: Value =
        serde_json::from_str(&isolated_job(&server, "/status")).expect("JSON");
    assert_eq!(seen_by_worker["done"], 2, "{seen_by_worker}");

    let killed = server.worker_pids();
    for worker in &killed {
        process::send_signal(*worker, Signal::SIGKILL);
    }
    server.wait_new_workers(2, &killed);
    server.run_verb(&["reload"]);
    assert_isolated(&server, &expected);
    server.run_verb(&["upgrade"]);
    assert_isolated(&server, &expected);
    assert!(isolated_job(&server, "/hello").starts_with("hello by "));
    assert_isolated(&server, &[("done", 3), ("failed", 1), ("died", 1), ("submitted", 7)]);
    server.stop();
}

#[test]
fn the_status_shows_the_running_and_the_waiting_isolated_jobs() {
    let program = ProcessBuilder::program("isolated-jobs").args(["processes=1"]);
    let server = program.workers(1).other_workers(1).start();
    assert!(isolated_job(&server, "/hello").starts_with("hello by "));
    let mut clients: Vec<Client> = (0..2).map(|_| server.send_get("/barrier")).collect();
    wait::wait_until("a running and a waiting job", || {
        let pool = isolated_figures(&server);
        (&pool["running"], &pool["depth"]) == (&1.into(), &1.into())
    });
    let job_of_process = || {
        let status = server.status();
        let workers = status["workers"].as_array().cloned().unwrap_or_default();
        workers
            .into_iter()
            .find(|worker| worker["kind"] == "danger")
            .map(|worker| worker["job"].clone())
    };
    wait::wait_until("the second job to begin", || {
        job_of_process().is_some_and(|job| job["id"] == 2 && job["age_ms"].is_u64())
    });
    assert!(isolated_figures(&server)["oldest_run_ms"].is_u64());
    let text = server.run_verb(&["status"]);
    assert!(text.contains("isolated danger: 1/1 busy, 1 of 8 queued, 1 done"), "{text}");
    assert!(
        text.lines().any(|row| row.contains("  danger  ") && row.contains("  job 2 (")),
        "{text}"
    );
    assert!(!text.contains("of kind danger"), "{text}");
    std::fs::write(server.dir().join("barrier"), "").expect("barrier");
    for client in &mut clients {
        assert_eq!(client.read().expect("answer").text(), "through the barrier");
    }
    assert_isolated(&server, &[("done", 3), ("running", 0), ("depth", 0)]);
    assert_eq!(job_of_process(), Some(Value::Null), "no job runs");
    server.stop();
}
