//! Timeouts and limits of slow clients and handlers, for HTTP/1 and HTTP/2.

use std::time::{Duration, Instant};

use crate::support::command::ProcessBuilder;
use crate::support::http2::{END_HEADERS, HEADERS, PING, RST_STREAM, WINDOW_UPDATE, frame};
use crate::support::{Client, Server, http2, wait};

/// Requests a response far larger than all buffers, and reads none of it.
fn request_without_reading(server: &Server) -> Client {
    let mut client = server.connect();
    client.send("GET /bytes/1073741824 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client
}

/// Sends a request head with Content-Length, and no body.
fn request_without_body(server: &Server, length: usize) -> Client {
    let mut client = server.connect();
    let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    client.send(head).expect("send");
    client
}

fn total_counter(server: &Server, counter: &str) -> u64 {
    server.cluster()["totals"][counter].as_u64().expect("a number")
}

#[test]
fn a_client_that_never_reads_is_cut_at_the_send_timeout() {
    let server = Server::with(1, &["--send-timeout", "300ms"]);
    let _client = request_without_reading(&server);
    wait::wait_until("the response is given up", || total_counter(&server, "cut") == 1);
    wait::wait_until("its request is over", || server.active_requests() == 0);
    server.stop();
}

#[test]
fn a_missing_body_is_408_at_the_body_timeout() {
    let server = Server::with(1, &["--body-timeout", "300ms"]);
    let chunked = "POST /hash HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel";
    let mut clients = [request_without_body(&server, 1000), server.connect()];
    clients[1].send(chunked).expect("send");
    for mut client in clients {
        let answer = client.read().expect("answer");
        assert_eq!((answer.status, answer.closes()), (408, true));
        assert_eq!(client.read_to_end(), Ok(Vec::new()));
    }
    // Slow handlers do not count against the client's body timeout.
    let mut client = server.connect();
    client
        .send("GET /sleep/1000 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        .expect("send");
    assert_eq!(client.read().expect("answer").status, 200);
    // Few rounds: the threads of the CPU pool are niced, so that a busy machine leaves them hardly any time.
    assert_eq!(server.connect().post("/hash?rounds=1000", b"x").expect("answer").status, 200);
    server.stop();
}

#[test]
fn a_response_being_sent_is_not_cut_for_a_missing_body() {
    const BODY_LENGTH: usize = 50_000_000;
    let server = Server::with(1, &["--body-timeout", "200ms"]);
    let mut client = server.connect();
    let head = format!("GET /bytes/{BODY_LENGTH} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    client.send(head).expect("send");
    // Far more than the buffers hold is unsent when the timeout is over.
    assert_eq!(server.get("/sleep/1000").status, 200);
    let answer = client.read().expect("answer");
    assert_eq!((answer.status, answer.closes(), answer.body.len()), (200, true, BODY_LENGTH));
    server.stop();
}

#[test]
fn a_body_slower_than_min_body_rate_is_408() {
    let server = Server::with(1, &["--body-timeout", "2s", "--min-body-rate", "1KiB"]);
    let mut client = request_without_body(&server, 1_000_000);
    let mut sent = 0;
    let answer = wait::wait_until_some("it is too slow", || {
        sent += usize::from(client.send("x").is_ok());
        wait::wait_for_duration(Duration::from_millis(20));
        client.has_input().then(|| client.read().expect("answer"))
    });
    assert_eq!(answer.status, 408, "after {sent} bytes");
    server.stop();
}

#[test]
fn a_slow_reader_is_not_cut_by_the_send_timeout() {
    let server = Server::with(1, &["--send-timeout", "500ms"]);
    let mut client = request_without_reading(&server);
    let begun = Instant::now();
    // Reading takes far longer than the timeout, with data always in flight.
    while begun.elapsed() < Duration::from_millis(1500) {
        client.read_exactly(64 * 1024).expect("more of it");
        wait::wait_for_duration(Duration::from_millis(5));
    }
    assert_eq!(total_counter(&server, "cut"), 0);
    drop(client);
    server.stop();
}

#[test]
fn a_server_recovers_from_clients_that_hold_all_connections() {
    let args = ["--worker-connections", "10", "--body-timeout", "3s"];
    let server = Server::with(2, &args);
    let clients: Vec<Client> = (0..25).map(|_| request_without_body(&server, 1_000_000)).collect();
    let full = || {
        let status = server.status();
        let workers = status["workers"].as_array().expect("workers");
        workers.iter().filter(|worker| worker["full"] == true).count()
    };
    wait::wait_until("a full worker", || full() > 0);
    assert_eq!(server.get("/healthz").text(), "ok\n");
    drop(clients);
    wait::wait_until("room for connections", || full() == 0);
    server.stop();
}

#[test]
fn the_status_shows_full_workers() {
    let server = Server::with(1, &["--worker-connections", "2"]);
    let (mut first, mut second) = (server.connect(), server.connect());
    assert_eq!(first.get("/").expect("answer").status, 200);
    assert_eq!(second.get("/").expect("answer").status, 200);
    let is_full = |client: &mut Client| {
        client.get("/cluster").expect("answer").json()["workers"][0]["full"] == true
    };
    wait::wait_until("it is full", || is_full(&mut first));
    drop(second);
    wait::wait_until("it has room", || !is_full(&mut first));
    drop(first);
    assert_eq!(server.count_log(&["WARN", "worker=1"]), 1);
    server.stop();
}

#[test]
fn a_handler_over_request_timeout_is_503() {
    let server =
        Server::with(1, &["--request-timeout", "200ms"]).allow_errors(&["request-timeout"]);
    let mut client = server.connect();
    let answer = client.get("/sleep/3600000").expect("answer");
    assert_eq!(answer.status, 503);
    wait::wait_until("its request is over", || server.active_requests() == 0);
    assert_eq!(total_counter(&server, "timed_out"), 1);
    server.wait_log(&["request-timeout", "GET /sleep/3600000"]);
    assert_eq!(server.get("/sleep/1").status, 200);
    server.stop();
}

#[test]
fn a_response_over_request_timeout_ends_the_connection() {
    let args = ["--request-timeout", "200ms", "--send-timeout", "off"];
    let server = Server::with(1, &args).allow_errors(&["request-timeout"]);
    let mut client = request_without_reading(&server);
    wait::wait_until("the response is given up", || total_counter(&server, "timed_out") == 1);
    server.wait_log(&["request-timeout", "GET /bytes/1073741824"]);
    let _ = client.read_to_end();
    server.stop();
}

#[test]
fn a_handler_can_extend_or_disable_its_deadline() {
    let server =
        ProcessBuilder::program("waiting").workers(1).args(["request-timeout-ms=200"]).start();
    let server = server.allow_errors(&["request-timeout"]);
    for path in ["/extended", "/unlimited"] {
        assert_eq!(server.get(path).text(), "done", "{path}");
    }
    assert_eq!(server.get("/never").status, 503);
    server.stop();
}

#[test]
fn timeouts_apply_to_the_threads_model() {
    let args = ["--request-timeout", "200ms", "--send-timeout", "300ms"];
    let server = ProcessBuilder::serve().model("threads", 2).args(args).start();
    let server = server.allow_errors(&["request-timeout"]);
    let _client = request_without_reading(&server);
    assert_eq!(server.get("/sleep/3600000").status, 503);
    wait::wait_until("the response is given up", || total_counter(&server, "cut") == 1);
    wait::wait_until("nothing is in progress", || server.active_requests() == 0);
    server.stop();
}

#[test]
fn max_buffered_bodies_limits_all_requests_together() {
    let args = ["--max-body-size", "1MiB", "--max-buffered-bodies", "2MiB"];
    let server = Server::with(1, &args);
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n";
    let almost = [head.as_bytes(), &[b'x'; (1 << 20) - 1]].concat();
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.send(&almost).expect("send");
    }
    let refused = wait::wait_until_some("there is no room", || {
        let answer = server.connect().post("/echo", &[b'y'; 1 << 19]).ok()?;
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    // Bodies that were begun complete, and release their memory.
    for client in &mut clients {
        assert_eq!(client.send_and_read("x").expect("answer").body.len(), 1 << 20);
    }
    wait::wait_until("there is room", || {
        server.connect().post("/echo", &[b'y'; 1 << 19]).is_ok_and(|answer| answer.status == 200)
    });
    drop(clients);
    server.stop();
}

#[test]
fn a_too_large_content_length_is_413_before_the_body() {
    let server = Server::with(1, &["--max-body-size", "1KiB"]);
    for path in ["/echo", "/hash"] {
        let mut client = server.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\nExpect: 100-continue\r\n\r\n"
        );
        assert_eq!(client.send_and_read(head).expect("answer").status, 413, "{path}");
    }
    server.stop();
}

fn http2_connection(server: &Server) -> Client {
    let mut client = server.connect();
    http2::greet(&mut client);
    client
}

#[test]
fn http2_pings_do_not_change_the_keep_alive_timeout() {
    let args = ["--header-timeout", "200ms", "--keep-alive-timeout", "2s"];
    let server = Server::with(1, &args);
    let mut client = http2_connection(&server);
    client.send(http2::get(1, "/")).expect("send");
    http2::read_until(&mut client, HEADERS, 1);
    let begun = Instant::now();
    // A ping is sent at each poll, even long after the timeout.
    wait::wait_until("the connection is closed", || {
        let ping = frame(PING, 0, 0, b"are you?");
        let settings = [ping, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])].concat();
        client.send(settings).is_err() || client.is_closed()
    });
    // The clock of the server has a resolution of 0.1 s.
    assert!(begun.elapsed() > Duration::from_millis(1800), "{:?}", begun.elapsed());
    server.stop();
}

#[test]
fn an_incomplete_http2_header_block_ends_at_the_header_timeout() {
    let server = Server::with(1, &["--header-timeout", "300ms"]);
    let block = http2::request("GET", "/");
    let half = frame(HEADERS, http2::END_STREAM, 1, &block[..3]);
    let whole = http2::get(1, "/");
    for bytes in [&half[..], &whole[..whole.len() - 1]] {
        let mut client = http2_connection(&server);
        client.send(bytes).expect("send");
        http2::read_to_end(&mut client);
    }
    server.stop();
}

#[test]
fn an_incomplete_http2_preface_ends_at_the_header_timeout() {
    let server = Server::with(1, &["--header-timeout", "300ms"]);
    let mut client = server.connect();
    client.send(http2::PREFACE).expect("send");
    http2::read_to_end(&mut client);
    server.stop();
}

#[test]
fn the_body_timeout_ends_only_its_http2_stream() {
    let server = Server::with(1, &["--body-timeout", "300ms"]);
    let mut client = http2_connection(&server);
    let post = frame(HEADERS, END_HEADERS, 1, &http2::request("POST", "/echo"));
    client.send([post, http2::get(3, "/sleep/1500")].concat()).expect("send");
    assert_eq!(http2::read_until(&mut client, HEADERS, 1).status(), Some(408));
    assert_eq!(http2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}

#[test]
fn the_send_timeout_resets_only_its_http2_stream() {
    let server = Server::with(1, &["--send-timeout", "300ms"]);
    let mut client = http2_connection(&server);
    // A large window for the connection, and the initial one for the stream.
    let room = frame(WINDOW_UPDATE, 0, 0, &[0, 255, 255, 255]);
    client
        .send([room, http2::get(1, "/bytes/10000000"), http2::get(3, "/sleep/1500")].concat())
        .expect("send");
    http2::read_until(&mut client, RST_STREAM, 1);
    assert_eq!(http2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}

#[test]
fn request_timeout_applies_to_each_http2_stream() {
    let args = ["--request-timeout", "300ms", "--send-timeout", "off"];
    let server = Server::with(1, &args).allow_errors(&["longer than request-timeout"]);
    let mut client = http2_connection(&server);
    let both = [http2::get(1, "/sleep/3600000"), http2::get(3, "/bytes/10000000")].concat();
    client.send(both).expect("send");
    http2::read_until(&mut client, RST_STREAM, 3);
    drop(client);
    let mut client = http2_connection(&server);
    client.send(http2::get(1, "/sleep/3600000")).expect("send");
    assert_eq!(http2::read_until(&mut client, HEADERS, 1).status(), Some(503));
    client.send(http2::get(3, "/")).expect("send");
    assert_eq!(http2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}
