//! Sockets of the application: kept over an upgrade, and passed by the service manager by name.
//! `tests/programs/inherited_sockets.rs` is the application.

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::command::ProcessBuilder;
use crate::support::service_manager::pass_sockets;
use crate::support::{Address, Client, Server, process, wait};

fn builder() -> ProcessBuilder {
    ProcessBuilder::program("inherited-sockets").workers(2)
}

/// Returns the addresses of the application's listener and of its UDP socket.
fn own_addresses(server: &Server) -> (Address, SocketAddr) {
    let text = std::fs::read_to_string(server.dir().join("ports")).expect("ports");
    let ports: Vec<u16> = text.split(' ').map(|port| port.parse().expect("a port")).collect();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    (Address::Tcp(at(ports[0])), at(ports[1]))
}

/// Sends packets until one is answered, and returns the answer.
fn ask_by_udp(addr: SocketAddr) -> String {
    let client = UdpSocket::bind("127.0.0.1:0").expect("bound");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    wait::wait_until_some("an answer by UDP", || {
        client.send_to(b"?", addr).expect("sent");
        let mut answer = [0; 64];
        let (length, _) = client.recv_from(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

/// Returns how often the primary says that it was upgraded.
fn upgrade_count(server: &Server) -> String {
    let mut client = UnixStream::connect(server.dir().join("admin.sock")).expect("connected");
    client.set_read_timeout(Some(wait::DEADLINE)).expect("a timeout");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    answer.trim_end().to_string()
}

fn opened_count(server: &Server) -> usize {
    std::fs::read_to_string(server.dir().join("opened")).map_or(0, |text| text.lines().count())
}

#[test]
fn sockets_of_the_application_outlive_upgrades() {
    let server = builder().start();
    let (listener, udp) = own_addresses(&server);
    assert!(server.addresses().contains(&listener), "{:?}", server.addresses());
    assert_eq!((ask_by_udp(udp).as_str(), upgrade_count(&server).as_str()), ("1", "0"));
    for upgrades in 1..=2u64 {
        server.run_verb(&["upgrade"]);
        assert_eq!(own_addresses(&server), (listener.clone(), udp));
        let generation = (upgrades + 1).to_string();
        wait::wait_until("an answer of a new worker", || ask_by_udp(udp) == generation);
        assert_eq!(upgrade_count(&server), upgrades.to_string());
        assert_eq!(
            Client::connect(&listener).and_then(|mut c| c.get("/")).map(|a| a.status),
            Ok(200)
        );
    }
    assert_eq!(opened_count(&server), 3, "each socket was opened once");
    server.stop();
}

#[test]
fn workers_hold_the_sockets_of_the_application_once() {
    let server = builder().start();
    let count = |pid: u32, port: u16| {
        let inode = socket_inode("/proc/net/udp", port).or(socket_inode("/proc/net/tcp", port));
        let target = format!("socket:[{}]", inode.expect("a socket"));
        process::descriptors(pid).iter().filter(|(_, other)| *other == target).count()
    };
    let (listener, udp) = own_addresses(&server);
    let Address::Tcp(listener) = listener else { panic!("a TCP address") };
    for worker in server.worker_pids() {
        // The copy in the closure, and the one that the runtime polls.
        assert_eq!(count(worker, udp.port()), 2);
        // With a second copy, a worker that drains would keep the address listening.
        assert_eq!(count(worker, listener.port()), 1);
    }
    server.stop();
}

/// Returns the inode of the socket that is bound to this port.
fn socket_inode(table: &str, port: u16) -> Option<String> {
    let table = std::fs::read_to_string(table).expect("a table");
    let end = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // The local address; established connections have a peer.
        let is_bound = fields.get(1)?.ends_with(&end) && fields.get(2)?.ends_with(":0000");
        is_bound.then(|| fields[9].to_string())
    })
}

#[test]
fn the_service_manager_can_pass_any_socket_by_name() {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let addr = udp.local_addr().expect("an address");
    let server = pass_sockets(builder(), vec![("udp".to_string(), udp.into())]).start();
    assert_eq!(own_addresses(&server).1, addr);
    assert_eq!(ask_by_udp(addr), "1");
    assert_eq!(opened_count(&server), 2, "the other two");
    server.run_verb(&["upgrade"]);
    wait::wait_until("an answer of a new worker", || ask_by_udp(addr) == "2");
    assert_eq!(opened_count(&server), 2);
    server.stop();
}
