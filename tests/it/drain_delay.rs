//! `drain-delay`: a server that is told to stop says so to balancers first, and goes on serving for a while.

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::server::Builder;
use crate::support::{Server, log, wait};

/// Longer than any test: only a second request to stop ends it.
const LONG: [&str; 2] = ["--drain-delay", "300s"];

#[test]
fn it_is_not_ready_at_once_but_accepts_and_serves_until_a_second_request() {
    let server = Server::with(2, &LONG);
    let load = Load::new_connections(server.address(), 2).until_refused().start();
    load.wait_answered(10);
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    // Every worker says so, on new connections.
    for _ in 0..8 {
        assert_eq!((server.get("/readyz").status, server.get("/healthz").status), (503, 200));
    }
    assert_eq!(server.cluster()["stopping"], true);
    load.wait_answered(20);
    let announced = std::time::Instant::now();
    wait::until_past(announced, std::time::Duration::from_millis(150));
    server.signal(Signal::SIGTERM);
    let tally = load.join();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    // A worker that was killed would be complained about.
    let text = server.finish(0);
    assert_eq!(log::complaints(&text), Vec::<&str>::new());
}

#[test]
fn it_ends_by_itself_when_the_delay_is_over_and_loses_nothing() {
    let server = Server::with(2, &["--drain-delay", "500ms"]);
    let load = Load::new_connections(server.address(), 4).until_refused().start();
    load.wait_answered(20);
    server.signal(Signal::SIGTERM);
    let tally = load.join();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    let text = server.finish(0);
    assert_eq!(log::lines_with(&text, &["SIGTERM", "500 ms"]).count(), 1, "{text}");
    assert_eq!(log::complaints(&text), Vec::<&str>::new());
}

#[test]
fn who_dies_meanwhile_is_replaced_and_a_reload_is_refused() {
    let server = Server::builder().workers(2).args(LONG).start();
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    crate::support::process::send(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_eq!(server.get("/").status, 200);
    let why = server.refused(&["reload"], 1);
    assert!(why.contains("stopping"), "{why}");
    assert_eq!(server.status()["primary"]["phase"], "stopping");
    server.signal(Signal::SIGQUIT);
    server.allow(&["SIGKILL"]).finish(0);
}

#[test]
fn the_verb_health_is_what_a_container_asks() {
    let server = Server::with(1, &LONG);
    let address = server.address().to_string();
    let ask = |words: &[&str]| Builder::verb("health").args(words).run();
    let healthy = ask(&[&address]);
    assert_eq!((healthy.status, healthy.out.as_str(), healthy.err.as_str()), (Some(0), "", ""));
    // The address of the environment, as in a container.
    let named = Builder::verb("health").env("PREFORK_BIND", &address).run();
    assert_eq!(named.status, Some(0), "{}", named.err);
    assert_eq!(ask(&[&address, "--path", "/nowhere"]).status, Some(1));
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    let leaving = ask(&[&address]);
    assert_eq!(leaving.status, Some(1));
    assert!(leaving.err.contains("503"), "{}", leaving.err);
    server.signal(Signal::SIGQUIT);
    server.finish(0);
    let gone = ask(&[&address]);
    assert_eq!(gone.status, Some(69), "{}", gone.err);
}
