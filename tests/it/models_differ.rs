//! Where the concurrency models differ: blocked threads, refusals, changes from one to another.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::models::{begin, start};
use crate::support::command::Builder;
use crate::support::{Server, wait};

#[test]
fn a_thread_that_blocks_is_named_and_the_others_serve() {
    let watched = ["--faults", "--stall-warn", "600ms", "--stall-timeout", "4s"];
    let server = start("thread-per-core", &watched).allow(&["worker=1"]);
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
fn under_threads_a_handler_that_blocks_holds_one_thread_and_is_not_seen() {
    let server =
        start("threads", &["--faults", "--stall-warn", "200ms", "--graceful-timeout", "0s"]);
    let stuck = begin(&server, "/fault/hang");
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(server.get("/").status, 200);
    }
    wait::until_past(begun, Duration::from_secs(1));
    assert_eq!(server.count_log(&["WARN", "GET /fault/hang"]), 0);
    drop(stuck);
    server.signal(Signal::SIGQUIT);
    server.finish(0);
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    for (args, names) in [
        (&["--model", "single", "--workers", "2"][..], ["single", "workers"]),
        (&["--model", "threads", "--dispatch", "reuseport"], ["threads", "dispatch"]),
        (&["--model", "fork"], ["fork", "model"]),
    ] {
        let ended = Builder::verb("check").args(args.iter().copied()).run();
        assert_eq!(ended.status, Some(78), "{}", ended.err);
        assert!(names.iter().all(|name| ended.err.contains(name)), "{}", ended.err);
    }
    let server = start("thread-per-core", &[]);
    let why = server.refused(&["scale", "3"], 1);
    assert!(why.contains("model"), "{why}");
    server.stop();
}

#[test]
fn a_reload_may_change_the_model_but_not_to_or_from_shared_threads() {
    let text = |model: &str| format!("bind = ['127.0.0.1:0']\nworkers = 2\nmodel = '{model}'\n");
    let server = Server::builder().config(2, &text("prefork")).start().allow(&["threads"]);
    let write = |model| {
        std::fs::write(server.dir().join("prefork.toml"), text(model)).expect("write");
        server.signal(Signal::SIGHUP);
    };
    let old = server.worker_pids();
    write("threads");
    server.wait_log(&["ERROR", "model", "threads"]);
    assert_eq!(server.worker_pids(), old);
    write("thread-per-core");
    let one = server.wait_others(1, &old);
    assert_eq!(server.get("/").pid(), one[0]);
    write("prefork");
    server.wait_others(2, &one);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}
