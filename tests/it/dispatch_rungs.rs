//! The rungs of `least-conn`, with and without the privilege, and the way from one policy to another.

use nix::sys::signal::Signal;

use crate::least_conn::rung;
use crate::support::command::Builder;
use crate::support::held::{Held, one_by_one, shares};
use crate::support::load::Load;
use crate::support::storm::nothing_lost;
use crate::support::{Server, process, wait};

const NOBODY: u32 = 65534;

#[test]
fn the_rung_is_shown_and_said() {
    let server = Server::builder().workers(2).control().dispatch("least-conn").start();
    let rung = rung(&server);
    assert!(server.order(&["status"]).contains(&format!(", dispatch least-conn ({rung})")));
    server.wait_log_times("least-conn: ", 1);
    if rung == "ebpf" {
        server.wait_log("least-conn: the kernel chooses the worker (ebpf)");
    }
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
    let server = Server::builder().config(3, &text("shared", "")).control().start();
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
    let server = Server::builder().config(3, &text("least-conn")).control().start();
    let (before, load) = (rung(&server), Load::new_connections(server.address(), 4).start());
    std::fs::write(server.dir().join("prefork.toml"), "workers = 'many'\n").expect("write");
    let server = server.allow(&["reload failed"]);
    server.refused(&["reload"], 1);
    assert_eq!(rung(&server), before);
    nothing_lost(load);
    server.stop();
}

#[test]
fn without_the_privilege_chance_with_odds_serves_as_well() {
    let mut builder = Server::builder().workers(3).dispatch("least-conn");
    if nix::unistd::geteuid().is_root() {
        let run = builder.dir().join("run");
        std::fs::create_dir(&run).expect("directory");
        std::os::unix::fs::chown(&run, Some(NOBODY), Some(NOBODY)).expect("chown");
        builder = builder.user(NOBODY);
    } else {
        std::fs::create_dir(builder.dir().join("run")).expect("directory");
    }
    let control = builder.dir().join("run/control");
    let control = control.to_str().expect("UTF-8").to_string();
    let server = builder.args(["--control", &control]).start();
    let server = server.allow(&["died: killed by SIGKILL"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("status");
    assert!(status.contains("CapEff:\t0000000000000000"), "no privilege: {status}");
    let line = server.log();
    let line = line.lines().find(|line| line.contains("least-conn: ")).expect("the line");
    assert!(line.contains(" WARN ") && line.contains("CAP_BPF"), "{line}");
    assert!(line.ends_with("; choosing by weights (cbpf-weights)"), "{line}");
    let ask = |words: &[&str]| {
        let socket = ["--control", &control];
        let ended = Builder::verb(words[0]).args(&words[1..]).args(socket).run();
        assert_eq!(ended.status, Some(0), "{}", ended.err);
        ended.out
    };
    assert!(ask(&["status"]).contains(", dispatch least-conn (cbpf-weights)"));

    let load = Load::new_connections(server.address(), 4).start();
    load.wait_answered(24);
    process::send(server.worker_pids()[0], Signal::SIGSTOP);
    load.wait_answered(200);
    process::send(server.worker_pids()[0], Signal::SIGCONT);
    ask(&["scale", "5"]);
    server.wait_others(5, &[]);
    ask(&["reload"]);
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
    server.wait_log("died: killed by SIGKILL");
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
    assert!(ended.out.contains("least-conn (ebpf): "), "{}", ended.out);
    assert!(ended.out.contains("call bpf_sk_select_reuseport"), "{}", ended.out);
    assert!(ended.out.contains("least-conn (cbpf-weights): "), "{}", ended.out);
    let ended = print(&["--dispatch", "shared"]);
    assert_eq!(ended.status, Some(78), "{}", ended.err);
    assert!(ended.err.contains("loads no program"), "{}", ended.err);
}
