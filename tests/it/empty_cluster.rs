//! Clusters whose workers have all left for good. `tests/programs/primary_loop.rs` and `primary_events.rs` are the
//! applications.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;

use crate::support::admin::Admin;
use crate::support::command::ProcessBuilder;
use crate::support::service_manager::pass_sockets;
use crate::support::{Address, Client, Failure, Server, process, wait};

const POLICIES: [&str; 5] = ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"];

/// Starts the program whose admin socket keeps its primary, with two workers besides the one that it forks itself.
fn start_program(args: &[&str]) -> Server {
    ProcessBuilder::program("primary-loop").workers(2).other_workers(1).args(args).start()
}

/// Waits until connections to all addresses are refused.
#[track_caller]
fn wait_refused(server: &Server) {
    for address in server.addresses() {
        wait::wait_until(&format!("a refused connection at {address}"), || {
            matches!(Client::connect(address), Err(Failure::Refused))
        });
    }
}

#[track_caller]
fn wait_served(server: &Server) {
    for address in server.addresses() {
        wait::wait_until(&format!("an answer at {address}"), || {
            let answer = Client::connect(address).and_then(|mut client| client.get("/"));
            answer.is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
fn a_cluster_whose_workers_leave_for_good_ends_with_status_0() {
    let mut server = ProcessBuilder::program("primary-events").workers(2).start();
    for left in [1, 0] {
        assert_eq!(server.get("/disconnect").text(), "true");
        wait::wait_until("its end", || process::children(server.pid()).len() == left);
    }
    assert_eq!(server.wait_exit().code(), Some(0));
    let events = std::fs::read_to_string(server.dir().join("events")).expect("events");
    let last: Vec<&str> = events.lines().rev().take(2).collect();
    assert_eq!(last, ["stopping", "empty"], "{events}");
}

#[test]
fn a_cluster_whose_dead_workers_are_not_replaced_ends_too() {
    let server = ProcessBuilder::program("primary-events").workers(2).start();
    std::fs::write(server.dir().join("veto"), "").expect("written");
    for pid in server.worker_pids() {
        process::send_signal(pid, Signal::SIGKILL);
    }
    server.allow_errors(&["worker="]).wait_clean_exit(0);
}

#[test]
fn clients_are_refused_while_no_worker_is_left_and_served_after_the_next_fork() {
    for policy in POLICIES {
        let dir = tempfile::tempdir().expect("directory");
        let unix = format!("unix:{}", dir.path().join("app.sock").display());
        let server = start_program(&["--bind", &unix, &format!("dispatch={policy}")]);
        let mut admin = Admin::connect(&server);
        for _ in 0..2 {
            assert_eq!(admin.ask("disconnect-all"), "ok");
            wait_refused(&server);
            assert!(server.worker_pids().is_empty(), "{policy}");
            let Address::Tcp(tcp) = server.address() else { panic!("a TCP address comes first") };
            let stolen = TcpListener::bind(tcp).expect_err("the address stays ours");
            assert_eq!(stolen.kind(), std::io::ErrorKind::AddrInUse, "{policy}");
            admin.ask("fork");
            wait_served(&server);
        }
        // The empty slots too.
        admin.ask("scale 4");
        wait::wait_until("four workers", || server.worker_pids().len() == 4);
        wait_served(&server);
        let empty = admin.notes().into_iter().filter(|note| note == "empty").count();
        assert_eq!(empty, 2, "{policy}");
        server.stop();
    }
}

#[test]
fn scaling_to_0_refuses_connections_and_a_reload_begins_again() {
    let server = start_program(&[]);
    let mut admin = Admin::connect(&server);
    assert_eq!(admin.ask("scale 0"), "ok");
    wait_refused(&server);
    server.signal(Signal::SIGHUP);
    admin.ask("scale 1");
    wait_served(&server);
    server.stop();
}

#[test]
fn a_hook_that_forks_at_the_event_keeps_the_sockets_open() {
    let server = start_program(&[]);
    std::fs::write(server.dir().join("fork-at-empty"), "").expect("written");
    let mut admin = Admin::connect(&server);
    admin.ask("disconnect-all");
    // No connection is refused meanwhile: one that comes too early waits for the new worker.
    wait::wait_until("the new worker", || {
        let answer = server.get("/");
        assert_eq!(answer.status, 200);
        answer.text().starts_with("4 ")
    });
    server.stop();
}

#[test]
fn the_last_worker_serves_the_connections_that_wait_in_the_queue() {
    for policy in ["shared", "reuseport", "round-robin"] {
        let server = start_program(&[&format!("dispatch={policy}")]);
        let mut admin = Admin::connect(&server);
        // Each event loop stands still in one of them; the others wait.
        let mut clients: Vec<Client> = (0..12).map(|_| server.send_get("/block")).collect();
        admin.ask("disconnect-all");
        std::fs::write(server.dir().join("unblock"), "").expect("written");
        for (number, client) in clients.iter_mut().enumerate() {
            let answer = client.read_within_10_seconds();
            assert_eq!(answer.map(|a| a.status), Ok(200), "{policy}: client {number}");
        }
        drop(clients);
        wait_refused(&server);
        server.stop();
    }
}

#[test]
fn sockets_of_the_service_manager_go_on_listening() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
    let dir = tempfile::tempdir().expect("directory");
    let unix = UnixListener::bind(dir.path().join("s")).expect("bind");
    let of_manager = (tcp.try_clone().expect("a copy"), unix.try_clone().expect("a copy"));
    let builder = ProcessBuilder::program("primary-events").workers(1).bind::<String>([]);
    let sockets = vec![("web".to_string(), tcp.into()), ("local".to_string(), unix.into())];
    let server = pass_sockets(builder, sockets).start();
    let addresses = server.addresses().to_vec();
    assert_eq!(server.get("/disconnect").text(), "true");
    server.wait_clean_exit(0);
    // These clients wait for the process that the service manager starts next.
    for address in &addresses {
        Client::connect(address).expect("connected");
    }
    of_manager.0.accept().expect("a client");
    of_manager.1.accept().expect("a client");
}
