//! `--dispatch reuseport`: one socket per slot, whose queue is served whatever happens to the worker of the slot.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use crate::boot::BOOT_FAILED;
use crate::support::command::ProcessBuilder;
use crate::support::fault_load::{self, assert_nothing_lost};
use crate::support::http::Response;
use crate::support::load::Load;
use crate::support::{Client, Server, process, wait};

fn start_reuseport(workers: usize) -> Server {
    Server::builder().workers(workers).dispatch("reuseport").start()
}

/// Opens new connections, and returns the pids of the workers that answer.
#[track_caller]
fn answering_pids(server: &Server, connections: usize) -> BTreeSet<u32> {
    (0..connections).map(|_| server.get("/").pid()).collect()
}

/// Counts the sockets that listen on the port.
fn listening_socket_count(server: &Server) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let wanted = format!(":{:04X}", server.port());
    let listens = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&wanted) && fields[3] == "0A"
    };
    table.lines().filter(listens).count()
}

/// Sends a request on a new connection, and reads the response within 10 s.
#[track_caller]
fn get_within_10_seconds(server: &Server) -> Response {
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client.read_within_10_seconds().expect("an answer")
}

#[test]
fn reuseport_has_one_socket_per_slot_and_reaches_every_worker() {
    let server = start_reuseport(4);
    server.wait_log(&["dispatch=reuseport"]);
    assert_eq!(listening_socket_count(&server), 4);
    let workers: BTreeSet<u32> = server.worker_pids().into_iter().collect();
    wait::wait_until("an answer of each", || answering_pids(&server, 16) == workers);
    // A worker inherits only its own socket.
    for pid in workers {
        let holds = |(_, target): &(i32, String)| target.starts_with("socket:");
        let sockets = process::descriptors(pid).iter().filter(|fd| holds(fd)).count();
        assert!(sockets <= 3 + 1, "two channels, its socket, and perhaps a connection: {sockets}");
    }
    assert_eq!(server.status()["primary"]["dispatch"], "reuseport");
    assert!(server.run_verb(&["status"]).contains("reuseport"));
    server.stop();
}

#[test]
fn shared_dispatch_has_one_socket() {
    let server = Server::builder().workers(3).start();
    assert_eq!((listening_socket_count(&server), server.count_log(&["dispatch="])), (1, 0));
    assert_eq!(server.status()["primary"]["dispatch"], "shared");
    server.stop();
}

#[test]
fn connections_of_a_slot_that_cannot_boot_are_served_by_others() {
    let args = ["dispatch=reuseport"];
    let server = ProcessBuilder::program("boot-fails-if-broken").workers(3).args(args).start();
    let server = server.allow_errors(&["SIGKILL", "they are broken", BOOT_FAILED]);
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    let workers = server.worker_pids();
    process::send_signal(workers[0], Signal::SIGKILL);
    server.wait_log_count(&["worker=", "they are broken"], 3);
    // A third of the connections go to the socket of the slot without a worker, which another worker serves.
    for _ in 0..60 {
        assert_eq!(get_within_10_seconds(&server).status, 200);
    }
    // If that worker dies, too, the last one serves all sockets.
    process::send_signal(workers[1], Signal::SIGKILL);
    wait::wait_until("its end", || process::has_ended(workers[1]));
    for _ in 0..60 {
        assert_eq!(get_within_10_seconds(&server).status, 200);
    }
    std::fs::remove_file(&broken).expect("remove");
    server.wait_replaced(2);
    server.stop();
}

#[test]
fn connections_of_a_stopped_worker_are_served_by_others() {
    let server = start_reuseport(3);
    let stopped = server.worker_pids()[1];
    fault_load::assert_stopped_worker_is_bypassed(&server, stopped);
    // From now on connections are served without any delay.
    assert!(!answering_pids(&server, 30).contains(&stopped));
    process::send_signal(stopped, Signal::SIGCONT);
    wait::wait_until("the worker is picked again", || {
        answering_pids(&server, 8).contains(&stopped)
    });
    server.stop();
}

#[test]
fn scaling_under_reuseport_loses_nothing() {
    let server = start_reuseport(4);
    let load = Load::new_connections(server.address(), 4).start();
    for _ in 0..2 {
        load.wait_answered(24);
        server.run_verb(&["scale", "1"]);
        server.wait_new_workers(1, &[]);
        // The sockets stay open, and the last worker serves all of them.
        assert_eq!(listening_socket_count(&server), 4);
        load.wait_answered(24);
        server.run_verb(&["scale", "4"]);
        server.wait_new_workers(4, &[]);
        assert_eq!(listening_socket_count(&server), 4);
    }
    server.run_verb(&["scale", "6"]);
    let workers: BTreeSet<u32> = server.wait_new_workers(6, &[]).into_iter().collect();
    assert_eq!(listening_socket_count(&server), 6);
    wait::wait_until("an answer of each", || answering_pids(&server, 16) == workers);
    assert_nothing_lost(load);
    server.stop();
}

#[test]
fn reloads_under_reuseport_lose_no_connection() {
    let server = start_reuseport(3);
    fault_load::assert_reloads_lose_nothing(&server);
    assert_eq!(listening_socket_count(&server), 3);
    server.stop();
}

#[test]
fn upgrades_under_reuseport_pass_all_sockets_and_lose_nothing() {
    let server = Server::builder().with_copied_program().workers(2).dispatch("reuseport").start();
    server.run_verb(&["scale", "4"]);
    server.wait_new_workers(4, &[]);
    server.run_verb(&["scale", "3"]);
    server.wait_new_workers(3, &[]);
    let load = Load::new_connections(server.address(), 4).start();
    for generation in 2..5 {
        load.wait_answered(24);
        let old = server.worker_pids();
        server.signal(Signal::SIGUSR2);
        server.wait_generation(generation);
        // An upgrade keeps the number of workers.
        server.wait_new_workers(3, &old);
        assert_eq!(listening_socket_count(&server), 4);
    }
    assert_nothing_lost(load);
    server.stop();
}

#[test]
fn a_killed_reuseport_worker_loses_only_requests_it_had_begun() {
    let server = start_reuseport(4).allow_errors(&["SIGKILL"]);
    fault_load::assert_kills_lose_little(&server, 12);
    server.stop();
}

#[test]
fn a_stop_answers_every_connection_in_any_accept_queue() {
    let server = start_reuseport(4);
    server.run_verb(&["scale", "2"]);
    let workers = server.wait_new_workers(2, &[]);
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGSTOP));
    let mut clients: Vec<Client> = (0..32).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    }
    server.signal(Signal::SIGTERM);
    server.wait_phase("stopping");
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGCONT));
    for client in &mut clients {
        assert_eq!(client.read_within_10_seconds().expect("an answer").status, 200);
    }
    server.wait_clean_exit(0);
}

#[test]
fn reloads_between_shared_and_reuseport_lose_nothing() {
    let text = |dispatch: &str, more: &str| {
        format!("bind = ['127.0.0.1:0'{more}]\nworkers = 3\ndispatch = '{dispatch}'\n")
    };
    let server = Server::builder().config(3, &text("shared", "")).start();
    let load = Load::new_connections(server.address(), 4).start();
    let mut open = 1;
    for dispatch in ["reuseport", "shared", "reuseport"] {
        load.wait_answered(24);
        let text = text(dispatch, "");
        std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
        server.run_verb(&["reload"]);
        open = open.max(if dispatch == "shared" { 1 } else { 3 });
        // A socket that was opened stays open.
        assert_eq!(listening_socket_count(&server), open);
        assert_eq!(server.status()["primary"]["dispatch"], dispatch);
        load.wait_answered(64);
    }
    assert_nothing_lost(load);
    server.stop();
}

#[test]
fn removing_an_address_closes_all_its_sockets() {
    let text =
        |more: &str| format!("bind = ['127.0.0.1:0'{more}]\nworkers = 3\ndispatch = 'reuseport'\n");
    let server = Server::builder().config(3, &text(", '127.0.0.2:0'")).start();
    let gone = server.addresses()[1].clone();
    assert_eq!(Client::connect(&gone).and_then(|mut c| c.get("/")).expect("answer").status, 200);
    // The last worker serves the sockets of all three slots.
    server.run_verb(&["scale", "1"]);
    server.wait_new_workers(1, &[]);
    assert_eq!(Client::connect(&gone).and_then(|mut c| c.get("/")).expect("answer").status, 200);
    let load = Load::new_connections(server.address(), 2).start();
    std::fs::write(server.dir().join("prefork.toml"), text("")).expect("write");
    server.run_verb(&["reload"]);
    server.wait_listeners(1);
    wait::wait_until("the last share dropped", || Client::connect(&gone).is_err());
    assert_nothing_lost(load);
    server.stop();
}
