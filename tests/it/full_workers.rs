//! Connections that come while all workers have as many as `worker-connections` allows.

use crate::support::{Client, Server, wait};

const POLICIES: [&str; 3] = ["shared", "round-robin", "reuseport"];

fn start(workers: usize, policy: &str, args: &[&str]) -> Server {
    let args = args.iter().copied().chain(["--worker-connections", "1"]);
    Server::builder().workers(workers).dispatch(policy).args(args).start()
}

fn over_limit(server: &Server) -> u64 {
    server.status()["totals"]["over_limit"].as_u64().expect("a number")
}

/// Opens a connection that keeps the only worker full.
#[track_caller]
fn fill(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.get("/").expect("an answer").status, 200);
    wait::wait_until("a full worker", || server.status()["workers"][0]["full"] == true);
    client
}

#[test]
fn connections_to_a_full_worker_wait_and_are_counted() {
    for policy in POLICIES {
        println!("dispatch {policy}");
        let server = start(1, policy, &[]);
        assert_eq!(over_limit(&server), 0);
        let first = fill(&server);
        let mut second = server.send_get("/");
        assert!(!second.has_input());
        drop(first);
        assert_eq!(second.read().expect("an answer").status, 200);
        wait::wait_until("one connection counted", || over_limit(&server) == 1);
        drop(second);
        server.stop();
    }
}

#[test]
fn a_full_worker_can_refuse_connections() {
    for policy in POLICIES {
        println!("dispatch {policy}");
        let server = start(1, policy, &["--when-full", "close"]);
        let mut first = fill(&server);
        for refused in 1..=2 {
            let answer = server.try_get("/").expect("an answer");
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
            wait::wait_until("the refusal is counted", || over_limit(&server) == refused);
        }
        // The connections that the worker has are not affected.
        assert_eq!(first.get("/").expect("an answer").status, 200);
        drop(first);
        wait::wait_until("a place for a new client", || {
            server.try_get("/").is_ok_and(|answer| answer.status == 200)
        });
        server.stop();
    }
}

#[test]
fn no_connection_is_refused_while_another_worker_is_not_full() {
    let server = start(2, "shared", &["--when-full", "close"]);
    for _ in 0..5 {
        let mut clients = [server.connect(), server.connect()];
        for client in &mut clients {
            assert_eq!(client.get("/").expect("an answer").status, 200);
        }
        drop(clients);
        wait::wait_until("no connection", || {
            let status = server.status();
            let workers = status["workers"].as_array().expect("workers");
            workers.iter().all(|w| w["connections"] == 0 && w["full"] == false)
        });
    }
    assert_eq!(over_limit(&server), 0);
    server.stop();
}
