//! What the examples promise in their first lines.

use nix::sys::signal::Signal;

use crate::support::command::Builder;
use crate::support::{process, wait};

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
fn custom_primary_tells_what_happens_and_forks_again() {
    let server = Builder::example("custom_primary").start().allow(&["killed by SIG"]);
    assert_eq!(server.get("/").text(), "hello world\n");
    let log = server.log();
    assert!(log.contains("A worker is now connected to 127.0.0.1:"), "{log}");
    let worker = server.worker_pids()[0];
    process::send(worker, Signal::SIGKILL);
    server.wait_log(&format!("worker {worker} died: Killed"));
    server.wait_log("replaced");
    assert_eq!(server.get("/").status, 200);
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

#[test]
fn shared_state_is_shared() {
    let server = Builder::example("shared_state").start();
    assert_eq!(server.get("/fib/20").text(), "6765 (computed)\n");
    // Whoever answers.
    for _ in 0..10 {
        assert_eq!(server.get("/fib/20").text(), "6765 (from the cache)\n");
    }
    let limited = (0..10).filter(|_| server.get("/limited").status == 429).count();
    assert!((1..=5).contains(&limited), "{limited}");
    wait::until("the leader ticks", || {
        !server.get("/").text().contains("ticks: Counter { value: 0 }")
    });
    assert!(server.get("/").text().contains("leader: Some("));
    server.stop();
}
