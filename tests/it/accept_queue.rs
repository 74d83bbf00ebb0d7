//! The accept queue: how many connections wait, how long they waited, and `max-queue-wait`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::{Address, Client, Server, log, process, wait};

const GET_ROOT_REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Starts two workers that listen on these addresses and on a Unix socket.
#[track_caller]
fn start_with_unix_socket(addresses: &[&str], args: &[&str]) -> Server {
    let builder = Server::builder();
    let unix = format!("unix:{}", builder.dir().join("socket").display());
    let all = addresses.iter().map(ToString::to_string).chain([unix]);
    builder.bind(all.collect::<Vec<_>>()).args(args.to_vec()).start()
}

/// Stops all workers with SIGSTOP, waits until they are stopped, and returns their pids.
fn stop_all_workers(server: &Server) -> Vec<u32> {
    let pids = server.worker_pids();
    pids.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    wait::wait_until("all workers to stand still", || {
        pids.iter().all(|pid| process::stat(*pid).is_some_and(|stat| stat.state == 'T'))
    });
    pids
}

fn resume_workers(pids: &[u32]) {
    pids.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGCONT));
}

fn connect_to(to: &Address) -> Client {
    Client::connect(to).unwrap_or_else(|e| panic!("cannot connect: {e:?}"))
}

/// Sums the queue wait histograms of `workers`, of a status or of `/cluster`.
fn queue_wait_histogram(workers: &Value) -> Vec<u64> {
    let workers = workers.as_array().expect("workers");
    let counts =
        |bucket: usize| workers.iter().filter_map(move |w| w["queue_wait"][bucket].as_u64());
    (0..16).map(|bucket| counts(bucket).sum()).collect()
}

/// Lets connections wait in the accept queue of stopped workers.
fn wait_for_duration(span: Duration) {
    wait::wait_until_elapsed(Instant::now(), span);
}

#[test]
fn status_shows_the_queue_of_each_socket_while_all_workers_are_frozen() {
    let server = start_with_unix_socket(&["127.0.0.1:0", "127.0.0.2:0"], &["--backlog", "64"]);
    let pids = stop_all_workers(&server);
    let first = connect_to(&server.addresses()[0]);
    let mut others: Vec<Client> = (0..5).map(|_| connect_to(&server.addresses()[1])).collect();
    let queues = |status: &Value| {
        let queues = status["queues"].as_array().cloned().expect("queues");
        queues.iter().map(|q| (q["listener"].clone(), q["depth"].clone())).collect::<Vec<_>>()
    };
    let names = server.status()["listeners"].clone();
    let depths = |a: u64, b: u64| vec![(names[0].clone(), a.into()), (names[1].clone(), b.into())];
    // The kernel does not report the queue of a Unix socket.
    assert_eq!(queues(&server.status()), depths(1, 5));
    assert_eq!(server.status()["queues"][1]["limit"], 64);
    let table = server.run_verb(&["status"]);
    let [a, b] = [&names[0], &names[1]].map(|name| name.as_str().expect("a name"));
    let words = [a, "1 of 64", b, "5 of 64", "unix"];
    assert_eq!(log::lines_with(&table, &words).count(), 1, "{table}");
    resume_workers(&pids);
    for client in &mut others {
        assert_eq!(client.send_and_read(GET_ROOT_REQUEST).expect("an answer").status, 200);
    }
    wait::wait_until("the queues to be empty", || queues(&server.status()) == depths(0, 0));
    drop(first);
    server.stop();
}

#[test]
fn queue_wait_is_counted_in_the_right_histogram_bucket() {
    let server = start_with_unix_socket(&["127.0.0.1:0"], &[]);
    let status = server.status();
    assert_eq!(queue_wait_histogram(&status["workers"]), [0; 16]);
    assert_eq!(status["queue_wait"]["p50_ms"], Value::Null);
    assert_eq!(status["queue_wait"]["connections"], 0);
    let begun = Instant::now();
    let pids = stop_all_workers(&server);
    let mut silent: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    let mut early: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    early.iter_mut().for_each(|client| client.send(GET_ROOT_REQUEST).expect("send"));
    // The wait of a Unix connection cannot be measured.
    let mut unix = connect_to(&server.addresses()[1]);
    wait_for_duration(Duration::from_millis(600));
    // Data that arrives during the wait must not shorten the measured wait.
    silent[0].send(GET_ROOT_REQUEST).expect("send");
    resume_workers(&pids);
    for client in &mut early {
        assert_eq!(client.read().expect("an answer").status, 200);
    }
    for client in silent[1..].iter_mut().chain([&mut unix]) {
        assert_eq!(client.send_and_read(GET_ROOT_REQUEST).expect("an answer").status, 200);
    }
    assert_eq!(silent[0].read().expect("an answer").status, 200);
    let most = begun.elapsed();
    let status = server.status();
    let counts = queue_wait_histogram(&status["workers"]);
    // Each wait was longer than 512 ms and shorter than the whole test.
    let last = (10..16).find(|bucket| Duration::from_millis(1 << bucket) >= most).unwrap_or(15);
    assert_eq!(counts[10..=last].iter().sum::<u64>(), 6, "{counts:?} in {most:?}");
    assert_eq!(counts.iter().sum::<u64>(), 6, "{counts:?}");
    assert_eq!(status["queue_wait"]["connections"], 6);
    assert!(status["queue_wait"]["p50_ms"].as_u64() >= Some(1024), "{status}");
    assert!(server.run_verb(&["status"]).contains("0 shed"));
    // The connection of this request is counted, too.
    let cluster = server.cluster();
    assert!(queue_wait_histogram(&cluster["workers"]).iter().sum::<u64>() >= 7, "{cluster}");
    server.stop();
}

#[test]
fn connections_past_max_queue_wait_get_503_and_others_are_served() {
    let server = start_with_unix_socket(&["127.0.0.1:0"], &["--max-queue-wait", "1s"]);
    let mut kept = server.connect();
    assert_eq!(kept.get("/").expect("an answer").status, 200);
    let pids = stop_all_workers(&server);
    kept.send(GET_ROOT_REQUEST).expect("send");
    let mut unix = connect_to(&server.addresses()[1]);
    unix.send(GET_ROOT_REQUEST).expect("send");
    let mut late: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    // Silent clients, clients with a request, and clients with more data than will be read.
    let body = vec![b'x'; 30_000];
    let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    for client in &mut late[5..] {
        client.send(GET_ROOT_REQUEST).expect("send");
    }
    for client in &mut late[10..] {
        client.send(&head).expect("send");
        client.send(&body).expect("send");
    }
    wait_for_duration(Duration::from_millis(1300));
    resume_workers(&pids);
    for client in &mut late {
        let refused = client.read().expect("a response");
        assert_eq!(refused.status, 503);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert!(refused.closes());
        // The connection is closed, not reset.
        assert_eq!(client.read_to_end().expect("the end"), b"");
    }
    assert_eq!(kept.read().expect("kept alive").status, 200);
    assert_eq!(kept.get("/").expect("kept alive").status, 200);
    assert_eq!(unix.read().expect("over the Unix socket").status, 200);
    for _ in 0..5 {
        assert_eq!(server.get("/").status, 200);
    }
    let status = server.status();
    assert_eq!(status["totals"]["shed"], 20, "{status}");
    assert!(server.run_verb(&["status"]).contains("20 shed"));
    assert_eq!(server.cluster()["totals"]["shed"], 20);
    server.wait_log(&["WARN", "worker=", "503"]);
    server.stop();
}

/// Refused clients that never close their side are dropped after a while, and delay no other client until then.
#[test]
fn refused_clients_that_keep_their_connection_open_are_dropped() {
    let server = Server::builder().args(["--max-queue-wait", "1s"]).start();
    let pids = stop_all_workers(&server);
    let late: Vec<Client> = (0..10).map(|_| server.connect()).collect();
    wait_for_duration(Duration::from_millis(1300));
    resume_workers(&pids);
    wait::wait_until("all are refused", || server.status()["totals"]["shed"] == 10);
    assert_eq!(server.get("/").status, 200);
    wait::wait_until("they are dropped", || {
        let status = server.status();
        let workers = status["workers"].as_array().expect("workers");
        workers.iter().all(|worker| worker["connections"] == 0)
    });
    let totals = &server.status()["totals"];
    assert_eq!(totals["cut"], 0);
    assert!(
        totals["accepted"].as_u64() >= Some(11),
        "the refused ones were accepted, too: {totals}"
    );
    drop(late);
    server.stop();
}

#[test]
fn without_max_queue_wait_no_connection_is_refused() {
    let server = Server::start(2);
    let pids = stop_all_workers(&server);
    let mut late: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    wait_for_duration(Duration::from_millis(500));
    resume_workers(&pids);
    for client in &mut late {
        assert_eq!(client.send_and_read(GET_ROOT_REQUEST).expect("an answer").status, 200);
    }
    let text = server.stop();
    assert!(!text.contains("503"), "{text}");
}

#[test]
fn non_http_connections_are_counted_and_never_refused() {
    let server = ProcessBuilder::program("connections").args(["max-queue-wait-ms=100"]).start();
    let pids = stop_all_workers(&server);
    let mut late: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    wait_for_duration(Duration::from_millis(600));
    resume_workers(&pids);
    for client in &mut late {
        assert_eq!(client.read_exactly(11).expect("a greeting"), b"hello from ");
    }
    let status = server.status();
    assert_eq!(queue_wait_histogram(&status["workers"])[10..].iter().sum::<u64>(), 3, "{status}");
    assert_eq!(status["totals"]["shed"], 0);
    drop(late);
    server.stop();
}
