//! HTTP/2 settings of the configuration: what the server announces, and pings and tunnels.

use std::time::{Duration, Instant};

use crate::support::command::ProcessBuilder;
use crate::support::http2::{self, DATA, END_HEADERS, GOAWAY, HEADERS, PING, SETTINGS, frame};
use crate::support::{Client, Server, wait};

const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Opens a connection, and returns it with the settings of the server.
#[track_caller]
fn greet(server: &Server) -> (Client, Vec<(u16, u32)>) {
    let mut client = server.connect();
    http2::greet(&mut client);
    let settings = http2::read_until(&mut client, SETTINGS, 0).payload;
    let entries = settings.chunks_exact(6).map(|entry| {
        let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
        (u16::from_be_bytes([entry[0], entry[1]]), value)
    });
    (client, entries.collect())
}

fn setting(settings: &[(u16, u32)], wanted: u16) -> Option<u32> {
    settings.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
}

#[test]
fn the_server_announces_the_configured_settings() {
    for (args, expected) in [
        (&[][..], [Some(200), Some(1 << 20), Some(16 << 10), None]),
        (
            &[
                "--http2-max-concurrent-streams=7",
                "--http2-stream-window-size=64KiB",
                "--max-header-size=32KiB",
                "--http2-extended-connect",
            ],
            [Some(7), Some(64 << 10), Some(32 << 10), Some(1)],
        ),
    ] {
        let server = Server::with(1, args);
        let (client, settings) = greet(&server);
        let names = [
            MAX_CONCURRENT_STREAMS,
            INITIAL_WINDOW_SIZE,
            MAX_HEADER_LIST_SIZE,
            ENABLE_CONNECT_PROTOCOL,
        ];
        assert_eq!(names.map(|name| setting(&settings, name)), expected, "{settings:?}");
        drop(client);
        server.stop();
    }
}

#[test]
fn a_client_that_answers_no_ping_loses_its_connection() {
    let args = ["--http2-ping-interval=100ms", "--http2-ping-timeout=200ms"];
    let server = Server::with(1, &args);
    let (mut client, _) = greet(&server);
    // hyper pings only while a request is open.
    client.send(http2::get(1, "/sleep/60000")).expect("send");
    http2::read_until(&mut client, PING, 0);
    http2::read_to_end(&mut client);
    server.stop();
}

/// Encodes the header block of an extended CONNECT.
fn extended_connect(path: &str) -> Vec<u8> {
    let literal = |index: u8, value: &str| [&[index, value.len() as u8], value.as_bytes()].concat();
    let name = ":protocol";
    let protocol = [&[0, name.len() as u8], name.as_bytes(), b"\x09websocket"].concat();
    [literal(0x02, "CONNECT"), vec![0x86], literal(0x04, path), literal(0x01, "test"), protocol]
        .concat()
}

/// Reads data of a stream, which may come in several frames.
#[track_caller]
fn read_data(client: &mut Client, stream: u32, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        data.extend(http2::read_until(client, DATA, stream).payload);
    }
    data
}

#[test]
fn an_extended_connect_opens_a_tunnel_that_outlives_the_keep_alive_timeout() {
    let server = ProcessBuilder::program("extended-connect").workers(1).start();
    let (mut client, settings) = greet(&server);
    assert_eq!(setting(&settings, ENABLE_CONNECT_PROTOCOL), Some(1));
    client.send(frame(HEADERS, END_HEADERS, 1, &extended_connect("/chat"))).expect("send");
    assert_eq!(http2::read_until(&mut client, HEADERS, 1).status(), Some(200));
    let begun = Instant::now();
    // The keep-alive timeout of the program is half a second.
    wait::wait_until("the timeout", || begun.elapsed() > Duration::from_secs(1));
    client.send(frame(DATA, 0, 1, b"hello")).expect("send");
    assert_eq!(read_data(&mut client, 1, 16), b"websocket: hello");
    // A tunnel does not hold up the requests beside it, and an orderly stop ends it at the graceful timeout.
    client.send(http2::get(3, "/")).expect("send");
    http2::read_until(&mut client, HEADERS, 3);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    http2::read_until(&mut client, GOAWAY, 0);
    // hyper goes on only when the client has seen that.
    let ping = http2::read_until(&mut client, PING, 0);
    client.send(frame(PING, http2::ACK, 0, &ping.payload)).expect("send");
    client.send(frame(DATA, 0, 1, b"still here")).expect("send");
    assert_eq!(read_data(&mut client, 1, 21), b"websocket: still here");
    // The client ends the tunnel, and with it the connection.
    client.send(frame(DATA, http2::END_STREAM, 1, b"")).expect("send");
    http2::read_to_end(&mut client);
    server.wait_clean_exit(0);
}
