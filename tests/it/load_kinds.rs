//! Loads that are more than requests per second, on real servers.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use prefork_bench::load::{LoadPlan, TargetUrl};
use prefork_bench::load_kinds::idle_memory::{IdleMemoryPlan, measure_idle_memory};
use prefork_bench::load_kinds::reloads::{ReloadsPlan, measure_reloads};
use prefork_bench::load_kinds::slow_readers::{SlowReadersPlan, measure_slow_readers};
use prefork_bench::load_kinds::websocket_echo::{WebSocketEchoPlan, measure_websocket_echo};
use prefork_bench::load_kinds::worker_kills::{WorkerKillsPlan, measure_worker_kills};

use serde_json::Value;

use crate::support::control::serving;
use crate::support::kept_connections::scoreboard_connections;
use crate::support::{self, Server, process, wait};

/// Returns a short load of requests for a path of the server.
fn load(server: &Server, path: &str) -> LoadPlan {
    let url = format!("http://127.0.0.1:{}{path}", server.port());
    LoadPlan {
        connections: 8,
        threads: 1,
        warm_up: Duration::from_millis(100),
        duration: Duration::from_millis(600),
        timeout: Duration::from_secs(10),
        ..LoadPlan::new(TargetUrl::parse(&url).expect("url"))
    }
}

#[test]
fn idle_connections_stay_open_and_use_memory_of_the_workers() {
    let server = Server::start(2);
    let mut plan = IdleMemoryPlan::new(load(&server, "/"));
    (plan.connections, plan.quiet) = (400, Duration::from_millis(500));
    let report = measure_idle_memory(&plan, &mut || false).expect("measured").expect("complete");
    assert_eq!((report.connections, report.failed, report.burst_failed), (400, 0, 0));
    for phase in [report.after_opening, report.after_burst.expect("a burst")] {
        assert_eq!(phase.open, 400);
        // Parked connections take less than the memory that the workers returned to the system when they were parked.
        let bytes = phase.bytes_per_connection.expect("open connections");
        assert!(bytes < 100_000.0, "{}", report.to_table());
    }
    server.stop();
}

#[test]
fn slow_readers_keep_to_their_rate_and_requests_are_served_beside_them() {
    let server = Server::start(2);
    let mut plan = SlowReadersPlan::new(load(&server, "/"), load(&server, "/bytes/100000000"));
    plan.readers.connections = 8;
    let report = measure_slow_readers(&plan, &mut || false).expect("measured").expect("complete");
    assert_eq!((report.alone.error_count(), report.beside.error_count()), (0, 0));
    assert!(report.beside.responses > 0 && report.p99_ratio.is_some());
    let readers = &report.readers;
    assert_eq!((readers.failed, readers.bodies), (0, 0), "{readers:?}");
    let asked = readers.bytes_per_second as f64;
    assert!(readers.read_per_second > 0.0 && readers.read_per_second <= asked, "{readers:?}");
    server.stop();
}

#[test]
fn websocket_messages_come_back_from_the_built_in_application() {
    let server = Server::start(2);
    for message_size in [16, 100_000] {
        let load = load(&server, "/websocket");
        let plan = WebSocketEchoPlan { message_size, ..WebSocketEchoPlan::new(load) };
        let report = measure_websocket_echo(&plan, &mut || false).expect("measured");
        let report = report.expect("complete");
        assert_eq!((report.failed, report.failure.as_deref()), (0, None));
        assert!(report.round_trips > 0 && report.server_cpu_us > Some(0.0), "{report:?}");
    }
    server.stop();
}

#[test]
fn each_killed_worker_is_replaced_by_one_that_answers() {
    let server = Server::start(2).allow_errors(&["died"]);
    let mut plan = WorkerKillsPlan::new(load(&server, "/"));
    (plan.kills, plan.interval) = (3, Duration::from_millis(500));
    let before = server.worker_pids();
    let report = measure_worker_kills(&plan, &mut || false).expect("measured").expect("complete");
    assert_eq!((report.kills, report.not_replaced), (3, 0), "{}", report.to_table());
    assert_eq!(report.each_ms.len(), 3);
    assert!(report.serving_again_ms.median > 0.0, "{}", report.to_table());
    assert!(report.next_response_ms.max <= report.serving_again_ms.max);
    assert_ne!(server.worker_pids(), before);
    server.wait_replaced(3);
    server.stop();
}

#[test]
fn without_a_worker_that_names_itself_none_is_killed() {
    let server = Server::start(1);
    let why = measure_worker_kills(&WorkerKillsPlan::new(load(&server, "/bytes/1")), &mut || false);
    let why = why.expect_err("no pid").to_string();
    assert!(why.contains("do not name the process"), "{why}");
    server.stop();
}

#[test]
fn reloads_one_after_another_lose_nothing() {
    let server = Server::start(2);
    let report = measure_reloads(&ReloadsPlan::new(load(&server, "/")), &mut || false);
    let report = report.expect("measured").expect("complete");
    assert!(report.reloads > 0 && report.reload_ms.median > 0.0, "{}", report.to_table());
    assert_eq!((report.lost_requests, report.during.failed_probes), (0, 0));
    assert!(report.before.longest_gap_ms > 0.0 && report.during.longest_gap_ms > 0.0);
    server.stop();
}

/// What ends a run early, with a report of what was measured until then.
const STOP_SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// Starts a scenario of these loads, sends the signal once `is_under_way` holds, and returns the JSON report.
fn report_after_signal(
    server: &Server,
    signal: Signal,
    loads: &str,
    mut is_under_way: impl FnMut(&Child) -> bool,
) -> Value {
    let file = server.dir().join("scenario.toml");
    std::fs::write(&file, format!("description = \"A load\"\n{loads}")).expect("a file");
    let mut command = support::prefork();
    command.args(["bench", "--json", "--warm-up", "0", "--scenario"]).arg(file);
    command.arg(format!("http://127.0.0.1:{}", server.port()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut bench = command.spawn().expect("bench");
    wait::wait_until("a load that is under way", || is_under_way(&bench));
    process::send_signal(bench.id(), signal);
    let mut text = String::new();
    bench.stdout.take().expect("piped").read_to_string(&mut text).expect("report");
    bench.wait().expect("a child of this process");
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{signal}: {why}: {text:?}"))
}

/// Returns the number of connections of all workers.
fn open_connections(server: &Server) -> u64 {
    scoreboard_connections(server).iter().sum()
}

#[test]
fn stop_signals_report_the_requests_that_were_answered() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2);
        let loads = "duration = \"10m\"\n[[load]]\nconnections = 2\n";
        // Two connections are opened in far less CPU time.
        let report = report_after_signal(&server, signal, loads, |bench| {
            process::stat(bench.id()).is_some_and(|stat| stat.ticks > 30)
        });
        assert_eq!(
            (&report["ended_early"], &report["failures"]["timed_out"]),
            (&true.into(), &0.into())
        );
        assert!(report["responses"].as_u64() > Some(0), "{report:#}");
        server.stop();
    }
}

#[test]
fn stop_signals_report_the_idle_connections_that_were_opened() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2);
        let loads = "[[load]]\nkind = \"idle-connections\"\nconnections = 4000\nquiet = \"2s\"\n";
        let report =
            report_after_signal(&server, signal, loads, |_| open_connections(&server) > 200);
        assert_eq!((&report["ended_early"], &report["after_burst"]), (&true.into(), &Value::Null));
        assert!(report["after_opening"]["open"].as_u64() > Some(0), "{report:#}");
        server.stop();
    }
}

#[test]
fn stop_signals_report_the_load_beside_slow_readers() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2);
        // The load runs once alone, and then as long beside the readers.
        let loads = "duration = \"5s\"\n[[load]]\nmeasured = true\nconnections = 1\n[[load]]\n\
                     kind = \"slow-readers\"\npath = \"/bytes/100000000\"\nconnections = 8\n";
        let mut at_begin = None;
        let report = report_after_signal(&server, signal, loads, |_| {
            if open_connections(&server) <= 8 {
                return false;
            }
            // The readers send one request each; many more are those of the load beside them.
            let requests = server.cluster()["totals"]["requests"].as_u64().expect("a number");
            requests > *at_begin.get_or_insert(requests) + 50
        });
        assert_eq!(report["beside"]["ended_early"], true, "{report:#}");
        assert_eq!(
            (&report["alone"]["ended_early"], &report["readers"]["failed"]),
            (&false.into(), &0.into())
        );
        server.stop();
    }
}

#[test]
fn stop_signals_report_the_websocket_messages_that_came_back() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2);
        let loads = "duration = \"10m\"\n[[load]]\nkind = \"websocket-echo\"\nconnections = 2\n";
        let report = report_after_signal(&server, signal, loads, |bench| {
            process::stat(bench.id()).is_some_and(|stat| stat.ticks > 30)
        });
        assert_eq!((&report["ended_early"], &report["failed"]), (&true.into(), &0.into()));
        assert!(report["round_trips_per_s"].as_f64() > Some(0.0), "{report:#}");
        server.stop();
    }
}

#[test]
fn stop_signals_report_the_kills_that_were_made() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2).allow_errors(&["died"]);
        let loads = "[[load]]\nkind = \"worker-kills\"\nconnections = 4\nkills = 500\ninterval = \"500ms\"\n";
        let report = report_after_signal(&server, signal, loads, |_| {
            // The ids of the first two workers are 1 and 2.
            let status = server.status();
            serving(&status).any(|worker| worker["id"].as_u64() > Some(4))
        });
        assert_eq!(
            (&report["load"]["ended_early"], &report["not_replaced"]),
            (&true.into(), &0.into())
        );
        assert!((2..500).contains(&report["kills"].as_u64().expect("a number")), "{report:#}");
        server.wait_serving(2);
        server.stop();
    }
}

#[test]
fn stop_signals_report_the_reloads_that_were_made() {
    for signal in STOP_SIGNALS {
        let server = Server::start(2);
        // The server is measured for as long without reloads before.
        let loads = "duration = \"4s\"\n[[load]]\nkind = \"reloads\"\nconnections = 4\n";
        let report = report_after_signal(&server, signal, loads, |_| {
            server.status()["primary"]["generation"].as_u64() > Some(3)
        });
        assert_eq!(report["during"]["load"]["ended_early"], true);
        assert!(report["reloads"].as_u64() > Some(0), "{report:#}");
        assert_eq!(report["lost_requests"], 0, "{report:#}");
        server.wait_serving(2);
        server.stop();
    }
}
