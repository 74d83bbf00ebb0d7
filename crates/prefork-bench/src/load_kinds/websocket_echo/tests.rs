use std::net::{TcpListener, TcpStream};

use tungstenite::Message;

use super::*;
use crate::load::TargetUrl;
use crate::load_kinds::test_server::TestServer;

/// Starts a WebSocket server on a free port that answers each message with `answer`, and returns its URL.
fn start_server(answer: fn(Message) -> Option<Message>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve_connection(stream, answer));
        }
    });
    url
}

fn serve_connection(stream: TcpStream, answer: fn(Message) -> Option<Message>) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    while let Ok(message) = socket.read() {
        let is_sent = answer(message).is_some_and(|answer| socket.send(answer).is_ok());
        if !is_sent {
            return;
        }
    }
}

fn plan(url: &str) -> WebSocketEchoPlan {
    let load = LoadPlan {
        connections: 5,
        threads: 2,
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(250),
        timeout: Duration::from_secs(5),
        ..LoadPlan::new(TargetUrl::parse(url).expect("url"))
    };
    WebSocketEchoPlan::new(load)
}

#[test]
fn messages_of_every_size_of_a_length_field_come_back() {
    let url = start_server(Some);
    for message_size in [1, 125, 126, 70_000, 1 << 20] {
        let plan = WebSocketEchoPlan { message_size, ..plan(&url) };
        let report = measure_websocket_echo(&plan, &mut || false).expect("measured").expect("all");
        assert_eq!((report.failed, report.failure.as_deref()), (0, None), "{report:?}");
        assert!(report.round_trips > 0, "{report:?}");
        assert_eq!(report.round_trips_per_s, report.round_trips as f64 / 0.25);
        assert!(report.latency.p99 >= report.latency.p50 && report.latency.min > 0.0, "{report:?}");
        assert!(report.server_cpu_us.is_some(), "the server is this process");
    }
}

#[test]
fn other_messages_and_closed_connections_are_failures() {
    let wrong = start_server(|_| Some(Message::binary(vec![0; 128])));
    let report =
        measure_websocket_echo(&plan(&wrong), &mut || false).expect("measured").expect("all");
    assert_eq!((report.failed, report.round_trips), (5, 0));
    assert!(
        report.failure.as_deref().is_some_and(|why| why.contains("another message")),
        "{report:?}"
    );
    let closing = start_server(|_| None);
    let report =
        measure_websocket_echo(&plan(&closing), &mut || false).expect("measured").expect("all");
    assert_eq!((report.failed, report.round_trips), (5, 0));
    assert!(report.warnings()[0].starts_with("5 connections failed"), "{report:?}");
}

#[test]
fn a_server_without_websocket_is_an_error() {
    let server = TestServer::start();
    let why = measure_websocket_echo(&plan(server.url()), &mut || false).expect_err("no WebSocket");
    assert!(why.to_string().contains("WebSocket handshake"), "{why}");
}

#[test]
fn a_stopped_measurement_reports_what_was_measured_before() {
    let url = start_server(Some);
    assert!(measure_websocket_echo(&plan(&url), &mut || true).expect("stopped").is_none());
    let mut long = plan(&url);
    long.load.duration = Duration::from_secs(600);
    // Asked before each connection, and then every 20 ms at most.
    let mut asked = 0;
    let mut is_stopped = || {
        asked += 1;
        asked > 50
    };
    let report = measure_websocket_echo(&long, &mut is_stopped);
    let report = report.expect("measured").expect("a partial report");
    assert!(report.ended_early && report.measured_s < 600.0, "{report:?}");
    assert_eq!((report.failed, report.failure.as_deref()), (0, None), "{report:?}");
}

#[test]
fn invalid_plans_name_the_wrong_value() {
    let plan = plan("http://127.0.0.1:1/");
    assert_eq!(plan.validate(), Ok(()));
    let empty = WebSocketEchoPlan { message_size: 0, ..plan.clone() };
    assert!(empty.validate().is_err_and(|why| why.contains("0 bytes")));
    let load = LoadPlan { rate: Some(9), ..plan.load.clone() };
    assert!(WebSocketEchoPlan { load, ..plan }.validate().is_err_and(|why| why.contains("rate")));
}
