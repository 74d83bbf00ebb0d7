//! Who a request comes from: the PROXY protocol and forwarded headers, from trusted proxies and from everybody else.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;

use crate::concurrency_models::ALL_MODELS;
use crate::support::command::ProcessBuilder;
use crate::support::http2::{self, HEADERS};
use crate::support::websocket::{self, TEXT};
use crate::support::{Address, Client, Failure, Server, process, wait};

/// What `PROXY_V1` and `proxy_v2` say.
const CLIENT: &str = "192.0.2.1:51000";
const DESTINATION: &str = "192.0.2.2:443";
const PROXY_V1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 51000 443\r\n";

/// Trusts the machine itself.
const TRUST: [&str; 2] = ["--trusted-proxies", "127.0.0.0/8,::1,unix"];

/// Builds a header of version 2.
fn v2(version_and_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a length").to_be_bytes();
    let head = [version_and_command, family, length[0], length[1]];
    [b"\r\n\r\n\0\r\nQUIT\n", &head[..], payload].concat()
}

/// Builds a header of version 2 with these fields behind the addresses.
fn proxy_v2(fields: &[u8]) -> Vec<u8> {
    let ports = [51_000u16.to_be_bytes(), 443u16.to_be_bytes()].concat();
    v2(0x21, 0x11, &[&[192, 0, 2, 1, 192, 0, 2, 2], &ports[..], fields].concat())
}

fn padding(length: u16) -> Vec<u8> {
    [&[4], &length.to_be_bytes()[..], &vec![0; usize::from(length)]].concat()
}

/// Builds a request for what the server knows of its client, with more header lines.
fn request(headers: &str) -> Vec<u8> {
    format!("GET /client HTTP/1.1\r\nHost: shop.example\r\n{headers}\r\n").into_bytes()
}

/// Returns the field `name` of the answer to `request("")`.
#[track_caller]
fn ask(client: &mut Client, name: &str) -> String {
    let answer = client.send_and_read(request("")).expect("an answer").json();
    answer[name].as_str().unwrap_or("none").to_string()
}

fn connect(address: &Address) -> Client {
    Client::connect(address).expect("connect")
}

fn refused(server: &Server) -> u64 {
    server.status()["totals"]["proxy_refused"].as_u64().expect("a number")
}

/// What a client gets to see.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A response that names this client.
    Client(&'static str),
    /// A response that names the other end of the connection as the client.
    Peer,
    /// The connection was closed without an answer.
    Closed,
}

#[track_caller]
fn assert_seen(address: &Address, bytes: &[u8], expected: &Seen) {
    let mut client = connect(address);
    let own = client.local_addr().to_string();
    let shown = bytes[..bytes.len().min(90)].escape_ascii();
    match (client.send(bytes).and_then(|()| client.read()), expected) {
        (Ok(answer), Seen::Client(name)) => {
            assert_eq!(answer.json()["client"], *name, "{shown}");
            assert_eq!(answer.json()["peer"], own, "{shown}");
        }
        (Ok(answer), Seen::Peer) => assert_eq!(answer.json()["client"], own, "{shown}"),
        (Err(Failure::Closed | Failure::Reset), Seen::Closed) => {}
        (other, expected) => panic!("{other:?} instead of {expected:?} for {shown}"),
    }
}

/// Starts a server with a listener for each setting: off, v1, v2 and auto.
fn start_with_every_setting(args: &[&str]) -> Server {
    let binds = ["off", "v1", "v2", "auto"].map(|p| format!("127.0.0.1:0?proxy-protocol={p}"));
    Server::builder().bind(binds).workers(1).args(args.iter().copied()).start()
}

#[test]
fn each_setting_accepts_its_headers_and_no_others() {
    use Seen::{Client, Closed, Peer};
    let server = start_with_every_setting(&TRUST);
    let [_, v1, v2_only, auto] = server.addresses() else { panic!("four addresses") };
    let plain = request("");
    let with = |header: &[u8]| [header, &plain[..]].concat();
    let local = v2(0x20, 0, &[]);
    let unspecified = v2(0x21, 0, &[]);
    for (header, of_v1, of_v2, of_auto) in [
        (PROXY_V1.to_vec(), Client(CLIENT), Closed, Client(CLIENT)),
        (proxy_v2(&[]), Closed, Client(CLIENT), Client(CLIENT)),
        (proxy_v2(&padding(536)), Closed, Client(CLIENT), Client(CLIENT)),
        (proxy_v2(&padding(65_000)), Closed, Client(CLIENT), Client(CLIENT)),
        (b"PROXY UNKNOWN\r\n".to_vec(), Peer, Closed, Peer),
        (local, Closed, Peer, Peer),
        (unspecified, Closed, Peer, Peer),
        (Vec::new(), Closed, Closed, Peer),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 51000\r\n".to_vec(), Closed, Closed, Closed),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 051000 443\r\n".to_vec(), Closed, Closed, Closed),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 51000 443\r\n".to_vec(), Closed, Closed, Closed),
        (v2(0x21, 0x11, &[1; 11]), Closed, Closed, Closed),
        (v2(0x22, 0x11, &[1; 12]), Closed, Closed, Closed),
        (proxy_v2(&[3, 0, 4, 1, 2, 3, 4]), Closed, Closed, Closed),
        (proxy_v2(&[4, 0, 9, 0]), Closed, Closed, Closed),
    ] {
        assert_seen(v1, &with(&header), &of_v1);
        assert_seen(v2_only, &with(&header), &of_v2);
        assert_seen(auto, &with(&header), &of_auto);
    }
    wait::wait_until("30 refused", || refused(&server) == 30);
    server.stop();
}

#[test]
fn a_header_of_anybody_else_closes_the_connection() {
    use Seen::{Closed, Peer};
    let server = start_with_every_setting(&["--trusted-proxies", "192.0.2.0/24,::1,unix"]);
    let plain = request("X-Forwarded-For: 192.0.2.9\r\nForwarded: for=192.0.2.9\r\n");
    for address in &server.addresses()[1..] {
        assert_seen(address, &plain, &Peer);
        assert_seen(address, &[PROXY_V1, &plain].concat(), &Closed);
        assert_seen(address, &[&proxy_v2(&[]), &plain[..]].concat(), &Closed);
        assert_seen(address, &[&b"PROXY nonsense\r\n"[..], &plain].concat(), &Closed);
    }
    wait::wait_until("9 refused", || refused(&server) == 9);
    // Without the protocol, a header is a malformed request.
    let mut client = connect(&server.addresses()[0]);
    let answer = client.send_and_read([PROXY_V1, &plain[..]].concat()).expect("an answer");
    assert_eq!((answer.status, answer.closes()), (400, true));
    drop(client);
    server.stop();
}

#[test]
fn without_trusted_proxies_no_header_changes_anything() {
    let server = Server::start(1);
    for headers in [
        "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n",
        "Forwarded: for=192.0.2.9;proto=https;host=evil\r\n",
    ] {
        let mut client = server.connect();
        let answer = client.send_and_read(request(headers)).expect("an answer").json();
        assert_eq!(answer["client"], client.local_addr().to_string());
        assert_eq!((&answer["scheme"], &answer["host"]), (&"http".into(), &"shop.example".into()));
    }
    server.stop();
}

#[test]
fn headers_of_trusted_proxies_name_client_scheme_and_host() {
    let server = Server::with(1, &["--trusted-proxies", "127.0.0.1, 10.0.0.0/8"]);
    for (headers, client, scheme, host) in [
        ("X-Forwarded-For: 6.6.6.6, 192.0.2.9, 10.0.0.2\r\n", "192.0.2.9", "http", "shop.example"),
        (
            "x-forwarded-for: 192.0.2.9:80\r\nX-FORWARDED-PROTO: HTTPS\r\n",
            "192.0.2.9:80",
            "https",
            "shop.example",
        ),
        (
            "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Host: a.example:8443\r\n",
            "192.0.2.9",
            "http",
            "a.example:8443",
        ),
        (
            "X-Forwarded-For: 192.0.2.9\r\nX-Forwarded-Host: a/b\r\n",
            "192.0.2.9",
            "http",
            "shop.example",
        ),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.9, 10.0.0.2\r\n",
            "192.0.2.9",
            "http",
            "shop.example",
        ),
        (
            "Forwarded: for=\"[2001:db8::1]:80\";proto=https;host=a.example\r\n",
            "[2001:db8::1]:80",
            "https",
            "a.example",
        ),
        ("Forwarded: for=\"6.6.6.6, for=192.0.2.9\r\n", "192.0.2.9", "http", "shop.example"),
        (
            "Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 192.0.2.9\r\n",
            "192.0.2.9",
            "http",
            "shop.example",
        ),
        (
            "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.9\r\n",
            "192.0.2.9",
            "http",
            "shop.example",
        ),
    ] {
        let answer = server.connect().send_and_read(request(headers)).expect("an answer").json();
        assert_eq!(answer["client"], client, "{headers}");
        assert_eq!(
            (answer["scheme"].as_str(), answer["host"].as_str()),
            (Some(scheme), Some(host)),
            "{headers}"
        );
    }
    server.stop();
}

#[test]
fn the_client_of_the_proxy_header_must_be_trusted_for_headers_to_count() {
    let trust = ["--proxy-protocol", "auto", "--trusted-proxies", "127.0.0.1,10.0.0.0/8"];
    let server = Server::with(1, &trust);
    let headers = request("X-Forwarded-For: 192.0.2.9\r\n");
    for (header, seen) in [
        (&b"PROXY TCP4 192.0.2.1 192.0.2.2 51000 443\r\n"[..], Seen::Client(CLIENT)),
        (b"PROXY TCP4 10.0.0.7 192.0.2.2 51000 443\r\n", Seen::Client("192.0.2.9")),
        (b"PROXY TCP6 ::ffff:10.0.0.7 ::1 51000 443\r\n", Seen::Client("192.0.2.9")),
        (b"PROXY UNKNOWN\r\n", Seen::Peer),
        (b"", Seen::Client("192.0.2.9")),
        (&v2(0x20, 0, &[]), Seen::Client("192.0.2.9")),
        (&v2(0x21, 0, &[]), Seen::Peer),
        (&v2(0x21, 0x31, &[b'/'; 216]), Seen::Peer),
    ] {
        assert_seen(server.address(), &[header, &headers].concat(), &seen);
    }
    // A client that has come to the proxy over TLS.
    let mut client = server.connect();
    let tls = [&proxy_v2(&[0x20, 0, 5, 1, 0, 0, 0, 0])[..], &request("")].concat();
    let answer = client.send_and_read(tls).expect("an answer").json();
    assert_eq!((&answer["scheme"], &answer["local"]), (&"https".into(), &DESTINATION.into()));
    drop(client);
    server.stop();
}

#[test]
fn a_header_may_arrive_in_any_pieces() {
    let server = start_with_every_setting(&TRUST);
    for (address, header) in
        [(1, PROXY_V1.to_vec()), (2, proxy_v2(&padding(30))), (3, proxy_v2(&[]))]
    {
        let all = [&header[..], &request("")].concat();
        let sizes = [1, 7, header.len() - 1, header.len(), header.len() + 1];
        for size in sizes {
            let mut client = connect(&server.addresses()[address]);
            for (number, piece) in all.chunks(size).enumerate() {
                client.send(piece).expect("send");
                // Lets the server read each of the first pieces alone.
                if number < 60 {
                    std::thread::park_timeout(std::time::Duration::from_micros(300));
                }
            }
            assert_eq!(client.read().expect("an answer").json()["client"], CLIENT, "{size}");
            // The next request of the connection has the same client.
            assert_eq!(ask(&mut client, "client"), CLIENT);
        }
    }
    server.stop();
}

#[test]
fn pipelined_requests_and_http2_work_behind_a_header() {
    let server = start_with_every_setting(&TRUST);
    let mut client = connect(&server.addresses()[1]);
    client.send([PROXY_V1, &request(""), &request(""), &request("")].concat()).expect("send");
    for _ in 0..3 {
        assert_eq!(client.read().expect("an answer").json()["client"], CLIENT);
    }
    let mut client = connect(&server.addresses()[2]);
    client.send(proxy_v2(&[])).expect("send");
    http2::greet(&mut client);
    client.send(http2::get(1, "/client")).expect("send");
    http2::read_until(&mut client, HEADERS, 1);
    let data = http2::read_until(&mut client, http2::DATA, 1);
    let answer: serde_json::Value = serde_json::from_slice(&data.payload).expect("JSON");
    assert_eq!(answer["client"], CLIENT);
    drop(client);
    server.stop();
}

#[test]
fn every_model_and_policy_reads_the_header() {
    let args = ["--proxy-protocol", "v2", TRUST[0], TRUST[1]];
    let ask_all = |server: &Server| {
        for _ in 0..6 {
            let mut client = server.connect();
            client.send(proxy_v2(&padding(100))).expect("send");
            assert_eq!(ask(&mut client, "client"), CLIENT);
            assert_eq!(ask(&mut client, "local"), DESTINATION);
        }
        assert_eq!(refused(server), 0);
    };
    for model in ALL_MODELS {
        println!("model {model}");
        let server = Server::builder().model(model, 2).args(args).start();
        ask_all(&server);
        server.stop();
    }
    for policy in ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"] {
        println!("dispatch {policy}");
        let server = Server::builder().dispatch(policy).args(args).start();
        ask_all(&server);
        server.stop();
    }
}

#[test]
fn a_connection_without_a_byte_is_no_error() {
    let server = Server::with(1, &["--proxy-protocol", "v2", TRUST[0], TRUST[1]]);
    for _ in 0..5 {
        drop(server.connect());
        server.connect().shutdown_write();
    }
    // Part of a header is one.
    server.connect().send(&proxy_v2(&[])[..20]).expect("send");
    wait::wait_until("one refused", || refused(&server) == 1);
    wait::wait_until("all accepted", || server.status()["totals"]["accepted"].as_u64() >= Some(11));
    assert_eq!(refused(&server), 1);
    server.stop();
}

#[test]
fn header_timeout_covers_the_proxy_header() {
    let args = ["--proxy-protocol", "v1", "--header-timeout", "500ms", TRUST[0], TRUST[1]];
    let server = Server::with(1, &args);
    let mut silent = server.connect();
    let mut slow = server.connect();
    let mut closed = false;
    // A byte every 50 ms: without a limit the line would take two seconds.
    for byte in PROXY_V1 {
        closed |= slow.send([*byte]).is_err() || slow.is_closed();
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    assert!(closed, "the connection with the slow header is still open");
    assert!(silent.read_to_end().is_ok_and(|rest| rest.is_empty()));
    wait::wait_until("one refused", || refused(&server) == 1);
    server.stop();
}

#[test]
fn dual_stack_and_unix_listeners_know_their_proxies() {
    let server = Server::builder()
        .bind(["[::]:0?proxy-protocol=v1", "unix:app.sock?mode=0600&proxy-protocol=v2"])
        .args(["--trusted-proxies", "127.0.0.1, unix"])
        .start();
    let port = server.port();
    // An IPv4 proxy of an IPv6 socket is trusted by its IPv4 address.
    let v4 = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    assert_seen(&v4, &[PROXY_V1, &request("")].concat(), &Seen::Client(CLIENT));
    let v6 = Address::Tcp(format!("[::1]:{port}").parse().expect("an address"));
    assert_seen(&v6, &[PROXY_V1, &request("")].concat(), &Seen::Closed);
    assert_seen(&v6, &request("X-Forwarded-For: 192.0.2.9\r\n"), &Seen::Peer);
    let unix = Address::Unix(server.dir().join("app.sock"));
    let mut client = connect(&unix);
    client.send(proxy_v2(&[])).expect("send");
    assert_eq!(ask(&mut client, "client"), CLIENT);
    assert_eq!(connect(&unix).send_and_read(request("")).map(|_| ()), Err(Failure::Closed));
    drop(client);
    server.stop();
}

/// Asks on kept connections after all workers were replaced.
#[track_caller]
fn assert_kept(clients: Vec<Client>, old: &[u32]) {
    for mut client in clients {
        assert_eq!(ask(&mut client, "client"), CLIENT);
        let pid = client.get("/").expect("an answer").pid();
        assert!(!old.contains(&pid), "a new worker has taken it over");
        assert_eq!(ask(&mut client, "local"), DESTINATION);
    }
}

fn keep_connections(server: &Server, header: &[u8]) -> Vec<Client> {
    let connect = |_| {
        let mut client = server.connect();
        client.send(header).expect("send");
        assert_eq!(ask(&mut client, "client"), CLIENT);
        client
    };
    (0..6).map(connect).collect()
}

#[test]
fn a_connection_that_is_handed_over_keeps_its_client() {
    for dispatch in ["shared", "round-robin"] {
        let config = format!(
            "bind = \"127.0.0.1:0?proxy-protocol=v1\"\nworkers = 2\ndispatch = \"{dispatch}\"\n\
             trusted-proxies = [\"127.0.0.1\"]\n"
        );
        let server = Server::builder().config(2, &config).start();
        let old = server.worker_pids();
        let clients = keep_connections(&server, PROXY_V1);
        server.signal(Signal::SIGHUP);
        server.wait_new_workers(2, &old);
        assert_kept(clients, &old);
        // The header is required after the reload as well.
        assert_seen(server.address(), &request(""), &Seen::Closed);
        // An upgrade in place keeps them, too.
        let (old, clients) = (server.worker_pids(), keep_connections(&server, PROXY_V1));
        server.run_verb(&["upgrade"]);
        server.wait_new_workers(2, &old);
        assert_kept(clients, &old);
        server.stop();
    }
}

#[test]
fn a_reload_changes_the_protocol_and_the_trusted_proxies() {
    let config = |bind: &str, trusted: &str| {
        format!("bind = \"{bind}\"\nworkers = 1\ntrusted-proxies = [{trusted}]\n")
    };
    let server = Server::builder().config(1, &config("127.0.0.1:0", "\"127.0.0.1\"")).start();
    let reload = |text: &str| {
        let old = server.worker_pids();
        std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
        server.run_verb(&["reload"]);
        server.wait_new_workers(1, &old);
    };
    let forwarded = request("X-Forwarded-For: 192.0.2.9\r\n");
    let behind = [PROXY_V1, &request("")].concat();
    assert_seen(server.address(), &forwarded, &Seen::Client("192.0.2.9"));
    reload(&config("127.0.0.1:0?proxy-protocol=v1", "\"127.0.0.1\""));
    assert_seen(server.address(), &behind, &Seen::Client(CLIENT));
    assert_seen(server.address(), &forwarded, &Seen::Closed);
    reload(&config("127.0.0.1:0?proxy-protocol=v1", "\"10.0.0.1\""));
    assert_seen(server.address(), &behind, &Seen::Closed);
    assert_seen(server.address(), &forwarded, &Seen::Peer);
    reload(&config("127.0.0.1:0", ""));
    assert_seen(server.address(), &forwarded, &Seen::Peer);
    server.stop();
}

#[test]
fn proxy_protocol_without_trusted_proxies_is_a_configuration_error() {
    for args in [
        &["--proxy-protocol", "v2"][..],
        &["--bind", "127.0.0.1:0?proxy-protocol=auto"],
        &["--proxy-protocol", "v2", "--trusted-proxies", ""],
        &["--proxy-protocol", "v3", TRUST[0], TRUST[1]],
        &["--trusted-proxies", "10.0.0.1/8"],
        &["--trusted-proxies", "localhost"],
        &["--bind", "127.0.0.1:0?proxy_protocol=v1", TRUST[0], TRUST[1]],
    ] {
        let ended = Server::builder().args(args.iter().copied()).run();
        assert_eq!(ended.status, Some(78), "{args:?}: {}", ended.stderr);
    }
}

#[test]
fn raw_connections_begin_behind_the_header() {
    for (setting, header) in [("v1", PROXY_V1.to_vec()), ("v2", proxy_v2(&padding(5000)))] {
        let server = ProcessBuilder::program("proxied-connections")
            .args([format!("proxy-protocol={setting}"), "trusted-proxies=127.0.0.1".to_string()])
            .start();
        for is_split in [false, true] {
            let mut client = server.connect();
            if is_split {
                client.send(&header[..3]).expect("send");
                std::thread::park_timeout(std::time::Duration::from_millis(5));
                client.send(&header[3..]).expect("send");
                std::thread::park_timeout(std::time::Duration::from_millis(5));
                client.send("hello\n").expect("send");
            } else {
                client.send([&header[..], b"hello\n"].concat()).expect("send");
            }
            // The bare socket has everything that follows the header.
            let expected = format!("{CLIENT} {DESTINATION} unread=0 hello\n");
            let answer = client.read_exactly(expected.len()).expect("an answer");
            assert_eq!(String::from_utf8_lossy(&answer), expected);
        }
        let mut other = server.connect();
        other.send("hello hello hello\n").expect("send");
        assert!(other.read_to_end().is_ok_and(|rest| rest.is_empty()) || other.is_closed());
        server.stop();
    }
}

#[test]
fn a_header_of_anybody_else_is_not_waited_for() {
    let server = start_with_every_setting(&[TRUST[0], "192.0.2.0/24", "--header-timeout", "1h"]);
    for address in &server.addresses()[1..] {
        for start in [&b"PROXY "[..], &proxy_v2(&padding(60_000))[..12]] {
            assert_seen(address, start, &Seen::Closed);
        }
    }
    wait::wait_until("6 refused", || refused(&server) == 6);
    server.stop();
}

#[test]
fn only_the_configured_kind_of_forwarded_headers_counts() {
    let both = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.7\r\n";
    let x_alone = "X-Forwarded-For: 192.0.2.1\r\n";
    for (kind, of_both, of_x) in [
        ("auto", Seen::Client("192.0.2.1"), Seen::Client("192.0.2.1")),
        ("x-forwarded", Seen::Client("192.0.2.1"), Seen::Client("192.0.2.1")),
        ("forwarded", Seen::Client("192.0.2.7"), Seen::Peer),
    ] {
        let server = Server::with(1, &["--forwarded-headers", kind, TRUST[0], TRUST[1]]);
        assert_seen(server.address(), &request(both), &of_both);
        assert_seen(server.address(), &request(x_alone), &of_x);
        server.stop();
    }
}

#[test]
fn rejected_connections_get_503_before_their_header_is_read() {
    let limits = ["--worker-connections", "1", "--when-full", "close", "--max-queue-wait", "200ms"];
    let args: Vec<&str> =
        ["--proxy-protocol", "v2"].into_iter().chain(TRUST).chain(limits).collect();
    let server = Server::with(1, &args);
    let with_header = [proxy_v2(&[]), request("")].concat();
    let mut first = server.connect();
    first.send(proxy_v2(&[])).expect("send");
    assert_eq!(ask(&mut first, "client"), CLIENT);
    wait::wait_until("a full worker", || server.status()["workers"][0]["full"] == true);
    assert_eq!(server.connect().send_and_read(&with_header).expect("an answer").status, 503);
    drop(first);
    wait::wait_until("a free worker", || server.status()["workers"][0]["connections"] == 0);
    let pids = server.worker_pids();
    process::send_signal(pids[0], Signal::SIGSTOP);
    let mut late = server.connect();
    late.send(&with_header).expect("send");
    wait::wait_for_duration(std::time::Duration::from_millis(400));
    process::send_signal(pids[0], Signal::SIGCONT);
    assert_eq!(late.read().expect("an answer").status, 503);
    assert_eq!(refused(&server), 0);
    wait::wait_until("a free worker", || server.status()["workers"][0]["connections"] == 0);
    assert_seen(server.address(), &with_header, &Seen::Client(CLIENT));
    server.stop();
}

#[test]
fn an_inherited_listener_reads_the_header() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let server = Server::builder()
        .script(r#"exec "$0" "$@" 3<&0 </dev/null"#)
        .stdin(listener.into())
        .bind(["fd://3?proxy-protocol=v1"])
        .args(TRUST)
        .start();
    assert_seen(server.address(), &[PROXY_V1, &request("")].concat(), &Seen::Client(CLIENT));
    assert_seen(server.address(), &request(""), &Seen::Closed);
    server.stop();
}

#[test]
fn http_on_raw_and_passed_connections_has_the_client_of_the_header() {
    let args = ["proxy-protocol=v1", "trusted-proxies=127.0.0.1"];
    for door in ["door=raw", "door=passed"] {
        let program = ProcessBuilder::program("serve-http").model("prefork", 1);
        let server = program.args(args).args([door]).start();
        let mut client = server.connect();
        // The client of the header is none of the proxies, so it cannot name another one.
        let ask = [PROXY_V1, &request("X-Forwarded-For: 6.6.6.6\r\n")].concat();
        assert_eq!(client.send_and_read(ask).expect("an answer").text(), CLIENT, "{door}");
        drop(client);
        server.stop();
    }
}

#[test]
fn a_websocket_at_another_worker_has_the_client_of_the_header() {
    let args = ["proxy-protocol=v1", "trusted-proxies=127.0.0.1"];
    let server = ProcessBuilder::program("pass-websockets").args(args).start();
    let mut client = server.connect();
    client.send([PROXY_V1, websocket::handshake("/room").as_bytes()].concat()).expect("send");
    websocket::accept(&mut client);
    client.send(websocket::frame(TEXT, b"hello")).expect("send");
    let echo = websocket::read(&mut client).expect("an echo").text();
    assert!(echo.ends_with(&format!(" {CLIENT} hello")), "{echo}");
    drop(client);
    server.stop();
}
