//! What the examples promise in their first lines.

use crate::support::command::Builder;
use crate::support::wait;

#[test]
fn hello_counts_in_each_worker() {
    let server = Builder::example("hello").start();
    let mut client = server.connect();
    let first = client.get("/").expect("answer").text().to_string();
    let second = client.get("/").expect("answer").text().to_string();
    assert!(first.starts_with("hello 1 from pid "), "{first}");
    assert_eq!(second, first.replace("hello 1", "hello 2"), "one connection, one worker");
    server.stop();
}

#[test]
fn axum_routes() {
    let server = Builder::example("axum").start();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/no/such/path").status, 404);
    server.stop();
}

#[test]
fn messages_are_collected_and_broadcast_back() {
    let server = Builder::example("messages").start();
    for _ in 0..6 {
        assert_eq!(server.get("/").status, 200);
    }
    let says = |path: &str| server.get(path).text().split(' ').next().map(str::to_string);
    wait::until("all messages at the primary", || says("/exactly") == Some("6".to_string()));
    wait::until("the total at a worker", || {
        says("/").and_then(|n| n.parse().ok()).is_some_and(|n: u64| n >= 6)
    });
    server.stop();
}

#[test]
fn tcp_echo_echoes() {
    let server = Builder::example("tcp_echo").start();
    let mut client = server.connect();
    client.send("any protocol\n").expect("sent");
    let mut read = Vec::new();
    while !read.ends_with(b"any protocol\n") {
        read.extend(client.read_exactly(1).expect("echo"));
    }
    drop(client);
    server.stop();
}

#[test]
fn preload_looks_up_and_tells_its_memory() {
    let server = Builder::example("preload").start();
    assert_eq!(server.get("/12").text(), "144\n");
    let told = server.get("/").text().to_string();
    assert!(told.contains("private") && told.contains("shared"), "{told}");
    server.stop();
}
