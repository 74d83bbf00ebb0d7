//! Half-closed connections and clients that have disconnected.

use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server, wait};

fn connect_and_send(server: &Server, requests: &str) -> Client {
    let mut client = server.connect();
    client.send(requests).expect("send");
    client
}

fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Reads responses until a final one, and returns its status and the length of its body.
fn read_final_response(client: &mut Client) -> (u16, usize) {
    loop {
        let response = client.read().expect("answer");
        if response.status != 102 {
            return (response.status, response.body.len());
        }
    }
}

fn assert_half_closed_requests_are_answered(server: &Server) {
    for (path, length) in [("/sleep/600", 17), ("/bytes/5000000", 5_000_000), ("/", 0)] {
        let mut client = connect_and_send(server, &get_request(path));
        client.shutdown_write();
        let (status, got) = read_final_response(&mut client);
        assert!(status == 200 && (length == 0 || got == length), "{path}: {status}, {got} bytes");
        assert_eq!(client.read_to_end(), Ok(Vec::new()), "{path}");
    }
}

#[test]
fn a_half_closed_client_gets_its_whole_response() {
    for mode in ["finish", "probe"] {
        let server = Server::with(1, &["--half-close", mode]);
        assert_half_closed_requests_are_answered(&server);
        server.stop();
    }
}

#[test]
fn half_close_works_with_threads_and_unix_sockets() {
    let server = ProcessBuilder::serve().model("threads", 2).start();
    assert_half_closed_requests_are_answered(&server);
    server.stop();
    let builder = ProcessBuilder::serve().workers(1);
    let socket = format!("unix:{}", builder.dir().join("s").display());
    let server = builder.bind([socket]).start();
    assert_half_closed_requests_are_answered(&server);
    let mut client = server.connect();
    client.send(get_request("/sleep/3600000")).expect("send");
    server.wait_in_flight("/sleep/3600000");
    drop(client);
    wait::wait_until("the request of a client that has gone is over", || {
        server.active_requests() == 0
    });
    server.stop();
}

#[test]
fn pipelined_requests_before_a_fin_are_all_answered() {
    let server = Server::start(1);
    let all = [
        get_request("/sleep/300"),
        get_request("/bytes/3"),
        get_request("/nowhere"),
        get_request("/healthz"),
    ]
    .concat();
    let mut client = connect_and_send(&server, &all);
    client.shutdown_write();
    let statuses = [(); 4].map(|()| read_final_response(&mut client).0);
    assert_eq!(statuses, [200, 200, 404, 200]);
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn a_disconnected_clients_request_is_cancelled() {
    for mode in ["probe", "cancel"] {
        let server = Server::with(1, &["--half-close", mode]);
        let client = connect_and_send(&server, &get_request("/sleep/3600000"));
        server.wait_in_flight("/sleep/3600000");
        drop(client);
        wait::wait_until("its request is over", || server.active_requests() == 0);
        server.stop();
    }
}

#[test]
fn half_close_cancel_ends_requests_at_a_fin() {
    let server = Server::with(1, &["--half-close", "cancel"]);
    let mut client = connect_and_send(&server, &get_request("/sleep/3600000"));
    server.wait_in_flight("/sleep/3600000");
    client.shutdown_write();
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    server.stop();
}

#[test]
fn an_incomplete_request_before_a_fin_is_not_served() {
    let server = Server::start(1);
    for cut_off in
        ["GET / HTTP/1.1\r\nHo", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"]
    {
        let mut client = connect_and_send(&server, cut_off);
        client.shutdown_write();
        // A 400 or no response, but the connection ends.
        let rest = client.read_to_end().expect("the end");
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{cut_off:?}");
    }
    server.stop();
}

#[test]
fn an_http_1_0_client_gets_no_interim_response() {
    let server = Server::start(1);
    let mut client = connect_and_send(&server, "GET /sleep/600 HTTP/1.0\r\n\r\n");
    client.shutdown_write();
    assert_eq!(client.read().expect("answer").status, 200);
    server.stop();
}
