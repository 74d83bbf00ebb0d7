//! HTTP requests and responses: keep-alive, pipelining, bodies, and the boundaries between requests.

use nix::sys::signal::Signal;

use crate::support::http2::{self, HEADERS};
use crate::support::load::Load;
use crate::support::{Client, Failure, Server, overrides};

#[test]
fn one_connection_carries_many_requests() {
    let server = Server::start(2);
    let mut client = server.connect();
    let first = client.get("/").expect("answer");
    assert_eq!((first.status, first.version.as_str()), (200, "HTTP/1.1"));
    assert_eq!(first.text(), format!("Handled by PID {}\n", first.pid()));
    for _ in 0..20 {
        assert_eq!(client.get("/").expect("answer").pid(), first.pid());
    }
    drop(client);
    server.stop();
}

/// Sends four pipelined requests, and asserts that their responses arrive in order.
fn assert_pipelined_answers_in_order(client: &mut Client) {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    let all = [get("/bytes/3"), get("/sleep/20"), get("/nowhere"), get("/")].concat();
    client.send(all).expect("send");
    assert_eq!(client.read().expect("first").text(), "000");
    assert_eq!(client.read().expect("second").text(), "slept for 20 ms\n");
    assert_eq!(client.read().expect("third").status, 404);
    assert!(client.read().expect("fourth").text().starts_with("Handled by PID "));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for flag in ["--pipeline-flush=false", "--pipeline-flush=true"] {
        let server = Server::with(1, &[flag]);
        let mut client = server.connect();
        (0..3).for_each(|_| assert_pipelined_answers_in_order(&mut client));
        server.stop();
    }
}

#[test]
fn many_pipelined_requests_do_not_starve_other_connections() {
    let server = Server::with(1, &["--pipeline-flush"]);
    let mut greedy = server.connect();
    let requests = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(2_000);
    greedy.send(requests).expect("send");
    assert_eq!(server.get("/healthz").status, 200);
    for _ in 0..2_000 {
        assert_eq!(greedy.read().expect("answer").status, 200);
    }
    drop(greedy);
    server.stop();
}

#[test]
fn bodies_with_content_length_and_chunked_are_echoed() {
    let server = Server::start(1);
    let mut client = server.connect();
    assert_eq!(client.post("/echo", b"sized").expect("answer").text(), "sized");
    let chunked = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n";
    assert_eq!(client.send_and_read(chunked).expect("answer").text(), "chunked");
    let large = vec![b'x'; 1 << 20];
    assert_eq!(client.post("/echo", &large).expect("answer").body, large);
    drop(client);
    server.stop();
}

#[test]
fn a_large_response_arrives_completely() {
    let server = Server::start(1);
    assert_eq!(server.get("/bytes/5000000").body.len(), 5_000_000);
    let mut client = server.connect();
    client
        .send("GET /bytes/5000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("send");
    assert_eq!(client.read().expect("answer").body.len(), 5_000_000);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn expect_100_continue_gets_100() {
    let server = Server::start(1);
    let mut client = server.connect();
    let head =
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(client.send_and_read(head).expect("100 Continue").status, 100);
    assert_eq!(client.send_and_read("body").expect("answer").text(), "body");
    drop(client);
    server.stop();
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Server::start(1);
    let mut client = server.connect();
    let answer = client.send_and_read("GET / HTTP/1.0\r\n\r\n").expect("answer");
    assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/1.0"));
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn a_client_that_asks_to_close_is_answered_and_closed() {
    let server = Server::start(1);
    let mut client = server.connect();
    let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    assert_eq!(client.send_and_read(request).expect("answer").status, 200);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn the_end_of_a_connection_arrives_with_its_last_response() {
    if overrides::is_tls() {
        // The end of a TLS connection is a record of its own.
        return;
    }
    let server = Server::start(1);
    let close = "Host: a\r\nConnection: close\r\n";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\n{close}\r\n");
    let echo = format!("POST /echo HTTP/1.1\r\n{close}Content-Length: 5\r\n\r\nhello");
    let chunked = format!(
        "POST /echo HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    let kept = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    // Each with the number of its responses.
    let last_requests = [
        (get("/"), 1),
        (get("/bytes/5000"), 1),
        (get("/bytes/20000"), 1),
        (get("/nowhere"), 1),
        (get("/sleep/5"), 1),
        ("GET / HTTP/1.0\r\n\r\n".to_string(), 1),
        (echo, 1),
        (chunked, 1),
        ([kept, kept, &get("/")].concat(), 3),
        (format!("POST / HTTP/1.1\r\n{close}Content-Length: 5\r\n\r\nhello"), 1),
    ];
    for (sent, responses) in &last_requests {
        for has_waited in [false, true] {
            let mut client = server.connect();
            if has_waited {
                // Its socket is registered with the event loop from now on.
                assert_eq!(client.get("/sleep/1").expect("answer").status, 200);
            }
            client.send(sent).expect("send");
            (0..*responses).for_each(|_| drop(client.read().expect("answer")));
            assert!(client.is_closed(), "after the answer to {sent:?}, has waited: {has_waited}");
        }
    }
    server.stop();
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let server = Server::start(1);
    let mut client = server.connect();
    let length = client.get("/").expect("answer").header("content-length").map(str::to_string);
    client.send("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    let head = client.read_head().expect("answer");
    assert_eq!((head.status, head.header("content-length").map(str::to_string)), (200, length));
    // The next response follows without a body in between.
    assert_eq!(client.get("/healthz").expect("answer").text(), "ok\n");
    drop(client);
    server.stop();
}

#[test]
fn head_over_http2_has_no_body() {
    let server = Server::start(1);
    let mut client = server.connect();
    http2::greet(&mut client);
    let ended = http2::END_HEADERS | http2::END_STREAM;
    for (stream, path) in [(1, "/"), (3, "/nope"), (5, "/bytes/100000")] {
        let head = http2::request("HEAD", path);
        client.send(http2::frame(HEADERS, ended, stream, &head)).expect("send");
        let response = http2::read_until(&mut client, HEADERS, stream);
        assert_eq!(response.flags & http2::END_STREAM, http2::END_STREAM, "{path}: {response:?}");
    }
    // The answer to the next request comes next, and no DATA.
    client.send(http2::get(7, "/")).expect("send");
    let frames = std::iter::from_fn(|| http2::read(&mut client).ok());
    let streams: Vec<u32> =
        frames.take_while(|frame| frame.stream != 7).map(|f| f.stream).collect();
    assert!(streams.iter().all(|stream| *stream == 0), "{streams:?}");
    server.stop();
}

#[test]
fn unknown_path_lists_the_known_ones() {
    let server = Server::start(1);
    let mut client = server.connect();
    for path in ["/nowhere", "/sleep", "/cluster/x", "/fault/exit", "//", "/%2e%2e"] {
        let answer = client.get(path).expect("answer");
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains("/sleep/{ms}"), "{path}");
    }
    for path in ["/sleep/x", "/sleep/3600001", "/fib/51", "/bytes/-1", "/bytes/1073741825"] {
        assert_eq!(client.get(path).expect("answer").status, 400, "{path}");
    }
    drop(client);
    server.stop();
}

#[test]
fn method_not_allowed_lists_the_allowed_methods() {
    let server = Server::start(1);
    let mut client = server.connect();
    let answer = client.post("/", b"x").expect("answer");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
    let answer = client.get("/echo").expect("answer");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST, PUT")));
    drop(client);
    server.stop();
}

#[test]
fn a_body_larger_than_max_body_size_is_413() {
    let server = Server::with(1, &["--max-body-size", "1KiB"]);
    assert_eq!(server.connect().post("/echo", &[b'x'; 1024]).expect("answer").status, 200);
    let answer = server.connect().post("/echo", &[b'x'; 1025]).expect("answer");
    assert_eq!(answer.status, 413);
    assert!(answer.text().contains("max-body-size"), "{}", answer.text());
    server.stop();
}

#[test]
fn a_panicking_handler_fails_only_its_own_request() {
    let server = Server::with(1, &["--faults"]).allow_errors(&["/fault/panic", "panicked at"]);
    let pid = server.worker_pids()[0];
    let mut client = server.connect();
    assert_eq!(client.get("/fault/panic").expect("answer").status, 500);
    assert_eq!(client.get("/").expect("the connection lives").pid(), pid);
    assert_eq!(server.worker_pids(), [pid]);
    server.wait_log(&["ERROR", &format!("pid={pid}"), "GET /fault/panic"]);
    drop(client);
    server.stop();
}

#[test]
fn http2_with_prior_knowledge_is_supported() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let server = Server::start(1);
    let mut client = server.connect();
    client.send([PREFACE, EMPTY_SETTINGS].concat()).expect("send");
    let frame = client.read_exactly(9).expect("a frame");
    assert_eq!(frame[3], 4, "the first frame is SETTINGS: {frame:?}");
    drop(client);
    server.stop();

    let server = Server::with(1, &["--http2=false"]);
    let mut client = server.connect();
    let answer = client.send_and_read(PREFACE);
    let refused = match &answer {
        Ok(response) => response.status >= 400,
        Err(failure) => matches!(failure, Failure::Closed | Failure::Reset),
    };
    assert!(refused, "{answer:?}");
    server.stop();
}

#[test]
fn keep_alive_load_has_no_failures() {
    let server = Server::start(2);
    let gets = Load::keep_alive(server.address(), 4).start();
    let posts = Load::keep_alive(server.address(), 4).with_posts().with_think_time().start();
    gets.wait_answered(500);
    posts.wait_answered(100);
    for tally in [gets.stop(), posts.stop()] {
        assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    }
    server.stop();
}

const HEALTH_REQUEST: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// Reads all responses until the connection ends, and returns their statuses.
fn read_statuses(client: &mut Client) -> Vec<u16> {
    let mut statuses = Vec::new();
    loop {
        match client.read() {
            Ok(response) => statuses.push(response.status),
            Err(Failure::Closed) => return statuses,
            Err(failure) => panic!("{failure:?} after {statuses:?}"),
        }
    }
}

fn post_request(path: &str, framing: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")
}

#[test]
fn finished_responses_are_sent_before_a_pipelined_connection_closes() {
    for option in ["--pipeline-flush=false", "--pipeline-flush=true"] {
        let server = Server::with(1, &[option]);
        let closing = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let ended: &[(&str, &[u16])] = &[
            (&[HEALTH_REQUEST, "BAD\r\n\r\n"].concat(), &[200, 400]),
            (
                &[HEALTH_REQUEST, "GET /sleep/50 HTTP/1.1\r\nHost: a\r\n\r\n", "BAD\r\n\r\n"]
                    .concat(),
                &[200, 200, 400],
            ),
            (&[closing, "anything at all"].concat(), &[200]),
            (&[closing, HEALTH_REQUEST].concat(), &[200]),
            (
                &[HEALTH_REQUEST, "GET * HTTP/1.1\r\nHost: a\r\n\r\n", HEALTH_REQUEST].concat(),
                &[200, 400],
            ),
        ];
        for (sent, expected) in ended {
            let mut client = server.connect();
            client.send(sent).expect("send");
            assert_eq!(read_statuses(&mut client), *expected, "{option}: {sent:?}");
        }
        for behind in
            ["GET /he", "\r\n", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal"]
        {
            let mut client = server.connect();
            client.send([HEALTH_REQUEST, behind].concat()).expect("send");
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
fn a_slow_handler_does_not_delay_earlier_responses() {
    for option in ["--pipeline-flush=false", "--pipeline-flush=true"] {
        let server = Server::with(1, &[option]);
        let mut client = server.connect();
        let slow = "GET /sleep/2000 HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send([HEALTH_REQUEST, slow, HEALTH_REQUEST].concat()).expect("send");
        assert_eq!(client.read().expect("the first answer").text(), "ok\n", "{option}");
        drop(client);
        server.stop();
    }
}

#[test]
fn an_incomplete_pipelined_head_ends_at_the_header_timeout() {
    let server = Server::with(1, &["--header-timeout", "200ms", "--keep-alive-timeout", "1h"]);
    for before in [HEALTH_REQUEST, "GET /sleep/50 HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = server.connect();
        client.send([before, "GET / HTTP/1.1\r\nHo"].concat()).expect("send");
        assert_eq!(read_statuses(&mut client), [200]);
    }
    server.stop();
}

#[test]
fn an_unread_body_makes_the_response_close_the_connection() {
    let server = Server::start(1);
    let unread = [
        post_request("/nowhere", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post_request("/", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post_request("/echo", "Content-Length: 3000000", &"x".repeat(3_000_000)),
        post_request("/nowhere", "Content-Length: 100", "some"),
        post_request("/nowhere", "Content-Length: 100\r\nExpect: 100-continue", ""),
        post_request("/nowhere", "Transfer-Encoding: chunked", "5\r\nhello\r\n"),
    ];
    for request in unread {
        let mut client = server.connect();
        client.send([&request, HEALTH_REQUEST].concat()).expect("send");
        let response = client.read().expect("the response arrives");
        assert!(response.status >= 400, "{response:?}");
        assert_eq!(response.header("connection"), Some("close"), "{:.80}", request);
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{:.80}", request);
    }
    server.stop();
}

#[test]
fn a_completely_received_body_keeps_the_connection_open() {
    let server = Server::start(1);
    let mut client = server.connect();
    let answer =
        client.send_and_read(post_request("/", "Content-Length: 5", "hello")).expect("answer");
    assert_eq!((answer.status, answer.header("connection")), (405, None));
    assert_eq!(
        client
            .send_and_read(post_request("/echo", "Content-Length: 5", "hello"))
            .expect("answer")
            .text(),
        "hello"
    );
    let chunked =
        post_request("/echo", "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\nx: y\r\n\r\n");
    assert_eq!(client.send_and_read(chunked).expect("answer").text(), "hello");
    assert_eq!(client.send_and_read(HEALTH_REQUEST).expect("answer").status, 200);
    drop(client);
    server.stop();
}

#[test]
fn a_body_is_never_parsed_as_a_request() {
    let server = Server::start(1);
    let both =
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = server.connect();
    let chunked = post_request(
        "/echo",
        "Transfer-Encoding: chunked",
        &format!("{:x}\r\n{both}\r\n0\r\n\r\n", both.len()),
    );
    assert_eq!(client.send_and_read(chunked).expect("answer").text(), both);
    // The valid request before it is answered.
    client
        .send(
            [&post_request("/echo", "Transfer-Encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"), both]
                .concat(),
        )
        .expect("send");
    assert_eq!(read_statuses(&mut client), [200, 400]);
    server.stop();
}

#[test]
fn a_malformed_body_is_400_and_ends_the_connection() {
    let server = Server::start(1);
    for rest in [
        "0 \r\n\r\n",
        "0\r\n\n",
        "0\r\na: b\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "3\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = server.connect();
        let first = post_request("/echo", "Transfer-Encoding: chunked\r\nExpect: 100-continue", "");
        // The 100 shows that the handler reads the body.
        assert_eq!(client.send_and_read(first).expect("100 Continue").status, 100);
        client.send([rest, HEALTH_REQUEST].concat()).expect("send");
        assert_eq!(read_statuses(&mut client), [400], "{rest:?}");
    }
    server.stop();
}

#[test]
fn a_request_sent_byte_by_byte_is_served() {
    let server = Server::start(1);
    let mut client = server.connect();
    let chunked =
        post_request("/echo", "Transfer-Encoding: chunked", "5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n");
    for byte in [HEALTH_REQUEST, &chunked].concat().as_bytes() {
        client.send([*byte]).expect("send");
    }
    assert_eq!(client.read().expect("first").text(), "ok\n");
    assert_eq!(client.read().expect("second").text(), "hello");
    drop(client);
    server.stop();
}

#[test]
fn the_http2_preface_may_arrive_in_pieces() {
    let server = Server::start(1);
    let mut client = server.connect();
    client.expect_http2();
    for piece in ["PRI * HT", "TP/2.0\r\n\r\n", "SM\r\n\r\n"] {
        client.send(piece).expect("send");
        // Another request is served in between, so the server has read this piece alone.
        assert_eq!(server.get("/healthz").status, 200);
    }
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("send");
    let frame = client.read_exactly(9).expect("a frame");
    assert_eq!(frame[3], 4, "the first frame is SETTINGS: {frame:?}");
    drop(client);
    server.stop();
}

#[test]
fn pipelined_requests_survive_a_handover() {
    if overrides::is_tls() {
        // Connections that speak TLS are not handed over.
        return;
    }
    let server = Server::start(1);
    let mut client = server.connect();
    assert_eq!(client.send_and_read(HEALTH_REQUEST).expect("answer").status, 200);
    client.send("GET /sleep/100 HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client.send([HEALTH_REQUEST, HEALTH_REQUEST, "GET /heal"].concat()).expect("send");
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    client.send("thz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    for text in ["slept for 100 ms\n", "ok\n", "ok\n", "ok\n"] {
        assert_eq!(client.read().expect(text).text(), text);
    }
    server.wait_new_workers(1, &old);
    assert_eq!(client.send_and_read(HEALTH_REQUEST).expect("the new worker answers").status, 200);
    drop(client);
    server.stop();
}

#[test]
fn a_refused_connect_ends_the_connection() {
    let server = Server::start(1);
    let connect = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n";
    for rest in ["\r\n", "Content-Length: 5\r\n\r\nhello"] {
        let mut client = server.connect();
        client.send([connect, rest, HEALTH_REQUEST].concat()).expect("send");
        let response = client.read().expect("the refusal");
        assert_eq!((response.status, response.closes()), (405, true), "{rest:?}");
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{rest:?}");
    }
    server.stop();
}
