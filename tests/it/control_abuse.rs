//! Clients of the control socket that do not speak its language.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::Server;
use crate::support::wait::DEADLINE;

/// Sends these bytes and nothing more; what is answered until the server closes.
#[track_caller]
fn talk(server: &Server, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(bytes).expect("send");
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    // It may close before it has read everything, which is a reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn frame(payload: &str) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    [&length.to_be_bytes()[..], payload.as_bytes()].concat()
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let server = Server::builder().control().start();
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "is too long"),
        (u32::MAX.to_be_bytes().to_vec(), "a request of 4294967295 bytes is too long"),
        (frame("not json"), "the request is not JSON"),
        (frame("{}"), "the request has no verb"),
        (frame(r#"{"verb":"explode"}"#), r#"unknown verb \"explode\""#),
        (frame(r#"{"verb":"status","more":1}"#), "unknown field"),
        (frame(r#"{"verb":"scale","to":0}"#), "out of range"),
        (frame(""), "the request is not JSON"),
    ] {
        let answer = talk(&server, &bytes);
        assert!(answer.contains(r#""ok":false"#) && answer.contains(why), "{why}: {answer}");
        server.status();
    }
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

#[test]
fn half_a_request_is_no_request() {
    let server = Server::builder().control().start();
    let whole = frame(r#"{"verb":"stop"}"#);
    for length in [0, 1, 4, whole.len() - 1] {
        assert_eq!(talk(&server, &whole[..length]), "", "{length}");
    }
    let silent: Vec<_> = (0..40)
        .map(|n| {
            let mut stream = UnixStream::connect(server.control()).expect("connect");
            stream.write_all(&whole[..n % whole.len()]).expect("send");
            stream
        })
        .collect();
    assert_eq!(server.status()["primary"]["phase"], "running");
    drop(silent);
    let log = server.stop();
    assert!(!log.contains("stopping (control"), "{log}");
}

#[test]
fn several_requests_on_one_connection_are_answered_in_order() {
    let server = Server::builder().control().start();
    let requests = [r#"{"verb":"explode"}"#, r#"{"verb":"status"}"#, r#"{"verb":"scale","to":2}"#];
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&requests.map(frame).concat()).expect("send");
    for piece in ["unknown verb", "\"status\":", "2 workers are wanted"] {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("length");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).expect("answer");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(piece), "{piece}: {answer}");
    }
    server.stop();
}
