//! Limits on descriptors and connections.

use crate::support::{Client, Server, process, wait};

/// The system's description of EMFILE.
pub const EMFILE_TEXT: &str = "Too many open files";

/// Opens connections and sends a request on each, more than the worker has descriptors for.
fn open_connections(server: &Server, kept: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..kept).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    clients
}

#[test]
fn a_worker_without_descriptors_waits_without_spinning() {
    let limited = r#"ulimit -n 40; exec "$0" "$@""#;
    let server = Server::builder().workers(1).script(limited).start().allow_errors(&[EMFILE_TEXT]);
    let mut clients = open_connections(&server, 60);
    server.wait_log(&["ERROR", EMFILE_TEXT, &server.port().to_string()]);
    let pid = server.worker_pids()[0];
    let share = process::cpu_share(pid);
    assert!(share < 0.5, "it uses {share} of a core while it waits");
    // Accepted connections are served meanwhile.
    assert_eq!(clients[0].read().expect("answer").pid(), pid);
    assert_eq!(clients[0].get("/healthz").expect("answer").status, 200);
    // As they close, waiting connections are accepted.
    for mut client in clients.drain(..).skip(1) {
        assert_eq!(client.read().expect("answer").pid(), pid);
    }
    assert_eq!(server.get("/").pid(), pid);
    server.stop();
}

#[test]
fn running_out_of_descriptors_is_logged_with_a_rate_limit() {
    let limited = r#"ulimit -n 40; exec "$0" "$@""#;
    let server = Server::builder().workers(1).script(limited).start().allow_errors(&[EMFILE_TEXT]);
    let clients = open_connections(&server, 60);
    server.wait_log(&["ERROR", EMFILE_TEXT, &server.port().to_string()]);
    wait::wait_for_duration(std::time::Duration::from_secs(1));
    let lines = server.count_log(&[EMFILE_TEXT]);
    assert!(lines <= 3, "{lines} lines in a second, for one thing");
    drop(clients);
    server.stop();
}

#[test]
fn worker_connections_limits_a_worker() {
    let server = Server::with(1, &["--worker-connections", "2"]);
    let (mut first, mut second) = (server.connect(), server.connect());
    assert_eq!(first.get("/").expect("answer").status, 200);
    assert_eq!(second.get("/").expect("answer").status, 200);
    // This connection waits in the accept queue.
    let mut third = server.connect();
    third.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    for _ in 0..20 {
        let cluster = first.get("/cluster").expect("answer").json();
        assert_eq!(cluster["workers"][0]["connections"], 2);
    }
    drop(second);
    assert_eq!(third.read().expect("the waiting connection is accepted").text(), "ok\n");
    drop((first, third));
    server.stop();
}

#[test]
fn connections_over_the_limit_of_one_worker_go_to_another() {
    // This test counts processes, so it needs the prefork model.
    let server = Server::builder().model("prefork", 2).args(["--worker-connections", "4"]).start();
    let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    let mut pids: Vec<u32> =
        clients.iter_mut().map(|client| client.get("/").expect("answer").pid()).collect();
    pids.sort_unstable();
    let mut workers = server.worker_pids();
    workers.sort_unstable();
    assert_eq!(pids.chunks(4).map(|half| half[0]).collect::<Vec<_>>(), workers);
    assert!(pids.chunks(4).all(|half| half.iter().all(|pid| *pid == half[0])), "{pids:?}");
    drop(clients);
    server.stop();
}
