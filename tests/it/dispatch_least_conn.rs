//! `--dispatch least-conn`: an eBPF program picks the worker with the fewest connections; without CAP_BPF, classic BPF
//! picks by weights.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::fault_load::assert_nothing_lost;
use crate::support::kept_connections::{
    BALANCE_CONNECTIONS, KeptConnection, assert_even_spread, assert_rebalancing, check_spread,
    connections_per_worker, keep_connection, open_one_by_one, wait_until_idle,
};
use crate::support::load::Load;
use crate::support::{Server, fault_load, log, process, wait};

fn start_least_conn(workers: usize) -> Server {
    Server::builder().workers(workers).dispatch("least-conn").start()
}

/// Returns the backend of least-conn in the status: `ebpf` or `cbpf-weights`.
pub fn least_conn_backend(server: &Server) -> String {
    let status = server.status();
    assert_eq!(status["primary"]["dispatch"], "least-conn");
    status["primary"]["dispatch_rung"].as_str().expect("text").to_string()
}

/// Returns whether this user may load the eBPF program.
fn uses_ebpf(server: &Server) -> bool {
    let rung = least_conn_backend(server);
    if rung != "ebpf" {
        eprintln!("skipped: this user may not load a program ({rung})");
    }
    rung == "ebpf"
}

/// Waits for an even spread after a change: connections sent to a replaced worker count as waiting for up to 2 s.
#[track_caller]
fn wait_even_spread(server: &Server) {
    wait::wait_until("an even spread", || {
        wait_until_idle(server);
        let shares = connections_per_worker(
            &open_one_by_one(server, BALANCE_CONNECTIONS),
            &server.worker_pids(),
        );
        check_spread(2, &shares).is_ok()
    });
}

#[test]
fn least_conn_spreads_kept_connections_evenly() {
    for workers in [2, 8] {
        let server = start_least_conn(workers);
        if !uses_ebpf(&server) {
            return drop(server.stop());
        }
        assert_even_spread(&server);
        server.stop();
    }
}

#[test]
fn least_conn_rebalances_with_new_connections() {
    let server = start_least_conn(4);
    if !uses_ebpf(&server) {
        return drop(server.stop());
    }
    assert_rebalancing(&server, 2);
    server.stop();
}

#[test]
fn least_conn_sends_a_stopped_worker_no_connections() {
    let server = start_least_conn(4);
    let stopped = server.worker_pids()[1];
    fault_load::assert_stopped_worker_is_bypassed(&server, stopped);
    // The stopped worker has the fewest connections, and gets none once it is noticed.
    let held: Vec<KeptConnection> = (0..60).map(|_| keep_connection(&server)).collect();
    let workers = server.worker_pids();
    let shares = connections_per_worker(&held, &workers);
    assert_eq!(shares[&stopped], 0, "{shares:?}");
    process::send_signal(stopped, Signal::SIGCONT);
    wait::wait_until("the worker is picked again", || keep_connection(&server).1 == stopped);
    server.stop();
}

#[test]
fn least_conn_skips_full_workers() {
    let args = ["--worker-connections", "4"];
    let server = Server::builder().workers(3).dispatch("least-conn").args(args).start();
    let mut held: Vec<KeptConnection> = (0..12).map(|_| keep_connection(&server)).collect();
    let mut next = server.connect();
    next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let (_, of) = held.swap_remove(5);
    assert_eq!(
        next.read_within_10_seconds().expect("an answer").pid(),
        of,
        "the worker with room accepts"
    );
    server.stop();
}

#[test]
fn least_conn_refuses_no_connection_when_workers_are_killed() {
    let server = start_least_conn(4).allow_errors(&["SIGKILL"]);
    fault_load::assert_kills_lose_little(&server, 12);
    server.stop();
}

#[test]
fn scaling_under_least_conn_loses_nothing_and_stays_even() {
    let server = start_least_conn(4);
    let load = Load::new_connections(server.address(), 4).start();
    for workers in [1, 4, 8] {
        load.wait_answered(24);
        server.run_verb(&["scale", &workers.to_string()]);
        server.wait_new_workers(workers, &[]);
        load.wait_answered(24);
    }
    assert_nothing_lost(load);
    if uses_ebpf(&server) {
        wait_even_spread(&server);
    }
    server.stop();
}

#[test]
fn reloads_under_least_conn_lose_nothing_and_stay_even() {
    let server = start_least_conn(3);
    fault_load::assert_reloads_lose_nothing(&server);
    if uses_ebpf(&server) {
        wait_even_spread(&server);
    }
    server.stop();
}

#[test]
fn upgrades_under_least_conn_lose_nothing_and_keep_the_program() {
    let server = Server::builder().with_copied_program().workers(3).dispatch("least-conn").start();
    let (before, load) =
        (least_conn_backend(&server), Load::new_connections(server.address(), 4).start());
    for generation in 2..4 {
        load.wait_answered(24);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(generation);
        server.wait_new_workers(3, &old);
        assert_eq!(least_conn_backend(&server), before);
    }
    assert_nothing_lost(load);
    if before == "ebpf" {
        wait_even_spread(&server);
    }
    server.stop();
}

const NOBODY_UID: u32 = 65534;

#[test]
fn status_and_log_name_the_least_conn_backend() {
    let server = Server::builder().workers(2).dispatch("least-conn").start();
    let rung = least_conn_backend(&server);
    let table = server.run_verb(&["status"]);
    assert_eq!(log::lines_with(&table, &["least-conn", &rung]).count(), 1, "{table}");
    server.wait_log(&["least-conn", &rung]);
    // A worker inherits no BPF map and no socket of other workers.
    for pid in server.worker_pids() {
        let descriptors = process::descriptors(pid);
        let tables = descriptors.iter().filter(|(_, target)| target.contains("bpf"));
        assert_eq!(tables.count(), 0, "{descriptors:?}");
    }
    server.stop();
}

#[test]
fn reloads_between_all_policies_lose_nothing() {
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
        server.run_verb(&["reload"]);
        let primary = &server.status()["primary"];
        assert_eq!(primary["dispatch"], dispatch);
        let steers = ["least-conn", "ip-hash"].contains(&dispatch);
        assert_eq!(primary["dispatch_rung"] != "", steers, "{primary}");
        load.wait_answered(48);
    }
    assert_nothing_lost(load);
    server.stop();
}

#[test]
fn a_failed_reload_keeps_the_least_conn_program() {
    let text =
        |dispatch: &str| format!("bind = ['127.0.0.1:0']\nworkers = 3\ndispatch = '{dispatch}'\n");
    let server = Server::builder().config(3, &text("least-conn")).start();
    let (before, load) =
        (least_conn_backend(&server), Load::new_connections(server.address(), 4).start());
    std::fs::write(server.dir().join("prefork.toml"), "workers = 'many'\n").expect("write");
    let server = server.allow_errors(&["reload"]);
    server.assert_verb_fails(&["reload"], 1);
    assert_eq!(least_conn_backend(&server), before);
    assert_nothing_lost(load);
    server.stop();
}

#[test]
fn without_cap_bpf_least_conn_uses_cbpf_weights() {
    let mut builder = Server::builder().workers(3).dispatch("least-conn");
    if nix::unistd::geteuid().is_root() {
        builder = builder.with_user(NOBODY_UID);
    }
    let server = builder.start().allow_errors(&["SIGKILL"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("status");
    assert!(status.contains("CapEff:\t0000000000000000"), "no privilege: {status}");
    server.wait_log(&["WARN", "least-conn", "CAP_BPF", "cbpf-weights"]);
    assert_eq!(least_conn_backend(&server), "cbpf-weights");

    let load = Load::new_connections(server.address(), 4).start();
    load.wait_answered(24);
    process::send_signal(server.worker_pids()[0], Signal::SIGSTOP);
    load.wait_answered(200);
    process::send_signal(server.worker_pids()[0], Signal::SIGCONT);
    server.run_verb(&["scale", "5"]);
    server.wait_new_workers(5, &[]);
    server.run_verb(&["reload"]);
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    // Every worker is picked.
    let workers = server.worker_pids();
    wait::wait_until("an answer of each", || {
        let held: Vec<KeptConnection> = open_one_by_one(&server, 40);
        connections_per_worker(&held, &workers).values().all(|share| *share > 0)
    });
    process::send_signal(server.worker_pids()[1], Signal::SIGKILL);
    server.wait_log(&["SIGKILL"]);
    for _ in 0..40 {
        assert_eq!(server.get("/").status, 200);
    }
    server.stop();
}

#[test]
fn dispatch_program_prints_the_bpf_program() {
    let print = |args: &[&str]| ProcessBuilder::verb("dispatch-program").args(args).run();
    let ended = print(&["--dispatch", "least-conn", "--workers", "4"]);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("ebpf"), "{}", ended.stdout);
    assert!(ended.stdout.contains("call bpf_sk_select_reuseport"), "{}", ended.stdout);
    assert!(ended.stdout.contains("cbpf-weights"), "{}", ended.stdout);
    let ended = print(&["--dispatch", "shared"]);
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("shared"), "{}", ended.stderr);
}
