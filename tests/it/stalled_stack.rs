//! Stacks of stuck workers: in the log when an event loop stalls, and from `prefork stack`.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::load::Load;
use crate::support::{Server, log, process, wait};

fn start(workers: usize, args: &[&str]) -> Server {
    let builder = ProcessBuilder::program("stuck-handlers").workers(workers);
    builder.args(args.iter().copied()).start()
}

/// Starts workers that are not killed when they stall.
fn start_patient(workers: usize, args: &[&str]) -> Server {
    let all = ["stall-warn-ms=600", "stall-timeout-ms=100000", "graceful-timeout-ms=1000"];
    start(workers, &[&all[..], args].concat())
}

/// Waits until a worker has a request for `path`. The workers are not asked.
#[track_caller]
fn wait_serving(server: &Server, path: &str) {
    let request = format!("GET {path}\"");
    wait::wait_until(&request, || server.status().to_string().contains(&request));
}

/// Returns the ids of the workers, in order.
fn worker_ids(server: &Server) -> Vec<String> {
    let status = server.status();
    let workers = status["workers"].as_array().into_iter().flatten();
    workers.map(|worker| worker["id"].to_string()).collect()
}

/// Returns the stacks of a worker.
fn stack_of(server: &Server, worker: u64) -> Value {
    let text = server.run_verb(&["stack", &worker.to_string(), "--json"]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

fn functions_of(thread: &Value) -> Vec<&str> {
    let frames = thread["frames"].as_array().into_iter().flatten();
    frames.filter_map(|frame| frame["function"].as_str()).collect()
}

/// Returns whether one thread has functions with these names on its stack, innermost first.
fn has_frames(stack: &Value, names: &[&str]) -> bool {
    let threads = stack["threads"].as_array().into_iter().flatten();
    threads.map(functions_of).any(|functions| {
        let mut functions = functions.iter();
        names.iter().all(|name| functions.any(|function| function.contains(name)))
    })
}

#[test]
fn the_log_and_the_status_say_where_a_stalled_event_loop_stands() {
    let server = start_patient(1, &[]);
    let _client = server.send_get("/spin");
    let pid = format!("pid={}", server.worker_pids()[0]);
    let line = server.wait_log(&["WARN", &pid, "stuck_handlers::spin_in_a_loop"]);
    assert!(line.contains("stuck_handlers.rs:"), "{line}");
    assert!(line.contains(" < ") && line.contains("stuck_handlers::answer"), "{line}");
    assert!(!line.contains("hyper::") && !line.contains("tokio::runtime"), "{line}");
    let status = server.status();
    let stalled_in = status["workers"][0]["stalled_in"].as_str().unwrap_or_default();
    assert!(stalled_in.contains("spin_in_a_loop"), "{status}");
    let events = server.run_verb(&["events"]);
    assert!(events.contains("stuck_handlers::spin_in_a_loop"), "{events}");
    server.stop();
}

#[test]
fn stack_shows_a_thread_that_waits_in_a_system_call_or_a_lock() {
    for (path, function) in [
        ("/sleep", "sleep_in_the_handler"),
        ("/lock", "wait_for_a_lock"),
        ("/spin", "spin_in_a_loop"),
    ] {
        let server = start_patient(1, &[]);
        let _client = server.send_get(path);
        wait_serving(&server, path);
        wait::wait_until(&format!("{function} on the stack"), || {
            has_frames(&stack_of(&server, 1), &[function, "stuck_handlers::answer"])
        });
        let text = server.run_verb(&["stack", "--slot", "0"]);
        assert!(text.contains(function) && !text.contains("hyper::proto"), "{text}");
        let full = server.run_verb(&["stack", "1", "--full"]);
        assert!(full.contains("hyper::"), "{full}");
        server.stop();
    }
}

#[test]
fn stack_shows_the_threads_of_pools_and_the_idle_event_loop() {
    let server = start_patient(1, &["pool-threads=1"]);
    let _client = server.send_get("/pool");
    wait_serving(&server, "/pool");
    wait::wait_until("the job on the stack", || {
        let stack = stack_of(&server, 1);
        let threads = stack["threads"].as_array().map_or(0, Vec::len);
        threads >= 2
            && has_frames(&stack, &["spin_in_a_loop"])
            && has_frames(&stack, &["epoll_wait", "tokio::"])
    });
    server.stop();
}

#[test]
fn stack_shows_the_busy_threads_of_the_models_with_threads() {
    for model in ["threads", "thread-per-core"] {
        let builder = ProcessBuilder::program("stuck-handlers").model(model, 2);
        let server = builder.args(["stall-timeout-ms=100000", "graceful-timeout-ms=1000"]).start();
        let _client = server.send_get("/spin");
        wait::wait_until(&format!("the handler under {model}"), || {
            has_frames(&stack_of(&server, 1), &["spin_in_a_loop", "stuck_handlers::answer"])
        });
        server.stop();
    }
}

#[test]
fn the_stalled_thread_of_thread_per_core_is_the_one_in_the_log() {
    let builder = ProcessBuilder::program("stuck-handlers").model("thread-per-core", 2);
    let args = ["stall-warn-ms=600", "stall-timeout-ms=100000", "graceful-timeout-ms=1000"];
    let server = builder.args(args).start();
    let _client = server.send_get("/spin");
    server.wait_log(&["WARN", "spin_in_a_loop", "thread"]);
    server.stop();
}

#[test]
fn deep_recursion_is_cut_and_counted() {
    let server = start_patient(1, &[]);
    let _client = server.send_get("/deep");
    wait_serving(&server, "/deep");
    let find = || {
        let stack = stack_of(&server, 1);
        let frames = stack["threads"][0]["frames"].as_array().cloned().unwrap_or_default();
        let is_recursion = |frame: &Value| {
            frame["function"].as_str().is_some_and(|name| name.contains("recurse_and_spin"))
        };
        let count = frames.iter().find(|one| is_recursion(one)).map(|one| one["repeats"].as_u64());
        count.flatten().filter(|count| *count > 100 && stack["threads"][0]["is_cut"] == true)
    };
    wait::wait_until("a counted recursion", || find().is_some());
    server.stop();
}

#[test]
fn a_stack_is_taken_before_a_stalled_worker_is_aborted() {
    let args = ["stall-warn-ms=60000", "stall-timeout-ms=1500", "graceful-timeout-ms=1000"];
    let server = start(1, &args).allow_errors(&["worker="]);
    let pid = server.worker_pids()[0];
    let _client = server.send_get("/spin");
    let tag = format!("pid={pid}");
    server.wait_log(&["ERROR", &tag, "SIGABRT"]);
    server.wait_log(&["WARN", &tag, "spin_in_a_loop"]);
    server.wait_replaced(1);
    server.stop();
}

#[test]
fn a_stopped_worker_is_named_as_stopped() {
    let server = start_patient(2, &[]);
    let pid = server.worker_pids()[0];
    process::send_signal(pid, Signal::SIGSTOP);
    let line = server.wait_log(&["WARN", &format!("pid={pid}"), "stopped by a signal"]);
    assert!(!line.contains("no answer"), "{line}");
    process::send_signal(pid, Signal::SIGCONT);
    // The late signal does not disturb it, and its stack can be taken again.
    let status = server.status();
    let workers = status["workers"].as_array().into_iter().flatten();
    let id = workers.clone().find(|one| one["pid"] == pid).and_then(|one| one["id"].as_u64());
    let id = id.expect("the worker is still there");
    wait::wait_until("its stack", || has_frames(&stack_of(&server, id), &["epoll_wait"]));
    server.stop();
}

#[test]
fn a_worker_that_dies_meanwhile_is_replaced_and_the_client_gets_an_answer() {
    let server = start(2, &["graceful-timeout-ms=1000"]).allow_errors(&["worker="]);
    for round in 0..4 {
        let pid = server.worker_pids()[0];
        let status = server.status();
        let workers = status["workers"].as_array().cloned().unwrap_or_default();
        let id = workers.iter().find(|one| one["pid"] == pid).and_then(|one| one["id"].as_u64());
        let id = id.expect("id").to_string();
        let asking = std::thread::scope(|scope| {
            let asking = scope.spawn(|| server.try_verb(&["stack", &id, "--json"]));
            process::send_signal(pid, Signal::SIGKILL);
            asking.join().expect("asked")
        });
        // A stack, why there is none, or that there is no such worker.
        assert!(matches!(asking.status, Some(0..=99)), "{asking:?}");
        assert!(!asking.stdout.is_empty() || !asking.stderr.is_empty(), "{asking:?}");
        server.wait_replaced(round + 1);
        server.wait_new_workers(2, &[pid]);
    }
    server.stop();
}

#[test]
fn a_stack_that_overflows_while_stacks_are_taken_ends_its_worker_only() {
    let server = start(2, &["stall-timeout-ms=100000", "graceful-timeout-ms=1000"]);
    let server = server.allow_errors(&["worker=", "overflow"]);
    let pids = server.worker_pids();
    let mut client = server.send_get("/recurse");
    let pid = wait::wait_until_some("the worker that recurses", || {
        let status = server.status();
        let workers = status["workers"].as_array().cloned().unwrap_or_default();
        let busy = workers.iter().find(|one| one["active"] == 1)?;
        busy["pid"].as_u64().map(|pid| (pid as u32, busy["id"].clone()))
    });
    while !process::has_ended(pid.0) {
        let _ = server.try_verb(&["stack", &pid.1.to_string(), "--json"]);
    }
    assert!(client.read().is_err());
    server.wait_replaced(1);
    let others: Vec<u32> = pids.into_iter().filter(|one| *one != pid.0).collect();
    assert!(others.iter().all(|pid| !process::has_ended(*pid)));
    server.stop();
}

#[test]
fn many_stacks_under_load_lose_no_request() {
    let server = Server::with(2, &["--graceful-timeout", "5s"]);
    let load = Load::keep_alive(server.address(), 4).start();
    let ids = worker_ids(&server);
    let socket = server.control();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (ids, socket) = (&ids, &socket);
            scope.spawn(move || {
                for round in 0..5 {
                    let id = &ids[(thread + round) % ids.len()];
                    let verb = ProcessBuilder::verb("stack").args([id, "--json", "--control"]);
                    let ended = verb.args([socket.as_os_str()]).run();
                    assert_eq!(ended.status, Some(0), "{ended:?}");
                }
            });
        }
    });
    load.wait_answered(10);
    assert_eq!(load.stop().failures(), 0);
    assert_eq!(worker_ids(&server), ids, "no worker was replaced");
    assert!(log::warnings_and_errors(&server.stop()).is_empty());
}

#[test]
fn an_unknown_worker_and_missing_arguments_are_errors() {
    let server = start(1, &[]);
    let error = server.assert_verb_fails(&["stack", "99"], 1);
    assert!(error.contains("prefork status"), "{error}");
    assert_eq!(server.try_verb(&["stack"]).status, Some(64));
    server.stop();
}

#[test]
fn workers_from_before_an_upgrade_show_their_stacks() {
    let server =
        start(1, &["graceful-timeout-ms=100000", "stall-timeout-ms=100000", "stall-warn-ms=600"]);
    let pid = server.worker_pids()[0];
    let _client = server.send_get("/spin");
    wait_serving(&server, "/spin");
    server.run_verb(&["upgrade"]);
    wait::wait_until("the stack of the old worker", || {
        has_frames(&stack_of(&server, 1), &["spin_in_a_loop", "stuck_handlers::answer"])
    });
    process::send_signal(pid, Signal::SIGKILL);
    process::wait_ended(&[pid]);
    server.allow_errors(&["worker="]).stop();
}
