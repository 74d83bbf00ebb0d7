//! Response bodies of small and large chunks, with and without a known length, arrive as the application has made them.

use crate::support::command::ProcessBuilder;
use crate::support::{Client, Server};

/// What the application makes of these chunks.
fn expected(sizes: &[usize]) -> Vec<u8> {
    (0..sizes.iter().sum()).map(|at: usize| (at % 251) as u8).collect()
}

fn path(how: &str, sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    format!("/{how}/{}", sizes.join(","))
}

const BODIES: [&[usize]; 7] = [
    &[5],
    &[7_167],
    &[7_168],
    &[7_168, 1, 30_000, 2, 3, 70_000],
    &[100_000, 100_000, 100_000],
    &[1, 16_384, 16_385, 5],
    &[3_000_000, 10],
];

fn assert_body(client: &mut Client, how: &str, sizes: &[usize]) {
    let answer = client.get(&path(how, sizes)).expect("an answer");
    let length = answer.header("content-length").map(ToString::to_string);
    assert_eq!(answer.body, expected(sizes), "{how} {sizes:?}");
    let total: usize = sizes.iter().sum();
    assert_eq!(length, (how == "known").then(|| total.to_string()), "{how} {sizes:?}");
}

fn start() -> Server {
    ProcessBuilder::program("response-chunks").start()
}

#[test]
fn chunks_of_all_sizes_arrive_in_order() {
    let server = start();
    let mut client = server.connect();
    for how in ["known", "unknown", "encoded"] {
        for sizes in BODIES {
            assert_body(&mut client, how, sizes);
        }
    }
    drop(client);
    server.stop();
}

#[test]
fn pipelined_responses_of_all_sizes_arrive_in_order() {
    let server = start();
    let mut client = server.connect();
    let get =
        |sizes: &&[usize]| format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", path("known", sizes));
    client.send(BODIES.iter().map(get).collect::<String>()).expect("send");
    for sizes in BODIES {
        assert_eq!(client.read().expect("an answer").body, expected(sizes), "{sizes:?}");
    }
    drop(client);
    server.stop();
}

#[test]
fn body_behind_its_announced_length_is_not_sent() {
    let server = start();
    let mut client = server.connect();
    for sizes in [&[10_000][..], &[100], &[20_000, 8_000], &[20_000, 50]] {
        let answer = client.get(&path("long", sizes)).expect("an answer");
        let all = expected(sizes);
        assert_eq!(answer.body, all[..all.len() - 5], "{sizes:?}");
        assert_body(&mut client, "known", &[5]);
    }
    drop(client);
    server.stop();
}

#[test]
fn last_response_is_complete_before_the_connection_closes() {
    let server = start();
    for how in ["known", "unknown"] {
        for sizes in BODIES {
            let mut client = server.connect();
            let head = format!("GET {} HTTP/1.1\r\nHost: a\r\n", path(how, sizes));
            client.send(head + "Connection: close\r\n\r\n").expect("send");
            assert_eq!(client.read().expect("an answer").body, expected(sizes), "{how} {sizes:?}");
            assert_eq!(client.read_to_end(), Ok(Vec::new()));
        }
    }
    server.stop();
}
