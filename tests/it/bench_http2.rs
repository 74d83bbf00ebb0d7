//! `prefork bench --http2`: streams, GOAWAY at reloads, and servers without HTTP/2.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use crate::support::Server;
use crate::support::command::ProcessBuilder;

/// Runs a bench over HTTP/2, and returns its exit status and JSON report.
#[track_caller]
fn bench_http2(args: &[&str]) -> (Option<i32>, Value) {
    let args = [&["--http2", "--warm-up", "0", "--json"], args].concat();
    let ended = ProcessBuilder::verb("bench").args(args).run();
    let report = serde_json::from_str(&ended.stdout);
    (ended.status, report.unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr)))
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.address())
}

#[track_caller]
fn failures(report: &Value) -> u64 {
    report["failures"].as_object().expect("object").values().filter_map(Value::as_u64).sum()
}

#[test]
fn streams_are_counted_as_the_server_counts_them() {
    for more in [&["-c", "4", "--streams", "8"][..], &["-c", "4", "--close"], &["--rate", "200"]] {
        let server = Server::builder().start();
        let url = url(&server, "/");
        let args = [&["--duration", "1s", &url], more].concat();
        let (status, report) = bench_http2(&args);
        assert_eq!((status, failures(&report)), (Some(0), 0), "{report:#}");
        assert_eq!(report["protocol"], "HTTP/2");
        assert_eq!(report["responses"], server.status()["totals"]["requests"], "{more:?}");
        assert!(!report["pids"].as_array().expect("list").is_empty(), "{report:#}");
        server.stop();
    }
}

#[test]
fn a_body_is_sent_and_received_over_http2() {
    let server = Server::builder().start();
    let body = "x".repeat(100_000);
    let file = server.dir().join("body").display().to_string();
    std::fs::write(&file, &body).expect("write");
    let (status, report) = bench_http2(&[
        "--duration",
        "500ms",
        "-c",
        "2",
        "--data-file",
        &file,
        &url(&server, "/echo"),
    ]);
    assert_eq!((status, failures(&report)), (Some(0), 0), "{report:#}");
    let responses = report["responses"].as_u64().expect("number");
    let received = report["bytes_per_second"].as_f64().expect("number")
        * report["measured_s"].as_f64().expect("number");
    // Responses that end after the measurement are not in its bytes.
    assert!(received > (responses.saturating_sub(2) * 100_000) as f64, "{report:#}");
    server.stop();
}

#[test]
fn reloads_lose_no_stream() {
    let server = Server::builder().start();
    let chaos = ["--chaos", "reload=400ms", "--duration", "1900ms", "-c", "4", "--streams", "8"];
    let (status, report) = bench_http2(&[&chaos[..], &[&url(&server, "/sleep/1")]].concat());
    assert_eq!((status, failures(&report)), (Some(0), 0), "{report:#}");
    assert!(report["chaos"]["faults"][0]["count"].as_u64() >= Some(1), "{report:#}");
    server.stop();
}

#[test]
fn streams_time_out_one_by_one() {
    let server = Server::builder().start();
    let slow =
        ["--duration", "700ms", "--timeout", "200ms", "-c", "1", "-t", "1", "--streams", "3"];
    let (status, report) = bench_http2(&[&slow[..], &[&url(&server, "/sleep/60000")]].concat());
    assert_eq!(status, Some(69), "{report:#}");
    assert!(report["failures"]["timed_out"].as_u64() >= Some(3), "{report:#}");
    assert_eq!(report["failures"]["timed_out"], failures(&report), "{report:#}");
    server.signal(nix::sys::signal::Signal::SIGQUIT);
    server.wait_clean_exit(0);
}

#[test]
fn a_server_without_http2_is_recognized() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    // This thread ends with the process.
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut preface = [0; 24];
            let _ = socket.read_exact(&mut preface);
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            // A close with unread bytes would reset the connection before the response is read.
            let _ = std::io::copy(&mut socket, &mut std::io::sink());
        }
    });
    let (status, report) = bench_http2(&["--duration", "1h", &format!("http://{address}/")]);
    assert_eq!(status, Some(69), "{report:#}");
    let note = &report["failure_notes"][0];
    assert_eq!(note["failure"], "no_http2", "{report:#}");
    assert!(note["advice"].as_str().is_some_and(|text| text.contains("--http2")), "{report:#}");
}
