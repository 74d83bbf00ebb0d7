//! Request ids and trace contexts: where they come from, and where they are shown.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::http::{Client, Response};
use crate::support::{Server, http2, log, wait};

const MODELS: [&str; 4] = ["prefork", "single", "threads", "thread-per-core"];

fn program(args: &[&str]) -> ProcessBuilder {
    ProcessBuilder::program("request-ids").args(args.iter().copied())
}

/// Sends a GET with these header lines.
#[track_caller]
fn get_with(client: &mut Client, path: &str, headers: &[&str]) -> Response {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    client.send_and_read(request).expect("a response")
}

/// Returns the id in the header of a response.
#[track_caller]
fn id_of(response: &Response) -> String {
    let ids = response.headers.iter().filter(|(name, _)| name == "x-request-id");
    let ids: Vec<&String> = ids.map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 1, "{response:?}");
    ids[0].clone()
}

#[track_caller]
fn assert_is_made(id: &str) {
    let is_uuid = id.len() == 36 && id.as_bytes()[14] == b'7';
    assert!(is_uuid && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-'), "{id}");
}

#[test]
fn every_request_has_an_id_of_its_own_that_the_handler_and_the_client_see() {
    for model in MODELS {
        let server = program(&["request-id=on"]).model(model, 2).start();
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let mut client = server.connect();
            for _ in 0..3 {
                let response = get_with(&mut client, "/", &["X-Request-Id: forged"]);
                let (id, facts) = (id_of(&response), response.json());
                assert_is_made(&id);
                for name in ["extension", "client_info", "current", "header"] {
                    assert_eq!(facts[name], id.as_str(), "{name} under {model}: {facts}");
                }
                assert!(seen.insert(id), "an id was used twice under {model}");
            }
        }
        server.stop();
    }
}

#[test]
fn ids_stay_unique_over_reloads_and_handed_over_connections() {
    let server = program(&["request-id=on"]).workers(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let pids = server.worker_pids();
        for client in &mut clients {
            let response = client.get("/").expect("an answer");
            assert_is_made(&id_of(&response));
            assert!(seen.insert(id_of(&response)));
        }
        server.run_verb(&["reload"]);
        server.wait_new_workers(2, &pids);
    }
    drop(clients);
    server.stop();
}

#[test]
fn without_the_setting_no_request_has_an_id() {
    let server = program(&[]).workers(1).start();
    let response = get_with(&mut server.connect(), "/", &["X-Request-Id: of-the-client"]);
    assert_eq!(response.header("x-request-id"), None);
    let facts = response.json();
    assert_eq!(facts["header"], "of-the-client");
    assert!(facts["extension"].is_null() && facts["current"].is_null(), "{facts}");
    server.stop();
}

#[test]
fn the_id_of_a_trusted_proxy_is_kept_if_it_is_valid() {
    let args = ["request-id=on", "trusted-proxies=127.0.0.1"];
    for model in MODELS {
        let server = program(&args).model(model, 2).start();
        let mut client = server.connect();
        let long = format!("X-Request-Id: {}", "x".repeat(128));
        for header in ["X-Request-Id: from-proxy", "x-request-id: Root=1-6;a:b", &long] {
            let response = get_with(&mut client, "/", &[header]);
            let sent = header.split_once(": ").expect("a value").1;
            assert_eq!(
                (id_of(&response).as_str(), &response.json()["current"]),
                (sent, &sent.into())
            );
        }
        let too_long = format!("X-Request-Id: {}", "x".repeat(129));
        for headers in [
            &["X-Request-Id: a b"][..],
            &["X-Request-Id: a\"b"],
            &["X-Request-Id: <script>"],
            &["X-Request-Id: a\\u001b"],
            &["X-Request-Id: caf\u{e9}"],
            &["X-Request-Id:"],
            &[&too_long],
            &["X-Request-Id: a", "X-Request-Id: b"],
        ] {
            let response = get_with(&mut client, "/", headers);
            assert_is_made(&id_of(&response));
            assert_eq!(response.json()["header"], id_of(&response).as_str());
        }
        server.stop();
    }
}

#[test]
fn the_id_that_an_application_sets_is_sent() {
    let server = program(&["request-id=on"]).workers(1).start();
    assert_eq!(id_of(&server.get("/own")), "of-the-application");
    server.stop();
}

#[test]
fn requests_of_raw_connections_have_ids() {
    let server = program(&["request-id=on", "raw=1"]).workers(1).start();
    let response = server.get("/");
    assert_is_made(&id_of(&response));
    assert_eq!(response.json()["current"], id_of(&response).as_str());
    server.stop();
}

#[test]
fn http2_requests_have_ids() {
    for model in MODELS {
        let server = program(&["request-id=on"]).model(model, 2).start();
        let mut client = server.connect();
        http2::greet(&mut client);
        let mut seen = BTreeSet::new();
        for stream in [1, 3, 5] {
            client.send(http2::get(stream, "/")).expect("send");
            let body = http2::read_until(&mut client, http2::DATA, stream).payload;
            let facts: Value = serde_json::from_slice(&body).expect("JSON");
            let id = facts["extension"].as_str().expect("an id").to_string();
            assert_is_made(&id);
            assert_eq!(facts["current"], id.as_str());
            assert!(seen.insert(id));
        }
        drop(client);
        server.stop();
    }
}

#[test]
fn error_responses_of_the_server_carry_the_id() {
    let send = |server: &Server, request: &str| {
        server.connect().send_and_read(request).expect("a response")
    };
    let start = |more: [&str; 2]| Server::with(1, &[&["--request-id", "on"][..], &more].concat());
    let server = start(["--body-timeout", "300ms"]);
    let slow_body = send(&server, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx");
    server.stop();
    // Together with its head it would be rejected before there is a request.
    let server = start(["--faults", "--request-timeout=1h"]).allow_errors(&["panicked"]);
    let mut client = server.connect();
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head).expect("send");
    server.wait_in_flight("/echo");
    let bad_body = client.send_and_read("xyz\r\n").expect("a response");
    let panicked = send(&server, "GET /fault/panic HTTP/1.1\r\nHost: a\r\n\r\n");
    let panic_log = server.stop();
    let server = start(["--request-timeout", "300ms"]).allow_errors(&["request-timeout"]);
    let slow_handler = send(&server, "GET /sleep/3600000 HTTP/1.1\r\nHost: a\r\n\r\n");
    for (response, status) in
        [(&panicked, 500), (&slow_body, 408), (&slow_handler, 503), (&bad_body, 400)]
    {
        assert_eq!(response.status, status);
        assert_is_made(&id_of(response));
    }
    // The log names the client and the id of what went wrong.
    let client = "client=127.0.0.1";
    let request_id = |response| format!("request_id={}", id_of(response));
    server.wait_log(&["WARN", "GET /sleep/3600000", client, &request_id(&slow_handler)]);
    server.stop();
    let words = ["ERROR", &request_id(&panicked)];
    // The line of the panic hook, and that about the request.
    assert_eq!(log::lines_with(&panic_log, &words).count(), 2, "{panic_log}");
    let words = ["ERROR", "GET /fault/panic", client, &request_id(&panicked)];
    assert_eq!(log::lines_with(&panic_log, &words).count(), 1, "{panic_log}");
}

#[test]
fn the_status_and_the_stall_warning_name_client_and_id() {
    for model in ["prefork", "threads"] {
        let args = ["--faults", "--request-id", "on", "--stall-warn", "300ms"];
        let builder = Server::builder().args(args).args(["--trusted-proxies", "127.0.0.1"]);
        let server = builder.model(model, 2).start().allow_errors(&["stalled"]);
        let mut client = server.connect();
        let headers = "X-Request-Id: the-slow-one\r\nX-Forwarded-For: 192.0.2.7";
        let request = |path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        client.send(request("/sleep/3600000")).expect("send");
        let in_flight = wait::wait_until_some("the request in the status", || {
            let status = server.status();
            let workers = status["workers"].as_array()?.clone();
            let serving = workers.iter().find_map(|worker| worker["serving"].get(0).cloned())?;
            serving["request_id"].is_string().then_some(serving)
        });
        let shown = (&in_flight["client"], &in_flight["request_id"]);
        assert_eq!(shown, (&"192.0.2.7".into(), &"the-slow-one".into()));
        let table = server.run_verb(&["status"]);
        let words = ["GET /sleep/3600000", "client=192.0.2.7", "request_id=the-slow-one"];
        assert_eq!(log::lines_with(&table, &words).count(), 1, "{table}");
        drop(client);
        if model == "prefork" {
            let mut client = server.connect();
            client.send(request("/fault/hang")).expect("send");
            let words = ["WARN", "GET /fault/hang", "client=192.0.2.7", "request_id=the-slow-one"];
            server.wait_log(&words);
        }
        server.signal(nix::sys::signal::Signal::SIGQUIT);
        server.wait_clean_exit(0);
    }
}

#[test]
fn the_access_log_has_request_and_trace_ids() {
    for model in MODELS {
        // The server removes its own directory when it stops.
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("access.log");
        let args = ["--request-id", "on", "--access-log-format", "$request_id $trace_id $status"];
        let server = Server::builder()
            .model(model, 2)
            .args(args)
            .args(["--access-log".as_ref(), path.as_os_str()])
            .start();
        let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = id_of(&get_with(&mut server.connect(), "/", &[trace]));
        let malformed = id_of(&get_with(&mut server.connect(), "/", &["traceparent: 00-1-2-3"]));
        server.stop();
        let log = std::fs::read_to_string(&path).expect("a log");
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        let traced = format!("{traced} 4bf92f3577b34da6a3ce929d0e0e4736 200");
        let malformed = format!("{malformed} - 200");
        assert!(lines == [traced.as_str(), &malformed] || lines == [malformed.as_str(), &traced]);
    }
}

#[test]
fn log_lines_of_a_handler_have_its_id() {
    for format in ["text", "json"] {
        let builder = program(&["request-id=on"]).env("TEST_LOG_FORMAT", format);
        let server = builder.workers(1).start();
        let id = id_of(&server.get("/log"));
        let log = server.stop();
        let line = |words: &str| log.lines().find(|line| line.contains(words)).expect("a line");
        assert!(line("said-in-handler").contains(&id), "{log}");
        assert!(!line("said-in-task").contains(&id), "{log}");
        if format == "json" {
            let line: Value = serde_json::from_str(line("said-in-handler")).expect("JSON");
            assert_eq!(line["request_id"], id.as_str());
        }
    }
}

#[test]
fn trace_headers_reach_the_application_untouched_and_valid_ones_are_read() {
    let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (args, is_trusted) in [(&[][..], false), (&["trusted-proxies=127.0.0.1"], true)] {
        let server = program(args).workers(1).start();
        let mut client = server.connect();
        let (parent, state) = (format!("traceparent: {valid}"), "tracestate: a=1,b=2");
        let facts = get_with(&mut client, "/", &[&parent, state]).json();
        assert_eq!(
            (&facts["traceparent"], &facts["tracestate"]),
            (&valid.into(), &"a=1,b=2".into())
        );
        assert_eq!((&facts["trace_id"], &facts["state"]), (&trace_id.into(), &"a=1,b=2".into()));
        assert_eq!(facts["is_trusted"], is_trusted);
        for malformed in
            ["00-0-0-0", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x"]
        {
            let facts = get_with(&mut client, "/", &[&format!("traceparent: {malformed}")]).json();
            assert!(facts["trace_id"].is_null() && facts["traceparent"] == malformed, "{facts}");
        }
        server.stop();
    }
}
