//! Clients of the control socket that do not speak its language.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::Server;
use crate::support::control::{frame, read_frame};
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

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let server = Server::builder().start();
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "65536"),
        (u32::MAX.to_be_bytes().to_vec(), "4294967295"),
        (frame("not json"), "JSON"),
        (frame("{}"), "verb"),
        (frame(r#"{"verb":"explode"}"#), "explode"),
        (frame(r#"{"verb":"status","more":1}"#), "more"),
        (frame(r#"{"verb":"scale","to":0}"#), "0"),
        (frame(""), "JSON"),
    ] {
        let answer = talk(&server, &bytes);
        let json = answer.find('{').map_or("", |at| &answer[at..]);
        let answer: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let is_named = answer["error"].as_str().is_some_and(|text| text.contains(why));
        assert!(answer["ok"] == false && is_named, "{why}: {answer}");
        server.status();
    }
    assert_eq!(server.worker_pids().len(), 2);
    server.stop();
}

#[test]
fn half_a_request_is_no_request() {
    let server = Server::builder().start();
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
    assert_eq!(server.status()["primary"]["phase"], "running");
    server.stop();
}

#[test]
fn several_requests_on_one_connection_are_answered_in_order() {
    let server = Server::builder().start();
    let requests = [r#"{"verb":"explode"}"#, r#"{"verb":"status"}"#, r#"{"verb":"scale","to":2}"#];
    let mut stream = UnixStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
    stream.write_all(&requests.map(frame).concat()).expect("send");
    let replies = [(); 3].map(|()| read_frame(&mut stream).expect("a reply"));
    assert_eq!(replies.each_ref().map(|reply| &reply["ok"]), [false, true, true], "{replies:?}");
    assert!(replies[1]["status"].is_object() && !replies[2]["status"].is_object(), "{replies:?}");
    server.stop();
}
