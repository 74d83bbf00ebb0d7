//! HTTPS: both versions of HTTP over TLS, and everything that plain connections have.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::http2::{self, DATA, GOAWAY, HEADERS};
use crate::support::tls_server::{HTTP1, HTTP2, SERVER_NAME, TlsServer};
use crate::support::{Client, Server, wait};

#[track_caller]
fn get_over_http2(client: &mut Client, stream: u32, path: &str) -> String {
    client.send(http2::get(stream, path)).expect("send");
    let status = http2::read_until(client, HEADERS, stream).status();
    assert_eq!(status, Some(200));
    let body = http2::read_until(client, DATA, stream).payload;
    String::from_utf8(body).expect("text")
}

/// Asks for `/client` with each version of HTTP.
#[track_caller]
fn assert_serves_both(server: &TlsServer) {
    let mut client = server.connect_with(HTTP2);
    assert_eq!(client.tls().session().alpn_protocol(), Some(&b"h2"[..]));
    http2::greet(&mut client);
    for stream in [1, 3] {
        let seen: serde_json::Value =
            serde_json::from_str(&get_over_http2(&mut client, stream, "/client")).expect("JSON");
        assert_eq!(
            (&seen["scheme"], seen["client_ip"].as_str()),
            (&"https".into(), Some("127.0.0.1"))
        );
    }
    for protocols in [HTTP1, &[]] {
        let mut client = server.connect_with(protocols);
        assert_eq!(client.tls().session().alpn_protocol(), protocols.first().map(|p| p.as_bytes()));
        for _ in 0..2 {
            assert_eq!(client.get("/client").expect("an answer").json()["scheme"], "https");
        }
    }
}

#[test]
fn both_versions_of_http_are_served_in_every_model() {
    for model in ["prefork", "single", "threads", "thread-per-core"] {
        let server = TlsServer::start(ProcessBuilder::serve().model(model, 2));
        assert_serves_both(&server);
        let handshakes = server.handshakes();
        assert_eq!(handshakes["full"], 3, "{model}: {handshakes}");
        server.stop();
    }
}

#[test]
fn both_versions_of_http_are_served_under_every_dispatch_policy() {
    for policy in ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"] {
        let server = TlsServer::start(Server::builder().workers(2).dispatch(policy));
        let listeners = server.status()["listeners"].to_string();
        assert!(listeners.starts_with("[\"https://"), "{listeners}");
        assert_serves_both(&server);
        for _ in 0..20 {
            assert_eq!(server.connect_tls().get("/").expect("an answer").status, 200, "{policy}");
        }
        server.stop();
    }
}

#[test]
fn without_http2_a_client_that_prefers_it_gets_http1() {
    let server = TlsServer::with(1, &["--http2=false"]);
    let mut client = server.connect_with(HTTP2);
    assert_eq!(client.tls().session().alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(client.get("/").expect("an answer").status, 200);
    server.stop();
}

#[test]
fn a_proxy_header_stands_before_the_handshake() {
    for policy in ["shared", "round-robin"] {
        let args = ["--proxy-protocol", "v1", "--trusted-proxies", "127.0.0.1"];
        let server = TlsServer::start(Server::builder().workers(2).dispatch(policy).args(args));
        let header = "PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n";
        let mut client =
            Client::connect_tls_after(server.address(), header, &server.client, SERVER_NAME)
                .expect("a TLS connection");
        let seen = client.get("/client").expect("an answer").json();
        assert_eq!((&seen["client"], &seen["scheme"]), (&"192.0.2.7:5000".into(), &"https".into()));
        server.stop();
    }
}

#[test]
fn requests_are_checked_and_pipelined_as_on_plain_connections() {
    let server = TlsServer::with(1, &[]);
    let mut client = server.connect_tls();
    let get = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let chunked = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let bad =
        "GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send([get, chunked, get, bad, get].concat()).expect("send");
    assert_eq!(client.read().expect("an answer").status, 200);
    assert_eq!(client.read().expect("an answer").text(), "abc");
    assert_eq!(client.read().expect("an answer").status, 200);
    let rejected = client.read().expect("an answer");
    assert_eq!((rejected.status, rejected.closes()), (400, true));
    assert_eq!(client.read_to_end(), Ok(Vec::new()), "closed with close_notify");
    let totals = server.status()["totals"].clone();
    assert_eq!((&totals["requests"], &totals["responses"][3]), (&4.into(), &1.into()));
    server.stop();
}

#[test]
fn a_client_may_wait_for_100_continue() {
    let server = TlsServer::with(1, &[]);
    let mut client = server.connect_tls();
    let head =
        "POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(client.send_and_read(head).expect("an answer").status, 100);
    assert_eq!(client.send_and_read("abc").expect("an answer").text(), "abc");
    server.stop();
}

#[test]
fn bodies_larger_than_all_buffers_pass_in_both_directions() {
    const LENGTH: usize = 3_000_000;
    for model in ["prefork", "threads"] {
        let server = TlsServer::start(
            ProcessBuilder::serve().model(model, 1).args(["--max-body-size", "8MiB"]),
        );
        let mut client = server.connect_tls();
        let answer = client.get(&format!("/bytes/{LENGTH}")).expect("an answer");
        assert_eq!(answer.body.len(), LENGTH);
        let body: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8).collect();
        assert!(client.post("/echo", &body).expect("an answer").body == body, "{model}");
        server.stop();
    }
}

#[test]
fn the_last_response_is_not_lost_with_a_body_that_nobody_reads() {
    let server = TlsServer::with(1, &["--max-body-size", "10"]);
    for _ in 0..20 {
        let mut client = server.connect_tls();
        let head = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n";
        client.send(head).expect("send");
        // The server may close its side meanwhile.
        let _ = client.send(vec![b'x'; 200_000]);
        let answer = client.read().expect("an answer");
        assert_eq!((answer.status, answer.closes()), (413, true));
    }
    server.stop();
}

#[test]
fn a_connection_ends_with_close_notify_also_after_an_upgrade_that_was_not_made() {
    let server = TlsServer::with(1, &[]);
    for upgrade in ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n"] {
        let mut client = server.connect_with(HTTP1);
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{upgrade}Connection: close\r\n\r\n");
        let answer = client.send_and_read(head).expect("an answer");
        assert_eq!(answer.status, 200, "{upgrade}");
        assert_eq!(client.read_all(), (Vec::new(), Ok(())), "{upgrade}");
    }
    server.stop();
}

#[test]
fn requests_over_tls_count_for_max_requests() {
    let server = TlsServer::with(2, &["--max-requests", "20"]);
    let mut client = server.connect_tls();
    // A worker that has served enough closes all connections, until the primary has noticed and it drains. So the closes are more
    // than the replaced workers.
    let has_worker_5 = || {
        let status = server.status();
        let workers = status["workers"].as_array().expect("workers");
        workers.iter().any(|worker| worker["id"].as_u64() >= Some(5))
    };
    while !has_worker_5() {
        let answer = client.get("/").expect("an answer");
        assert_eq!(answer.status, 200);
        if answer.closes() {
            assert_eq!(client.read_to_end(), Ok(Vec::new()));
            client = server.connect_tls();
        }
    }
    server.wait_replaced(3);
    drop(client);
    server.stop();
}

/// Returns the status of a response, behind the probe whether a half-closed client still reads.
#[track_caller]
fn read_after_probe(client: &mut Client) -> u16 {
    loop {
        match client.read().expect("an answer").status {
            102 => {}
            status => return status,
        }
    }
}

#[test]
fn a_client_that_closes_without_close_notify_is_no_error() {
    let server = TlsServer::with(1, &[]);
    let mut client = server.connect_tls();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    drop(client);
    let mut within_body = server.connect_tls();
    let head = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc";
    within_body.send(head).expect("send");
    drop(within_body);
    let mut half_closed = server.connect_tls();
    half_closed.send("GET /sleep/300 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    half_closed.shutdown_write();
    assert_eq!(read_after_probe(&mut half_closed), 200);
    wait::wait_until("all are closed", || {
        server.status()["workers"][0]["connections"].as_u64() == Some(0)
    });
    let log = server.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_client_that_has_sent_close_notify_still_gets_its_response() {
    let server = TlsServer::with(1, &[]);
    let mut client = server.connect_tls();
    client.send("GET /sleep/50 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    client.send_close_notify();
    assert_eq!(read_after_probe(&mut client), 200);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn a_client_that_never_reads_is_cut_at_the_send_timeout() {
    let server = TlsServer::with(1, &["--send-timeout", "300ms"]);
    let mut client = server.connect_tls();
    client.send("GET /bytes/1073741824 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    wait::wait_until("the response is given up", || {
        server.status()["totals"]["cut"].as_u64() == Some(1)
    });
    server.stop();
}

#[test]
fn a_draining_worker_closes_idle_connections_with_close_notify() {
    for model in ["prefork", "threads"] {
        let builder = ProcessBuilder::serve().model(model, 1).args(["--linger-timeout", "300ms"]);
        let server = TlsServer::start(builder);
        let mut idle = server.connect_tls();
        assert_eq!(idle.get("/").expect("an answer").status, 200);
        let mut busy = server.connect_tls();
        busy.send("GET /sleep/1000 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
        let mut http2 = server.connect_with(HTTP2);
        http2::greet(&mut http2);
        http2.send(http2::get(1, "/sleep/1000")).expect("send");
        server.wait_active_requests(2);
        server.signal(Signal::SIGHUP);
        assert_eq!(idle.read_to_end(), Ok(Vec::new()), "{model}: not truncated");
        let answer = busy.read().expect("an answer");
        assert_eq!((answer.status, answer.closes()), (200, true), "{model}");
        assert_eq!(busy.read_to_end(), Ok(Vec::new()), "{model}: not truncated");
        let frames = http2::read_to_end(&mut http2);
        let kinds: Vec<u8> = frames.iter().map(|frame| frame.kind).collect();
        assert!(kinds.contains(&GOAWAY) && kinds.contains(&HEADERS), "{model}: {kinds:?}");
        server.stop();
    }
}

#[test]
fn a_connection_with_part_of_a_record_is_not_closed_as_idle() {
    let server = TlsServer::with(1, &["--linger-timeout", "200ms"]);
    let mut client = server.connect_tls();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    let records = client.tls().encrypt(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (first, rest) = records.split_at(20);
    client.send_raw(first).expect("send");
    server.signal(Signal::SIGHUP);
    // The other generation serves, and the linger timeout of the old one is over.
    server.wait_generation(2);
    let mut other = server.connect_tls();
    wait::wait_for_duration(Duration::from_millis(800));
    client.send_raw(rest).expect("send");
    let answer = client.read().expect("an answer");
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    assert_eq!(other.get("/").expect("an answer").status, 200);
    server.stop();
}

fn total_requests(server: &TlsServer) -> u64 {
    server.status()["totals"]["requests"].as_u64().expect("a number")
}

#[test]
fn reloads_under_requests_over_tls_lose_none() {
    let server = TlsServer::with(2, &["--linger-timeout", "2s"]);
    let config = server.client_config(HTTP1);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = None::<Client>;
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        let connected = client.take().map(Ok);
                        let connected = connected.unwrap_or_else(|| server.try_connect(&config));
                        let mut connected = connected.expect("a TLS connection");
                        let answer = connected.get("/").expect("an answer");
                        client = Some(connected).filter(|_| !answer.closes());
                    }
                })
            })
            .collect();
        for generation in 2..7 {
            server.run_verb(&["reload"]);
            server.wait_generation(generation);
        }
        // The last clients have found the last generation.
        let begun = total_requests(&server);
        wait::wait_until("more requests", || total_requests(&server) > begun + 20);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        for client in clients {
            client.join().expect("no failed request");
        }
    });
    server.stop();
}

#[test]
fn raw_programs_read_and_write_the_decrypted_stream() {
    let builder = ProcessBuilder::program("connections");
    let server = TlsServer::start_program(builder);
    let mut client = server.connect_tls();
    let greeting = client.read_exactly(10).expect("a greeting");
    assert_eq!(greeting, b"hello from");
    while client.read_exactly(1).expect("a pid") != b"\n" {}
    client.send("line\n").expect("send");
    assert_eq!(client.read_exactly(5), Ok(b"line\n".to_vec()));
    client.send("bye\n").expect("send");
    drop(client);
    // Plain text is no greeting of TLS.
    let mut plain = server.connect();
    plain.send("EHLO example.org\r\n").expect("send");
    assert!(matches!(plain.read_to_end(), Ok(rest) if rest.is_empty()));
    server.wait_failed("not_tls", 1);
    server.stop();
}

#[test]
fn http_served_by_a_raw_program_works_over_tls() {
    let server = TlsServer::start_program(ProcessBuilder::program("serve-http").args(["door=raw"]));
    let mut client = server.connect_with(HTTP2);
    assert_eq!(client.tls().session().alpn_protocol(), None, "its protocol is not known");
    let answer = client.get("/client").expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, &*client.local_addr().to_string()));
    server.stop();
}
