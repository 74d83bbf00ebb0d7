//! Runs whole loads against a server that counts: what it has seen is what the report says.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::counting_server::{Answers, CountingServer};
use super::plan::LoadPlan;
use super::request_failure::RequestFailure;
use super::tls::TlsOptions;
use super::{LoadReport, run_load};

fn plan(server: &CountingServer) -> LoadPlan {
    LoadPlan {
        connections: 12,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(300),
        timeout: Duration::from_secs(30),
        ..LoadPlan::new(server.target.clone())
    }
}

/// Runs the plan and compares its counts with the server's. Returns the report.
#[track_caller]
fn assert_exact(server: &CountingServer, plan: &LoadPlan) -> LoadReport {
    let report = run_load(plan, |_| {}).expect("a report");
    let counts = &server.counts;
    let failed = report.failures.total_failures();
    let seen = counts.requests.load(Relaxed);
    assert!(seen > 100, "{seen} requests");
    assert_eq!(report.responses + failed, seen, "{:?}", report.failures);
    assert_eq!(report.statuses.server_error, counts.unavailable.load(Relaxed));
    assert_eq!(report.statuses.success + report.statuses.server_error, report.responses);
    assert_eq!(failed, counts.unanswered.load(Relaxed), "{:?}", report.failures);
    // Without the connection that finds the address.
    assert_eq!(report.connections_opened, counts.connections.load(Relaxed) - 1);
    let of_processes: u64 = report.pids.iter().map(|process| process.requests).sum();
    assert_eq!((of_processes, report.pids.len()), (report.responses, 3));
    report
}

#[test]
fn kept_connections_are_counted_exactly() {
    for threads in [1, 3] {
        let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Lengths, false);
        let report = assert_exact(&server, &LoadPlan { threads, ..plan(&server) });
        assert_eq!(report.connections_opened, 12);
        let connecting = report.connecting.expect("connections");
        assert!(connecting.fewest_responses > 0 && connecting.connect_p50 > 0.0, "{connecting:?}");
        assert!(12 * connecting.fewest_responses <= report.responses, "{connecting:?}");
        assert!(12 * connecting.most_responses >= report.responses, "{connecting:?}");
    }
}

#[test]
fn a_server_that_does_not_answer_gets_all_connections() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let target = super::TargetUrl::parse(&format!("http://{address}/")).expect("url");
    let load = LoadPlan {
        connections: 300,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(500),
        timeout: Duration::from_millis(100),
        ..LoadPlan::new(target)
    };
    let report = run_load(&load, |_| {}).expect("a report");
    assert!(report.connections_opened >= 300, "{} opened", report.connections_opened);
    assert_eq!(report.responses, 0);
    assert!(report.failures.total_failures() >= 300);
}

#[test]
fn pipelined_requests_are_counted_exactly() {
    for (answers, pipeline_depth) in [(Answers::Lengths, 16), (Answers::Chunks, 3)] {
        let server = CountingServer::on_tcp("127.0.0.1:0", answers, false);
        assert_exact(&server, &LoadPlan { pipeline_depth, ..plan(&server) });
    }
}

#[test]
fn chunked_responses_are_counted_exactly() {
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Chunks, false);
    assert_exact(&server, &plan(&server));
}

#[test]
fn connections_that_client_or_server_close_are_counted_exactly() {
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::SometimesClose, false);
    let report = assert_exact(&server, &plan(&server));
    assert!(report.connections_opened > report.responses / 6);
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Lengths, false);
    let report = assert_exact(&server, &LoadPlan { reconnect_each_request: true, ..plan(&server) });
    assert_eq!(report.connections_opened, report.responses);
}

#[test]
fn requests_without_an_answer_are_counted_exactly() {
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::SometimesNone, false);
    let report = assert_exact(&server, &plan(&server));
    let kinds: Vec<_> = report.failures.occurred().map(|(kind, _)| kind).collect();
    // The server may end a connection before it has read what came behind the request.
    assert!(!kinds.is_empty());
    assert!(
        kinds
            .iter()
            .all(|kind| [RequestFailure::ClosedEarly, RequestFailure::Reset].contains(kind)),
        "{kinds:?}"
    );
}

#[test]
fn ipv6_is_counted_exactly() {
    // A machine may have no IPv6.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let server = CountingServer::on_tcp("[::1]:0", Answers::Lengths, false);
        assert_exact(&server, &plan(&server));
    }
}

#[test]
fn unix_sockets_are_counted_exactly() {
    let dir = tempfile::tempdir().expect("directory");
    let server = CountingServer::on_unix(&dir.path().join("socket"), Answers::Lengths);
    assert_exact(&server, &plan(&server));
    assert_exact_again_with_close(&dir.path().join("other"));
}

#[track_caller]
fn assert_exact_again_with_close(path: &std::path::Path) {
    let server = CountingServer::on_unix(path, Answers::Lengths);
    assert_exact(&server, &LoadPlan { reconnect_each_request: true, ..plan(&server) });
}

#[test]
fn https_is_counted_exactly() {
    let tls = TlsOptions { insecure: true, ..TlsOptions::default() };
    for (answers, pipeline_depth) in [(Answers::Lengths, 1), (Answers::Chunks, 5)] {
        let server = CountingServer::on_tcp("127.0.0.1:0", answers, true);
        let report =
            assert_exact(&server, &LoadPlan { pipeline_depth, tls: tls.clone(), ..plan(&server) });
        assert_eq!(report.tls.expect("tls").full.count, report.connections_opened);
    }
}

#[test]
fn http2_streams_are_counted_exactly() {
    for streams in [1, 10] {
        let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Http2, false);
        let report =
            assert_exact(&server, &LoadPlan { http2_streams: Some(streams), ..plan(&server) });
        assert_eq!(report.connections_opened, 12);
    }
}

#[test]
fn bytes_are_those_that_the_server_has_sent() {
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Chunks, false);
    let report = assert_exact(&server, &plan(&server));
    let received = report.bytes_per_second * report.measured_s;
    let sent = server.counts.bytes.load(Relaxed) as f64;
    // Responses that came after the end of the measurement are not part of the rate.
    assert!(received <= sent + 1.0 && received > sent * 0.5, "{received} of {sent}");
}

#[test]
fn an_open_loop_sends_each_due_request_once() {
    let server = CountingServer::on_tcp("127.0.0.1:0", Answers::Lengths, false);
    for busy_wait in [false, true] {
        let before = server.counts.requests.load(Relaxed);
        let load = LoadPlan { rate: Some(2000), busy_wait, ..plan(&server) };
        let report = run_load(&load, |_| {}).expect("a report");
        assert_eq!(report.responses, 600);
        assert_eq!(server.counts.requests.load(Relaxed) - before, 600);
        assert!(report.send_delay.is_some());
        let due = report.due_requests.expect("an open loop");
        assert_eq!((due.due, due.answered_in_time + due.answered_after_end), (600, 600));
    }
}

#[test]
fn requests_that_were_due_and_never_sent_are_counted() {
    // It accepts nothing, so two requests keep both connections busy until they time out.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("address");
    let target = super::TargetUrl::parse(&format!("http://{address}/")).expect("url");
    let load = LoadPlan {
        connections: 2,
        threads: 1,
        rate: Some(100),
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(200),
        timeout: Duration::from_millis(300),
        ..LoadPlan::new(target)
    };
    let due = run_load(&load, |_| {}).expect("a report").due_requests.expect("an open loop");
    assert_eq!((due.due, due.unanswered, due.answered_in_time), (20, 20, 0));
    assert!(due.never_sent > 0 && due.never_sent < 20, "{due:?}");
}
