//! `prefork run` under `reuseport` and `ip-hash`: each worker has listening sockets of its own, and new connections go to the
//! workers that accept.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::control::serving;
use crate::support::load::Load;
use crate::support::{Address, Client, Server, env_count, process, wait};

fn start(workers: usize, words: &[&str], args: &[&str]) -> Server {
    let builder = ProcessBuilder::run_foreign_server(words).workers(workers);
    builder.dispatch("reuseport").args(args).start()
}

/// Returns the pids of the programs that serve.
pub fn serving_programs(server: &Server) -> BTreeSet<u32> {
    serving(&server.status()).map(program_pid).collect()
}

fn program_pid(worker: &Value) -> u32 {
    worker["pid"].as_u64().expect("a pid") as u32
}

/// Opens new connections, and returns the pids of the programs that answer.
#[track_caller]
pub fn answering_programs(server: &Server, connections: usize) -> BTreeSet<u32> {
    (0..connections).map(|_| server.get("/").pid()).collect()
}

/// Counts the sockets that listen on a port.
fn listening_socket_count(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let wanted = format!(":{port:04X}");
    let listens = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&wanted) && fields[3] == "0A"
    };
    table.lines().filter(listens).count()
}

#[test]
fn each_worker_has_its_own_socket_and_gets_connections() {
    let server = start(3, &[], &[]);
    assert_eq!(listening_socket_count(server.port()), 3);
    assert_eq!(server.status()["primary"]["dispatch_rung"], "cbpf-random");
    let programs = serving_programs(&server);
    assert_eq!(programs.len(), 3);
    wait::wait_until("an answer of each", || answering_programs(&server, 16) == programs);
    for pid in programs {
        let listening = process::listening_addresses(pid);
        assert_eq!(listening.len(), 1, "its own socket alone: {listening:?}");
    }
    server.stop();
}

#[test]
fn new_connections_under_reloads_are_never_refused_and_never_reach_an_old_worker() {
    let server = start(2, &["ignores-term"], &["--graceful-timeout", "300ms"]);
    let load = Load::new_connections(server.address(), 4).start();
    for generation in 2..2 + env_count("PREFORK_RELOADS", 5) {
        load.wait_answered(24);
        let old = serving_programs(&server);
        server.run_verb(&["reload"]);
        // The old programs still accept: they ignore the signal until they are killed.
        let answering = answering_programs(&server, 16);
        assert!(answering.is_disjoint(&old), "generation {generation}: {answering:?} of {old:?}");
    }
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    let log = server.stop();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_pool_of_sockets_stays_small_over_many_reloads() {
    let server = start(2, &[], &[]);
    for _ in 0..8 {
        server.run_verb(&["reload"]);
    }
    // Two that serve, two that drain, and one that boots.
    assert!(listening_socket_count(server.port()) <= 5);
    wait::wait_until("an answer of each", || {
        answering_programs(&server, 16) == serving_programs(&server)
    });
    server.stop();
}

#[test]
fn workers_that_are_scaled_away_get_no_connections_and_new_ones_get_their_sockets() {
    let server = start(4, &[], &[]);
    let load = Load::new_connections(server.address(), 4).start();
    for workers in [1, 4, 2, 5] {
        load.wait_answered(24);
        server.run_verb(&["scale", &workers.to_string()]);
        server.wait_serving(workers);
        let programs = serving_programs(&server);
        wait::wait_until("an answer of each", || answering_programs(&server, 24) == programs);
    }
    assert!(listening_socket_count(server.port()) <= 9);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    server.stop();
}

#[test]
fn all_workers_have_a_socket_at_each_address() {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(2).dispatch("reuseport");
    let server = builder.bind(["127.0.0.1:0", "[::1]:0", "127.0.0.2:0"]).start();
    let ask = |server: &Server, at: usize| {
        let mut client = Client::connect(&server.addresses()[at]).expect("connected");
        client.get("/").expect("an answer").pid()
    };
    for _ in 0..2 {
        let programs = serving_programs(&server);
        for at in 0..3 {
            wait::wait_until("an answer of each", || {
                (0..16).map(|_| ask(&server, at)).collect::<BTreeSet<u32>>() == programs
            });
        }
        server.run_verb(&["reload"]);
    }
    server.stop();
}

#[test]
fn a_unix_socket_is_shared_by_all_workers() {
    let dir = tempfile::tempdir().expect("directory");
    let path = format!("unix:{}", dir.path().join("s").display());
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(2).dispatch("reuseport");
    let server = builder.bind(["127.0.0.1:0".to_string(), path.clone()]).start();
    server.wait_log(&["WARN", &path]);
    let programs = serving_programs(&server);
    wait::wait_until("an answer of each", || answering_programs(&server, 16) == programs);
    let mut client = Client::connect(&server.addresses()[1]).expect("connected");
    assert!(programs.contains(&client.get("/").expect("an answer").pid()));
    server.run_verb(&["reload"]);
    let mut client = Client::connect(&server.addresses()[1]).expect("connected");
    assert!(client.get("/").expect("an answer").pid() > 0);
    server.stop();
}

#[test]
fn under_ip_hash_a_client_stays_with_its_slot_over_a_reload() {
    let server = ProcessBuilder::run_foreign_server(&[]).workers(4).dispatch("ip-hash").start();
    assert_eq!(server.status()["primary"]["dispatch_rung"], "ip-hash");
    let slots = |server: &Server| -> Vec<u64> {
        let status = server.status();
        (1..=16)
            .map(|n| {
                let pid = pid_for_client(server, n);
                let worker = serving(&status).find(|worker| program_pid(worker) == pid);
                worker.expect("it serves")["slot"].as_u64().expect("a slot")
            })
            .collect()
    };
    let before = slots(&server);
    assert!(before.iter().collect::<BTreeSet<_>>().len() > 1, "{before:?}");
    server.run_verb(&["reload"]);
    assert_eq!(slots(&server), before);
    server.stop();
}

/// Returns the pid of the program that answers a client at 127.0.1.N.
fn pid_for_client(server: &Server, n: u8) -> u32 {
    let mut answer = String::new();
    let mut client = send_from(server, Ipv4Addr::new(127, 0, 1, n));
    client.read_to_string(&mut answer).expect("an answer");
    let pid = answer.trim_end().rsplit(' ').next();
    pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

/// Sends a request from this address of the machine.
pub fn send_from(server: &Server, source: Ipv4Addr) -> TcpStream {
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let client = client.expect("socket");
    client.bind(&SocketAddr::from((source, 0)).into()).expect("bind");
    client.connect(&SocketAddr::from(([127, 0, 0, 1], server.port())).into()).expect("connected");
    let mut client = TcpStream::from(client);
    client.set_read_timeout(Some(wait::DEADLINE)).expect("timeout");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
    client
}

#[test]
fn an_upgrade_in_place_keeps_the_sockets_of_all_workers() {
    let builder = ProcessBuilder::run_foreign_server(&[]).workers(2).dispatch("reuseport");
    let server = builder.with_copied_program().start();
    let load = Load::new_connections(server.address(), 4).start();
    for generation in 2..5 {
        load.wait_answered(24);
        server.run_verb(&["upgrade"]);
        server.wait_generation(generation);
        assert_eq!(server.status()["primary"]["dispatch_rung"], "cbpf-random");
        wait::wait_until("an answer of each", || {
            answering_programs(&server, 16) == serving_programs(&server)
        });
    }
    assert!(listening_socket_count(server.port()) <= 5);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    server.stop();
}

#[test]
fn a_program_that_knows_nothing_of_draining_loses_no_new_connection_over_20_reloads() {
    let server = start(2, &[], &[]);
    let load = Load::new_connections(server.address(), 4).start();
    for _ in 0..env_count("PREFORK_RELOADS", 20) {
        load.wait_answered(24);
        server.run_verb(&["reload"]);
    }
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!((tally.refused, tally.failures()), (0, 0), "{tally:?}");
    server.stop();
}

#[test]
fn reloads_change_addresses_and_the_dispatch_policy() {
    let config = |bind: &str, dispatch: &str| {
        format!(
            "bind = [{bind}]\nworkers = 2\ndispatch = \"{dispatch}\"\ngraceful-timeout = \"1s\"\n"
        )
    };
    let first = "\"127.0.0.1:0\"";
    let both = "\"127.0.0.1:0\", \"127.0.0.2:0\"";
    let builder = ProcessBuilder::run_foreign_server(&[]).config(2, &config(first, "shared"));
    let server = builder.start();
    let load = Load::new_connections(server.address(), 2).start();
    let steps = [(first, "reuseport"), (both, "reuseport"), (both, "ip-hash"), (first, "shared")];
    for (bind, dispatch) in steps {
        load.wait_answered(8);
        std::fs::write(server.dir().join("prefork.toml"), config(bind, dispatch)).expect("write");
        server.run_verb(&["reload"]);
        let status = server.status();
        assert_eq!(status["primary"]["dispatch"], dispatch);
        let names = status["listeners"].as_array().into_iter().flatten();
        for name in names.filter_map(|name| name.as_str()) {
            let (_, address) = name.split_once("://").expect("a scheme");
            let address = Address::Tcp(address.parse().expect("an address"));
            let programs = serving_programs(&server);
            for _ in 0..8 {
                let answer = Client::connect(&address).and_then(|mut client| client.get("/"));
                assert!(programs.contains(&answer.expect("an answer").pid()), "{dispatch} {name}");
            }
        }
    }
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    server.stop();
}
