//! Tests that the last response of a connection arrives at once and completely, also if its handler continues to run.

use nix::sys::signal::Signal;

use crate::parked_connections::wait_parked;
use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, overrides, wait};

const EXPECT: &str = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: close, upgrade\r\n";

fn start() -> Server {
    ProcessBuilder::program("last-responses").workers(1).start()
}

fn release(server: &Server) {
    std::fs::write(server.dir().join("release"), "").expect("write");
}

/// Opens a connection that the worker has served a request on.
fn open(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    client
}

fn received_requests(server: &Server) -> u64 {
    server.status()["totals"]["requests"].as_u64().expect("a number")
}

#[test]
fn last_response_arrives_before_its_handler_releases_the_request() {
    let server = start();
    let requests = [
        format!("POST /hold-body HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{EXPECT}"),
        "POST /hold-body HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello".to_string(),
        format!("GET /hold-upgrade HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n"),
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n".to_string(),
    ];
    let mut clients = Vec::new();
    for request in &requests {
        let (mut client, mut other) = (open(&server), open(&server));
        let before = received_requests(&server);
        client.send(request).expect("send");
        wait::wait_until("the request is being served", || received_requests(&server) > before);
        // Its response is written before the worker serves another request.
        assert_eq!(other.get("/").expect("an answer").status, 200);
        assert!(client.has_received(), "no answer yet to {request:?}");
        clients.push(client);
    }
    release(&server);
    for (client, request) in clients.iter_mut().zip(&requests) {
        assert!(client.read().is_ok(), "{request:?}");
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{request:?}");
    }
    drop(clients);
    server.stop();
}

#[test]
fn bytes_behind_a_request_for_an_upgrade_do_not_destroy_its_response() {
    if overrides::is_tls() {
        // The server reads TLS in whole records, so it leaves no part of a head in the kernel.
        return;
    }
    let server = Server::start(1);
    let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n".to_string();
    for start in [format!("GET / HTTP/1.1\r\nHost: a\r\n{UPGRADE}"), connect] {
        // Whatever the worker reads at once: the bytes behind the head are still in the kernel for one of these sizes.
        for size in [1024, 2048, 4096, 8192, 16384] {
            let padding = "x".repeat(size - start.len() - "X: \r\n\r\n".len());
            let mut client = server.connect();
            let head = format!("{start}X: {padding}\r\n\r\n");
            assert_eq!(head.len(), size);
            client.send(format!("{head}{}", "z".repeat(100_000))).expect("send");
            let (read, end) = client.read_all();
            assert!(read.starts_with(b"HTTP/1.1 ") && end == Ok(()), "{size}: {end:?}, {read:?}");
        }
    }
    server.stop();
}

/// Sends a request on a persistent connection, and reads the response. The handler keeps the body unread.
fn hold_body(server: &Server) -> Client {
    let mut client = open(server);
    client.send(format!("POST /hold-body HTTP/1.1\r\nHost: a\r\n{EXPECT}")).expect("send");
    assert!(!client.read().expect("an answer").closes());
    client
}

fn send_get(client: &mut Client) {
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
}

#[test]
fn kept_connection_whose_body_is_held_answers_the_next_request_after_that() {
    if overrides::is_tls() {
        // Such connections are never parked.
        return;
    }
    let server = start();
    let mut holding = hold_body(&server);
    let idle = open(&server);
    wait_parked(&server, 1);
    send_get(&mut holding);
    release(&server);
    assert_eq!(holding.read().expect("an answer").text(), "/next\n");
    // Now both are idle.
    wait_parked(&server, 2);
    drop((holding, idle));
    server.stop();
}

#[test]
fn connection_whose_body_is_held_during_a_reload_answers_the_next_request() {
    let server = start();
    let mut holding = hold_body(&server);
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    send_get(&mut holding);
    release(&server);
    assert_eq!(holding.read().expect("an answer").text(), "/next\n");
    drop(holding);
    wait::wait_until("the old worker has gone", || server.worker_pids().len() == 1);
    server.stop();
}

#[test]
fn connection_closes_although_hyper_overlooks_that_it_was_asked_to() {
    let server = Server::start(1);
    let get = "GET /sleep/5 HTTP/1.";
    for request in [
        format!("{get}1\r\nHost: a\r\nConnection: close, \u{e9}\r\n\r\n"),
        format!("{get}1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"),
        format!("{get}0\r\nConnection: keep-alive, close\r\n\r\n"),
        format!("{get}0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"),
    ] {
        let mut client = server.connect();
        client.send(&request).expect("send");
        assert!(client.read().expect("an answer").closes(), "{request:?}");
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{request:?}");
    }
    server.stop();
}
