//! The four concurrency models: what holds in all of them, and where they differ.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::load::Load;
use crate::support::{Client, Failure, Server, log, process, wait};

pub const ALL_MODELS: [&str; 4] = ["prefork", "single", "threads", "thread-per-core"];

/// Number of processes or threads, in models that have several.
const PROCESS_OR_THREAD_COUNT: usize = 2;

/// Runs `test` for each model, on a server with these arguments.
#[track_caller]
pub fn for_each_model(args: &[&str], test: impl Fn(&str, Server)) {
    for model in ALL_MODELS {
        // The test framework prints this if the test fails.
        println!("model {model}");
        test(model, start_model(model, args));
    }
}

#[track_caller]
pub fn start_model(model: &str, args: &[&str]) -> Server {
    Server::builder().model(model, PROCESS_OR_THREAD_COUNT).args(args.iter().copied()).start()
}

#[test]
fn every_model_serves_keep_alive_and_pipelining() {
    for_each_model(&[], |model, server| {
        let processes = if model == "prefork" { PROCESS_OR_THREAD_COUNT } else { 1 };
        assert_eq!(server.worker_pids().len(), processes);
        let mut client = server.connect();
        let first = client.get("/").expect("answer").pid();
        assert!(server.worker_pids().contains(&first));
        for _ in 0..20 {
            assert_eq!(client.get("/").expect("answer").pid(), first);
        }
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        let all = [get("/bytes/3"), get("/sleep/20"), get("/nowhere"), get("/")].concat();
        client.send(all).expect("send");
        assert_eq!(client.read().expect("first").text(), "000");
        assert_eq!(client.read().expect("second").text(), "slept for 20 ms\n");
        assert_eq!(client.read().expect("third").status, 404);
        assert_eq!(client.read().expect("fourth").pid(), first);
        drop(client);
        server.stop();
    });
}

#[test]
fn every_model_transfers_bodies_completely() {
    for_each_model(&[], |_, server| {
        let mut client = server.connect();
        let large = vec![b'x'; 1 << 20];
        assert_eq!(client.post("/echo", &large).expect("answer").body, large);
        assert_eq!(client.get("/bytes/5000000").expect("answer").body.len(), 5_000_000);
        let head = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(client.send_and_read(head).expect("100 Continue").status, 100);
        assert_eq!(client.send_and_read("body").expect("answer").text(), "body");
        let chunked = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n";
        assert_eq!(client.send_and_read(chunked).expect("answer").text(), "chunked");
        drop(client);
        server.stop();
    });
}

#[test]
fn every_model_refuses_malformed_and_slow_requests() {
    for_each_model(&["--header-timeout", "1s", "--keep-alive-timeout", "2s"], |_, server| {
        let mut client = server.connect();
        let smuggled = "GET / HTTP/1.1\r\nHost: a/b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let answer = client.send_and_read(smuggled).expect("answer");
        assert_eq!((answer.status, answer.closes()), (400, true));
        let rest = client.read_to_end();
        assert!(matches!(rest.as_deref(), Ok([]) | Err(Failure::Reset)), "{rest:?}");
        // Incomplete heads and silent clients time out.
        let mut idle = server.connect();
        assert_eq!(idle.get("/").expect("answer").status, 200);
        // Measured from before the first timeout starts.
        let begun = Instant::now();
        let (mut half, mut silent) = (server.connect(), server.connect());
        half.send("GET / HTTP/1.1\r\nHo").expect("send");
        for client in [&mut half, &mut silent, &mut idle] {
            let rest = client.read_to_end().expect("the end of the connection");
            assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "{rest:?}");
        }
        assert!(begun.elapsed() >= Duration::from_millis(900), "not at once");
        server.stop();
    });
}

#[test]
fn in_every_model_a_panic_fails_one_request() {
    for_each_model(&["--faults"], |_, server| {
        let server = server.allow_errors(&["/fault/panic", "panicked at"]);
        let pids = server.worker_pids();
        let mut client = server.connect();
        assert_eq!(client.get("/fault/panic").expect("answer").status, 500);
        assert_eq!(client.get("/").expect("answer").status, 200);
        assert_eq!(server.worker_pids(), pids);
        let pid = format!("pid={}", client.get("/").expect("answer").pid());
        server.wait_log(&["ERROR", &pid, "GET /fault/panic"]);
        assert_eq!(server.status()["totals"]["panics"], 1);
        drop(client);
        server.stop();
    });
}

#[test]
fn no_model_loses_a_request_during_a_stop() {
    // Longer than any client is idle, even on a busy machine.
    for_each_model(&["--linger-timeout", "20s"], |_, server| {
        let mut long = server.start_request("/sleep/1500");
        let kept = Load::keep_alive(server.address(), 6)
            .with_posts()
            .with_think_time()
            .until_refused()
            .start();
        let new =
            Load::new_connections(server.address(), 2).with_think_time().until_refused().start();
        kept.wait_answered(100);
        new.wait_answered(30);
        server.signal(Signal::SIGTERM);
        let answer = long.read().expect("an answer");
        assert_eq!((answer.text(), answer.closes()), ("slept for 1500 ms\n", true));
        let (kept, new) = (kept.join(), new.join());
        assert_eq!((kept.failures(), new.failures()), (0, 0), "{kept:?} {new:?}");
        server.wait_clean_exit(0);
    });
}

#[test]
fn every_model_cuts_and_names_requests_at_the_graceful_timeout() {
    for_each_model(&["--graceful-timeout", "500ms"], |_, server| {
        let mut client = server.start_request("/sleep/60000");
        server.signal(Signal::SIGTERM);
        assert!(client.read().is_err());
        let text = server.wait_clean_exit(0);
        assert_eq!(log::lines_with(&text, &["WARN", "GET /sleep/60000"]).count(), 1, "{text}");
    });
}

#[test]
fn no_model_loses_a_request_during_a_reload() {
    for_each_model(&["--linger-timeout", "20s"], |model, server| {
        let kept = Load::keep_alive(server.address(), 6).with_posts().with_think_time().start();
        let new = Load::new_connections(server.address(), 2).with_think_time().start();
        for generation in 2..4 {
            kept.wait_answered(60);
            new.wait_answered(20);
            let old = server.worker_pids();
            server.signal(Signal::SIGHUP);
            server.wait_generation(generation);
            server.wait_new_workers(old.len(), &old);
        }
        let (kept, new) = (kept.stop(), new.stop());
        assert_eq!((kept.failures(), new.failures()), (0, 0), "{kept:?} {new:?}");
        assert_eq!((kept.refused, new.refused), (0, 0));
        // Connections are handed over, except in `threads`, which closes them.
        assert_eq!(kept.ended > 0, model == "threads", "{model}: {kept:?}");
        server.stop();
    });
}

#[test]
fn no_model_loses_a_request_during_an_upgrade() {
    for model in ALL_MODELS {
        let server = Server::builder().model(model, PROCESS_OR_THREAD_COUNT).with_copied_program();
        let server = server.args(["--linger-timeout", "20s"]).start();
        let load = Load::keep_alive(server.address(), 4).with_posts().with_think_time().start();
        load.wait_answered(40);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(2);
        server.wait_new_workers(old.len(), &old);
        load.wait_answered(40);
        let tally = load.stop();
        assert_eq!((tally.failures(), tally.refused), (0, 0), "{model}: {tally:?}");
        let status = server.status();
        assert!(status["totals"]["requests"].as_u64() >= Some(tally.ok), "{model}: {status}");
        server.stop();
    }
}

#[test]
fn every_model_replaces_a_killed_worker() {
    for_each_model(&[], |_, server| {
        let server = server.allow_errors(&["SIGKILL"]);
        let old = server.worker_pids();
        process::send_signal(old[0], Signal::SIGKILL);
        server.wait_replaced(1);
        wait::wait_until("its end", || process::has_ended(old[0]));
        assert_eq!(server.get("/").status, 200);
        assert_eq!(server.status()["primary"]["restarts"], 1);
        server.stop();
    });
}

#[test]
fn every_model_replaces_a_worker_that_gets_sigterm() {
    for_each_model(&[], |_, server| {
        let old = server.worker_pids();
        let mut slow = server.start_request("/sleep/700");
        process::send_signal(old[0], Signal::SIGTERM);
        server.wait_replaced(1);
        wait::wait_until("the old one's end", || process::has_ended(old[0]));
        assert_eq!(slow.read().expect("answer").text(), "slept for 700 ms\n");
        assert_eq!(server.get("/").status, 200);
        server.stop();
    });
}

#[test]
fn every_model_counts_every_request() {
    for_each_model(&[], |model, server| {
        let load = Load::keep_alive(server.address(), 8).start();
        load.wait_answered(2000);
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        wait::wait_until("every connection closed", || {
            let status = server.status();
            let sum = |name: &str| {
                let workers = status["workers"].as_array().expect("workers").iter();
                workers.map(|worker| worker[name].as_u64().expect(name)).sum::<u64>()
            };
            sum("connections") == 0 && sum("active") == 0
        });
        let status = server.status();
        assert_eq!(status["totals"]["requests"].as_u64(), Some(tally.ok), "{model}: {status}");
        assert_eq!(status["totals"]["responses"][1].as_u64(), Some(tally.ok), "{model}");
        assert_eq!(status["totals"]["accepted"], 8, "{model}: {status}");
        assert_eq!(status["primary"]["model"], model);
        let workers = status["workers"].as_array().expect("workers");
        let own: u64 = workers.iter().map(|w| w["counters"]["requests"].as_u64().expect("n")).sum();
        assert_eq!(own, tally.ok, "{model}: {status}");
        let threads = workers[0]["threads"].as_array().map_or(0, Vec::len);
        assert_eq!(threads, if model == "thread-per-core" { PROCESS_OR_THREAD_COUNT } else { 0 });
        if threads > 0 {
            let each = workers[0]["threads"].as_array().expect("threads").iter();
            let each: Vec<u64> = each.map(|t| t["requests"].as_u64().expect("n")).collect();
            assert_eq!(each.iter().sum::<u64>(), tally.ok);
            assert!(each.iter().all(|n| *n > 0), "every thread serves: {each:?}");
            let table = server.run_verb(&["status"]);
            assert!(table.contains("loop 1") && table.contains("thread-per-core"), "{table}");
        }
        server.stop();
    });
}

#[test]
fn worker_connections_is_a_limit_for_each_thread() {
    for_each_model(&["--worker-connections", "2"], |model, server| {
        let most = if model == "single" { 2 } else { 2 * PROCESS_OR_THREAD_COUNT };
        let mut taken: Vec<Client> = (0..most).map(|_| server.connect()).collect();
        for client in &mut taken {
            assert_eq!(client.get("/").expect("answer").status, 200);
        }
        // This connection waits in the accept queue.
        let mut waiting = server.connect();
        waiting.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        for _ in 0..20 {
            let status = server.status();
            let open = status["workers"].as_array().expect("workers").iter();
            let open: u64 = open.map(|w| w["connections"].as_u64().expect("n")).sum();
            assert_eq!(open, most as u64, "{model}");
        }
        drop(taken.pop());
        assert_eq!(waiting.read().expect("the waiting connection is accepted").text(), "ok\n");
        drop((taken, waiting));
        server.stop();
    });
}

#[test]
fn a_blocked_event_loop_thread_is_named_while_others_serve() {
    let watched = ["--faults", "--stall-warn", "600ms", "--stall-timeout", "4s"];
    let server = start_model("thread-per-core", &watched).allow_errors(&["worker=1"]);
    let pid = server.worker_pids()[0];
    let tag = format!("pid={pid}");
    let mut stuck = server.connect();
    stuck.send("GET /fault/hang HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_log(&["WARN", &tag, "GET /fault/hang"]);
    assert_eq!(server.get("/").pid(), pid, "the other thread serves");
    server.wait_log(&["ERROR", &tag, "GET /fault/hang"]);
    assert!(stuck.read().is_err());
    server.wait_replaced(1);
    assert_ne!(server.get("/").pid(), pid);
    server.stop();
}

#[test]
fn in_threads_a_blocking_handler_holds_one_thread_without_a_warning() {
    let server =
        start_model("threads", &["--faults", "--stall-warn", "200ms", "--graceful-timeout", "0s"]);
    let stuck = server.start_request("/fault/hang");
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(server.get("/").status, 200);
    }
    wait::wait_until_elapsed(begun, Duration::from_secs(1));
    assert_eq!(server.count_log(&["WARN", "GET /fault/hang"]), 0);
    drop(stuck);
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn settings_that_a_model_does_not_support_are_refused() {
    for (args, names) in [
        (&["--model", "single", "--workers", "2"][..], ["single", "workers"]),
        (&["--model", "threads", "--dispatch", "reuseport"], ["threads", "dispatch"]),
        (&["--model", "fork"], ["fork", "model"]),
    ] {
        let ended = ProcessBuilder::verb("check").args(args.iter().copied()).run();
        assert_eq!(ended.status, Some(78), "{}", ended.stderr);
        assert!(names.iter().all(|name| ended.stderr.contains(name)), "{}", ended.stderr);
    }
    let server = start_model("thread-per-core", &[]);
    let why = server.assert_verb_fails(&["scale", "3"], 1);
    assert!(why.contains("model"), "{why}");
    server.stop();
}

#[test]
fn a_reload_can_change_the_model_except_to_threads() {
    let text = |model: &str| format!("bind = ['127.0.0.1:0']\nworkers = 2\nmodel = '{model}'\n");
    let server = Server::builder().config(2, &text("prefork")).start().allow_errors(&["threads"]);
    let write = |model| {
        std::fs::write(server.dir().join("prefork.toml"), text(model)).expect("write");
        server.signal(Signal::SIGHUP);
    };
    let old = server.worker_pids();
    write("threads");
    server.wait_log(&["ERROR", "model", "threads"]);
    assert_eq!(server.worker_pids(), old);
    write("thread-per-core");
    let one = server.wait_new_workers(1, &old);
    assert_eq!(server.get("/").pid(), one[0]);
    write("prefork");
    server.wait_new_workers(2, &one);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}
