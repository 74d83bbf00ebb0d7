//! `prefork demo cpu`: its report, the peers beside it, and its end by a signal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, process, wait};

/// A peer that measures nothing, and prints what a measured one would.
const FAKE_NODE: &str = r#"#!/bin/sh
case "$*" in
*--version*) echo v99.1.0 ;;
*'"costs"'*) echo '{"one_by_one_us":[40,20,30],"bulk_us":[7],"transfers":[{"how":"Piscina, Buffer copied","samples_us":[5000]}]}' ;;
*'"crash"'*) echo crash; kill -ABRT $$ ;;
*) echo done ;;
esac
"#;
const FAKE_PYTHON: &str = r#"#!/bin/sh
case "$*" in
*--version*) echo Python 9.9.9 ;;
*'"costs"'*) echo '{"one_by_one_us":[300],"bulk_us":[200],"transfers":[]}' ;;
*) echo crash; echo '{"verdict_us":1500,"next_job_us":9000,"lost_jobs":8}' ;;
esac
"#;

fn demo_command(args: &[&str]) -> Command {
    let mut command = support::prefork();
    command.args(["demo", "cpu", "--quick", "--json"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns the demo of jobs alone, with `programs` as the only ones that it finds, and its temporary files in `home`.
fn job_demo(home: &Path, programs: &[(&str, &str)]) -> Command {
    let bin = home.join("bin");
    fs::create_dir(&bin).expect("directory");
    for (name, text) in programs {
        let path = bin.join(name);
        fs::write(&path, text).expect("file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    fs::create_dir(home.join("tmp")).expect("directory");
    let mut command = demo_command(&["--only", "jobs"]);
    command.env("PATH", bin).env("TMPDIR", home.join("tmp")).env_remove("NODE_PATH");
    command.env_remove("PREFORK_PISCINA").current_dir(home);
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

/// Returns the row whose way begins with `how`.
#[track_caller]
fn row_of<'a>(rows: &'a Value, how: &str) -> &'a Value {
    let is_wanted = |row: &&Value| row["how"].as_str().is_some_and(|text| text.starts_with(how));
    let found = rows.as_array().expect("a list").iter().find(is_wanted);
    found.unwrap_or_else(|| panic!("no {how} in {rows}"))
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
fn jobs_are_measured_without_any_peer_installed() {
    let home = TempDir::new().expect("directory");
    let report = read_report(&job_demo(home.path(), &[]).output().expect("run"));
    let jobs = &report["jobs"];
    let figures = ["p50_us", "p99_us", "p50_ratio", "bulk_us", "bulk_ratio"];
    assert_eq!(count_positive_rows(&jobs["empty"], &figures), 4);
    assert_eq!(count_positive_rows(&jobs["transfer"], &["p50_us", "p99_us", "ratio"]), 5);
    assert_eq!(count_positive_rows(&jobs["crash"], &["verdict_us", "next_job_us"]), 4);
    for how in ["event loop", "pool", "spawn_blocking"] {
        let row = row_of(&jobs["crash"], how);
        assert_eq!((&row["survived"], &row["lost_jobs"]), (&false.into(), &8.into()), "{row}");
    }
    let row = row_of(&jobs["crash"], "isolated process");
    assert_eq!((&row["survived"], &row["lost_jobs"]), (&true.into(), &0.into()), "{row}");
    let missing = jobs["missing"].as_array().expect("a list");
    let install = |peer: &str, command: &str| {
        let is_told = |one: &Value| {
            one["peer"] == peer && one["why"].as_str().is_some_and(|why| why.contains(command))
        };
        assert!(missing.iter().any(is_told), "{peer}: {missing:?}");
    };
    install("Piscina", "npm install -g piscina");
    install("ProcessPoolExecutor", "apt-get install python3");
    assert_eq!(report["complete"], true);
    assert_eq!(fs::read_dir(home.path().join("tmp")).expect("directory").count(), 0);
}

#[test]
fn installed_peers_are_measured_beside_the_own_ways() {
    let home = TempDir::new().expect("directory");
    let package = home.path().join("somewhere/node_modules/piscina");
    fs::create_dir_all(&package).expect("directory");
    fs::write(package.join("package.json"), r#"{"version":"5.99.0"}"#).expect("file");
    let programs = [("node", FAKE_NODE), ("python3", FAKE_PYTHON)];
    let mut command = job_demo(home.path(), &programs);
    command.args(["--piscina", "somewhere", "--ways", "pool,piscina,process-pool-executor"]);
    let out = command.output().expect("run");
    let jobs = &read_report(&out)["jobs"];
    assert_eq!(jobs["missing"], Value::Array(Vec::new()));
    let row = row_of(&jobs["empty"], "Piscina 5.99.0 (node 99.1.0)");
    let figures = ["p50_us", "p99_us", "bulk_us"].map(|name| row[name].as_f64());
    assert_eq!(figures, [Some(30.0), Some(40.0), Some(7.0)]);
    let pool = row_of(&jobs["empty"], "pool")["p50_us"].as_f64().expect("a number");
    let ratio = row["p50_ratio"].as_f64().expect("a number");
    assert!((ratio - 30.0 / pool).abs() < 1e-9, "{row}");
    assert_eq!(row_of(&jobs["transfer"], "Piscina, Buffer copied")["p50_us"], 5000.0);
    // One ends with its process, the other one measured itself.
    let row = row_of(&jobs["crash"], "Piscina");
    assert_eq!((&row["survived"], &row["lost_jobs"]), (&false.into(), &8.into()), "{row}");
    let row = row_of(&jobs["crash"], "ProcessPoolExecutor (Python 9.9.9)");
    assert_eq!((&row["survived"], &row["verdict_us"]), (&true.into(), &1500.0.into()), "{row}");
}

#[test]
fn a_peer_that_fails_is_named_with_its_error() {
    let home = TempDir::new().expect("directory");
    let python = "#!/bin/sh\n[ \"$1\" = --version ] && { echo Python 9; exit 0; }\necho ImportError: no module >&2\nexit 3\n";
    let mut command = job_demo(home.path(), &[("python3", python)]);
    let out = command.args(["--ways", "pool,process-pool-executor"]).output().expect("run");
    let report = read_report(&out);
    let missing = report["jobs"]["missing"].to_string();
    assert!(missing.contains("ImportError: no module"), "{missing}");
    assert_eq!(report["jobs"]["empty"].as_array().map(Vec::len), Some(1));
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

#[test]
fn an_interrupted_measurement_of_jobs_leaves_no_process_and_no_file() {
    let home = TempDir::new().expect("directory");
    // A peer that never ends, with a process of its own, as a pool has them.
    let python = "#!/bin/sh\n[ \"$1\" = --version ] && { echo Python 9; exit 0; }\n/bin/sleep 1000 & echo $! > pid\nwait\n";
    let mut command = job_demo(home.path(), &[("python3", python)]);
    let child = command.args(["--ways", "pool,process-pool-executor"]).spawn().expect("spawn");
    let read_pid = || fs::read_to_string(home.path().join("pid")).ok()?.trim().parse().ok();
    let pid: u32 = wait::wait_until_some("the peer", read_pid);
    process::send_signal(child.id(), Signal::SIGINT);
    let out = child.wait_with_output().expect("output");
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).expect("json");
    assert_eq!(report["complete"], false);
    assert_eq!(report["jobs"]["empty"].as_array().map(Vec::len), Some(1), "what was measured");
    process::wait_ended(&[pid]);
    assert_eq!(fs::read_dir(home.path().join("tmp")).expect("directory").count(), 0);
}
