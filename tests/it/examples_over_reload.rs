//! The programs in `examples/` that serve axum, gRPC, WebSocket, event streams and a database: nothing is lost over a reload.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::grpc::GrpcClient;
use crate::support::websocket::{self, TEXT, WebSocketFrame};
use crate::support::{Client, Server, wait};

/// Replaces all workers, and calls `meanwhile` until the new ones serve alone.
#[track_caller]
fn reload(server: &Server, mut meanwhile: impl FnMut()) {
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    wait::wait_until("new workers", || {
        meanwhile();
        let now = server.worker_pids();
        now.len() == old.len() && !now.iter().any(|pid| old.contains(pid))
    });
}

#[test]
fn axum_has_state_json_middleware_and_the_address_of_the_client() {
    let server = ProcessBuilder::example("axum").start();
    let mut client = server.connect();
    let answer = client.get("/").expect("an answer");
    assert!(answer.text().contains(&client.local_addr().to_string()), "{answer:?}");
    assert_eq!(answer.header("server"), Some("axum-on-tokio-prefork"));
    assert_eq!(server.get("/no/such/path").status, 404);
    let json = |body: &str| {
        let length = body.len();
        format!(
            "POST /sum HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let answer = client.send_and_read(json("{\"numbers\": [1, 2, 39]}")).expect("an answer");
    assert_eq!(answer.json()["sum"], 42);
    let answer = client.send_and_read(json("{\"numbers\": 7}")).expect("an answer");
    assert_eq!(answer.status, 422);
    // One connection goes on over the reload, and the counter of all workers counts each request.
    let mut visits = 1;
    reload(&server, || {
        assert_eq!(client.get("/").expect("an answer").status, 200);
        visits += 1;
    });
    let last = format!("visit {} of all workers", visits + 1);
    let answer = client.get("/").expect("an answer");
    assert!(answer.text().contains(&last), "{answer:?} {last}");
    let too_large = client.post("/sum", &vec![b'x'; 70_000]).expect("an answer");
    assert_eq!(too_large.status, 413);
    drop(client);
    server.stop();
}

/// Connects to the chat, and returns the client with the pid of its worker.
#[track_caller]
fn join_chat(server: &Server) -> (Client, u32) {
    let mut client = server.connect();
    client.send(websocket::handshake("/chat")).expect("send");
    websocket::accept(&mut client);
    let welcome = websocket::read(&mut client).expect("a welcome").text();
    let pid = welcome.strip_prefix("welcome to pid ").expect("a welcome");
    (client, pid.parse().expect("a pid"))
}

/// Connects until each worker has a client.
#[track_caller]
fn join_chat_at_each_worker(server: &Server) -> Vec<Client> {
    let mut clients = std::collections::BTreeMap::new();
    let workers = server.worker_pids().len();
    wait::wait_until("a client at each worker", || {
        let (client, pid) = join_chat(server);
        clients.entry(pid).or_insert(client);
        clients.len() == workers
    });
    clients.into_values().collect()
}

#[test]
fn a_websocket_chat_ends_its_connections_cleanly_in_a_reload() {
    let server = ProcessBuilder::example("websocket_chat").start();
    let mut clients = join_chat_at_each_worker(&server);
    for round in 0..2 {
        let text = format!("hello {round}");
        clients[0].send(websocket::frame(TEXT, text.as_bytes())).expect("send");
        for client in &mut clients {
            assert_eq!(websocket::read(client).expect("a text").text(), text);
        }
        let mut closed = vec![false; clients.len()];
        reload(&server, || {
            for (client, is_closed) in clients.iter_mut().zip(&mut closed) {
                if !*is_closed && client.has_input() {
                    let frame = websocket::read(client).expect("a close frame");
                    assert_eq!(frame.close_code(), Some(1012), "{frame:?}");
                    client.send(websocket::frame(frame.opcode, &frame.payload)).expect("send");
                    *is_closed = true;
                }
            }
        });
        // The old workers have not waited for the graceful timeout, which would cut the connections.
        assert!(closed.iter().all(|is_closed| *is_closed), "{closed:?}");
        for client in &mut clients {
            assert_eq!(client.read_to_end().expect("the end"), b"");
        }
        clients = join_chat_at_each_worker(&server);
    }
    drop(clients);
    server.stop();
}

#[test]
fn texts_that_cross_the_close_frame_of_a_reload_reach_the_chat() {
    let server = ProcessBuilder::example("websocket_chat").start();
    let (mut speaker, _) = join_chat(&server);
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    let close = websocket::read(&mut speaker).expect("a close frame");
    assert_eq!(close.close_code(), Some(1012));
    // An old worker, which may still accept while its slot has no successor, would close the connection of the listener.
    let mut listener = wait::wait_until_some("a new worker", || {
        let (client, pid) = join_chat(&server);
        (!old.contains(&pid)).then_some(client)
    });
    speaker.send(websocket::frame(TEXT, b"late")).expect("send");
    speaker.send(websocket::frame(close.opcode, &close.payload)).expect("send");
    let heard = websocket::read(&mut listener).expect("a text");
    assert_eq!(heard, WebSocketFrame { opcode: TEXT, payload: b"late".to_vec() });
    drop((speaker, listener));
    server.stop();
}

/// Connects to the event stream.
#[track_caller]
fn listen(server: &Server) -> Client {
    let mut client = server.connect();
    client.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    client
}

/// Reads until this text has arrived.
#[track_caller]
fn read_until(client: &mut Client, wanted: &str) {
    let mut text = String::new();
    while !text.contains(wanted) {
        text.push(client.read_exactly(1).expect("more")[0].into());
    }
}

#[test]
fn event_streams_end_cleanly_in_a_reload_and_go_on_at_new_workers() {
    let server = ProcessBuilder::example("server_sent_events").start();
    let mut visits = 0;
    for _ in 0..2 {
        let mut streams: Vec<Client> = (0..4).map(|_| listen(&server)).collect();
        assert_eq!(server.get("/").status, 200);
        visits += 1;
        for stream in &mut streams {
            read_until(stream, &format!("data: {visits} visits\n\n"));
        }
        reload(&server, || {});
        for stream in &mut streams {
            // The last chunk of a complete response, after which the connection can be used again.
            read_until(stream, "\r\n0\r\n\r\n");
            assert_eq!(stream.get("/").expect("an answer").status, 200);
            visits += 1;
        }
    }
    server.stop();
}

#[test]
fn grpc_calls_are_answered_over_a_reload() {
    let server = ProcessBuilder::example("grpc").start();
    let mut client = GrpcClient::new(&server);
    let old = client.greet("world").expect("a reply");
    assert_eq!(old.text, "hello world");
    assert!(server.worker_pids().contains(&old.pid));
    assert_eq!(client.greet("").expect_err("an error"), "3");
    let mut pid = old.pid;
    reload(&server, || pid = client.greet("reload").expect("a reply").pid);
    wait::wait_until("a reply of a new worker", || {
        client.greet("again").expect("a reply").pid != old.pid
    });
    drop(client);
    server.stop();
}

#[test]
fn a_database_loses_no_row_over_a_reload() {
    let server = ProcessBuilder::example("sqlite_pool").start();
    let mut client = server.connect();
    let mut added = 0;
    let mut add = |text: &str| {
        let answer = client.post("/notes", text.as_bytes()).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        added += 1;
        assert_eq!(answer.text(), format!("{added}\n"));
    };
    add("first");
    reload(&server, || add("meanwhile"));
    add("last");
    let answer = server.get("/notes");
    let lines: Vec<&str> = answer.text().lines().collect();
    assert_eq!((lines.len(), lines[0]), (added, "1 first"));
    assert_eq!(lines[added - 1], format!("{added} last"));
    drop(client);
    server.stop();
}
