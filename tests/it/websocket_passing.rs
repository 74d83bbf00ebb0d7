//! WebSockets that leave the HTTP server of one worker for another worker.

use crate::support::command::ProcessBuilder;
use crate::support::websocket::{self, CLOSE, TEXT};
use crate::support::{Client, Server, wait};

/// Reads an echo, and returns the pid and the rest.
#[track_caller]
fn read_echo(client: &mut Client) -> (u32, String) {
    let text = websocket::read(client).expect("an echo").text();
    let text = text.strip_prefix("/room ").expect("the path");
    let (pid, rest) = text.split_once(' ').expect("a pid");
    (pid.parse().expect("a pid"), rest.to_string())
}

fn open_connections(server: &Server) -> u64 {
    let status = server.status();
    let workers = status["workers"].as_array().into_iter().flatten();
    workers.filter_map(|worker| worker["connections"].as_u64()).sum()
}

#[test]
fn a_websocket_goes_on_at_another_worker() {
    let server = ProcessBuilder::program("pass-websockets").start();
    let workers = server.worker_pids();
    for _ in 0..4 {
        let mut client = server.connect();
        client.send(websocket::handshake("/room")).expect("send");
        websocket::accept(&mut client);
        let mut pids = Vec::new();
        for text in ["one", "two"] {
            client.send(websocket::frame(TEXT, text.as_bytes())).expect("send");
            let (pid, rest) = read_echo(&mut client);
            assert_eq!(rest, format!("{} {text}", client.local_addr()));
            pids.push(pid);
        }
        assert!(workers.contains(&pids[0]) && pids[0] == pids[1], "{pids:?}");
        client.send(websocket::frame(CLOSE, b"")).expect("send");
        assert_eq!(websocket::read(&mut client).expect("an answer").opcode, CLOSE);
    }
    // The workers that have sent them on count them no longer.
    wait::wait_until("no connections", || open_connections(&server) == 0);
    server.stop();
}

#[test]
fn bytes_behind_the_handshake_reach_the_other_worker() {
    let server = ProcessBuilder::program("pass-websockets").start();
    let mut client = server.connect();
    let frames = ["early", "bird"].map(|text| websocket::frame(TEXT, text.as_bytes())).concat();
    // A frame may arrive in pieces: the rest of the last one follows the handshake.
    let (early, late) = frames.split_at(frames.len() - 3);
    client.send([websocket::handshake("/room").as_bytes(), early].concat()).expect("send");
    websocket::accept(&mut client);
    client.send(late).expect("send");
    for text in ["early", "bird"] {
        let (_, rest) = read_echo(&mut client);
        assert_eq!(rest, format!("{} {text}", client.local_addr()));
    }
    drop(client);
    server.stop();
}
