//! The address of the client and the listener of a connection, as handlers see them.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::concurrency_models::ALL_MODELS;
use crate::support::command::ProcessBuilder;
use crate::support::http2::{self, HEADERS};
use crate::support::{Address, Client, Server, wait};

/// Sent as if by a proxy: no address may come from it.
const FORWARDED: &str = "X-Forwarded-For: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\n";

/// What a program says about a connection.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    pid: u32,
    peer: String,
    local: String,
    listener: String,
}

impl Described {
    #[track_caller]
    fn parse(text: &str) -> Described {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [pid, peer, local, listener] = words[..] else { panic!("{text:?}") };
        let pid = pid.parse().expect("a pid");
        let [peer, local, listener] = [peer, local, listener].map(str::to_string);
        Described { pid, peer, local, listener }
    }
}

#[track_caller]
fn ask(client: &mut Client) -> Described {
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\n{FORWARDED}\r\n");
    Described::parse(client.send_and_read(request).expect("an answer").text())
}

#[track_caller]
fn assert_described(client: &mut Client, server: SocketAddr) {
    let described = ask(client);
    assert_eq!(described.peer, client.local_addr().to_string());
    assert_eq!((described.local, described.listener), (server.to_string(), server.to_string()));
}

fn tcp_addr(server: &Server) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

/// Connects to a Unix socket in the directory of the server.
#[track_caller]
fn connect_unix(server: &Server, name: &str) -> Client {
    Client::connect(&Address::Unix(server.dir().join(name))).expect("connect")
}

#[test]
fn every_model_and_request_has_the_address_of_its_client() {
    for model in ALL_MODELS {
        println!("model {model}");
        let workers = if model == "prefork" { 2 } else { 1 };
        let model = format!("model={model}");
        let server =
            ProcessBuilder::program("connection-info").workers(workers).args([model]).start();
        for _ in 0..4 {
            let mut client = server.connect();
            (0..2).for_each(|_| assert_described(&mut client, tcp_addr(&server)));
        }
        server.stop();
    }
}

#[test]
fn every_dispatch_policy_has_the_address_of_the_client() {
    for policy in ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"] {
        println!("dispatch {policy}");
        let dispatch = format!("dispatch={policy}");
        let server = ProcessBuilder::program("connection-info")
            .bind(["127.0.0.1:0", "127.0.0.2:0"])
            .args([dispatch])
            .start();
        for address in server.addresses() {
            let mut client = Client::connect(address).expect("connect");
            let described = ask(&mut client);
            assert_eq!(described.peer, client.local_addr().to_string());
            assert_eq!(address.to_string(), described.listener);
            assert_eq!(described.local, described.listener);
        }
        server.stop();
    }
}

#[test]
fn http2_streams_have_the_address_of_their_connection() {
    let server = ProcessBuilder::program("connection-info").start();
    let mut client = server.connect();
    http2::greet(&mut client);
    for stream in [1, 3] {
        client.send(http2::get(stream, "/")).expect("send");
        http2::read_until(&mut client, HEADERS, stream);
        let data = http2::read_until(&mut client, http2::DATA, stream);
        let described = Described::parse(&String::from_utf8_lossy(&data.payload));
        assert_eq!(described.peer, client.local_addr().to_string());
    }
    drop(client);
    server.stop();
}

#[test]
fn a_wildcard_listener_tells_which_address_the_client_has_reached() {
    let server = ProcessBuilder::program("connection-info").bind(["[::]:0"]).start();
    let port = server.port();
    for address in ["127.0.0.1", "127.0.0.2", "[::1]"] {
        let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        let mut client = Client::connect(&Address::Tcp(address)).expect("connect");
        let described = ask(&mut client);
        // An IPv4 client has an IPv4 address, although the socket is an IPv6 one.
        assert_eq!(described.peer, client.local_addr().to_string());
        assert_eq!(described.local, address.to_string());
        assert_eq!(described.listener, format!("[::]:{port}"));
    }
    server.stop();
}

#[test]
fn the_client_of_a_unix_socket_is_its_process() {
    for dispatch in ["dispatch=shared", "dispatch=round-robin"] {
        let server = ProcessBuilder::program("connection-info")
            .bind(["unix:app.sock", "unix:other.sock"])
            .args([dispatch])
            .start();
        let uid = nix::unistd::getuid();
        for name in ["app.sock", "other.sock"] {
            let described = ask(&mut connect_unix(&server, name));
            assert_eq!(described.peer, format!("unix:pid={},uid={uid}", std::process::id()));
            assert!(described.listener.ends_with(name), "{described:?}");
            assert_eq!(described.local, described.listener);
        }
        server.stop();
    }
}

#[test]
fn a_connection_that_is_handed_over_keeps_its_addresses() {
    for bind in [["127.0.0.1:0", "127.0.0.2:0"], ["0.0.0.0:0", "127.0.0.2:0"]] {
        let server = ProcessBuilder::program("connection-info").bind(bind).start();
        let mut clients: Vec<(Client, Described)> = Vec::new();
        for address in server.addresses() {
            for _ in 0..4 {
                let mut client = Client::connect(address).expect("connect");
                let described = ask(&mut client);
                clients.push((client, described));
            }
        }
        let old = server.worker_pids();
        server.signal(Signal::SIGHUP);
        server.wait_new_workers(2, &old);
        for (mut client, before) in clients {
            let after = ask(&mut client);
            assert!(!old.contains(&after.pid), "a new worker has taken it over");
            assert_eq!(after.peer, client.local_addr().to_string());
            assert_eq!(after, Described { pid: after.pid, ..before });
        }
        server.stop();
    }
}

#[test]
fn raw_connections_have_their_addresses() {
    let server = ProcessBuilder::program("raw-connection-info").start();
    let mut client = server.connect();
    client.send("where am I\n").expect("send");
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.extend(client.read_exactly(1).expect("an answer"));
    }
    let described = Described::parse(&String::from_utf8_lossy(&line));
    assert_eq!(described.peer, client.local_addr().to_string());
    assert_eq!(described.listener, tcp_addr(&server).to_string());
    drop(client);
    server.stop();
}

#[test]
fn axum_extracts_the_address_of_the_client() {
    let server =
        ProcessBuilder::program("connect-info").bind(["127.0.0.1:0", "unix:app.sock"]).start();
    let mut client = server.connect();
    for path in ["/addr", "/peer"] {
        let answer = client.get(path).expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, &*client.local_addr().to_string()));
    }
    let info = Described::parse(client.get("/info").expect("an answer").text());
    assert_eq!(info.peer, client.local_addr().to_string());
    drop(client);
    let mut client = connect_unix(&server, "app.sock");
    let peer = client.get("/peer").expect("an answer").text().to_string();
    assert!(peer.starts_with(&format!("unix:pid={}", std::process::id())), "{peer}");
    drop(client);
    server.stop();
}

#[test]
fn axum_without_an_ip_address_says_what_to_extract_instead() {
    let server = ProcessBuilder::program("connect-info").workers(1).bind(["unix:app.sock"]).start();
    for _ in 0..2 {
        let mut client = connect_unix(&server, "app.sock");
        let answer = client.get("/addr").expect("an answer");
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("ConnectInfo<tokio_prefork::PeerAddr>"), "{answer:?}");
        // The connection still works.
        assert_eq!(client.get("/peer").expect("an answer").status, 200);
    }
    assert_eq!(server.count_log(&["WARN", "ConnectInfo<tokio_prefork::PeerAddr>"]), 1);
    server.stop();
}

#[test]
fn workers_know_their_real_addresses() {
    let server = ProcessBuilder::program("connection-info")
        .bind(["127.0.0.1:0", "127.0.0.2:0", "unix:app.sock"])
        .start();
    let answer = server.get("/addresses");
    let lines: Vec<&str> = answer.text().lines().collect();
    let known: Vec<String> = server.addresses().iter().map(|a| a.to_string()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[..2], known[..2]);
    assert!(lines[2].ends_with("app.sock"), "{lines:?}");
    server.stop();
}

#[test]
fn listening_events_name_only_the_addresses_of_their_worker() {
    let server = ProcessBuilder::program("connection-info").workers(1).start();
    let old = server.address().to_string();
    std::fs::write(server.dir().join("bind"), "127.0.0.2:0\n").expect("write");
    let workers = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(1, &workers);
    let read = || std::fs::read_to_string(server.dir().join("listening")).expect("events");
    wait::wait_until("two events", || read().lines().count() == 2);
    let events = read();
    let lines: Vec<&str> = events.lines().collect();
    assert_eq!(lines[0], format!("1 {old}"));
    let new = lines[1].strip_prefix("2 ").expect("the second worker");
    assert!(new.starts_with("127.0.0.2:") && !new.contains(' '), "{events}");
    let mut client =
        Client::connect(&Address::Tcp(new.parse().expect("one address"))).expect("connect");
    assert_eq!(client.get("/addresses").expect("an answer").text(), format!("{new}\n"));
    drop(client);
    server.stop();
}
