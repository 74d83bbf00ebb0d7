//! The rungs of `least-conn`, with and without the privilege, and the way from one policy to another.

use nix::sys::signal::Signal;

use crate::least_conn::rung;
use crate::support::command::Builder;
use crate::support::held::{Held, one_by_one, shares};
use crate::support::load::Load;
use crate::support::storm::nothing_lost;
use crate::support::{Server, log, process, wait};

const NOBODY: u32 = 65534;

#[test]
fn the_rung_is_shown_and_said() {
    let server = Server::builder().workers(2).dispatch("least-conn").start();
    let rung = rung(&server);
    let table = server.order(&["status"]);
    assert_eq!(log::lines_with(&table, &["least-conn", &rung]).count(), 1, "{table}");
    server.wait_log(&["least-conn", &rung]);
    // A worker has no table of the program, and no socket of others.
    for pid in server.worker_pids() {
        let descriptors = process::descriptors(pid);
        let tables = descriptors.iter().filter(|(_, target)| target.contains("bpf"));
        assert_eq!(tables.count(), 0, "{descriptors:?}");
    }
    server.stop();
}

#[test]
fn a_reload_changes_the_policy_and_loses_nothing() {
    let text = |dispatch: &str, more: &str| {
        format!("bind = ['127.0.0.1:0'{more}]\nworkers = 3\ndispatch = '{dispatch}'\n")
    };
    let server = Server::builder().config(3, &text("shared", "")).start();
    let load = Load::new_connections(server.address(), 4).start();
    let two = ", '127.0.0.2:0'";
    for (dispatch, more) in [
        ("least-conn", ""),
        ("least-conn", two),
        ("ip-hash", two),
        ("least-conn", ""),
        ("reuseport", ""),
        ("least-conn", ""),
        ("shared", ""),
    ] {
        load.wait_answered(24);
        std::fs::write(server.dir().join("prefork.toml"), text(dispatch, more)).expect("write");
        server.order(&["reload"]);
        let primary = &server.status()["primary"];
        assert_eq!(primary["dispatch"], dispatch);
        let steers = ["least-conn", "ip-hash"].contains(&dispatch);
        assert_eq!(primary["dispatch_rung"] != "", steers, "{primary}");
        load.wait_answered(48);
    }
    nothing_lost(load);
    server.stop();
}

#[test]
fn a_reload_that_fails_leaves_everything_as_it_was() {
    let text =
        |dispatch: &str| format!("bind = ['127.0.0.1:0']\nworkers = 3\ndispatch = '{dispatch}'\n");
    let server = Server::builder().config(3, &text("least-conn")).start();
    let (before, load) = (rung(&server), Load::new_connections(server.address(), 4).start());
    std::fs::write(server.dir().join("prefork.toml"), "workers = 'many'\n").expect("write");
    let server = server.allow(&["reload"]);
    server.refused(&["reload"], 1);
    assert_eq!(rung(&server), before);
    nothing_lost(load);
    server.stop();
}

#[test]
fn without_the_privilege_chance_with_odds_serves_as_well() {
    let mut builder = Server::builder().workers(3).dispatch("least-conn");
    if nix::unistd::geteuid().is_root() {
        builder = builder.user(NOBODY);
    }
    let server = builder.start().allow(&["SIGKILL"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("status");
    assert!(status.contains("CapEff:\t0000000000000000"), "no privilege: {status}");
    server.wait_log(&["WARN", "least-conn", "CAP_BPF", "cbpf-weights"]);
    assert_eq!(rung(&server), "cbpf-weights");

    let load = Load::new_connections(server.address(), 4).start();
    load.wait_answered(24);
    process::send(server.worker_pids()[0], Signal::SIGSTOP);
    load.wait_answered(200);
    process::send(server.worker_pids()[0], Signal::SIGCONT);
    server.order(&["scale", "5"]);
    server.wait_others(5, &[]);
    server.order(&["reload"]);
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    // All have a chance.
    let workers = server.worker_pids();
    wait::until("an answer of each", || {
        let held: Vec<Held> = one_by_one(&server, 40);
        shares(&held, &workers).values().all(|share| *share > 0)
    });
    process::send(server.worker_pids()[1], Signal::SIGKILL);
    server.wait_log(&["SIGKILL"]);
    for _ in 0..40 {
        assert_eq!(server.get("/").status, 200);
    }
    server.stop();
}

#[test]
fn the_program_is_printed_without_loading_it() {
    let print = |args: &[&str]| Builder::verb("dispatch-program").args(args).run();
    let ended = print(&["--dispatch", "least-conn", "--workers", "4"]);
    assert_eq!(ended.status, Some(0), "{}", ended.err);
    assert!(ended.out.contains("ebpf"), "{}", ended.out);
    assert!(ended.out.contains("call bpf_sk_select_reuseport"), "{}", ended.out);
    assert!(ended.out.contains("cbpf-weights"), "{}", ended.out);
    let ended = print(&["--dispatch", "shared"]);
    assert_eq!(ended.status, Some(78), "{}", ended.err);
    assert!(ended.err.contains("shared"), "{}", ended.err);
}
