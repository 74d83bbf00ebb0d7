//! Dead workers: they are logged and replaced, and no connection is refused.

use nix::sys::signal::Signal;

use crate::support::load::Load;
use crate::support::{Failure, Server, env_count, log, process, wait};

/// Waits for the ERROR line about the death of a worker that names the `cause`, and returns it.
#[track_caller]
fn wait_death(server: &Server, pid: u32, cause: &str) -> String {
    server.wait_log(&["ERROR", &format!("pid={pid}"), cause])
}

#[test]
fn a_killed_worker_is_replaced_and_its_death_logged() {
    let server = Server::start(2).allow_errors(&["SIGKILL"]);
    let victim = server.get("/").pid();
    process::send_signal(victim, Signal::SIGKILL);
    wait_death(&server, victim, "SIGKILL");
    server.wait_replaced(1);
    let pids = server.worker_pids();
    assert!(pids.len() == 2 && !pids.contains(&victim), "{pids:?}");
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_replacement_has_the_same_slot_and_a_new_id() {
    let server = Server::start(1).allow_errors(&["SIGKILL"]);
    process::send_signal(server.worker_pids()[0], Signal::SIGKILL);
    server.wait_replaced(1);
    let pid = server.worker_pids()[0];
    server.wait_log(&[&format!("worker=2 slot=0 gen=1 pid={pid}")]);
    server.stop();
}

#[test]
fn a_segfault_is_logged_and_fails_only_its_own_request() {
    let server = Server::with(2, &["--faults"]).allow_errors(&["SIGSEGV"]);
    let mut client = server.connect();
    let pid = client.get("/").expect("pid").pid();
    let failure = client.get("/fault/segv").expect_err("the connection ends");
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    wait_death(&server, pid, "SIGSEGV");
    server.wait_replaced(1);
    server.stop();
}

#[test]
fn an_unexpected_exit_is_logged_and_the_worker_replaced() {
    let server = Server::with(2, &["--faults"]).allow_errors(&["42"]);
    let mut client = server.connect();
    let pid = client.get("/").expect("pid").pid();
    let failure = client.get("/fault/exit").expect_err("the connection ends");
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure:?}");
    wait_death(&server, pid, "42");
    server.wait_replaced(1);
    assert!(process::zombies(server.pid()).is_empty());
    server.stop();
}

#[test]
fn a_worker_that_gets_sigterm_is_replaced() {
    let server = Server::start(2);
    let pid = server.worker_pids()[0];
    process::send_signal(pid, Signal::SIGTERM);
    server.wait_replaced(1);
    wait::wait_until("the end of the old one", || !server.worker_pids().contains(&pid));
    let text = server.stop();
    assert_eq!(log::warnings_and_errors(&text), Vec::<&str>::new());
}

#[test]
fn no_connection_is_refused_when_all_workers_die() {
    let rounds = env_count("PREFORK_KILL_ALL", 10);
    let server = Server::start(2).allow_errors(&["SIGKILL"]);
    let clients = 4;
    let load = Load::new_connections(server.address(), clients).start();
    for round in 1..=rounds {
        load.wait_answered(4);
        for pid in server.worker_pids() {
            process::send_signal(pid, Signal::SIGKILL);
        }
        server.wait_replaced(2 * round);
    }
    load.wait_answered(20);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    // Each client has at most one request in flight.
    assert!(tally.failures() <= (rounds * clients) as u64, "{tally:?}");
    assert!(
        tally.failed.keys().all(|f| matches!(f, Failure::Reset | Failure::Closed)),
        "{tally:?}"
    );
    server.stop();
}

#[test]
fn repeated_kills_lose_only_requests_in_flight() {
    let kills = env_count("PREFORK_KILLS", 40);
    let (workers, clients) = (4, 8);
    let server = Server::start(workers).allow_errors(&["SIGKILL"]);
    let load = Load::keep_alive(server.address(), clients).start();
    for kill in 0..kills {
        load.wait_answered(8);
        // Kill only workers that are ready.
        server.wait_replaced(kill);
        let pids = server.worker_pids();
        process::send_signal(pids[kill % pids.len()], Signal::SIGKILL);
    }
    server.wait_log_count(&["SIGKILL"], kills);
    server.wait_replaced(kills);
    load.wait_answered(50);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failures() <= (kills * clients) as u64, "{tally:?}");
    assert!(
        tally.failed.keys().all(|f| matches!(f, Failure::Reset | Failure::Closed)),
        "{tally:?}"
    );
    let cluster = server.cluster();
    assert_eq!(cluster["primary"]["restarts"], kills as u64);
    assert_eq!(cluster["workers"].as_array().map(Vec::len), Some(workers));
    assert!(process::zombies(server.pid()).is_empty());
    server.stop();
}
