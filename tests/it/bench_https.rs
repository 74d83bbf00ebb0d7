//! `prefork bench` over HTTPS: verification, resumption, and what each failure is called.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::support::command::{ProcessBuilder, ProcessOutput};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// A load of 4 connections without warm-up.
const SHORT: [&str; 6] = ["-c", "4", "--duration", "500ms", "--warm-up", "0"];

/// Serves one connection; returns at its end.
type Serve = fn(&mut StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()>;

/// An HTTPS server in this process; its threads end with the process.
struct TestServer {
    url: String,
    dir: tempfile::TempDir,
}

impl TestServer {
    /// Starts a server whose certificate for `localhost` is changed by `change`.
    fn start(change: impl FnOnce(&mut CertificateParams)) -> TestServer {
        TestServer::start_with(change, false, answer_requests)
    }

    fn start_with(
        change: impl FnOnce(&mut CertificateParams),
        requires_client_certificate: bool,
        serve: Serve,
    ) -> TestServer {
        let dir = tempfile::tempdir().expect("directory");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["localhost".to_string()]).expect("name");
        change(&mut params);
        let certificate = params.self_signed(&key).expect("certificate");
        std::fs::write(dir.path().join("cert.pem"), certificate.pem()).expect("write");
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).expect("write");
        let config = Arc::new(server_config(certificate.der(), &key, requires_client_certificate));
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let session = ServerConnection::new(config.clone()).expect("session");
                std::thread::spawn(move || {
                    let _ = serve(&mut StreamOwned::new(session, socket));
                });
            }
        });
        TestServer { url: format!("https://localhost:{port}/"), dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn bench(&self, args: &[&str]) -> (Option<i32>, Value) {
        bench_report(&[&SHORT[..], args, &[&self.url]].concat())
    }

    /// Runs a bench that trusts the certificate of this server.
    fn trusting_bench(&self, args: &[&str]) -> (Option<i32>, Value) {
        self.bench(&[&["--ca", &self.file("cert.pem")], args].concat())
    }
}

fn server_config(
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
    requires_client_certificate: bool,
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let builder = match requires_client_certificate {
        false => builder.with_no_client_auth(),
        true => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.clone()).expect("root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("verifier"))
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    builder.with_single_cert(vec![certificate.clone()], key).expect("certificate")
}

/// Reads up to the end of a request; `None` at the end of the connection.
fn read_request(stream: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(Some(request))
}

fn answer_requests(stream: &mut StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    while read_request(stream)?.is_some() {
        stream.write_all(RESPONSE)?;
        stream.flush()?;
    }
    Ok(())
}

fn run_bench(args: &[&str]) -> ProcessOutput {
    ProcessBuilder::verb("bench").args(args).run()
}

#[track_caller]
fn bench_report(args: &[&str]) -> (Option<i32>, Value) {
    let ended = run_bench(&[args, &["--json"]].concat());
    let report = serde_json::from_str(&ended.stdout);
    (ended.status, report.unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr)))
}

#[track_caller]
fn count(report: &Value, pointer: &str) -> u64 {
    let value = report.pointer(pointer).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("no number {pointer}: {report:#}"))
}

/// Asserts that every handshake failed as `failure`, and that the report says what to do.
#[track_caller]
fn assert_failed_as((status, report): (Option<i32>, Value), failure: &str, advice: &str) {
    assert_eq!(status, Some(69), "{report:#}");
    let failed = report["tls"]["failed"].as_object().expect("object");
    let found: Vec<&String> =
        failed.iter().filter(|(_, n)| n.as_u64() > Some(0)).map(|(name, _)| name).collect();
    assert_eq!(found, [failure], "{report:#}");
    let note = &report["failure_notes"][0];
    assert_eq!(note["failure"], failure, "{report:#}");
    assert!(note["advice"].as_str().is_some_and(|text| text.contains(advice)), "{report:#}");
    assert!(note["message"].as_str().is_some_and(|text| !text.is_empty()), "{report:#}");
}

#[test]
fn https_is_measured_with_a_trusted_certificate() {
    let server = TestServer::start(|_| {});
    let (status, report) = server.trusting_bench(&[]);
    assert_eq!(status, Some(0), "{report:#}");
    assert!(count(&report, "/responses") > 4, "{report:#}");
    assert_eq!(count(&report, "/tls/full/count"), 4, "one for each connection: {report:#}");
    assert_eq!(report["tls"]["negotiated"]["version"], "TLS 1.3");
    assert!(report["tls"]["full"]["p99"].as_f64() > Some(0.0), "{report:#}");
    let (status, report) = server.trusting_bench(&["--tls-version", "1.2"]);
    assert_eq!((status, &report["tls"]["negotiated"]["version"]), (Some(0), &"TLS 1.2".into()));
    let (status, report) = server.trusting_bench(&["--tls-groups", "secp256r1"]);
    assert_eq!((status, &report["tls"]["negotiated"]["group"]), (Some(0), &"secp256r1".into()));
}

#[test]
fn each_request_makes_a_handshake_with_close() {
    let server = TestServer::start(|_| {});
    let (status, report) = server.trusting_bench(&["--close"]);
    assert_eq!((status, count(&report, "/tls/resumed/count")), (Some(0), 0), "{report:#}");
    let (responses, full) = (count(&report, "/responses"), count(&report, "/tls/full/count"));
    assert!(responses > 4 && responses.abs_diff(full) <= 4, "{report:#}");
}

#[test]
fn sessions_are_resumed_with_a_new_ticket_each_time() {
    let server = TestServer::start(|_| {});
    for version in ["1.3", "1.2"] {
        let args = ["--close", "--resume", "--tls-version", version];
        let (status, report) = server.trusting_bench(&args);
        // The server forgets a TLS 1.3 ticket when it is used, and makes a full handshake after a second use.
        let full = count(&report, "/tls/full/count");
        assert!(status == Some(0) && full <= 4, "{report:#}");
        assert!(count(&report, "/tls/resumed/count") > 4, "{report:#}");
    }
}

#[test]
fn certificate_errors_are_counted_by_kind_and_end_the_run() {
    let begun = std::time::Instant::now();
    let server = TestServer::start(|_| {});
    let long = ["--duration", "1h"];
    let bench = |args: &[&str]| bench_report(&[args, &long, &[&server.url]].concat());
    assert_failed_as(bench(&[]), "certificate_untrusted", "--ca");
    let ca = server.file("cert.pem");
    let by_address = server.url.replace("localhost", "127.0.0.1");
    let mismatch = bench_report(&[&["--ca", &ca], &long[..], &[&by_address]].concat());
    assert_failed_as(mismatch, "certificate_name_mismatch", "--insecure");
    for change in [
        |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(2300, 1, 1),
    ] {
        let server = TestServer::start(change);
        let outcome = server.trusting_bench(&[]);
        assert_failed_as(outcome, "certificate_expired", "clock");
        assert_eq!(server.bench(&["--insecure"]).0, Some(0));
    }
    assert!(begun.elapsed().as_secs() < 3000, "no run lasts for an hour");
}

#[test]
fn a_text_report_says_what_to_do_about_a_certificate() {
    let server = TestServer::start(|_| {});
    let ended = run_bench(&[&server.url]);
    assert_eq!(ended.status, Some(69), "{}{}", ended.stdout, ended.stderr);
    for piece in ["certificate not trusted", "--ca FILE", "--insecure"] {
        assert!(ended.stdout.contains(piece), "{piece}: {}", ended.stdout);
    }
}

#[test]
fn a_plain_http_port_is_recognized() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("https://{}/", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut hello = [0; 4096];
            let _ = socket.read(&mut hello);
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    assert_failed_as(bench_report(&[&url]), "plain_http_answer", "http://");
}

#[test]
fn handshakes_that_are_not_answered_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("https://{}/", listener.local_addr().expect("address"));
    let args = [&SHORT[..], &["--timeout", "200ms", &url]].concat();
    let (status, report) = bench_report(&args);
    assert_failed_as((status, report.clone()), "handshake_timed_out", "--timeout");
    assert!(count(&report, "/failures/handshake_timed_out") >= 4, "{report:#}");
    assert_eq!(count(&report, "/failures/timed_out"), 0, "{report:#}");
}

#[test]
fn a_client_certificate_is_presented() {
    let server = TestServer::start_with(|_| {}, true, answer_requests);
    let files = [server.file("cert.pem"), server.file("key.pem")];
    let (status, report) = server.trusting_bench(&["--cert", &files[0], "--key", &files[1]]);
    assert_eq!(status, Some(0), "{report:#}");
    let refused = server.trusting_bench(&["--tls-version", "1.2"]);
    assert_failed_as(refused, "handshake_refused", "--cert");
}

#[test]
fn a_response_that_ends_without_close_notify_is_not_complete() {
    let cut: Serve = |stream| {
        read_request(stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall or a part")?;
        stream.flush()
    };
    let whole: Serve = |stream| {
        read_request(stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall")?;
        stream.conn.send_close_notify();
        stream.flush()
    };
    let (status, report) = TestServer::start_with(|_| {}, false, cut).trusting_bench(&[]);
    assert_eq!((status, count(&report, "/responses")), (Some(69), 0), "{report:#}");
    let (status, report) = TestServer::start_with(|_| {}, false, whole).trusting_bench(&[]);
    assert_eq!(status, Some(0), "{report:#}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("directory");
    let empty: PathBuf = dir.path().join("empty.pem");
    std::fs::write(&empty, "").expect("write");
    let empty = empty.display().to_string();
    for (args, piece) in [
        (["--ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["--ca", &empty], "no certificate"),
        (["--tls-ciphers", "RC4"], "TLS_AES_128_GCM_SHA256"),
    ] {
        let ended = run_bench(&[&args[..], &["https://localhost:1/"]].concat());
        assert_eq!(ended.status, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(piece), "{}", ended.stderr);
    }
}
