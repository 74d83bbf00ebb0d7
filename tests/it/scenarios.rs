//! Scenario files of a user, in `prefork bench` and `prefork compare`.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::Server;
use crate::support::command::{ProcessBuilder, ProcessOutput};

/// Writes a scenario file, and returns its path.
fn write_scenario(dir: &TempDir, name: &str, text: &str) -> String {
    let path: PathBuf = dir.path().join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[track_caller]
fn json(ended: &ProcessOutput, status: i32) -> Value {
    assert_eq!(ended.status, Some(status), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

const MIX: &str = r#"
description = "Reads and writes"
duration = "600ms"
warm-up = "100ms"

[[load]]
name = "mix"
measured = true
connections = 6
timeout = "20s"
rate = "50%"
rate-at-end = "20%"

[[load.request]]
name = "read"
weight = 3

[[load.request]]
name = "write"
path = "/echo"
body-size = "1KiB"

[[load]]
name = "beside"
path = "/bytes/10"
connections = 1
"#;

#[test]
fn bench_runs_the_loads_of_a_file_and_reports_each_kind_of_request() {
    let server = Server::start(2);
    let dir = tempfile::tempdir().expect("directory");
    let file = write_scenario(&dir, "orders.toml", MIX);
    let url = format!("http://{}", server.address());
    let ended = ProcessBuilder::verb("bench").args(["--scenario", &file, "--json", &url]).run();
    let report = json(&ended, 0);
    let kinds = report["request_kinds"].as_array().expect("a list");
    let count = |kind: usize| kinds[kind]["responses"].as_u64().expect("a number");
    assert_eq!((&kinds[0]["name"], &kinds[1]["name"]), (&"read".into(), &"write".into()));
    assert_eq!(count(0) + count(1), report["responses"].as_u64().expect("a number"));
    // Each connection sends three reads for each write; at the end it may be anywhere in this order.
    assert!(count(1) > 0 && count(0).abs_diff(3 * count(1)) <= 6 * 4, "{kinds:#?}");
    assert_eq!(report["ramp"].as_array().map(Vec::len), Some(10));
    let scenario = &report["scenario"];
    assert_eq!(scenario["name"], "orders");
    let (capacity, rate) = (&scenario["capacity"]["per_second"], &scenario["capacity"]["rate"]);
    let half = capacity.as_f64().expect("a capacity") / 2.0;
    assert!((rate.as_f64().expect("a rate") - half).abs() <= 1.0, "{scenario:#}");
    assert!(scenario["background"][0]["responses"].as_u64() > Some(0), "{scenario:#}");
    assert_eq!(scenario["scenario"]["load"][0]["rate"], "50%");
}

#[test]
fn compare_starts_a_server_of_the_static_files_of_a_scenario() {
    let dir = tempfile::tempdir().expect("directory");
    let text = r#"
        description = "A page and its image"
        [[load]]
        connections = 4
        [[load.request]]
        path = "/index.html"
        [[load.request]]
        path = "/img/a.jpg"
        [[file]]
        path = "index.html"
        size = "1KiB"
        [[file]]
        path = "img/a.jpg"
        size = "100KiB"
    "#;
    let file = write_scenario(&dir, "page.toml", text);
    let ended = ProcessBuilder::verb("compare")
        .args(["--scenario", &file, "--models", "prefork,single", "--workers", "2", "--json"])
        .args(["--rounds", "1", "--duration", "300ms"])
        .run();
    let report = json(&ended, 0);
    let workload = &report["workloads"][0];
    assert_eq!(workload["workload"], "page");
    assert_eq!(workload["scenario"]["file"][1]["size"], 102_400);
    for server in workload["servers"].as_array().expect("a list") {
        assert_eq!(server["errors"], 0, "{server:#}");
        assert!(server["per_second"]["median"].as_f64() > Some(0.0), "{server:#}");
    }
}

#[test]
fn a_peer_that_refuses_the_method_of_a_load_is_not_measured() {
    let dir = tempfile::tempdir().expect("directory");
    fs::write(dir.path().join("index.html"), "hello").expect("a file");
    let peer = format!(
        "files={} serve --root {} --bind 127.0.0.1:0 --control off --workers 1",
        env!("CARGO_BIN_EXE_prefork"),
        dir.path().display()
    );
    let text = "description = \"Uploads\"\n[[load]]\nconnections = 2\nbody-size = \"1KiB\"\n";
    let file = write_scenario(&dir, "uploads.toml", text);
    let ended = ProcessBuilder::verb("compare")
        .args(["--models", "none", "--peer", &peer, "--scenario", &file])
        .args(["--rounds", "1", "--duration", "200ms", "--json"])
        .run();
    let report = json(&ended, 0);
    let server = &report["workloads"][0]["servers"][0];
    assert_eq!(server["unable_reason"], "does not answer POST / with 200", "{report:#}");
}

#[test]
fn the_scenario_of_a_baseline_is_measured_again_without_its_file() {
    let dir = tempfile::tempdir().expect("directory");
    let file = write_scenario(&dir, "orders.toml", MIX);
    let first = ProcessBuilder::verb("compare")
        .args(["--scenario", &file, "--models", "single", "--rounds", "1", "--json"])
        .args(["--duration", "300ms"])
        .run();
    let before = json(&first, 0);
    let kinds = &before["workloads"][0]["servers"][0]["samples"][0]["request_kinds"];
    assert_eq!(kinds[1]["name"], "write", "{before:#}");
    let baseline = dir.path().join("main.json").display().to_string();
    fs::write(&baseline, &first.stdout).expect("a file");
    fs::remove_file(&file).expect("removed");
    let again = ProcessBuilder::verb("compare").args(["--baseline", &baseline, "--json"]).run();
    let report: Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!(report["workloads"][0]["scenario"], before["workloads"][0]["scenario"]);
    assert_eq!(report["baseline"]["has_other_load"], false, "{}", report["baseline"]);
}

#[test]
fn a_wrong_file_is_a_usage_error_that_names_the_line() {
    let dir = tempfile::tempdir().expect("directory");
    let file =
        write_scenario(&dir, "wrong.toml", "description = \"d\"\n[[load]]\nconections = 5\n");
    for verb in [&["compare"][..], &["bench", "h:1"]] {
        let ended =
            ProcessBuilder::verb(verb[0]).args(&verb[1..]).args(["--scenario", &file]).run();
        assert_eq!(ended.status, Some(64), "{}", ended.stderr);
        assert!(ended.stderr.contains("wrong.toml:3: "), "{}", ended.stderr);
        assert!(ended.stderr.contains("did you mean \"connections\"?"), "{}", ended.stderr);
    }
}

#[test]
fn a_printed_scenario_can_be_measured() {
    let printed = ProcessBuilder::verb("compare").args(["--show-scenario", "keep-alive"]).run();
    assert_eq!(printed.status, Some(0), "{}", printed.stderr);
    let dir = tempfile::tempdir().expect("directory");
    let file = write_scenario(&dir, "copy.toml", &printed.stdout);
    let server = Server::start(2);
    let url = format!("http://{}", server.address());
    let ended = ProcessBuilder::verb("bench")
        .args(["--scenario", &file, "--duration", "200ms", "--warm-up", "0", "--json", &url])
        .run();
    let report = json(&ended, 0);
    assert_eq!((&report["connections"], &report["scenario"]["name"]), (&64.into(), &"copy".into()));
}
