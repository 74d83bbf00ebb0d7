//! Each metric moves when what it describes happens: one test for each group sees its metrics above zero.
//!
//! `every_metric_is_seen_above_zero_by_a_test` fails if a metric is in no group. Add a new metric to a group whose test increases it.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::log_output::start_with_full_pipe;
use crate::support::boot_barrier::BootBarrier;
use crate::support::command::ProcessBuilder;
use crate::support::scrape::{admin_socket, scrape, start, start_program, with_admin};
use crate::support::tls_server::TlsServer;
use crate::support::{Address, Client, Server, admin_listener, overrides, process, wait};

/// The metrics that each test sees above zero, all at the same time or one after the other. With a label, only these series count.
const SEEN: &[(&str, &[&str])] = &[
    ("requests", REQUESTS),
    ("workers", WORKERS),
    ("reloaded", RELOADED),
    ("full", FULL),
    ("tls", TLS),
    ("program", PROGRAM),
    ("pool", POOL),
    ("isolated", ISOLATED),
    ("changes", CHANGES),
    ("lines", &["prefork_log_lines_dropped_total"]),
    ("messages", &["prefork_messages_lost_total"]),
];

const REQUESTS: &[&str] = &[
    "prefork_http_requests_received_total",
    r#"prefork_http_requests_total{status="2xx"}"#,
    r#"prefork_http_requests_total{status="4xx"}"#,
    r#"prefork_http_requests_total{status="5xx"}"#,
    r#"prefork_http_requests_total{status="none"}"#,
    "prefork_http_request_duration_seconds",
    "prefork_http_request_duration_seconds_sum",
    "prefork_http_handler_panics_total",
    "prefork_http_request_timeouts_total",
    "prefork_received_bytes_total",
    "prefork_sent_bytes_total",
    "prefork_connections_accepted_total",
    "prefork_connections_proxy_refused_total",
    "prefork_connections_cut_total",
    r#"prefork_access_log_lines_total{outcome="written"}"#,
    r#"prefork_access_log_lines_total{outcome="skipped"}"#,
];

const WORKERS: &[&str] = &[
    "prefork_build_info",
    "prefork_start_time_seconds",
    "prefork_generation",
    r#"prefork_workers{state="serving"}"#,
    "prefork_workers_wanted",
    "prefork_worker_heartbeat_age_seconds",
    "prefork_worker_resident_memory_bytes",
    "prefork_worker_open_fds",
    "prefork_worker_cpu_seconds_total",
    "prefork_worker_forks_total",
    "prefork_event_loop_lag_seconds",
    "prefork_accept_queue_limit",
    "prefork_accept_queue_wait_seconds",
    "prefork_http_requests_running",
    r#"prefork_connections{state="active"}"#,
    r#"prefork_connections{state="idle"}"#,
    "prefork_connections_parked",
];

const RELOADED: &[&str] = &[
    "prefork_worker_restarts_total",
    r#"prefork_worker_exits_total{reason="killed"}"#,
    r#"prefork_worker_exits_total{reason="reloaded"}"#,
    r#"prefork_access_log_lines_total{outcome="dropped"}"#,
    r#"prefork_reloads_total{outcome="succeeded"}"#,
    r#"prefork_reload_last_timestamp_seconds{outcome="succeeded"}"#,
    "prefork_reload_last_duration_seconds",
    "prefork_connections_handed_over_total",
    "prefork_connections_taken_over_total",
];

const FULL: &[&str] = &[
    "prefork_connections_over_limit_total",
    "prefork_connections_shed_total",
    "prefork_accept_queue_connections",
    "prefork_accept_queue_wait_seconds_sum",
    "prefork_event_loop_lag_seconds_sum",
];

const TLS: &[&str] = &[
    r#"prefork_tls_handshakes_total{result="full"}"#,
    r#"prefork_tls_handshakes_total{result="not_tls"}"#,
    "prefork_tls_handshakes_in_progress",
    "prefork_tls_certificate_not_after_timestamp_seconds",
    "prefork_tls_certificate_not_before_timestamp_seconds",
];

const PROGRAM: &[&str] = &[
    "prefork_program_processes",
    "prefork_program_connections",
    "prefork_program_queued_connections",
];

const POOL: &[&str] = &[
    r#"prefork_pool_jobs_total{outcome="done"}"#,
    r#"prefork_pool_jobs_total{outcome="rejected"}"#,
    r#"prefork_pool_jobs_total{outcome="cancelled"}"#,
    r#"prefork_pool_jobs_total{outcome="panicked"}"#,
    "prefork_pool_threads",
    "prefork_pool_jobs_running",
    "prefork_pool_jobs_waiting",
    "prefork_pool_queue_limit",
    "prefork_pool_utilisation_ratio",
    "prefork_pool_job_wait_seconds",
    "prefork_pool_job_run_seconds",
];

const ISOLATED: &[&str] = &[
    r#"prefork_isolated_jobs_total{outcome="done"}"#,
    r#"prefork_isolated_jobs_total{outcome="failed"}"#,
    r#"prefork_isolated_jobs_total{outcome="panicked"}"#,
    r#"prefork_isolated_jobs_total{outcome="died"}"#,
    r#"prefork_isolated_jobs_total{outcome="timed_out"}"#,
    r#"prefork_worker_exits_total{reason="job"}"#,
    "prefork_isolated_processes",
    "prefork_isolated_jobs_running",
    "prefork_isolated_jobs_waiting",
    "prefork_isolated_queue_limit",
    "prefork_isolated_queue_inputs_bytes",
    "prefork_isolated_job_wait_seconds",
    "prefork_isolated_job_run_seconds",
];

const CHANGES: &[&str] = &[
    "prefork_reload_running",
    r#"prefork_reloads_total{outcome="failed"}"#,
    r#"prefork_reload_last_timestamp_seconds{outcome="failed"}"#,
    "prefork_upgrade_running",
    r#"prefork_upgrades_total{outcome="succeeded"}"#,
    r#"prefork_upgrade_last_timestamp_seconds{outcome="succeeded"}"#,
    "prefork_upgrade_last_duration_seconds",
];

/// Metrics of `SEEN` that a test has not seen above zero yet.
struct Unseen {
    server_name: &'static str,
    metrics: BTreeSet<&'static str>,
}

impl Unseen {
    fn of(test: &'static str) -> Unseen {
        let found = SEEN.iter().find(|(name, _)| *name == test).expect("a test of the table");
        Unseen { server_name: test, metrics: found.1.iter().copied().collect() }
    }

    /// Scrapes once, and removes what is above zero now.
    fn look(&mut self, server: &Server) {
        let seen = scrape(server);
        self.metrics.retain(|metric| seen.total(metric) <= 0.0);
    }

    /// Waits until each of these metrics was above zero.
    #[track_caller]
    fn wait_seen(&mut self, server: &Server, metrics: &[&str]) {
        let wanted = wait::poll_until(|| {
            self.look(server);
            metrics.iter().all(|metric| !self.metrics.contains(metric)).then_some(())
        });
        assert!(wanted.is_some(), "0 in {}: {:?}", self.server_name, self.metrics);
    }

    /// Waits until all metrics of the test were above zero.
    #[track_caller]
    fn wait_all_seen(mut self, server: &Server) {
        let all: Vec<&str> = self.metrics.iter().copied().collect();
        self.wait_seen(server, &all);
    }
}

fn documented_metrics() -> BTreeSet<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/metrics.md"));
    let page = page.expect("the page about metrics");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `prefork_")?.split_once('`'));
    rows.map(|(name, _)| format!("prefork_{name}")).collect()
}

/// The page lists each metric that exists: a unit test of the library compares the two.
#[test]
fn every_metric_is_seen_above_zero_by_a_test() {
    let documented = documented_metrics();
    let seen = SEEN.iter().flat_map(|(_, metrics)| *metrics);
    let seen = seen.map(|metric| metric.split('{').next().unwrap_or_default());
    let of_histogram = |name: &str| {
        let base = name.trim_end_matches("_sum");
        if documented.contains(name) { name.to_string() } else { base.to_string() }
    };
    let seen: BTreeSet<String> = seen.map(of_histogram).collect();
    let missing: Vec<_> = documented.difference(&seen).collect();
    assert!(missing.is_empty(), "no test sees these metrics above zero: {missing:?}");
    let unknown: Vec<_> = seen.difference(&documented).collect();
    assert!(unknown.is_empty(), "docs/src/metrics.md does not list {unknown:?}");
}

fn start_for_requests(builder: ProcessBuilder) -> Server {
    let binds = ["127.0.0.1:0", "127.0.0.1:0?proxy-protocol=v1"];
    let args = ["--faults", "--request-timeout", "300ms"];
    let log = ["--access-log", "access.log", "--access-log-skip", "/healthz"];
    let trust = ["--trusted-proxies", "127.0.0.0/8"];
    start(builder.bind(binds).args(args).args(log).args(trust))
        .allow_errors(&["panicked", "SIGKILL"])
}

/// Lets something of each kind happen to requests: an answer, an error, a panic, a timeout, a client that goes away, a
/// response that the client does not read, a missing PROXY header.
fn send_all_kinds_of_requests(server: &Server) {
    for (path, status) in [
        ("/", 200),
        ("/healthz", 200),
        ("/nowhere", 404),
        ("/fault/panic", 500),
        ("/sleep/600000", 503),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let before = scrape(server).total(r#"prefork_http_requests_total{status="none"}"#);
    wait::wait_until("a request whose client goes away first", || {
        drop(server.send_get("/sleep/600000"));
        scrape(server).total(r#"prefork_http_requests_total{status="none"}"#) > before
    });
    let before = scrape(server).total("prefork_connections_cut_total");
    let slow = server.send_get("/bytes/50000000");
    wait::wait_until("a response that is not read is given up", || {
        scrape(server).total("prefork_connections_cut_total") > before
    });
    drop(slow);
    let Address::Tcp(with_header) = server.addresses()[1] else { panic!("a TCP address") };
    let mut unknown = Client::connect(&Address::Tcp(with_header)).expect("connect");
    unknown.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    assert!(unknown.read().is_err(), "closed for its missing PROXY header");
}

#[test]
fn requests_and_what_ends_them_are_in_the_metrics() {
    for model in ["prefork", "threads", "thread-per-core"] {
        println!("model {model}");
        let server = start_for_requests(Server::builder().model(model, 2));
        send_all_kinds_of_requests(&server);
        Unseen::of("requests").wait_all_seen(&server);
        server.stop();
    }
}

#[test]
fn raw_connections_are_no_lost_lines_of_the_access_log() {
    let program = ProcessBuilder::program("serve-http").args(["door=raw", "access-log=access.log"]);
    let server = start_program(program.workers(2));
    for _ in 0..3 {
        assert_eq!(server.get("/").status, 200);
    }
    server.run_verb(&["reload"]);
    wait::wait_until("no old worker", || {
        server.status()["workers"].as_array().is_some_and(|w| w.len() == 2)
    });
    let lines = server.status()["access_log"].clone();
    assert_eq!((&lines["written"], &lines["dropped"]), (&3.into(), &0.into()), "{lines}");
    // Each counts as a request, and so do the requests on it.
    assert_eq!(server.status()["totals"]["requests"], 6);
    server.stop();
}

/// The names of the traffic counters in `totals` and in the metrics.
const TOTALS: [(&str, &str); 12] = [
    ("accepted", "prefork_connections_accepted_total"),
    ("requests", "prefork_http_requests_received_total"),
    ("bytes_in", "prefork_received_bytes_total"),
    ("bytes_out", "prefork_sent_bytes_total"),
    ("panics", "prefork_http_handler_panics_total"),
    ("cut", "prefork_connections_cut_total"),
    ("handed_over", "prefork_connections_handed_over_total"),
    ("taken_over", "prefork_connections_taken_over_total"),
    ("shed", "prefork_connections_shed_total"),
    ("timed_out", "prefork_http_request_timeouts_total"),
    ("over_limit", "prefork_connections_over_limit_total"),
    ("proxy_refused", "prefork_connections_proxy_refused_total"),
];

/// Asserts that `prefork status`, `/status` and `/metrics` of a server without connections say the same. Returns its totals.
#[track_caller]
fn assert_sources_agree(server: &Server) -> Value {
    let status = wait::wait_until_some("a server without connections", || {
        let status = server.status();
        let workers = status["workers"].as_array()?;
        (workers.iter().all(|worker| worker["connections"] == 0)).then_some(status)
    });
    // The admin process learns the generation from the primary a moment later.
    let of_admin = wait::wait_until_some("the admin process knows the generation", || {
        let of_admin = admin_listener::get(&admin_socket(server), "/status").json();
        let is_new = of_admin["primary"]["generation"] == status["primary"]["generation"];
        is_new.then_some(of_admin)
    });
    let seen = scrape(server);
    for part in
        ["totals", "requests_by", "durations", "access_log", "supervision", "listeners", "pools"]
    {
        assert_eq!(status[part], of_admin[part], "{part}");
    }
    for part in ["restarts", "workers_wanted", "log_lines_dropped", "messages_lost"] {
        assert_eq!(status["primary"][part], of_admin["primary"][part], "{part}");
    }
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number: {value}"));
    let totals = status["totals"].as_object().expect("totals");
    for (name, value) in totals.iter().filter(|(name, _)| *name != "responses") {
        let found = TOTALS.iter().find(|(total, _)| total == name);
        let metric = found.unwrap_or_else(|| panic!("{name} is in no metric")).1;
        assert_eq!(number(value), seen.value(metric), "{name} and {metric}");
    }
    for (n, response) in (1..).zip(totals["responses"].as_array().expect("five")) {
        let metric = format!("prefork_http_requests_total{{status=\"{n}xx\"}}");
        assert_eq!(number(response), seen.total(&metric), "{metric}");
    }
    for (pointer, metric) in [
        ("/primary/restarts", "prefork_worker_restarts_total"),
        ("/primary/generation", "prefork_generation"),
        ("/supervision/forks", "prefork_worker_forks_total"),
        ("/supervision/reloads/succeeded", r#"prefork_reloads_total{outcome="succeeded"}"#),
        ("/supervision/upgrades/succeeded", r#"prefork_upgrades_total{outcome="succeeded"}"#),
        ("/access_log/written", r#"prefork_access_log_lines_total{outcome="written"}"#),
        ("/access_log/skipped", r#"prefork_access_log_lines_total{outcome="skipped"}"#),
    ] {
        let value = status.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}: {status}"));
        assert_eq!(number(value), seen.total(metric), "{pointer} and {metric}");
    }
    status["totals"].clone()
}

#[test]
fn status_and_metrics_agree_over_kills_a_reload_and_an_upgrade() {
    let server = start_for_requests(Server::builder().workers(2).with_copied_program());
    send_all_kinds_of_requests(&server);
    let totals = assert_sources_agree(&server);
    assert_eq!(totals["proxy_refused"], 1, "{totals}");
    let killed = server.worker_pids();
    killed.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
    server.wait_new_workers(2, &killed);
    assert_eq!(assert_sources_agree(&server), totals, "after kills");
    for (verb, generation) in [("reload", 2), ("upgrade", 3)] {
        let old = server.worker_pids();
        server.run_verb(&[verb]);
        server.wait_generation(generation);
        wait::wait_until("no old worker", || {
            server.worker_pids().iter().all(|pid| !old.contains(pid))
        });
        assert_eq!(assert_sources_agree(&server), totals, "after {verb}");
    }
    send_all_kinds_of_requests(&server);
    assert_eq!(assert_sources_agree(&server)["proxy_refused"], 2);
    server.stop();
}

#[test]
fn workers_and_their_connections_are_in_the_metrics() {
    if overrides::is_tls() {
        return;
    }
    let server = start(Server::builder().workers(2));
    let mut idle = server.connect();
    assert_eq!(idle.get("/").expect("an answer").status, 200);
    let busy = server.start_request("/sleep/600000");
    Unseen::of("workers").wait_all_seen(&server);
    drop((idle, busy));
    server.stop();
}

#[test]
fn killed_and_reloaded_workers_are_in_the_metrics() {
    if overrides::is_tls() {
        return;
    }
    let args = ["--access-log", "access.log", "--graceful-timeout", "10s"];
    let server = start(Server::builder().workers(2).args(args)).allow_errors(&["SIGKILL"]);
    let lost = server.start_request("/sleep/600000");
    server.wait_request_in_status("/sleep/600000");
    let killed = server.worker_pids();
    killed.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
    server.wait_new_workers(2, &killed);
    let mut kept = server.connect();
    assert_eq!(kept.get("/").expect("an answer").status, 200);
    server.run_verb(&["reload"]);
    Unseen::of("reloaded").wait_all_seen(&server);
    assert_eq!(kept.get("/").expect("an answer of the new worker").status, 200);
    drop((lost, kept));
    server.stop();
}

/// Stops a process with SIGSTOP, and waits until it stands still.
fn freeze(pid: u32) {
    process::send_signal(pid, Signal::SIGSTOP);
    wait::wait_until("it stands still", || {
        process::stat(pid).is_some_and(|stat| stat.state == 'T')
    });
}

#[test]
fn full_workers_and_long_queues_are_in_the_metrics() {
    let args = ["--worker-connections", "1", "--max-queue-wait", "500ms", "--stall-timeout", "off"];
    let server = start(Server::builder().workers(1).args(args));
    let mut unseen = Unseen::of("full");
    let mut first = server.connect();
    assert_eq!(first.get("/").expect("an answer").status, 200);
    wait::wait_until("a full worker", || server.status()["workers"][0]["full"] == true);
    let mut second = server.send_get("/");
    unseen.wait_seen(&server, &["prefork_accept_queue_connections"]);
    drop(first);
    // Served, or refused because it had waited for too long.
    second.read().expect("an answer");
    unseen.wait_seen(&server, &["prefork_connections_over_limit_total"]);
    drop(second);
    let worker = server.worker_pids()[0];
    freeze(worker);
    let mut late = server.send_get("/");
    wait::wait_for_duration(std::time::Duration::from_millis(700));
    process::send_signal(worker, Signal::SIGCONT);
    assert_eq!(late.read().expect("an answer").status, 503);
    unseen.wait_all_seen(&server);
    server.stop();
}

#[test]
fn tls_handshakes_and_certificates_are_in_the_metrics() {
    let server = TlsServer::start(with_admin(Server::builder().workers(1)));
    assert_eq!(server.connect_tls().get("/").expect("an answer").status, 200);
    let mut no_tls = server.connect();
    no_tls.send("HELO example.org\r\n").expect("send");
    server.wait_failed("not_tls", 1);
    let silent = server.connect();
    Unseen::of("tls").wait_all_seen(&server);
    drop((no_tls, silent));
    server.stop();
}

#[test]
fn jobs_of_cpu_pools_are_in_the_metrics() {
    let args = ["--faults", "--pool-threads", "1", "--pool-queue", "1"];
    let server = start(Server::builder().workers(1).args(args)).allow_errors(&["panicked"]);
    assert_eq!(server.get("/fib/5").status, 200);
    assert_eq!(server.get("/fault/job-panic").status, 500);
    let mut unseen = Unseen::of("pool");
    let running = server.send_get("/fib/50");
    unseen.wait_seen(&server, &["prefork_pool_jobs_running"]);
    let waiting = server.send_get("/fib/50");
    unseen.wait_seen(&server, &["prefork_pool_jobs_waiting"]);
    assert_eq!(server.get("/fib/5").status, 503);
    drop(waiting);
    unseen.wait_all_seen(&server);
    drop(running);
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn jobs_of_isolated_pools_are_in_the_metrics() {
    let program = ProcessBuilder::program("isolated-jobs").args(["processes=1"]);
    let server = start_program(program.workers(1).other_workers(1)).allow_errors(&[
        "panicked at",
        "SIGSEGV",
        "SIGKILL",
        "a job hangs",
    ]);
    for path in ["/hello", "/error", "/panic", "/segv", "/hang/100"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let clients: Vec<Client> = (0..2).map(|_| server.send_get("/barrier")).collect();
    Unseen::of("isolated").wait_all_seen(&server);
    std::fs::write(server.dir().join("barrier"), "").expect("barrier");
    for mut client in clients {
        assert_eq!(client.read().expect("an answer").text(), "through the barrier");
    }
    server.stop();
}

#[test]
fn reloads_and_upgrades_are_in_the_metrics_while_they_run_and_afterwards() {
    let program = ProcessBuilder::program("boot-fails-if-broken").workers(1).with_copied_program();
    let server = start_program(program).allow_errors(&["broken", "died"]);
    let mut unseen = Unseen::of("changes");
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    server.signal(Signal::SIGHUP);
    unseen.wait_seen(&server, &[r#"prefork_reloads_total{outcome="failed"}"#]);
    std::fs::remove_file(broken).expect("remove");
    let mut barrier = BootBarrier::new(server.dir());
    server.signal(Signal::SIGHUP);
    unseen.wait_seen(&server, &["prefork_reload_running"]);
    barrier.release();
    wait::wait_until("the end of the reload", || {
        let seen = scrape(&server);
        seen.value("prefork_reload_running") == 0.0
            && seen.value(r#"prefork_reloads_total{outcome="succeeded"}"#) == 1.0
    });
    // The new binary also waits at the boot barrier. It is released already, so the workers start at once.
    server.signal(Signal::SIGUSR2);
    unseen.wait_all_seen(&server);
    wait::wait_until("the end of the upgrade", || {
        scrape(&server).value("prefork_upgrade_running") == 0.0
    });
    drop(barrier);
    server.stop();
}

#[test]
fn processes_and_connections_of_a_program_are_in_the_metrics() {
    let program = ProcessBuilder::run_foreign_server(&["keeps-connections"]).workers(1);
    let server = with_admin(program.args(["--stall-timeout", "off"])).start();
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    let pid = server.status()["workers"][0]["pid"].as_u64().expect("the program") as u32;
    freeze(pid);
    // The thread that accepts may take one more before it stands still, too.
    let mut waiting = [server.send_get("/"), server.send_get("/")];
    Unseen::of("program").wait_all_seen(&server);
    process::send_signal(pid, Signal::SIGCONT);
    for client in &mut waiting {
        assert_eq!(client.read().expect("an answer").status, 200);
    }
    drop((client, waiting));
    server.stop();
}

#[test]
fn dropped_lines_of_the_log_are_in_the_metrics() {
    let builder = with_admin(Server::builder().args(["--faults"]));
    let (server, _reader) = start_with_full_pipe(builder, 1);
    assert_eq!(server.get("/fault/panic").status, 500);
    Unseen::of("lines").wait_all_seen(&server);
}

#[test]
fn lost_messages_are_in_the_metrics() {
    let server = start_program(ProcessBuilder::program("messages").workers(1));
    // Nobody has this id.
    server.get("/to/id/999/hello");
    Unseen::of("messages").wait_all_seen(&server);
    server.stop();
}
