//! Malformed and slow HTTP/1 clients.

use crate::support::{Failure, Server, env_count};

/// Malformed requests, with the status after which the server closes the connection and reads nothing further.
const MALFORMED_REQUESTS: &[(&str, u16, &str)] = &[
    ("no host", 400, "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("a host with a path", 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    (
        "length before encoding",
        400,
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "encoding before length",
        400,
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        400,
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ),
    ("a signed length", 400, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
    (
        "an unknown encoding",
        501,
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    ),
    ("a space before the colon", 400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    ("a folded header", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
    ("a NUL in a value", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("an empty name", 400, "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    ("no version", 400, "GET /\r\n\r\n"),
    ("an unknown version", 505, "GET / HTTP/9.9\r\nHost: a\r\n\r\n"),
    ("a TLS hello", 400, "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\r\n\r\n"),
];

#[test]
fn malformed_requests_are_refused_and_end_the_connection() {
    let server = Server::start(1);
    for (name, status, request) in MALFORMED_REQUESTS {
        let mut client = server.connect();
        let smuggled = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        let answer = client.send_and_read([request, smuggled].concat());
        let answer = answer.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(answer.status, *status, "{name}: {answer:?}");
        let rest = client.read_to_end();
        assert!(matches!(rest.as_deref(), Ok([]) | Err(Failure::Reset)), "{name}: {rest:?}");
    }
    server.stop();
}

#[test]
fn a_malformed_chunk_is_refused() {
    let server = Server::start(1);
    for size in ["x", "-1", "0x5", "+5", "1_0", "fffffffffffffffff", "5 5"] {
        let mut client = server.connect();
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer =
            client.send_and_read(format!("{head}{size}\r\nhello\r\n0\r\n\r\n")).expect(size);
        assert_eq!(answer.status, 400, "{size}: {answer:?}");
        let rest = client.read_to_end();
        assert!(matches!(rest.as_deref(), Ok([]) | Err(Failure::Reset)), "{size}: {rest:?}");
    }
    server.stop();
}

#[test]
fn a_request_head_larger_than_the_limit_is_431() {
    let server = Server::with(1, &["--max-header-size", "8KiB"]);
    let request = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n));
    assert_eq!(server.connect().send_and_read(request(4 << 10)).expect("answer").status, 200);
    assert_eq!(server.connect().send_and_read(request(9 << 10)).expect("answer").status, 431);
    let many = "X: y\r\n".repeat(101);
    let answer = server.connect().send_and_read(format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"));
    assert_eq!(answer.expect("answer").status, 431);
    server.stop();
}

#[test]
fn slow_request_heads_time_out_while_others_are_served() {
    let server = Server::with(2, &["--header-timeout", "1s"]);
    let mut slow: Vec<_> = (0..env_count("PREFORK_SLOW", 200)).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").expect("send");
    }
    for _ in 0..20 {
        assert_eq!(server.get("/").status, 200);
    }
    for client in &mut slow {
        let end = client.read();
        let closed = match &end {
            Ok(response) => response.status == 408,
            Err(failure) => *failure == Failure::Closed,
        };
        assert!(closed, "{end:?}");
    }
    server.stop();
}

#[test]
fn silent_clients_time_out_while_others_are_served() {
    let server = Server::with(2, &["--header-timeout", "1s"]);
    let mut silent: Vec<_> =
        (0..env_count("PREFORK_SLOW", 200) / 4).map(|_| server.connect()).collect();
    assert_eq!(server.get("/").status, 200);
    for client in &mut silent {
        assert_eq!(client.read_to_end(), Ok(Vec::new()));
    }
    server.stop();
}

#[test]
fn an_idle_connection_is_closed_at_the_keep_alive_timeout() {
    let server = Server::with(1, &["--keep-alive-timeout", "1s"]);
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("answer").status, 200);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn a_long_request_is_not_ended_by_the_keep_alive_timeout() {
    let server = Server::with(1, &["--keep-alive-timeout", "200ms", "--header-timeout", "200ms"]);
    assert_eq!(server.get("/sleep/1200").text(), "slept for 1200 ms\n");
    server.stop();
}

#[test]
fn clients_that_disconnect_early_do_no_harm() {
    let server = Server::start(1);
    let pid = server.worker_pids()[0];
    for _ in 0..20 {
        let mut client = server.connect();
        client.send("GET /bytes/100000000 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        client.read_exactly(1000).expect("the beginning");
    }
    for half in [
        "",
        "GE",
        "GET / HTTP/1.1\r\nHo",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
    ] {
        server.connect().send(half).expect("send");
    }
    assert_eq!(server.get("/").pid(), pid);
    server.stop();
}

#[test]
fn random_bytes_do_no_harm() {
    let server = Server::start(1);
    let pid = server.worker_pids()[0];
    let mut state = 1u64;
    for _ in 0..50 {
        let bytes: Vec<u8> = (0..500)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let mut client = server.connect();
        client.send(bytes).expect("send");
        client.shutdown_write();
        // An error response or none, but the connection ends.
        let end = client.read_to_end();
        assert!(!matches!(end, Err(Failure::TimedOut)), "{end:?}");
    }
    assert_eq!(server.get("/").pid(), pid);
    server.stop();
}
