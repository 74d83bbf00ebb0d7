//! Limits of HTTP/2 connections and streams.

use std::time::{Duration, Instant};

use crate::support::h2::{self, END_HEADERS, HEADERS, PING, RST_STREAM, WINDOW_UPDATE, frame};
use crate::support::{Client, Server, wait};

fn greeted(server: &Server) -> Client {
    let mut client = server.connect();
    h2::greet(&mut client);
    client
}

#[test]
fn pings_neither_shorten_nor_prolong_the_life_of_an_idle_connection() {
    let args = ["--header-timeout", "200ms", "--keep-alive-timeout", "2s"];
    let server = Server::with(1, &args);
    let mut client = greeted(&server);
    client.send(h2::get(1, "/")).expect("send");
    h2::read_until(&mut client, HEADERS, 1);
    let begun = Instant::now();
    // A ping with every look, also long after the timeout.
    wait::until("the connection is closed", || {
        let ping = frame(PING, 0, 0, b"are you?");
        let settings = [ping, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])].concat();
        client.send(settings).is_err() || client.is_closed()
    });
    // The clock of the server is a tenth of a second behind at most.
    assert!(begun.elapsed() > Duration::from_millis(1800), "{:?}", begun.elapsed());
    server.stop();
}

#[test]
fn half_a_header_block_is_waited_for_as_a_request_head_is() {
    let server = Server::with(1, &["--header-timeout", "300ms"]);
    let block = h2::request("GET", "/");
    let half = frame(HEADERS, h2::END_STREAM, 1, &block[..3]);
    let whole = h2::get(1, "/");
    for bytes in [&half[..], &whole[..whole.len() - 1]] {
        let mut client = greeted(&server);
        client.send(bytes).expect("send");
        h2::read_to_end(&mut client);
    }
    server.stop();
}

#[test]
fn a_preface_that_is_not_completed_is_waited_for_as_a_request_head_is() {
    let server = Server::with(1, &["--header-timeout", "300ms"]);
    let mut client = server.connect();
    client.send(h2::PREFACE).expect("send");
    h2::read_to_end(&mut client);
    server.stop();
}

#[test]
fn a_stream_whose_body_does_not_come_is_refused_and_no_other_one() {
    let server = Server::with(1, &["--body-timeout", "300ms"]);
    let mut client = greeted(&server);
    let post = frame(HEADERS, END_HEADERS, 1, &h2::request("POST", "/echo"));
    client.send([post, h2::get(3, "/sleep/1500")].concat()).expect("send");
    assert_eq!(h2::read_until(&mut client, HEADERS, 1).status(), Some(408));
    assert_eq!(h2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}

#[test]
fn a_stream_that_is_not_taken_is_reset_and_no_other_one() {
    let server = Server::with(1, &["--send-timeout", "300ms"]);
    let mut client = greeted(&server);
    // Room on the connection, but on the stream only what it has at the beginning.
    let room = frame(WINDOW_UPDATE, 0, 0, &[0, 255, 255, 255]);
    client
        .send([room, h2::get(1, "/bytes/10000000"), h2::get(3, "/sleep/1500")].concat())
        .expect("send");
    h2::read_until(&mut client, RST_STREAM, 1);
    assert_eq!(h2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}

#[test]
fn a_deadline_is_that_of_a_stream() {
    let args = ["--request-timeout", "300ms", "--send-timeout", "off"];
    let server = Server::with(1, &args).allow(&["longer than request-timeout"]);
    let mut client = greeted(&server);
    let both = [h2::get(1, "/sleep/3600000"), h2::get(3, "/bytes/10000000")].concat();
    client.send(both).expect("send");
    h2::read_until(&mut client, RST_STREAM, 3);
    drop(client);
    let mut client = greeted(&server);
    client.send(h2::get(1, "/sleep/3600000")).expect("send");
    assert_eq!(h2::read_until(&mut client, HEADERS, 1).status(), Some(503));
    client.send(h2::get(3, "/")).expect("send");
    assert_eq!(h2::read_until(&mut client, HEADERS, 3).status(), Some(200));
    drop(client);
    server.stop();
}
