//! HTTP on streams of the application: raw connections, an own listener, passed connections, and pipes in memory.

use nix::sys::signal::Signal;

use crate::support::command::ProcessBuilder;
use crate::support::{Address, Client, Server, wait};

const MODELS: [&str; 4] = ["prefork", "single", "thread-per-core", "threads"];

fn program(model: &str) -> ProcessBuilder {
    ProcessBuilder::program("serve-http").model(model, 1)
}

/// Connects to the listener that the application has opened itself.
fn connect_own(server: &Server) -> Client {
    let port = std::fs::read_to_string(server.dir().join("port")).expect("port");
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    Client::connect(&Address::Tcp(address)).expect("connect")
}

fn release(server: &Server) {
    std::fs::write(server.dir().join("release"), "").expect("write");
}

fn send_get(client: &mut Client, path: &str) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).expect("send");
}

#[test]
fn raw_connections_can_be_served_as_http() {
    for model in ["prefork", "single", "thread-per-core"] {
        let server = program(model).args(["door=raw"]).start();
        let mut client = server.connect();
        assert!(client.get("/").expect("an answer").text().starts_with("pid "), "{model}");
        let peer = client.get("/peer").expect("a kept connection");
        assert!(peer.text().starts_with("127.0.0.1:"), "{model}: {}", peer.text());
        // The raw connection and its HTTP connection are one.
        let status = server.status();
        assert_eq!(status["workers"][0]["connections"], 1, "{model}: {status}");
        // Requests are checked before the application sees them.
        let refused = server.connect().send_and_read("GET / HTTP/1.1\r\n\r\n").expect("an answer");
        assert_eq!(refused.status, 400, "{model}");
        // A request in progress is answered, and the idle connection closed, long before the graceful timeout.
        send_get(&mut client, "/wait");
        server.wait_request_in_status("GET /wait");
        server.signal(Signal::SIGTERM);
        server.wait_phase("stopping");
        release(&server);
        assert_eq!(client.read().expect("an answer").text(), "released", "{model}");
        drop(client);
        server.wait_clean_exit(0);
    }
}

#[test]
fn request_on_an_own_listener_is_finished_during_a_stop() {
    for model in MODELS {
        let server = program(model).start();
        let mut client = connect_own(&server);
        assert!(client.get("/").expect("an answer").text().starts_with("pid "), "{model}");
        send_get(&mut client, "/wait");
        server.wait_request_in_status("GET /wait");
        server.signal(Signal::SIGTERM);
        server.wait_phase("stopping");
        release(&server);
        assert_eq!(client.read().expect("an answer").text(), "released", "{model}");
        drop(client);
        server.wait_clean_exit(0);
    }
}

#[test]
fn request_on_a_passed_connection_is_finished_after_a_disconnect() {
    for model in MODELS {
        let server = program(model).start();
        assert_eq!(server.get("/passed").text(), "sent");
        server.wait_request_in_status("GET /wait");
        assert_eq!(server.get("/disconnect").text(), "done");
        release(&server);
        let path = server.dir().join("answer");
        wait::wait_until("the answer", || path.exists());
        let answer = std::fs::read_to_string(path).expect("answer");
        assert!(answer.ends_with("released"), "{model}: {answer}");
        server.stop();
    }
}

#[test]
fn http_is_served_on_any_stream_of_bytes() {
    for model in MODELS {
        let server = program(model).start();
        assert!(server.get("/in-memory").text().starts_with("pid "), "{model}");
        server.stop();
    }
}

#[test]
fn serve_connections_boots_each_worker_before_its_first_connection() {
    let server = ProcessBuilder::program("serve-http").workers(2).args(["door=raw"]).start();
    // The other worker has had no connection yet, but its inbox is open.
    let answer = server.get("/ask-other");
    assert!(["slot 0", "slot 1"].contains(&answer.text()), "{}", answer.text());
    server.stop();
}

#[test]
fn raw_connections_count_as_requests() {
    let server = ProcessBuilder::program("connections").workers(1).args(["max-requests=5"]).start();
    for _ in 0..5 {
        let mut client = server.connect();
        client.send("bye\n").expect("send");
        client.read_to_end().expect("the end");
    }
    // Jitter only lowers the limit.
    server.wait_replaced(1);
    server.stop();
}

#[test]
fn panic_in_a_raw_connection_is_logged_and_ends_only_that_connection() {
    let server = ProcessBuilder::program("connections").workers(1).start();
    let server = server.allow_errors(&["panicked"]);
    let mut client = server.connect();
    client.send("panic\n").expect("send");
    client.read_to_end().expect("the end");
    server.wait_log(&["worker=1", "connection 127.0.0.1:", "a line asked for it"]);
    let mut other = server.connect();
    other.send("bye\n").expect("send");
    other.read_to_end().expect("the end");
    server.stop();
}

#[test]
fn raw_connections_are_named_in_the_status() {
    let server = ProcessBuilder::program("connections").workers(1).start();
    let client = server.connect();
    server.wait_request_in_status("connection 127.0.0.1:");
    let status = server.status();
    let listener = status["listeners"][0].as_str().expect("an address");
    assert!(listener.starts_with("tcp://127.0.0.1:"), "{listener}");
    drop(client);
    server.stop();
}
