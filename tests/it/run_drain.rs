//! `prefork run` drains programs that know nothing of draining: they die of their stop signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::run_sockets::serving_programs;
use crate::support::command::ProcessBuilder;
use crate::support::http::{Address, Failure};
use crate::support::load::Load;
use crate::support::{Client, Server, env_count, process, wait};

/// Starts programs that keep connections open. They would be killed only after the deadline of all waits.
fn start(workers: usize) -> Server {
    let builder = ProcessBuilder::run_foreign_server(&["keeps-connections"]).workers(workers);
    builder.dispatch("reuseport").args(["--graceful-timeout", "120s"]).start()
}

/// Replaces all workers, and waits until the programs of the old ones have ended.
fn reload_and_wait(server: &Server) {
    let old: Vec<u32> = serving_programs(server).into_iter().collect();
    server.run_verb(&["reload"]);
    process::wait_ended(&old);
}

#[test]
fn reloads_lose_no_new_connection_of_a_program_that_dies_of_its_signal() {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(2).dispatch("reuseport");
    let server = builder.start();
    let load = Load::new_connections(server.address(), 4).start();
    for _ in 0..env_count("PREFORK_RELOADS", 5) {
        load.wait_answered(24);
        reload_and_wait(&server);
    }
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failures() <= 1, "{tally:?}");
    server.stop();
}

#[test]
fn idle_connections_are_closed_and_the_program_ends_long_before_its_deadline() {
    let server = start(2);
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    // Half of them have had a request, the others none.
    for client in clients.iter_mut().take(10) {
        client.get("/").expect("an answer");
    }
    reload_and_wait(&server);
    assert!(clients.iter().all(Client::is_closed));
    server.stop();
}

#[test]
fn requests_in_progress_are_answered_before_the_signal() {
    let server = start(2);
    let slow: Vec<JoinHandle<_>> = ["/sleep/3000", "/parts/10/250"]
        .into_iter()
        .flat_map(|path| std::iter::repeat_n(path, 4))
        .map(|path| {
            let mut client = server.connect();
            client.get("/").expect("the first answer");
            std::thread::spawn(move || client.get(path))
        })
        .collect();
    wait::wait_until("the requests are in progress", || {
        let status = server.status();
        let workers = status["workers"].as_array().expect("workers");
        workers.iter().filter_map(|one| one["connections"].as_u64()).sum::<u64>() == 8
    });
    reload_and_wait(&server);
    for request in slow {
        let answer = request.join().expect("a client panicked").expect("an answer");
        assert_eq!(answer.status, 200);
    }
    server.stop();
}

/// A client that sends a request on its kept connection, and pauses before the next.
fn start_client(to: Address, stop: Arc<AtomicBool>, pause: Duration) -> JoinHandle<ClientTally> {
    std::thread::spawn(move || {
        let mut tally = ClientTally::default();
        let mut kept: Option<Client> = None;
        while !stop.load(Relaxed) {
            let open = kept.take().filter(|client| !client.is_closed());
            tally.connections += u32::from(open.is_none());
            let Ok(mut client) = open.map_or_else(|| Client::connect(&to), Ok) else {
                tally.failures.push(Failure::Refused);
                continue;
            };
            match client.get("/sleep/10") {
                Ok(_) => {
                    tally.answers += 1;
                    kept = Some(client);
                }
                Err(failure) => tally.failures.push(failure),
            }
            wait::wait_for_duration(pause);
        }
        tally
    })
}

#[derive(Debug, Default)]
struct ClientTally {
    answers: u32,
    connections: u32,
    failures: Vec<Failure>,
}

#[test]
fn kept_connections_are_closed_between_two_requests() {
    let server = start(2);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let pause = Duration::from_millis(60 + 20 * number);
            start_client(server.address().clone(), Arc::clone(&stop), pause)
        })
        .collect();
    let reloads = env_count("PREFORK_RELOADS", 3);
    for _ in 0..reloads {
        reload_and_wait(&server);
    }
    stop.store(true, Relaxed);
    let tallies: Vec<ClientTally> =
        clients.into_iter().map(|client| client.join().expect("a client panicked")).collect();
    // Each connection is closed once in each reload. What remains is a request that is sent in that very moment.
    let connections: u32 = tallies.iter().map(|tally| tally.connections).sum();
    let failures: Vec<&Failure> = tallies.iter().flat_map(|tally| &tally.failures).collect();
    assert!(failures.len() * 10 <= connections as usize, "{failures:?} of {connections}");
    assert!(failures.iter().all(|failure| **failure != Failure::Refused), "{failures:?}");
    assert!(failures.iter().all(|failure| **failure != Failure::ClosedEarly), "{failures:?}");
    assert!(tallies.iter().all(|tally| tally.answers > 0), "{tallies:?}");
    server.stop();
}

#[test]
fn a_program_that_closes_its_sockets_and_listens_elsewhere_is_an_error_that_names_the_address() {
    let builder = ProcessBuilder::run_foreign_server(&["listens-elsewhere"]).workers(1);
    let output = builder.args(["--ready", "listening"]).run();
    assert_eq!(output.status, Some(70), "{}", output.stderr);
    assert!(output.stderr.contains("listens on 127.0.0.1:"), "{}", output.stderr);
}
