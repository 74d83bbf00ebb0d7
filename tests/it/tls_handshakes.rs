//! TLS handshakes of slow, broken and hostile clients, and of clients that expect no TLS or find none.

use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite;

use crate::support::tls::{TestAuthority, provider};
use crate::support::tls_server::{HTTP1, TlsServer};
use crate::support::{Client, Failure, Server, env_count, wait};

/// Returns the first message of a client.
fn client_hello(server: &TlsServer) -> Vec<u8> {
    let name = "localhost".try_into().expect("a name");
    let mut session =
        rustls::ClientConnection::new(server.client_config(HTTP1), name).expect("a client");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a vector");
    hello
}

fn assert_served(server: &TlsServer) {
    assert_eq!(server.connect_tls().get("/").expect("an answer").status, 200);
}

#[test]
fn silent_and_slow_clients_are_closed_at_the_handshake_timeout() {
    for model in ["prefork", "threads"] {
        let builder = Server::builder().model(model, 1).args(["--tls-handshake-timeout=500ms"]);
        let server = TlsServer::start(builder);
        let hello = client_hello(&server);
        let mut silent = server.connect();
        let mut within_hello = server.connect();
        within_hello.send(&hello[..100]).expect("send");
        let mut within_header = server.connect();
        within_header.send(&hello[..3]).expect("send");
        let mut without_finished = server.connect();
        without_finished.send(&hello).expect("send");
        let mut slow = server.connect();
        for byte in &hello {
            if slow.send([*byte]).is_err() || slow.is_closed() {
                break;
            }
            wait::wait_for_duration(Duration::from_millis(20));
        }
        for client in [&mut silent, &mut within_hello, &mut within_header, &mut slow] {
            assert!(matches!(client.read_to_end(), Ok(rest) if rest.is_empty()), "{model}");
        }
        assert!(without_finished.read_to_end().is_ok_and(|answer| answer.len() > 100), "{model}");
        server.wait_failed("timeout", 5);
        assert_served(&server);
        assert_eq!(server.handshakes()["in_progress"], 0);
        server.stop();
    }
}

#[test]
fn a_handshake_may_arrive_byte_by_byte() {
    let server = TlsServer::with(1, &[]);
    let mut client = Client::connect_tls_slowly(server.address(), &server.client, "localhost")
        .expect("a TLS connection");
    assert_eq!(client.get("/").expect("an answer").status, 200);
    server.stop();
}

#[test]
fn the_handshake_that_has_waited_longest_gives_way() {
    for model in ["prefork", "threads"] {
        let args = ["--tls-max-handshakes=4"];
        let server = TlsServer::start(Server::builder().model(model, 1).args(args));
        let mut silent: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        server.wait_failed("evicted", 4);
        for client in &mut silent[..4] {
            assert_eq!(client.read_to_end(), Ok(Vec::new()), "{model}");
        }
        assert!(silent[5..].iter().all(|client| !client.is_closed()), "{model}");
        assert_served(&server);
        server.stop();
    }
}

#[test]
fn clients_are_served_beside_many_half_open_handshakes() {
    let server = TlsServer::with(2, &[]);
    let hello = client_hello(&server);
    let count = env_count("PREFORK_HALF_OPEN", 200);
    let half_open: Vec<Client> = (0..count)
        .map(|n| {
            let mut client = server.connect();
            client.send(&hello[..n % 3 * hello.len() / 2]).expect("send");
            client
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_served(&server);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "none waits for a timeout");
    drop(half_open);
    wait::wait_until("none in progress", || server.handshakes()["in_progress"] == 0);
    let handshakes = server.handshakes();
    let completed = ["full", "resumed"].map(|how| handshakes[how].as_u64().expect("a number"));
    assert_eq!(completed.iter().sum::<u64>(), 20, "{handshakes}");
    server.stop();
}

#[test]
fn clients_without_a_common_version_cipher_or_protocol_get_an_alert() {
    let server = TlsServer::with(1, &["--http2=false"]);
    let old = ["h2", "foo"];
    let refused = server.try_connect(&server.client_config(&old)).map(drop);
    assert!(matches!(&refused, Err(Failure::Other(why)) if why.contains("alert")), "{refused:?}");
    server.wait_failed("alpn", 1);
    // A client that knows nothing newer than TLS 1.1, in the words of OpenSSL 1.0.
    let mut client = server.connect();
    client.send(TLS_1_1_HELLO).expect("send");
    let alert = client.read_to_end().expect("an alert");
    assert_eq!((alert[0], alert.len(), alert[5]), (21, 7, 2), "a fatal alert");
    // A certificate that the client does not trust.
    let stranger = TestAuthority::new().client();
    assert!(server.try_connect(&stranger).is_err());
    server.wait_failed("client_alert", 1);
    let other = CryptoProvider {
        // The server's certificate has an ECDSA key.
        cipher_suites: vec![cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256],
        ..provider().as_ref().clone()
    };
    let config = ClientConfig::builder_with_provider(other.into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    assert!(server.try_connect(&config.into()).is_err());
    server.wait_failed("cipher_suite", 1);
    assert_served(&server);
    server.stop();
}

/// A ClientHello of TLS 1.1 with TLS_RSA_WITH_AES_128_CBC_SHA.
const TLS_1_1_HELLO: &[u8] = &[
    22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
    18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0, 2, 0, 47, 1, 0,
];

#[test]
fn broken_and_oversized_handshakes_cost_only_their_connection() {
    let server = TlsServer::with(1, &["--tls-handshake-timeout=2s"]);
    let hello = client_hello(&server);
    let mut flipped = hello.clone();
    flipped[9] ^= 0xff;
    let oversized_record = [&[22, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat();
    // A handshake message of 16 MiB less one byte, in records of 16 KiB.
    let mut oversized_hello = Vec::new();
    for n in 0..8 {
        oversized_hello.extend([22, 3, 1, 0x40, 0]);
        let first = if n == 0 { vec![1, 0xff, 0xff, 0xff] } else { Vec::new() };
        oversized_hello.extend_from_slice(&first);
        oversized_hello.extend(vec![0; 0x4000 - first.len()]);
    }
    let empty_records = [22, 3, 1, 0, 0].repeat(5000);
    let warnings = [21, 3, 1, 0, 2, 1, 90].repeat(5000);
    let attacks: [&[u8]; 8] = [
        &flipped,
        &oversized_record,
        &oversized_hello,
        &empty_records,
        &warnings,
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",
        b"\0\x01\x02\x03garbage",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ];
    for attack in attacks {
        let mut client = server.connect();
        // The server may have closed the connection before the end.
        let _ = client.send(attack);
        let _ = client.read_to_end();
        assert!(client.is_closed());
    }
    wait::wait_until("none in progress", || server.handshakes()["in_progress"] == 0);
    let handshakes = server.handshakes();
    let failed = handshakes["failed"].as_object().expect("failures");
    let total: u64 = failed.values().filter_map(|count| count.as_u64()).sum();
    assert_eq!((total, &handshakes["failed"]["not_tls"]), (8, &3.into()), "{failed:?}");
    assert_served(&server);
    let log = server.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn clients_that_leave_in_the_middle_are_counted() {
    let server = TlsServer::with(1, &[]);
    let hello = client_hello(&server);
    drop(server.connect());
    server.wait_failed("silent", 1);
    server.connect().send(&hello[..60]).expect("send");
    server.wait_failed("client_closed", 1);
    assert_served(&server);
    server.stop();
}

#[test]
fn floods_of_key_updates_and_alerts_end_the_connection() {
    let server = TlsServer::with(1, &[]);
    let mut client = server.connect_tls();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    let outcome = (0..10_000).try_for_each(|_| {
        client.tls().session_mut().refresh_traffic_keys().expect("TLS 1.3");
        let records = client.tls().encrypt(b"");
        client.send_raw(records)
    });
    let ended = outcome.is_err() || client.read_to_end().is_ok_and(|rest| rest.is_empty());
    assert!(ended || client.is_closed());
    assert_served(&server);
    server.stop();
}

#[test]
fn plain_http_on_a_tls_port_gets_400_in_plain_text() {
    let args = ["--access-log", "access.log"];
    let server = TlsServer::with(1, &args);
    let mut client = server.connect();
    let answer = client.get("/secret").expect("an answer");
    assert_eq!((answer.status, answer.closes()), (400, true));
    assert!(answer.text().contains("https://"), "{answer:?}");
    assert_eq!(client.read_to_end(), Ok(Vec::new()));
    let mut slow = server.connect();
    for byte in b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" {
        // The answer comes after the first line.
        if slow.has_input() {
            break;
        }
        slow.send([*byte]).expect("send");
    }
    assert_eq!(slow.read().expect("an answer").status, 400);
    server.wait_failed("plain_http", 2);
    assert_eq!(server.status()["totals"]["responses"][3], 2);
    let log = wait::wait_until_some("a line", || {
        std::fs::read_to_string(server.dir().join("access.log"))
            .ok()
            .filter(|l| l.contains("/secret"))
    });
    assert!(log.contains(" 400 "), "{log}");
    assert_served(&server);
    server.stop();
}

#[test]
fn tls_on_a_plain_port_closes_and_leaves_a_hint() {
    let server = Server::start(1);
    let config = TestAuthority::new().client();
    for _ in 0..3 {
        let refused = Client::connect_tls(server.address(), &config, "localhost");
        assert!(refused.is_err());
    }
    assert_eq!(server.get("/").status, 200);
    let hint = server.wait_log(&["TLS", "tls-cert"]);
    assert!(hint.contains("peer=127.0.0.1:"), "{hint}");
    assert_eq!(server.count_log(&["TLS", "tls-cert"]), 1, "one a minute");
    server.stop();
}

#[test]
fn handshakes_are_in_the_metrics_and_survive_a_killed_worker() {
    let server = TlsServer::with(1, &[]);
    assert_served(&server);
    server.connect().send("GET / HTTP/1.1\r\n\r\n").expect("send");
    server.wait_failed("plain_http", 1);
    let silent = server.connect();
    wait::wait_until("one in progress", || server.handshakes()["in_progress"] == 1);
    let old = server.worker_pids();
    crate::support::process::send_signal(old[0], nix::sys::signal::Signal::SIGKILL);
    server.wait_replaced(1);
    drop(silent);
    let handshakes = server.handshakes();
    assert_eq!((&handshakes["full"], &handshakes["in_progress"]), (&1.into(), &0.into()));
    assert_eq!(handshakes["failed"]["plain_http"], 1);
    assert_served(&server);
    drop(server);
}
