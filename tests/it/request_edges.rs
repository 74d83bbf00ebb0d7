//! What stands at the edges of a request: pipelining, bodies that nobody reads, ends that come early.

use nix::sys::signal::Signal;

use crate::support::{Client, Failure, Server};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// The statuses of all responses up to the end of the connection.
fn statuses(client: &mut Client) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match client.read() {
            Ok(response) => statuses.push(response.status),
            Err(Failure::Closed) => return statuses,
            Err(failure) => panic!("{failure:?} after {statuses:?}"),
        }
    }
}

fn post(path: &str, framing: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")
}

#[test]
fn every_finished_answer_is_sent_before_the_connection_ends_or_waits() {
    for option in ["--pipeline-flush=false", "--pipeline-flush=true"] {
        let server = Server::with(1, &[option]);
        let closing = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let ended: &[(&str, &[u16])] = &[
            (&[HEALTH, "BAD\r\n\r\n"].concat(), &[200, 400]),
            (
                &[HEALTH, "GET /sleep/50 HTTP/1.1\r\nHost: a\r\n\r\n", "BAD\r\n\r\n"].concat(),
                &[200, 200, 400],
            ),
            (&[closing, "anything at all"].concat(), &[200]),
            (&[closing, HEALTH].concat(), &[200]),
            (&[HEALTH, "GET * HTTP/1.1\r\nHost: a\r\n\r\n", HEALTH].concat(), &[200, 400]),
        ];
        for (sent, expected) in ended {
            let mut client = server.connect();
            client.send(sent).expect("send");
            assert_eq!(statuses(&mut client), *expected, "{option}: {sent:?}");
        }
        for behind in
            ["GET /he", "\r\n", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal"]
        {
            let mut client = server.connect();
            client.send([HEALTH, behind].concat()).expect("send");
            assert_eq!(
                client.read().expect("the finished answer").status,
                200,
                "{option}: {behind:?}"
            );
            drop(client);
        }
        server.stop();
    }
}

#[test]
fn a_slow_handler_holds_up_no_answer_that_was_finished_before() {
    for option in ["--pipeline-flush=false", "--pipeline-flush=true"] {
        let server = Server::with(1, &[option]);
        let mut client = server.connect();
        let slow = "GET /sleep/2000 HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send([HEALTH, slow, HEALTH].concat()).expect("send");
        assert_eq!(client.read().expect("the first answer").text(), "ok\n", "{option}");
        drop(client);
        server.stop();
    }
}

#[test]
fn half_a_pipelined_head_has_the_time_of_a_head() {
    let server = Server::with(1, &["--header-timeout", "200ms", "--keep-alive-timeout", "1h"]);
    for before in [HEALTH, "GET /sleep/50 HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = server.connect();
        client.send([before, "GET / HTTP/1.1\r\nHo"].concat()).expect("send");
        assert_eq!(statuses(&mut client), [200]);
    }
    server.stop();
}

#[test]
fn where_a_body_is_not_read_the_response_says_that_the_connection_ends() {
    let server = Server::start(1);
    let unread = [
        post("/nowhere", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post("/", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post("/echo", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post("/nowhere", "Content-Length: 100", "some"),
        post("/nowhere", "Content-Length: 100\r\nExpect: 100-continue", ""),
        post("/nowhere", "Transfer-Encoding: chunked", "5\r\nhello\r\n"),
    ];
    for request in unread {
        let mut client = server.connect();
        client.send([&request, HEALTH].concat()).expect("send");
        let response = client.read().expect("the response arrives");
        assert!(response.status >= 400, "{response:?}");
        assert_eq!(response.header("connection"), Some("close"), "{:.80}", request);
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{:.80}", request);
    }
    server.stop();
}

#[test]
fn a_body_that_was_received_whole_does_not_end_the_connection() {
    let server = Server::start(1);
    let mut client = server.connect();
    let answer = client.ask(post("/", "Content-Length: 5", "hello")).expect("answer");
    assert_eq!((answer.status, answer.header("connection")), (405, None));
    assert_eq!(
        client.ask(post("/echo", "Content-Length: 5", "hello")).expect("answer").text(),
        "hello"
    );
    let chunked = post("/echo", "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nx: y\r\n\r\n");
    assert_eq!(client.ask(chunked).expect("answer").text(), "hello");
    assert_eq!(client.ask(HEALTH).expect("answer").status, 200);
    drop(client);
    server.stop();
}

#[test]
fn a_body_is_not_taken_for_a_head() {
    let server = Server::start(1);
    let both =
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = server.connect();
    let chunked = post(
        "/echo",
        "Transfer-Encoding: chunked",
        &format!("{:x}\r\n{both}\r\n0\r\n\r\n", both.len()),
    );
    assert_eq!(client.ask(chunked).expect("answer").text(), both);
    // A good one before it is not blamed for what follows.
    client
        .send([&post("/echo", "Transfer-Encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"), both].concat())
        .expect("send");
    assert_eq!(statuses(&mut client), [200, 400]);
    server.stop();
}

#[test]
fn a_body_that_turns_out_malformed_is_refused_and_nothing_behind_it_is_read() {
    let server = Server::start(1);
    for rest in [
        "0 \r\n\r\n",
        "0\r\n\n",
        "0\r\na: b\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "3\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = server.connect();
        let first = post("/echo", "Transfer-Encoding: chunked\r\nExpect: 100-continue", "");
        // The handler reads the body, or there would be no 100.
        assert_eq!(client.ask(first).expect("go on").status, 100);
        client.send([rest, HEALTH].concat()).expect("send");
        assert_eq!(statuses(&mut client), [400], "{rest:?}");
    }
    server.stop();
}

#[test]
fn a_request_that_comes_byte_by_byte_is_served_like_any_other() {
    let server = Server::start(1);
    let mut client = server.connect();
    let chunked =
        post("/echo", "Transfer-Encoding: chunked", "5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n");
    for byte in [HEALTH, &chunked].concat().as_bytes() {
        client.send([*byte]).expect("send");
    }
    assert_eq!(client.read().expect("first").text(), "ok\n");
    assert_eq!(client.read().expect("second").text(), "hello");
    drop(client);
    server.stop();
}

#[test]
fn the_http2_preface_may_come_in_pieces() {
    let server = Server::start(1);
    let mut client = server.connect();
    for piece in ["PRI * HT", "TP/2.0\r\n\r\n", "SM\r\n\r\n"] {
        client.send(piece).expect("send");
        // Another connection is served meanwhile, so the piece was seen by itself.
        assert_eq!(server.get("/healthz").status, 200);
    }
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("send");
    let frame = client.read_exactly(9).expect("a frame");
    assert_eq!(frame[3], 4, "the first frame is SETTINGS: {frame:?}");
    drop(client);
    server.stop();
}

#[test]
fn pipelined_requests_survive_a_hand_over() {
    let server = Server::start(1);
    let mut client = server.connect();
    assert_eq!(client.ask(HEALTH).expect("answer").status, 200);
    client.send("GET /sleep/100 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client.send([HEALTH, HEALTH, "GET /heal"].concat()).expect("send");
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    client.send("thz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    for text in ["slept for 100 ms\n", "ok\n", "ok\n", "ok\n"] {
        assert_eq!(client.read().expect(text).text(), text);
    }
    server.wait_others(1, &old);
    assert_eq!(client.ask(HEALTH).expect("the new worker answers").status, 200);
    drop(client);
    server.stop();
}

#[test]
fn a_refused_tunnel_ends_the_connection_and_nothing_behind_it_is_read() {
    let server = Server::start(1);
    let connect = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n";
    for rest in ["\r\n", "Content-Length: 5\r\n\r\nhello"] {
        let mut client = server.connect();
        client.send([connect, rest, HEALTH].concat()).expect("send");
        let response = client.read().expect("the refusal");
        assert_eq!((response.status, response.closes()), (405, true), "{rest:?}");
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{rest:?}");
    }
    server.stop();
}
