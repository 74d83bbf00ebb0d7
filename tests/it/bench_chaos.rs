//! `prefork bench --chaos`: faults done to the target, what they cost, and that nobody stays frozen.

use std::net::TcpListener;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::Builder;
use crate::support::{self, Server, process, wait};

/// The report of a run, as JSON, and its exit status.
fn report(server: &Server, args: &[&str]) -> (Option<i32>, Value) {
    let url = format!("http://{}/", server.address());
    let args = [args, &["--json", "--warm-up", "0", "-c", "8", &url]].concat();
    let ended = Builder::verb("bench").args(args).run();
    let report = serde_json::from_str(&ended.out);
    (ended.status, report.unwrap_or_else(|e| panic!("{e}: {}{}", ended.out, ended.err)))
}

/// A figure of one kind of fault.
#[track_caller]
fn of(report: &Value, fault: &str, figure: &str) -> u64 {
    let faults = report["chaos"]["faults"].as_array().expect("list");
    let found = faults.iter().find(|entry| entry["fault"] == fault);
    found.unwrap_or_else(|| panic!("no {fault}: {report:#}"))[figure].as_u64().expect("number")
}

/// A run in the background that lasts until it is ended.
fn begin(server: &Server, chaos: &str) -> Child {
    let mut command = support::prefork();
    command.args(["bench", "--chaos", chaos, "--duration", "60s", "--warm-up", "0"]);
    command.arg(format!("http://{}/", server.address()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("bench")
}

fn stopped(server: &Server) -> Option<u32> {
    let is_stopped = |pid: &u32| process::stat(*pid).is_some_and(|stat| stat.state == 'T');
    server.worker_pids().into_iter().find(is_stopped)
}

#[test]
fn kills_cost_the_requests_of_the_dead_and_are_counted() {
    let server = Server::builder().start().allow(&["SIGKILL"]);
    let (status, report) = report(&server, &["--duration", "1900ms", "--chaos", "kill=600ms"]);
    assert_eq!(of(&report, "kill", "count") + of(&report, "kill", "skipped"), 3, "{report:#}");
    // New connections are not refused while workers die: the primary holds the socket.
    assert_eq!(of(&report, "kill", "refused"), 0, "{report:#}");
    let failures: u64 =
        report["failures"].as_object().expect("object").values().filter_map(Value::as_u64).sum();
    let unexplained = report["chaos"]["unexplained"]["lost"].as_u64();
    assert_eq!((of(&report, "kill", "lost"), unexplained), (failures, Some(0)), "{report:#}");
    assert_eq!(status, Some(i32::from(failures > 0)), "{report:#}");
    let restarts = || server.status()["primary"]["restarts"].as_u64();
    wait::until("workers in place of the dead", || {
        restarts() >= Some(of(&report, "kill", "count"))
    });
    server.stop();
}

#[test]
fn reloads_cost_no_request() {
    let server = Server::builder().start();
    let (status, report) = report(&server, &["--duration", "2s", "--chaos", "reload=900ms"]);
    assert_eq!(of(&report, "reload", "count"), 2, "{report:#}");
    assert_eq!((of(&report, "reload", "lost"), of(&report, "reload", "refused")), (0, 0));
    assert_eq!(status, Some(0), "{report:#}");
    server.stop();
}

#[test]
fn a_freeze_is_seen_as_late_answers_and_ends() {
    let server = Server::builder().start();
    let freeze = ["--duration", "1800ms", "--chaos", "freeze=700ms/400ms", "--late", "300ms"];
    let (status, report) = report(&server, &freeze);
    assert_eq!(of(&report, "freeze", "count"), 2, "{report:#}");
    assert!(of(&report, "freeze", "late") > 0, "{report:#}");
    assert_eq!(of(&report, "freeze", "lost"), 0, "{report:#}");
    assert!(report["latency"]["max"].as_f64() >= Some(350_000.0), "{report:#}");
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(stopped(&server), None);
    server.stop();
}

#[test]
fn nobody_stays_frozen_however_the_bench_ends() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let server = Server::builder().start();
        let mut bench = begin(&server, "freeze=600ms/590ms");
        let frozen = wait::until_some("a frozen worker", || stopped(&server));
        process::send(bench.id(), signal);
        bench.wait().expect("our own child");
        wait::until("the worker goes on", || {
            process::stat(frozen).is_some_and(|stat| stat.state != 'T')
        });
        server.stop();
    }
}

#[test]
fn only_our_servers_are_harmed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let ended = Builder::verb("bench").args(["--chaos", "kill=1s", &url]).run();
    assert_eq!((ended.status, ended.out.as_str()), (Some(1), ""), "{}", ended.err);
    assert!(ended.err.contains(&std::process::id().to_string()), "{}", ended.err);
    for (faults, piece) in [("kill=20s", "--duration"), ("nap=1s", "nap")] {
        let ended = Builder::verb("bench").args(["--chaos", faults, &url]).run();
        assert_eq!(ended.status, Some(64), "{}", ended.err);
        assert!(ended.err.contains(piece), "{}", ended.err);
    }
}
