//! `prefork bench` against healthy, dying, frozen and missing servers, and its `--chaos` faults.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support;
use crate::support::command::{ProcessBuilder, ProcessOutput};
use crate::support::{Server, process, wait};

fn run_bench(args: &[&str]) -> ProcessOutput {
    ProcessBuilder::verb("bench").args(args).run()
}

fn bench_url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address())
}

/// Runs a bench that must end with `status`, and returns its JSON report.
#[track_caller]
fn bench_report(args: &[&str], status: i32) -> Value {
    let ended = run_bench(&[args, &["--json"]].concat());
    assert_eq!(ended.status, Some(status), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

/// Starts a bench in the background.
fn start_bench(args: &[&str]) -> Child {
    let mut command = support::prefork();
    command.arg("bench").args(args).arg("--json");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("bench")
}

/// Waits for a bench, and returns its exit status and JSON report.
#[track_caller]
fn finish_bench(mut child: Child) -> (Option<i32>, Value) {
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("report");
    let status = child.wait().expect("a child of this process");
    (status.code(), serde_json::from_str(&text).expect("JSON"))
}

fn as_count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn failure_count(report: &Value) -> u64 {
    report["failures"].as_object().expect("object").values().map(as_count).sum()
}

fn wait_until_under_load(server: &Server) {
    wait::wait_until("load on the server", || {
        server.status()["totals"]["requests"].as_u64().is_some_and(|n| n > 100)
    });
}

/// Returns the number of requests that each pid answered, ordered by pid.
fn requests_by_pid(list: &Value, requests: impl Fn(&Value) -> u64) -> Vec<(u64, u64)> {
    let list = list.as_array().expect("list").iter();
    let mut pids: Vec<_> = list.map(|entry| (as_count(&entry["pid"]), requests(entry))).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn bench_counts_per_worker_match_the_scoreboard() {
    for more in [&["-c", "8"][..], &["-c", "4", "--close"], &["-c", "8", "--pipeline", "4"]] {
        let server = Server::builder().start();
        let url = bench_url(&server, "/");
        let report =
            bench_report(&[&["--duration", "1s", "--warm-up", "0", &url], more].concat(), 0);
        assert_eq!(failure_count(&report), 0, "{report:#}");
        let status = server.status();
        let measured = requests_by_pid(&report["pids"], |entry| as_count(&entry["requests"]));
        let mut counted =
            requests_by_pid(&status["workers"], |entry| as_count(&entry["counters"]["requests"]));
        // On a busy machine one worker may get all connections before the other one runs.
        counted.retain(|(_, requests)| *requests > 0);
        assert_eq!(measured, counted, "{more:?}");
        assert_eq!(report["responses"], status["totals"]["requests"]);
        assert!(report["balance"]["max_to_min"].as_f64().is_none_or(|ratio| ratio >= 1.0));
        assert_eq!(report["server"]["pid"], server.pid());
        assert_eq!(report["server"]["processes"], 3);
        assert!(report["server"]["user_s"].as_f64() > Some(0.0), "{report:#}");
        server.stop();
    }
}

#[test]
fn many_connections_are_all_open_before_the_load_begins() {
    for more in [&["-c", "800"][..], &["-c", "300", "--http2", "--streams", "2"]] {
        let server = Server::builder().start();
        // As long as it takes: the load begins when all are open.
        let args = ["--warm-up", "30s", "--duration", "30s", &bench_url(&server, "/")];
        let bench = start_bench(&[&args, more].concat());
        let connections = as_count(&serde_json::from_str(more[1]).expect("number"));
        wait::wait_until("load on all connections", || {
            let totals = &server.status()["totals"];
            as_count(&totals["requests"]) > 10 * connections
        });
        process::send_signal(bench.id(), Signal::SIGINT);
        let (_, report) = finish_bench(bench);
        assert_eq!(failure_count(&report) + as_count(&report["warm_up_failures"]), 0, "{report:#}");
        assert_eq!(report["connections_opened"], connections, "{report:#}");
        assert!(report["connecting"]["all_answered_s"].is_number(), "{report:#}");
        server.stop();
    }
}

#[test]
fn bench_accepts_a_unix_socket_as_target() {
    let builder = Server::builder();
    let path = builder.dir().join("web").display().to_string();
    let server = builder.bind([format!("unix:{path}")]).start();
    let url = format!("unix:{path}:/echo");
    let report = bench_report(
        &["--duration", "1s", "--warm-up", "0", "-c", "4", "--data", "hello", &url],
        0,
    );
    assert_eq!((report["method"].as_str(), failure_count(&report)), (Some("POST"), 0));
    assert!(as_count(&report["statuses"]["2xx"]) > 0);
    assert_eq!(report["server"]["pid"], server.pid());
    server.stop();
}

#[test]
fn open_loop_latency_includes_requests_due_during_a_freeze() {
    let server = Server::builder().workers(1).start();
    let worker = server.worker_pids()[0];
    let rate = 200;
    let url = bench_url(&server, "/");
    let run =
        start_bench(&["--rate", "200", "-c", "4", "--duration", "4s", "--warm-up", "0", &url]);
    wait_until_under_load(&server);
    process::send_signal(worker, Signal::SIGSTOP);
    wait::wait_until("the worker is stopped", || {
        process::stat(worker).is_some_and(|stat| stat.state == 'T')
    });
    let frozen = std::time::Instant::now();
    wait::wait_for_duration(std::time::Duration::from_secs(1));
    process::send_signal(worker, Signal::SIGCONT);
    let frozen = frozen.elapsed().as_secs_f64();
    let (status, report) = finish_bench(run);
    assert_eq!(status, Some(0), "{report:#}");
    let due = 4 * rate;
    assert_eq!(as_count(&report["responses"]), due, "each one is answered in the end");
    // Requests are due evenly during the freeze, so half of them wait for more than half of it.
    let max = report["latency"]["max"].as_f64().expect("number") / 1e6;
    assert!(max >= frozen * 0.95, "the slowest took {max} s of {frozen} s");
    let curve = report["latency"]["curve"].as_array().expect("list");
    let slow = curve.iter().find(|p| p[1].as_f64() > Some(frozen / 2.0 * 1e6));
    let slow = 1.0 - slow.expect("one of them")[0].as_f64().expect("percent") / 100.0;
    let expected = frozen / 2.0 / 4.0;
    // The points of the curve are up to 5 % apart. A closed loop would have 4 slow requests: 0.5 %.
    assert!(slow >= expected - 0.06, "{slow} of all were slow, {expected} should be");
    server.stop();
}

#[test]
fn a_killed_worker_loses_only_its_requests_in_flight() {
    let server = Server::builder().start().allow_errors(&["SIGKILL"]);
    let victim = server.worker_pids()[0];
    let url = bench_url(&server, "/sleep/20");
    let run = start_bench(&["-c", "16", "--duration", "2s", "--warm-up", "0", &url]);
    wait_until_under_load(&server);
    process::send_signal(victim, Signal::SIGKILL);
    let (status, report) = finish_bench(run);
    let failures = &report["failures"];
    let lost = as_count(&failures["reset"]) + as_count(&failures["closed_early"]);
    assert!((1..=16).contains(&lost), "{report:#}");
    for kind in ["refused", "timed_out", "malformed", "local"] {
        assert_eq!(failures[kind], 0, "{kind}");
    }
    assert_eq!(status, Some(1));
    server.stop();
}

#[test]
fn bench_separates_error_statuses_from_timeouts() {
    let server = Server::builder().start();
    let short = ["-c", "2", "--duration", "1s", "--warm-up", "0"];
    let missing = bench_report(&[&short[..], &[&bench_url(&server, "/missing")]].concat(), 1);
    assert!(as_count(&missing["statuses"]["4xx"]) > 0 && failure_count(&missing) == 0);
    let asleep = bench_url(&server, "/sleep/60000");
    let slow = [&short[..], &["--timeout", "200ms", &asleep]].concat();
    let slow = bench_report(&slow, 69);
    assert!(as_count(&slow["failures"]["timed_out"]) >= 2, "{slow:#}");
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn pids_come_from_a_header_and_non_http_counts_as_malformed() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nX-Who: 42\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 0),
        ("220 mail.example ESMTP\r\n", 69),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}/", listener.local_addr().expect("address"));
        // This thread ends with the process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let asked = stream.read(&mut request).is_ok_and(|n| n > 0);
                let _ = asked.then(|| stream.write_all(answer.as_bytes()));
            }
        });
        let short = ["-c", "1", "--duration", "1s", "--warm-up", "0", "--pids", "x-who", &url];
        let report = bench_report(&short, status);
        match status {
            0 => assert_eq!(report["pids"][0]["pid"], 42),
            _ => assert!(as_count(&report["failures"]["malformed"]) > 0, "{report:#}"),
        }
    }
}

#[test]
fn ctrl_c_ends_a_bench_early_with_a_report() {
    let server = Server::builder().start();
    let run =
        start_bench(&["-c", "4", "--duration", "60s", "--warm-up", "0", &bench_url(&server, "/")]);
    wait_until_under_load(&server);
    process::send_signal(run.id(), Signal::SIGINT);
    let (status, report) = finish_bench(run);
    assert_eq!((status, report["ended_early"].as_bool()), (Some(0), Some(true)));
    assert!(report["measured_s"].as_f64().is_some_and(|s| s > 0.0 && s < 60.0), "{report:#}");
    assert_eq!(report["responses"], server.status()["totals"]["requests"]);
    server.stop();
}

#[test]
fn bench_writes_an_html_page_and_prints_a_table() {
    let server = Server::start(2);
    let page = server.dir().join("report.html").display().to_string();
    let ended = run_bench(&[
        "--duration",
        "1s",
        "--warm-up",
        "0",
        "--html",
        &page,
        &bench_url(&server, "/"),
    ]);
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    for piece in ["requests/s", "latency", "errors", "balance", "CPU"] {
        assert!(ended.stdout.contains(piece), "{piece}\n{}", ended.stdout);
    }
    let page = std::fs::read_to_string(page).expect("page");
    assert_eq!(page.matches("role=\"img\"").count(), 4);
    server.stop();
}

#[test]
fn invalid_bench_arguments_are_named() {
    let free = TcpListener::bind("127.0.0.1:0").expect("bind");
    let unreachable = format!("http://{}/", free.local_addr().expect("address"));
    drop(free);
    for (args, status, piece) in [
        (vec![unreachable.as_str()], 69, unreachable.trim_end_matches('/')),
        (vec!["unix:/nowhere/a.sock"], 69, "unix:/nowhere/a.sock"),
        (vec!["ftp://127.0.0.1/"], 64, "ftp://"),
        (vec!["-c", "0", &unreachable], 64, "--connections"),
        (vec!["--rate", "5", "--pipeline", "2", &unreachable], 64, "--pipeline"),
        (vec!["--data-file", "missing", &unreachable], 71, "missing"),
        (vec!["--html", "/nowhere/a.html", &unreachable], 71, "/nowhere/a.html"),
    ] {
        let ended = run_bench(&args);
        assert_eq!(
            (ended.status, ended.stdout.as_str()),
            (Some(status), ""),
            "{args:?} {}",
            ended.stderr
        );
        assert!(ended.stderr.contains(piece), "{args:?}: {}", ended.stderr);
    }
}

#[test]
fn a_post_without_a_body_sends_content_length_0() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let (sender, receiver) = std::sync::mpsc::channel();
    // This thread ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut request) {
                let _ = sender.send(String::from_utf8_lossy(&request[..n]).into_owned());
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let short = ["-X", "POST", "-c", "1", "-t", "1", "--duration", "200ms", "--warm-up", "0", &url];
    bench_report(&short, 0);
    let request = receiver.recv().expect("a request");
    assert!(request.contains("\r\nContent-Length: 0\r\n"), "{request}");
}

/// Runs a bench with faults, and returns its exit status and JSON report.
fn run_chaos(server: &Server, args: &[&str]) -> (Option<i32>, Value) {
    let url = format!("http://{}/", server.address());
    let args = [args, &["--json", "--warm-up", "0", "-c", "8", &url]].concat();
    let ended = ProcessBuilder::verb("bench").args(args).run();
    let report = serde_json::from_str(&ended.stdout);
    (ended.status, report.unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr)))
}

/// Returns a figure of one kind of fault in a report.
#[track_caller]
fn fault_figure(report: &Value, fault: &str, figure: &str) -> u64 {
    let faults = report["chaos"]["faults"].as_array().expect("list");
    let found = faults.iter().find(|entry| entry["fault"] == fault);
    found.unwrap_or_else(|| panic!("no {fault}: {report:#}"))[figure].as_u64().expect("number")
}

/// Starts a bench with faults in the background.
fn start_chaos(server: &Server, chaos: &str) -> Child {
    let mut command = support::prefork();
    command.args(["bench", "--chaos", chaos, "--duration", "60s", "--warm-up", "0"]);
    command.arg(format!("http://{}/", server.address()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("bench")
}

/// Asserts that at least one of `due` faults happened. The others may have been skipped or, on a busy machine, come too
/// late.
#[track_caller]
fn assert_scheduled_faults(report: &Value, fault: &str, due: u64) {
    let [count, skipped] = ["count", "skipped"].map(|name| fault_figure(report, fault, name));
    assert!(count >= 1 && count + skipped <= due, "{report:#}");
}

fn stopped_worker(server: &Server) -> Option<u32> {
    let is_stopped = |pid: &u32| process::stat(*pid).is_some_and(|stat| stat.state == 'T');
    server.worker_pids().into_iter().find(is_stopped)
}

#[test]
fn chaos_kills_are_counted_with_the_requests_they_lose() {
    let server = Server::builder().start().allow_errors(&["SIGKILL"]);
    let (status, report) = run_chaos(&server, &["--duration", "1900ms", "--chaos", "kill=600ms"]);
    assert_scheduled_faults(&report, "kill", 3);
    // The primary holds the socket, so no connection is refused while workers die.
    assert_eq!(fault_figure(&report, "kill", "refused"), 0, "{report:#}");
    let failures: u64 =
        report["failures"].as_object().expect("object").values().filter_map(Value::as_u64).sum();
    let unexplained = report["chaos"]["unexplained"]["lost"].as_u64();
    assert_eq!(
        (fault_figure(&report, "kill", "lost"), unexplained),
        (failures, Some(0)),
        "{report:#}"
    );
    assert_eq!(status, Some(i32::from(failures > 0)), "{report:#}");
    let restarts = || server.status()["primary"]["restarts"].as_u64();
    wait::wait_until("workers in place of the dead", || {
        restarts() >= Some(fault_figure(&report, "kill", "count"))
    });
    server.stop();
}

#[test]
fn chaos_reloads_lose_no_request() {
    let server = Server::builder().start();
    let (status, report) = run_chaos(&server, &["--duration", "2s", "--chaos", "reload=900ms"]);
    assert_scheduled_faults(&report, "reload", 2);
    assert_eq!(
        (fault_figure(&report, "reload", "lost"), fault_figure(&report, "reload", "refused")),
        (0, 0)
    );
    assert_eq!(status, Some(0), "{report:#}");
    server.stop();
}

#[test]
fn chaos_freezes_cause_late_responses_and_end() {
    let server = Server::builder().start();
    let freeze = ["--duration", "1800ms", "--chaos", "freeze=700ms/400ms", "--late", "300ms"];
    let (status, report) = run_chaos(&server, &freeze);
    assert_scheduled_faults(&report, "freeze", 2);
    assert!(fault_figure(&report, "freeze", "late") > 0, "{report:#}");
    assert_eq!(fault_figure(&report, "freeze", "lost"), 0, "{report:#}");
    assert!(report["latency"]["max"].as_f64() >= Some(350_000.0), "{report:#}");
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(stopped_worker(&server), None);
    server.stop();
}

#[test]
fn workers_are_resumed_however_a_chaos_bench_ends() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let server = Server::builder().start();
        let mut bench = start_chaos(&server, "freeze=600ms/590ms");
        let frozen = wait::wait_until_some("a frozen worker", || stopped_worker(&server));
        process::send_signal(bench.id(), signal);
        bench.wait().expect("a child of this process");
        wait::wait_until("the worker resumes", || {
            process::stat(frozen).is_some_and(|stat| stat.state != 'T')
        });
        server.stop();
    }
}

#[test]
fn chaos_refuses_targets_that_are_not_prefork() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let ended = ProcessBuilder::verb("bench").args(["--chaos", "kill=1s", &url]).run();
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains(&std::process::id().to_string()), "{}", ended.stderr);
    for (faults, piece) in [("kill=20s", "--duration"), ("nap=1s", "nap")] {
        let ended = ProcessBuilder::verb("bench").args(["--chaos", faults, &url]).run();
        assert_eq!(ended.status, Some(64), "{}", ended.stderr);
        assert!(ended.stderr.contains(piece), "{}", ended.stderr);
    }
}
