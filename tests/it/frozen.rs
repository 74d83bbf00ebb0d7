//! Workers that are frozen, by a handler that never gives the loop back or from outside: the others go on.

use nix::sys::signal::Signal;

use crate::support::{Client, Server, process};

#[test]
fn nobody_is_stuck_behind_a_handler_that_blocks() {
    let server = Server::with(2, &["--graceful-timeout", "0s"]);
    let workers = server.worker_pids();
    // All of this is in the kernel's queue before anybody can take it.
    workers.iter().for_each(|pid| process::send(*pid, Signal::SIGSTOP));
    let mut blocking = server.connect();
    blocking.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    let mut others: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut others {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    workers.iter().for_each(|pid| process::send(*pid, Signal::SIGCONT));
    // A worker that took connections beside the one that blocks it could not answer them for minutes.
    let stuck = others.iter_mut().map(Client::soon).filter(Result::is_err).count();
    assert_eq!(stuck, 0, "of {} connections", others.len());
    server.signal(Signal::SIGQUIT);
    server.finish(0);
}

#[test]
fn while_a_worker_is_stopped_the_others_serve() {
    let server = Server::start(2);
    let stopped = server.worker_pids()[0];
    process::send(stopped, Signal::SIGSTOP);
    for _ in 0..50 {
        assert_ne!(server.get("/").pid(), stopped);
    }
    process::send(stopped, Signal::SIGCONT);
    server.stop();
}

#[test]
fn a_primary_that_was_stopped_kills_nobody_when_it_goes_on() {
    let server = Server::start(2);
    let workers = server.worker_pids();
    server.signal(Signal::SIGSTOP);
    // Workers need no primary to serve.
    assert_eq!(server.get("/sleep/1500").status, 200);
    server.signal(Signal::SIGCONT);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.worker_pids(), workers);
    server.stop();
}
