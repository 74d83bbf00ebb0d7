//! `prefork demo cpu`: its report, and its end by a signal.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{self, process, wait};

fn demo_command(args: &[&str]) -> Command {
    let mut command = support::prefork();
    command.args(["demo", "cpu", "--quick", "--json"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn demo_cpu_reports_all_its_figures() {
    let out = demo_command(&["--fib", "20", "--asked", "22", "--duration", "300ms"])
        .output()
        .expect("run");
    let output = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{output}");
    assert!(output.contains("fib(20)"), "{output}");
    let report: Value = serde_json::from_slice(&out.stdout).expect("json");
    let positive = |list: &str, names: &[&str]| {
        let list = report[list].as_array().expect("a list");
        for (one, name) in list.iter().flat_map(|one| names.iter().map(move |name| (one, name))) {
            assert!(one[name].as_f64().is_some_and(|number| number > 0.0), "{name}: {one}");
        }
        list.len()
    };
    assert_eq!(positive("computing", &["seconds", "ratio", "ideal"]), 4);
    assert_eq!(positive("creating", &["new_us", "reused_us"]), 3);
    assert_eq!(positive("serving", &["p50", "p99", "max", "ratio"]), 4);
    assert!(report["reading"].as_str().is_some_and(|text| text.contains("p99")), "{report}");
    assert_eq!(report["complete"], true);
}

#[test]
fn an_interrupted_demo_leaves_no_process() {
    // The first run computes for minutes, the second one soon measures a server.
    for (fib, is_serving) in [("45", false), ("10", true)] {
        let mut command = demo_command(&["--fib", fib, "--duration", "60s"]);
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
