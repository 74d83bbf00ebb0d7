//! Sockets passed by a service manager, and the descriptor store.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;

use crate::support::fault_load::assert_nothing_lost;
use crate::support::http::assert_served;
use crate::support::load::Load;
use crate::support::service_manager::{ServiceManager, pass_sockets};
use crate::support::{Address, Client, Server, log, process, wait};

const POLICIES: [&str; 5] = ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"];

fn tcp_listener(at: &str) -> (SocketAddr, (String, OwnedFd)) {
    let listener = TcpListener::bind(at).expect("bind");
    (listener.local_addr().expect("name"), ("web".to_string(), listener.into()))
}

/// Opens kept connections until `count` workers have answered.
fn wait_answers_of(address: &Address, count: usize) {
    let mut seen = BTreeSet::new();
    let mut held = Vec::new();
    wait::wait_until(&format!("answers of {count} workers"), || {
        let mut client = Client::connect(address).expect("connect");
        seen.insert(client.get("/").expect("answer").pid());
        held.push(client);
        seen.len() == count
    });
}

#[test]
fn passed_sockets_are_served() {
    let builder = Server::builder().bind::<String>([]);
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("made-by-the-manager");
    let unix = UnixListener::bind(&path).expect("bind");
    let ((v4, first), (v6, second)) = (tcp_listener("127.0.0.1:0"), tcp_listener("[::1]:0"));
    let sockets = vec![first, second, ("admin".to_string(), unix.into())];
    let server = pass_sockets(builder, sockets).start();
    let addresses = [Address::Tcp(v4), Address::Tcp(v6), Address::Unix(path.clone())];
    assert_eq!(server.addresses(), addresses);
    for address in &addresses {
        assert_served(address);
    }
    // No other address is bound, and a reload changes nothing.
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(2, &old);
    for address in &addresses {
        assert_served(address);
    }
    let log = server.stop();
    assert!(!log.contains(":3000"), "{log}");
    assert!(path.exists(), "the file is the manager's");
}

#[test]
fn a_passed_socket_named_by_bind_is_used_and_the_rest_is_bound() {
    let (addr, socket) = tcp_listener("127.0.0.1:0");
    let builder = Server::builder().bind([addr.to_string(), "127.0.0.1:0".to_string()]);
    let server = pass_sockets(builder, vec![socket]).start();
    assert_eq!(server.addresses().len(), 2);
    assert_eq!(server.address(), &Address::Tcp(addr));
    for address in server.addresses() {
        assert_served(address);
    }
    server.stop();
}

#[test]
fn every_dispatch_policy_serves_passed_sockets() {
    for policy in POLICIES {
        let (addr, socket) = tcp_listener("127.0.0.1:0");
        let builder = Server::builder().bind::<String>([]).workers(3).dispatch(policy);
        let server = pass_sockets(builder, vec![socket]).start();
        let address = Address::Tcp(addr);
        assert_eq!(server.address(), &address, "{policy}");
        let load = Load::new_connections(&address, 4).start();
        load.wait_answered(24);
        // Under ip-hash, one client always reaches the same worker.
        if policy != "ip-hash" {
            wait_answers_of(&address, 3);
        }
        let victim = server.get("/").pid();
        let old = server.worker_pids();
        assert!(old.contains(&victim));
        server.signal(Signal::SIGHUP);
        server.wait_new_workers(3, &old);
        assert_nothing_lost(load);
        let text = server.stop();
        let (port, about) = (addr.port().to_string(), "WARN");
        assert_eq!(log::lines_with(&text, &[about, &port]).count(), 0, "{policy}: {text}");
    }
}

#[test]
fn a_passed_socket_without_reuseport_is_shared_with_a_warning() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: sockets of two users need root");
    }
    let (addr, socket) = tcp_listener("127.0.0.1:0");
    let builder = Server::builder().bind::<String>([]).dispatch("reuseport").with_user(65534);
    std::fs::write(builder.dir().join("log"), "").expect("log");
    std::os::unix::fs::chown(builder.dir().join("log"), Some(65534), None).expect("chown");
    let server = pass_sockets(builder, vec![socket]).start();
    wait_answers_of(&Address::Tcp(addr), 2);
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(2, &old);
    wait_answers_of(&Address::Tcp(addr), 2);
    let text = server.stop();
    assert!(log::lines_with(&text, &["WARN", &addr.port().to_string()]).count() > 0, "{text}");
}

#[test]
fn passed_descriptors_that_are_not_listeners_are_named() {
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let file = std::fs::File::open("/dev/null").expect("open");
    for wrong in [OwnedFd::from(datagrams), OwnedFd::from(file)] {
        let builder = Server::builder().bind::<String>([]);
        let mut server = pass_sockets(builder, vec![("web".to_string(), wrong)]).spawn();
        assert_eq!(server.wait_exit().code(), Some(69));
        let text = server.log();
        assert_eq!(log::lines_with(&text, &["3", "\"web\"", "LISTEN_FDS"]).count(), 1, "{text}");
    }
    let ended = Server::builder().script(r#"LISTEN_PID=$$ LISTEN_FDS=1000000000 exec "$0" "$@""#);
    let ended = ended.run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("LISTEN_FDS") && ended.stderr.contains("1000000000"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_passed_socket_keeps_listening_over_a_restart() {
    let (addr, socket) = tcp_listener("127.0.0.1:0");
    let again = socket.1.try_clone().expect("dup");
    let first = pass_sockets(Server::builder().bind::<String>([]), vec![socket]).start();
    first.stop();
    let mut early =
        Client::connect(&Address::Tcp(addr)).expect("connections are accepted meanwhile");
    early.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    let builder = Server::builder().bind::<String>([]);
    let second = pass_sockets(builder, vec![("web".to_string(), again)]).start();
    assert_eq!(early.read().expect("answer").status, 200);
    second.stop();
}

/// Kills the primary under load, and starts the next one with the stored sockets. No connection may be refused, and at
/// most `lost` requests lost.
#[track_caller]
fn restart_after_primary_kill(
    manager: &ServiceManager,
    mut server: Server,
    lost: u64,
    next: impl FnOnce() -> Server,
) -> Server {
    let address = server.address().clone();
    let load = Load::new_connections(&address, 4).start();
    load.wait_answered(48);
    let orphans = server.worker_pids();
    server.kill_primary();
    let second = next();
    assert_eq!(second.address(), &address);
    load.wait_answered(48);
    wait::wait_until("the end of the orphans", || {
        orphans.iter().all(|pid| process::has_ended(*pid))
    });
    load.wait_answered(24);
    let tally = load.stop();
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failures() <= lost, "{tally:?}");
    assert!(!manager.stored_names().is_empty());
    second
}

#[test]
fn with_the_fd_store_a_killed_primary_refuses_no_connection() {
    for policy in POLICIES {
        let manager = ServiceManager::new();
        let start = || manager.attach(Server::builder()).env("FDSTORE", "8").dispatch(policy);
        let server = start().start();
        // Connections that the primary has accepted and not passed on are lost with it.
        let lost = if policy == "round-robin" { 4 } else { 0 };
        let sockets = if ["shared", "round-robin"].contains(&policy) { 1 } else { 2 };
        let mut names = manager.stored_names();
        names.sort();
        let wanted = ["prefork-0-127.0.0.1%3A0", "prefork-1-127.0.0.1%3A0"];
        assert_eq!(names, wanted[..sockets], "{policy}");
        let second = restart_after_primary_kill(&manager, server, lost, || {
            pass_sockets(start(), manager.stored_descriptors()).start()
        });
        // The primary is killed twice, as the restarted primary must store its sockets, too.
        let third = restart_after_primary_kill(&manager, second, lost, || {
            pass_sockets(start(), manager.stored_descriptors()).start()
        });
        assert_eq!(manager.stored_names().len(), sockets, "{policy}: taken back, not stored again");
        third.stop();
    }
}

#[test]
fn stored_sockets_are_served_under_another_policy_and_by_fewer_workers() {
    let manager = ServiceManager::new();
    let start = |policy, workers| {
        let builder = manager.attach(Server::builder()).env("FDSTORE", "8");
        builder.workers(workers).dispatch(policy)
    };
    let server = start("least-conn", 3).start();
    let next = || pass_sockets(start("shared", 2), manager.stored_descriptors()).start();
    let second = restart_after_primary_kill(&manager, server, 0, next);
    let next = || pass_sockets(start("ip-hash", 1), manager.stored_descriptors()).start();
    restart_after_primary_kill(&manager, second, 0, next).stop();
}

#[test]
fn a_stored_unix_socket_keeps_its_file_until_the_stop() {
    let manager = ServiceManager::new();
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let start = || {
        let builder = manager.attach(Server::builder()).args(["--fd-store", "on"]);
        builder.bind([format!("unix:{}", path.display())])
    };
    let server = start().start();
    let second = restart_after_primary_kill(&manager, server, 0, || {
        pass_sockets(start(), manager.stored_descriptors()).start()
    });
    second.stop();
    assert!(!path.exists() && manager.stored_names().is_empty(), "{:?}", manager.stored_names());
}

#[test]
fn unused_sockets_are_removed_from_the_fd_store() {
    let text = |binds: &str| format!("bind = [{binds}]\nworkers = 2\n");
    let manager = ServiceManager::new();
    let two = text("'127.0.0.1:0', '127.0.0.2:0'");
    let builder = manager.attach(Server::builder().config(2, &two)).env("FDSTORE", "8");
    let server = builder.with_copied_program().start();
    assert_eq!(manager.stored_names().len(), 2);
    std::fs::write(server.dir().join("prefork.toml"), text("'127.0.0.1:0'")).expect("write");
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    wait::wait_until("one is let go", || manager.stored_names() == ["prefork-0-127.0.0.1%3A0"]);
    // An upgrade stores the socket that it opens, and no socket twice.
    let three = text("'127.0.0.1:0', '127.0.0.3:0'");
    std::fs::write(server.dir().join("prefork.toml"), three).expect("write");
    server.signal(Signal::SIGUSR2);
    server.wait_generation(3);
    wait::wait_until("the new one is kept", || manager.stored_names().len() == 2);
    let kept = manager.stored_descriptors();
    server.stop();
    // A start without this address removes it from the store, too.
    let builder = manager.attach(Server::builder()).env("FDSTORE", "8");
    let second = pass_sockets(builder, kept).start();
    wait::wait_until("it is let go", || manager.stored_names() == ["prefork-0-127.0.0.1%3A0"]);
    second.stop();
}

#[test]
fn the_fd_store_is_used_only_if_enabled() {
    let manager = ServiceManager::new();
    manager.attach(Server::builder()).start().stop();
    manager.attach(Server::builder()).env("FDSTORE", "0").start().stop();
    manager
        .attach(Server::builder())
        .env("FDSTORE", "8")
        .args(["--fd-store", "off"])
        .start()
        .stop();
    manager.wait_message("STOPPING=1");
    assert_eq!(manager.count_messages("FDSTORE=1"), 0);
}
