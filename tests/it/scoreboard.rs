//! The scoreboard: counters and requests in flight of all workers.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::{Server, process, wait};

fn total_requests(cluster: &Value) -> u64 {
    cluster["totals"]["requests"].as_u64().expect("a number")
}

#[test]
fn every_request_is_counted_once() {
    let server = Server::start(3);
    for _ in 0..30 {
        server.get("/");
    }
    server.get("/nowhere");
    let cluster = server.cluster();
    // The total includes the request to /cluster itself.
    assert_eq!(total_requests(&cluster), 32, "{cluster}");
    assert_eq!(cluster["totals"]["accepted"], 32);
    assert_eq!(cluster["totals"]["responses"], serde_json::json!([0, 30, 0, 1, 0]));
    let workers = cluster["workers"].as_array().expect("workers");
    let each: u64 = workers.iter().filter_map(|w| w["counters"]["requests"].as_u64()).sum();
    assert_eq!(each, 32);
    assert_eq!(cluster["primary"]["pid"], server.pid());
    assert_eq!(cluster["primary"]["workers_wanted"], 3);
    let mut pids: Vec<u64> = workers.iter().filter_map(|w| w["pid"].as_u64()).collect();
    pids.sort_unstable();
    assert_eq!(pids, server.worker_pids().into_iter().map(u64::from).collect::<Vec<_>>());
    assert!(workers.iter().all(|w| w["state"] == "serving"));
    server.stop();
}

#[test]
fn totals_include_the_counts_of_dead_workers() {
    let server = Server::start(2).allow_errors(&["SIGKILL"]);
    let mut sent = 0;
    for round in 1..=3usize {
        for _ in 0..10 {
            server.get("/");
        }
        sent += 10;
        for pid in server.worker_pids() {
            process::send_signal(pid, Signal::SIGKILL);
        }
        server.wait_replaced(2 * round);
        sent += 1;
        assert_eq!(total_requests(&server.cluster()), sent, "round {round}");
    }
    assert_eq!(server.cluster()["primary"]["restarts"], 6);
    server.stop();
}

#[test]
fn a_request_in_flight_is_shown_with_its_path_and_age() {
    let server = Server::start(2);
    let mut client = server.connect();
    client.send("GET /sleep/600000?key=value HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_in_flight("GET /sleep/600000");
    let shown = || {
        let cluster = server.cluster();
        let workers = cluster["workers"].as_array().cloned().expect("workers");
        let all = workers.iter().filter_map(|w| w["serving"].as_array()).flatten();
        all.filter(|r| r["request"] != "GET /cluster").cloned().collect::<Vec<_>>()
    };
    let requests = shown();
    assert_eq!(requests.len(), 1);
    // The query is left out, as it may contain secrets.
    assert_eq!(requests[0]["request"], "GET /sleep/600000");
    assert_eq!(requests[0]["on_loop"], false);
    let age = requests[0]["age_ms"].as_u64().expect("a number");
    wait::wait_until("it to grow older", || {
        shown()[0]["age_ms"].as_u64().is_some_and(|now| now > age)
    });
    drop(client);
    wait::wait_until("it to be gone", || shown().is_empty());
    server.stop();
}

#[test]
fn a_blocking_handler_is_shown_as_on_loop() {
    let server = Server::with(2, &["--graceful-timeout", "0s"]);
    let mut client = server.connect();
    client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    server.wait_in_flight("/fib/50");
    wait::wait_until("it on the loop, and the pulse gone", || {
        let cluster = server.cluster();
        let workers = cluster["workers"].as_array().cloned().expect("workers");
        workers.iter().any(|w| {
            w["serving"][0]["request"] == "GET /fib/50"
                && w["serving"][0]["on_loop"] == true
                && w["beat_age_ms"].as_u64().is_some_and(|age| age > 500)
        })
    });
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn request_paths_are_escaped_and_truncated() {
    let server = ProcessBuilder::program("waiting").workers(1).start();
    let long = format!("/{}", "x".repeat(4000));
    let strange: [&[u8]; 3] = [b"/'quoted'", "/caf\u{e9}".as_bytes(), long.as_bytes()];
    let mut clients = Vec::new();
    for path in strange {
        let mut client = server.connect();
        let request = [b"GET ", path, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        client.send(request).expect("send");
        clients.push(client);
    }
    let requests = wait::wait_until_some("all of them", || {
        let cluster = server.cluster();
        let serving = cluster["workers"][0]["serving"].as_array().cloned()?;
        let texts = serving.iter().filter_map(|r| r["request"].as_str().map(str::to_string));
        let others: Vec<String> = texts.filter(|text| text != "GET /cluster").collect();
        (others.len() == clients.len()).then_some(others)
    });
    for text in &requests {
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)) && text.len() <= 416, "{text:?}");
    }
    assert!(requests.iter().any(|text| text.starts_with("GET /xxxx")), "{requests:?}");
    assert!(requests.iter().any(|text| text.starts_with("GET /caf\\")), "{requests:?}");
    server.signal(Signal::SIGQUIT);
    server.wait_clean_exit(0);
}
