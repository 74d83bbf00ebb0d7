//! The path `/websocket` of the built-in application, which echoes.

use nix::sys::signal::Signal;

use crate::support::Server;
use crate::support::websocket::{self, CLOSE, TEXT};

/// Code of a close frame: the server restarts (RFC 6455, 7.4.1, and its registry).
const SERVICE_RESTART: u16 = 1012;
const BINARY: u8 = 2;

#[test]
fn messages_come_back_until_the_worker_drains() {
    let server = Server::start(1);
    let mut client = server.connect();
    client.send(websocket::handshake("/websocket")).expect("send");
    websocket::accept(&mut client);
    for (opcode, text) in [(TEXT, "hello"), (BINARY, "\u{0}\u{1}"), (TEXT, "")] {
        client.send(websocket::frame(opcode, text.as_bytes())).expect("send");
        let echo = websocket::read(&mut client).expect("an echo");
        assert_eq!((echo.opcode, echo.payload.as_slice()), (opcode, text.as_bytes()));
    }
    server.signal(Signal::SIGHUP);
    let close = websocket::read(&mut client).expect("a close frame");
    assert_eq!(close.close_code(), Some(SERVICE_RESTART), "{close:?}");
    // A message that was under way is not echoed, and the close frame of the client ends the connection.
    client.send(websocket::frame(TEXT, b"late")).expect("send");
    client.send(websocket::frame(CLOSE, &SERVICE_RESTART.to_be_bytes())).expect("send");
    assert_eq!(client.read_to_end().expect("the end"), b"");
    server.wait_replaced(1);
    server.stop();
}

#[test]
fn a_message_over_the_body_limit_ends_the_connection() {
    let server = Server::with(1, &["--max-body-size", "100"]);
    let mut client = server.connect();
    client.send(websocket::handshake("/websocket")).expect("send");
    websocket::accept(&mut client);
    client.send(websocket::frame(TEXT, &[b'x'; 101])).expect("send");
    let rest = websocket::read(&mut client);
    assert!(rest.is_err(), "no echo, and the end: {rest:?}");
    server.stop();
}

#[test]
fn a_request_without_a_handshake_is_told_to_upgrade() {
    let server = Server::start(1);
    let answer = server.get("/websocket");
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));
    let posted = server.connect().post("/websocket", b"x").expect("answer");
    assert_eq!(posted.status, 405);
    server.stop();
}
