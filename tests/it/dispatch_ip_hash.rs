//! `--dispatch ip-hash`: connections from one address reach the same worker while it accepts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::boot::BOOT_FAILED;
use crate::support::command::ProcessBuilder;
use crate::support::fault_load;
use crate::support::load::Load;
use crate::support::{Address, Client, Server, process, wait};

/// Number of client addresses, from 127.0.1.1 on.
const CLIENT_COUNT: u8 = 48;

/// Sends a request from this client address, and returns the pid of the worker that answers.
#[track_caller]
fn answering_pid(server: &Server, client: Ipv4Addr) -> u32 {
    let Address::Tcp(to) = server.address() else { panic!("not TCP") };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from((client, 0)).into()).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    socket.connect(&(*to).into()).expect("connect");
    let mut stream = std::net::TcpStream::from(OwnedFd::from(socket));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("send");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.trim_end().rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect(&text)
}

fn client_addresses() -> impl Iterator<Item = Ipv4Addr> {
    (1..=CLIENT_COUNT).map(|last| Ipv4Addr::new(127, 0, 1, last))
}

/// Returns the answering pid for each client address.
#[track_caller]
fn pids_by_client(server: &Server) -> BTreeMap<Ipv4Addr, u32> {
    client_addresses().map(|client| (client, answering_pid(server, client))).collect()
}

#[test]
fn a_client_address_always_reaches_the_same_worker() {
    let server = Server::builder().workers(4).dispatch("ip-hash").start();
    let first = pids_by_client(&server);
    for _ in 0..3 {
        assert_eq!(pids_by_client(&server), first);
    }
    let workers = server.worker_pids();
    assert!(workers.iter().all(|pid| first.values().any(|by| by == pid)), "{first:?}");
    assert_eq!(server.status()["primary"]["dispatch_rung"], "ip-hash");
    assert!(server.run_verb(&["status"]).contains("ip-hash"));
    server.stop();
}

#[test]
fn clients_of_an_empty_slot_move_and_others_stay() {
    let args = ["dispatch=ip-hash"];
    let server = ProcessBuilder::program("boot-fails-if-broken").workers(4).args(args).start();
    let server = server.allow_errors(&["SIGKILL", "they are broken", BOOT_FAILED]);
    let before = pids_by_client(&server);
    let broken = server.dir().join("broken");
    std::fs::write(&broken, "").expect("write");
    let dead = before[&Ipv4Addr::new(127, 0, 1, 1)];
    let born = server.worker_pids();
    process::send_signal(dead, Signal::SIGKILL);
    server.wait_log_count(&["worker=", "they are broken"], 3);
    let during = pids_by_client(&server);
    for (client, by) in &before {
        let now = during[client];
        assert!(if *by == dead { now != dead } else { now == *by }, "{client}: {by}, then {now}");
    }
    let successors = during.iter().filter(|(client, _)| before[client] == dead);
    let successors: std::collections::BTreeSet<u32> = successors.map(|(_, by)| *by).collect();
    assert!(successors.len() > 1, "its clients are spread over the others: {successors:?}");
    assert_eq!(pids_by_client(&server), during, "and stay there");
    // The clients return when their slot has a worker again.
    std::fs::remove_file(&broken).expect("remove");
    server.wait_replaced(1);
    let fresh = server.worker_pids().into_iter().find(|pid| !born.contains(pid)).expect("a worker");
    let after: BTreeMap<Ipv4Addr, u32> = before
        .iter()
        .map(|(client, by)| (*client, if *by == dead { fresh } else { *by }))
        .collect();
    assert_eq!(pids_by_client(&server), after);
    server.stop();
}

#[test]
fn ip_hash_refuses_no_connection_during_kills_and_reloads() {
    let server = Server::builder().workers(3).dispatch("ip-hash").start();
    let server = server.allow_errors(&["SIGKILL"]);
    fault_load::assert_kills_lose_little(&server, 9);
    fault_load::assert_reloads_lose_nothing(&server);
    server.stop();
}

#[test]
fn clients_keep_their_slot_over_reload_scale_and_upgrade() {
    let server = Server::builder().with_copied_program().workers(3).dispatch("ip-hash").start();
    let slots = |server: &Server| -> BTreeMap<Ipv4Addr, u64> {
        let status = server.status();
        let workers = status["workers"].as_array().expect("workers").clone();
        let slot = |pid: u32| {
            let worker = workers.iter().find(|worker| worker["pid"] == pid);
            worker.and_then(|worker| worker["slot"].as_u64()).expect("a slot")
        };
        pids_by_client(server).into_iter().map(|(client, pid)| (client, slot(pid))).collect()
    };
    let before = slots(&server);
    let load = Load::new_connections(server.address(), 2).start();
    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    server.wait_new_workers(3, &old);
    assert_eq!(slots(&server), before);
    server.run_verb(&["scale", "5"]);
    server.wait_new_workers(5, &[]);
    let five = slots(&server);
    for (client, slot) in &five {
        assert!(*slot > 2 || before[client] == *slot, "{client} moves to new slots only");
    }
    server.run_verb(&["scale", "3"]);
    server.wait_new_workers(3, &[]);
    assert_eq!(slots(&server), before);
    let old = server.worker_pids();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(3);
    server.wait_new_workers(3, &old);
    assert_eq!(slots(&server), before);
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.failures(), tally.refused), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn clients_of_a_stopped_worker_are_served_by_others() {
    let server = Server::builder().workers(3).dispatch("ip-hash").start();
    let before = pids_by_client(&server);
    let stopped = before[&Ipv4Addr::new(127, 0, 1, 1)];
    process::send_signal(stopped, Signal::SIGSTOP);
    wait::wait_until("its clients are elsewhere", || {
        pids_by_client(&server).values().all(|by| *by != stopped)
    });
    for (client, by) in pids_by_client(&server) {
        assert!(before[&client] == stopped || before[&client] == by, "{client}");
    }
    process::send_signal(stopped, Signal::SIGCONT);
    wait::wait_until("all as before", || pids_by_client(&server) == before);
    server.stop();
}

#[test]
fn ip_hash_supports_ipv6() {
    let server = Server::builder().workers(3).bind(["[::1]:0"]).dispatch("ip-hash").start();
    let Ok(mut first) = Client::connect(server.address()) else { panic!("cannot connect") };
    let by = first.get("/").expect("an answer").pid();
    for _ in 0..20 {
        assert_eq!(server.get("/").pid(), by);
    }
    server.stop();
}
