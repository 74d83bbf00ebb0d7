//! `prefork demo cpu`: its report, the peers beside it, and its end by a signal.

use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{self, process, wait};

fn demo_command(args: &[&str]) -> Command {
    let mut command = support::prefork();
    command.args(["demo", "cpu", "--quick", "--json"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn read_report(out: &Output) -> Value {
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}");
    serde_json::from_slice(&out.stdout).expect("json")
}

/// Checks that all these figures are positive, and returns the number of rows.
#[track_caller]
fn count_positive_rows(rows: &Value, figures: &[&str]) -> usize {
    let rows = rows.as_array().expect("a list");
    for (row, figure) in rows.iter().flat_map(|row| figures.iter().map(move |f| (row, f))) {
        assert!(row[figure].as_f64().is_some_and(|number| number > 0.0), "{figure}: {row}");
    }
    rows.len()
}

#[test]
fn demo_cpu_reports_its_figures() {
    let args = ["--only", "compute,latency", "--fib", "20", "--asked", "22", "--duration", "300ms"];
    let out = demo_command(&args).output().expect("run");
    let report = read_report(&out);
    assert!(String::from_utf8_lossy(&out.stderr).contains("fib(20)"));
    let count = |list: &str, figures: &[&str]| count_positive_rows(&report[list], figures);
    assert_eq!(count("computing", &["seconds", "ratio", "ideal"]), 4);
    assert_eq!(count("creating", &["new_us", "reused_us"]), 3);
    assert_eq!(count("serving", &["p50", "p99", "max", "ratio"]), 4);
    assert!(report["reading"].as_str().is_some_and(|text| text.contains("p99")), "{report}");
    assert_eq!(report["complete"], true);
    assert_eq!(report["jobs"], Value::Null, "not asked for");
}

#[test]
fn an_interrupted_demo_leaves_no_process() {
    // The first run computes for minutes, the second one soon measures a server.
    for (part, fib, is_serving) in [("compute", "45", false), ("latency", "10", true)] {
        let mut command = demo_command(&["--only", part, "--fib", fib, "--duration", "60s"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("spawn");
        let mut servers = Vec::new();
        wait::wait_until("the middle of the experiment", || {
            servers = process::children(child.id());
            let listens = |pid: &u32| !process::listening_addresses(*pid).is_empty();
            let computes = || process::stat(child.id()).is_some_and(|stat| stat.ticks > 50);
            if is_serving { servers.iter().any(listens) } else { computes() }
        });
        process::send_signal(child.id(), Signal::SIGINT);
        wait::wait_until("its end", || child.try_wait().expect("wait").is_some());
        wait::wait_until("the end of the servers", || {
            servers.iter().all(|pid| process::has_ended(*pid))
        });
    }
}
