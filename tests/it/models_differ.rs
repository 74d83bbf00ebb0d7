//! Where the concurrency models differ: blocked threads, refusals, changes from one to another.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::models::{begin, start};
use crate::support::command::Builder;
use crate::support::{Server, wait};

#[test]
fn a_thread_that_blocks_is_named_and_the_others_serve() {
    let watched = ["--faults", "--stall-warn", "600ms", "--stall-timeout", "4s"];
    let server = start("thread-per-core", &watched).allow(&["frozen for ", "was killed: frozen"]);
    let pid = server.worker_pids()[0];
    let mut stuck = server.connect();
    stuck.send("GET /fault/hang HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let warned = server.wait_log(" has not turned its event loop for ");
    assert!(warned.contains(&format!(" pid={pid} ")), "{warned}");
    assert!(warned.contains(" in GET /fault/hang"), "{warned}");
    assert_eq!(server.get("/").pid(), pid, "the other thread serves");
    server.wait_log("was killed: frozen");
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
    assert_eq!(server.count_log("has not turned"), 0);
    drop(stuck);
    server.signal(Signal::SIGQUIT);
    server.finish(0);
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    for (args, why) in [
        (&["--model", "single", "--workers", "2"][..], "workers = 2 does not fit model = single"),
        (&["--model", "threads", "--dispatch", "reuseport"], "does not fit model = threads"),
        (&["--model", "fork"], "is no concurrency model"),
    ] {
        let ended = Builder::verb("check").args(args.iter().copied()).run();
        assert_eq!(ended.status, Some(78), "{}", ended.err);
        assert!(ended.err.contains(why), "{}", ended.err);
    }
    let server = start("thread-per-core", &[]);
    let why = server.refused(&["scale", "3"], 1);
    assert!(why.contains("one worker process"), "{why}");
    server.stop();
}

#[test]
fn a_reload_may_change_the_model_but_not_to_or_from_shared_threads() {
    let text = |model: &str| format!("bind = ['127.0.0.1:0']\nworkers = 2\nmodel = '{model}'\n");
    let server = Server::builder().config(2, &text("prefork")).start().allow(&["cannot be had"]);
    let write = |model| {
        std::fs::write(server.dir().join("prefork.toml"), text(model)).expect("write");
        server.signal(Signal::SIGHUP);
    };
    let old = server.worker_pids();
    write("threads");
    server.wait_log("model = threads cannot be had by a reload");
    assert_eq!(server.worker_pids(), old);
    write("thread-per-core");
    let one = server.wait_others(1, &old);
    assert_eq!(server.get("/").pid(), one[0]);
    write("prefork");
    server.wait_others(2, &one);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}
