//! `prefork compare`: measures servers side by side, and leaves no process behind.

use std::process::{Child, Stdio};
use std::{fs, io::Read};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::{ProcessBuilder, test_programs};
use crate::support::{self, process, wait};

/// Starts a comparison in the background.
fn start_compare(args: &[&str]) -> Child {
    let mut command = support::prefork();
    command.arg("compare").args(args).args(["--workers", "2", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("compare")
}

/// Waits for the measured server, and returns its pid and those of its two workers.
fn wait_measured_server(compare: &Child) -> Vec<u32> {
    wait::wait_until_some("a server with its workers", || {
        let primary = *process::children(compare.id()).first()?;
        let workers = process::children(primary);
        (workers.len() == 2).then(|| [vec![primary], workers].concat())
    })
}

#[test]
fn compare_measures_two_models_under_two_workloads() {
    let dir = tempfile::tempdir().expect("directory");
    let page = dir.path().join("report.html").display().to_string();
    let ended = ProcessBuilder::verb("compare")
        .args(["--models", "prefork,single", "--workloads", "keep-alive,noisy-neighbour"])
        .args(["--rounds", "2", "--duration", "500ms", "--workers", "2", "--json", "--html", &page])
        .run();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((&report["partial"], &report["measured"]), (&Value::Null, &Value::from(12)));
    assert_eq!(report["reference"], "single");
    let workloads = report["workloads"].as_array().expect("list");
    assert_eq!(workloads.len(), 2);
    for cell in workloads.iter().flat_map(|w| w["servers"].as_array().expect("list")) {
        assert_eq!(cell["samples"].as_array().map(Vec::len), Some(2), "{cell:#}");
        assert!(cell["p99"]["median"].as_f64() > Some(0.0), "{cell:#}");
        assert!(cell["memory_mib"]["median"].as_f64() > Some(0.0), "{cell:#}");
    }
    let light = &workloads[0]["servers"];
    assert!(light[0]["cpu_us"]["median"].as_f64() > Some(0.0), "{light:#}");
    assert!(
        light[0]["busiest"]["median"].as_f64() < Some(1.0),
        "two processes answered: {light:#}"
    );
    assert_eq!(light[1]["busiest"]["median"], 1.0, "one process answered: {light:#}");
    let control = &workloads[0]["servers"][2];
    assert_eq!(
        (&control["server"], &control["is_control"]),
        (&"single (control)".into(), &true.into())
    );
    // Two rounds can show nothing, and the report says so first.
    assert!(ended.stdout.trim_start_matches('{').trim_start().starts_with("\"verdict\""));
    let line = report["verdict"]["lines"][0]["statement"].as_str().expect("a line");
    assert!(line.starts_with("2 rounds are too few"), "{line}");
    let comparison = &workloads[0]["comparisons"][0];
    assert_eq!(comparison["ratio"], workloads[0]["servers"][0]["ratio"]);
    let environment = &report["environment"];
    for name in ["date", "command", "kernel", "cpu", "version", "compiler"] {
        assert!(environment[name].as_str().is_some_and(|text| !text.is_empty()), "{name}");
    }
    let page = fs::read_to_string(page).expect("page");
    assert!(page.matches("<svg").count() >= 2);
}

#[test]
fn compare_measures_handshakes_over_tls() {
    let ended = ProcessBuilder::verb("compare")
        .args(["--https", "--models", "prefork,single", "--workers", "2", "--json"])
        .args(["--workloads", "keep-alive,full-handshakes,resumed-handshakes"])
        .args(["--rounds", "1", "--duration", "600ms"])
        .run();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((&report["scheme"], &report["measured"]), (&"https".into(), &Value::from(9)));
    let cell = |workload: usize, server: usize| &report["workloads"][workload]["servers"][server];
    for server in [0, 1] {
        for workload in [0, 1, 2] {
            let cell = cell(workload, server);
            assert_eq!(cell["errors"], 0, "{cell:#}");
            assert!(cell["per_second"]["median"].as_f64() > Some(0.0), "{cell:#}");
        }
        assert_eq!(cell(0, server)["resumed"], Value::Null);
        assert_eq!(cell(1, server)["resumed"]["median"], 0.0);
        assert!(cell(1, server)["handshake_p99"]["median"].as_f64() > Some(0.0));
    }
    // The workers share their ticket keys.
    assert!(cell(2, 0)["resumed"]["median"].as_f64() > Some(0.5), "{:#}", cell(2, 0));
}

#[test]
fn compare_measures_streams_of_http2() {
    let ended = ProcessBuilder::verb("compare")
        .args(["--http2", "--models", "single", "--workloads", "pipelined", "--json"])
        .args(["--rounds", "1", "--duration", "300ms"])
        .run();
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(report["protocol"], "HTTP/2");
    assert_eq!(report["workloads"][0]["servers"][0]["errors"], 0, "{report:#}");
}

#[test]
fn an_interrupted_compare_reports_partial_results_and_leaves_no_process() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let args = ["--models", "prefork", "--duration", "30s", "--rounds", "5"];
        let mut compare = start_compare(&args);
        let server = wait_measured_server(&compare);
        process::send_signal(compare.id(), signal);
        let mut text = String::new();
        compare.stdout.take().expect("piped").read_to_string(&mut text).expect("report");
        assert_eq!(compare.wait().expect("a child of this process").code(), Some(1), "{text}");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let partial = report["partial"].as_str().expect("a partial report");
        assert!(partial.contains("0 of 80"), "{partial}");
        process::wait_ended(&server);
    }
}

#[test]
fn servers_end_when_compare_is_killed() {
    let mut compare = start_compare(&["--models", "prefork", "--duration", "30s"]);
    let server = wait_measured_server(&compare);
    process::send_signal(compare.id(), Signal::SIGKILL);
    compare.wait().expect("a child of this process");
    process::wait_ended(&server);
}

#[test]
fn a_killed_compare_leaves_no_process_of_a_peer_and_no_file() {
    let dir = tempfile::tempdir().expect("directory");
    let (temporary, pids) = (dir.path().join("tmp"), dir.path().join("pids"));
    fs::create_dir(&temporary).expect("a directory");
    // Neither it nor its child ends on SIGTERM.
    let peer = format!(
        "stubborn=sh -c 'trap \"\" TERM; sleep 600 & echo $$ $! >{}; wait'",
        pids.display()
    );
    let mut command = support::prefork();
    command.args(["compare", "--https", "--models", "none", "--peer", &peer]);
    command.env("TMPDIR", &temporary).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut compare = command.spawn().expect("compare");
    let server: Vec<u32> = wait::wait_until_some("the processes of the peer", || {
        let text = fs::read_to_string(&pids).ok().filter(|text| text.ends_with('\n'))?;
        text.split_whitespace().map(|pid| pid.parse().ok()).collect()
    });
    let files = || fs::read_dir(&temporary).expect("a directory").count();
    assert!(files() > 0, "the certificate is below TMPDIR");
    process::send_signal(compare.id(), Signal::SIGKILL);
    compare.wait().expect("a child of this process");
    process::wait_ended(&server);
    wait::wait_until("the directory is removed", || files() == 0);
}

#[test]
fn a_peer_without_its_program_says_how_to_install_it() {
    let dir = tempfile::tempdir().expect("directory");
    let mut command = support::prefork();
    command.args(["compare", "--models", "none", "--peer", "nginx"]).env("PATH", dir.path());
    let ended = command.output().expect("compare");
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("nginx is not on PATH; install it: apt-get"), "{stderr}");
}

#[test]
fn compare_names_servers_that_fail_and_measures_the_others() {
    let ended = ProcessBuilder::verb("compare")
        .args(["--models", "single", "--peer", "broken=echo no luck >&2; exit 3 #"])
        .args(["--peer", "missing=/nowhere/server", "--workloads", "keep-alive"])
        .args(["--rounds", "1", "--duration", "100ms"])
        .run();
    assert_eq!(ended.status, Some(1), "{}{}", ended.stdout, ended.stderr);
    for name in ["broken", "missing", "single"] {
        assert!(ended.stdout.contains(name), "{name} is not in\n{}", ended.stdout);
    }
    assert!(
        ended.stdout.contains("no luck"),
        "the last output of a server is shown:\n{}",
        ended.stdout
    );
}

#[test]
fn a_peer_is_measured_only_under_workloads_it_supports() {
    let dir = tempfile::tempdir().expect("directory");
    fs::write(dir.path().join("index.html"), "hello").expect("write");
    let peer = format!(
        "files={} serve --root {} --bind 127.0.0.1:0 --control off --workers 1",
        env!("CARGO_BIN_EXE_prefork"),
        dir.path().display()
    );
    let ended = ProcessBuilder::verb("compare")
        .args(["--models", "none", "--peer", &peer, "--workloads", "keep-alive,cpu-pool"])
        .args(["--rounds", "1", "--duration", "2s", "--json"])
        .run();
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let cell = |at: usize| report["workloads"][at]["servers"][0].clone();
    assert!(cell(0)["per_second"]["median"].as_f64() > Some(0.0), "{report:#}");
    assert_eq!(
        (cell(0)["unable"].as_bool(), cell(1)["unable"].as_bool()),
        (Some(false), Some(true))
    );
}

#[test]
fn a_program_is_measured_beside_the_models_by_prefork_run() {
    let peer = format!("foreign={} foreign-server port={{port}}", test_programs().display());
    let ended = ProcessBuilder::verb("compare")
        .args(["--models", "single", "--peer", &peer, "--workloads", "new-connections"])
        .args(["--rounds", "1", "--duration", "1s", "--workers", "2", "--json"])
        .run();
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let cells = report["workloads"][0]["servers"].as_array().expect("list");
    let cell = cells.iter().find(|cell| cell["server"] == "foreign").expect("the program");
    assert!(cell["per_second"]["median"].as_f64() > Some(0.0), "{cell:#}");
    assert!(cell["busiest"]["median"].as_f64() < Some(1.0), "two workers answered: {cell:#}");
    assert!(cell["memory_mib"]["median"].as_f64() > Some(0.0), "{cell:#}");
}

#[test]
fn a_run_is_compared_with_the_report_of_an_earlier_one() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let first = ProcessBuilder::verb("compare")
        .args(["--models", "prefork,single", "--workloads", "keep-alive", "--workers", "2"])
        .args(["--rounds", "7", "--duration", "100ms", "--json"])
        .run();
    assert_eq!(first.status, Some(0), "{}", first.stderr);
    fs::write(path("main.json"), &first.stdout).expect("written");
    // The same servers, workload and rounds as in the file.
    let again = ProcessBuilder::verb("compare")
        .args(["--baseline", &path("main.json"), "--json", "--html", &path("page.html")])
        .run();
    let report: Value = serde_json::from_str(&again.stdout).expect("JSON");
    assert_eq!(report["measured"], 21, "{}", again.stderr);
    let baseline = &report["baseline"];
    assert_eq!(
        (&baseline["reference"], &baseline["differences"]),
        (&"single".into(), &Value::from(Vec::<String>::new()))
    );
    let change = &baseline["changes"][0];
    assert_eq!(
        (&change["server"], &change["basis"]),
        (&"prefork".into(), &"ratio-to-reference".into())
    );
    assert!(change["before"].as_f64() > Some(0.0) && change["now"].as_f64() > Some(0.0));
    assert!(fs::read_to_string(path("page.html")).expect("page").contains("Since the baseline"));

    // The same report with half of the requests is worse.
    let mut slower: Value = serde_json::from_str(&first.stdout).expect("JSON");
    for sample in slower["workloads"][0]["servers"][0]["samples"].as_array_mut().expect("list") {
        sample["per_second"] = Value::from(sample["per_second"].as_f64().expect("number") / 100.0);
    }
    fs::write(path("slower.json"), slower.to_string()).expect("written");
    let compared = |now: &str, before: &str| {
        ProcessBuilder::verb("compare")
            .args(["--baseline", &path(before), "--measured", &path(now)])
            .run()
    };
    let worse = compared("slower.json", "main.json");
    assert_eq!(worse.status, Some(2), "{}{}", worse.stdout, worse.stderr);
    assert!(worse.stdout.contains("Worse: prefork under keep-alive"), "{}", worse.stdout);
    assert_eq!(compared("main.json", "main.json").status, Some(0));
    fs::write(path("cut.json"), &first.stdout[..first.stdout.len() / 2]).expect("written");
    let refused = compared("main.json", "cut.json");
    assert_eq!(refused.status, Some(64));
    assert!(refused.stderr.contains("cut.json is truncated"), "{}", refused.stderr);
}

#[test]
fn the_command_of_a_report_repeats_its_order() {
    // Server and round of each measurement, in the order in which they were made.
    let order = |report: &Value| -> Vec<String> {
        let servers = report["workloads"][0]["servers"].as_array().expect("list");
        let mut made: Vec<(f64, String)> = Vec::new();
        for server in servers {
            for sample in server["samples"].as_array().expect("list") {
                let at = sample["at_s"].as_f64().expect("a time");
                made.push((at, format!("{} {}", server["server"], sample["round"])));
            }
        }
        made.sort_by(|a, b| a.0.total_cmp(&b.0));
        made.into_iter().map(|(_, name)| name).collect()
    };
    let run = |args: &[&str]| -> Value {
        let ended = ProcessBuilder::verb("compare").args(args).run();
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    let first = run(&[
        "--models=prefork,single",
        "--workloads=keep-alive",
        "--rounds=4",
        "--duration=100ms",
        "--workers=2",
        "--json",
    ]);
    let command = first["repeat_command"].as_str().expect("a command");
    assert!(command.ends_with(&format!(" --seed {}", first["seed"])), "{command}");
    let words: Vec<&str> = command.split(' ').skip(2).collect();
    let again = run(&words);
    assert_eq!(order(&first), order(&again));
    assert_eq!(
        (&again["seed"], &again["repeat_command"]),
        (&first["seed"], &first["repeat_command"])
    );
}

/// Returns what any report has in common with another of the same servers and loads: labels, titles of columns, names and number of
/// cells of rows, and what is compared.
fn report_shape(text: &str) -> Vec<String> {
    let metrics = ["p99 latency", "requests/s", "CPU per request", "memory"];
    let labels = ["Other differences:", "Control:", "Confidence:", "Failed requests:"];
    let shape_of = |line: &str| {
        if let Some((server, rest)) = line.strip_prefix("- ").and_then(|one| one.split_once(':')) {
            let metric = metrics.iter().find(|name| rest.contains(*name))?;
            return Some(format!("- {server}: {metric}"));
        }
        if let Some(label) = labels.iter().find(|label| line.starts_with(*label)) {
            return Some(label.to_string());
        }
        let cells: Vec<&str> =
            line.split("  ").map(str::trim).filter(|one| !one.is_empty()).collect();
        match cells[..] {
            // The load average and the best servers differ from run to run.
            [] | ["LOAD" | "keep-alive" | "noisy-neighbour", _, ..] => None,
            [_] if line.starts_with("single:") || line.starts_with("BUSIEST") => None,
            [_] if line.contains(" rounds:") || line.ends_with("of this report:") => {
                Some(line.trim_start_matches(char::is_numeric).to_string())
            }
            [_] => None,
            _ if line.starts_with(' ') => Some(cells.join(" ")),
            [name, ..] => Some(format!("{name} {}", cells.len())),
        }
    };
    text.lines().filter_map(shape_of).collect()
}

#[test]
fn the_example_of_the_documentation_has_the_shape_of_a_report() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/compare.md");
    let page = fs::read_to_string(page).expect("the page");
    let block =
        page.split("```").find(|block| block.starts_with("console\n$ prefork compare --rounds"));
    let block = block.expect("an example");
    let (command, example) =
        block["console\n$ prefork compare ".len()..].split_once('\n').expect("lines");
    // Few but long rounds: the kernel counts CPU time in units of 10 ms, and a short round may show none.
    let lengths = ["--rounds", "1", "--duration", "600ms", "--workers", "2"];
    let command = command.trim_end_matches(" | fold -s -w 120");
    let args = command.split(' ').skip(4).chain(lengths);
    let ended = ProcessBuilder::verb("compare").args(args).run();
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report = report_shape(&ended.stdout);
    let mut count = 0;
    let parts = example.split("\n...\n").map(report_shape);
    for part in parts.filter(|part| !part.is_empty()) {
        count += part.len();
        assert!(
            report.windows(part.len()).any(|lines| lines == part),
            "{part:#?} is not in {report:#?}: copy the output of the command to docs/src/compare.md"
        );
    }
    assert!(count > 15, "the example has {count} lines that any report has");
}
