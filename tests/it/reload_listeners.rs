//! Reloads that change or repair listening sockets.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::support::http::assert_served;
use crate::support::load::Load;
use crate::support::{Address, Client, Failure, Server, log, wait};

fn write_config(server: &Server, text: &str) {
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
}

#[track_caller]
fn reload_with_config(server: &Server, text: &str) {
    write_config(server, text);
    server.run_verb(&["reload"]);
}

fn tcp_address(host: &str, port: u16) -> Address {
    Address::Tcp(format!("{host}:{port}").parse().expect("address"))
}

#[test]
fn widening_and_narrowing_an_address_refuses_no_connection() {
    for policy in ["shared", "round-robin", "reuseport"] {
        let text = |bind: &str| format!("bind = {bind}\nworkers = 2\ndispatch = '{policy}'\n");
        let server = Server::builder().config(2, &text("['127.0.0.1:0']")).start();
        let port = server.port();
        let load = Load::new_connections(&tcp_address("127.0.0.1", port), 2).start();
        for wide in ["", "0.0.0.0", "[::]"] {
            reload_with_config(&server, &text(&format!("['{wide}:{port}']")));
            assert_served(&tcp_address("127.0.0.2", port));
            load.wait_answered(10);
            reload_with_config(&server, &text(&format!("['127.0.0.1:{port}']")));
            let refused =
                || Client::connect(&tcp_address("127.0.0.2", port)).err() == Some(Failure::Refused);
            wait::wait_until("the end of the wide address", refused);
            load.wait_answered(10);
        }
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{policy}: {tally:?}");
        server.stop();
    }
}

#[test]
fn narrowing_a_wildcard_address_refuses_no_connection() {
    for policy in ["shared", "round-robin", "reuseport"] {
        for (wide, narrow) in [("[::]", "127.0.0.1"), ("[::]", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")]
        {
            let text =
                |bind: &str| format!("bind = ['{bind}']\nworkers = 2\ndispatch = '{policy}'\n");
            let server = Server::builder().config(2, &text(&format!("{wide}:0"))).start();
            let port = server.port();
            let load = Load::new_connections(&tcp_address("127.0.0.1", port), 2).start();
            load.wait_answered(5);
            reload_with_config(&server, &text(&format!("{narrow}:{port}")));
            load.wait_answered(10);
            let tally = load.stop();
            assert_eq!(tally.failures(), 0, "{policy} {wide} {narrow}: {tally:?}");
            server.stop();
        }
    }
}

#[test]
fn a_reload_can_return_to_an_address_held_by_draining_workers() {
    for policy in ["shared", "round-robin", "reuseport"] {
        let text = |bind: &str| format!("bind = ['{bind}']\nworkers = 2\ndispatch = '{policy}'\n");
        let server = Server::builder().config(2, &text("127.0.0.1:0")).start();
        let port = server.port();
        let name = format!("@prefork-test-{port}");
        let there = [
            format!("127.0.0.1:{port}"),
            format!("unix:{name}"),
            format!("[::]:{port}"),
            format!("127.0.0.1:{port}"),
            format!("unix:{name}"),
            format!("0.0.0.0:{port}"),
            format!("[::1]:{port}"),
        ];
        for bind in there.iter().cycle().take(14) {
            reload_with_config(&server, &text(bind));
        }
        assert_served(&tcp_address("[::1]", port));
        server.stop();
    }
}

#[test]
fn a_reload_adds_and_swaps_overlapping_addresses() {
    let text = |bind: &str| format!("bind = [{bind}]\nworkers = 2\n");
    let server = Server::builder().config(2, &text("'[::]:0', '127.0.0.1:0'")).start();
    let ports: Vec<u16> = server
        .addresses()
        .iter()
        .map(|address| match address {
            Address::Tcp(addr) => addr.port(),
            Address::Unix(_) => panic!("no Unix socket was asked for"),
        })
        .collect();
    let (a, b) = (ports[0], ports[1]);
    for bind in [
        format!("'[::]:{a}', '127.0.0.1:{a}', '127.0.0.1:{b}'"),
        format!("'127.0.0.1:{a}', '[::]:{b}'"),
        format!("'[::]:{a}', '127.0.0.1:{b}'"),
        format!("'0.0.0.0:{a}', '[::]:{b}', '[::1]:{b}'"),
    ] {
        reload_with_config(&server, &text(&bind));
        assert_served(&tcp_address("127.0.0.1", a));
        assert_served(&tcp_address("127.0.0.1", b));
    }
    server.stop();
}

#[test]
fn a_start_accepts_overlapping_addresses() {
    let free = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = free.local_addr().expect("name").port();
    drop(free);
    let server = Server::builder().bind([format!("127.0.0.1:{port}"), format!(":{port}")]).start();
    assert_served(&tcp_address("127.0.0.1", port));
    assert_served(&tcp_address("[::1]", port));
    server.stop();
}

#[test]
fn a_port_of_another_program_fails_the_reload_with_its_holder() {
    let text = |bind: &str| format!("bind = ['{bind}']\nworkers = 1\n");
    let server = Server::builder().config(1, &text("127.0.0.1:0")).start();
    let server = server.allow_errors(&["reload"]);
    let port = server.port();
    // With SO_REUSEPORT, so that the kernel would allow to share the port.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let other = other.expect("socket");
    other.set_reuse_port(true).expect("option");
    let there: std::net::SocketAddr = format!("127.0.0.2:{port}").parse().expect("address");
    other.bind(&there.into()).expect("bind");
    other.listen(1).expect("listen");
    write_config(&server, &text(&format!("0.0.0.0:{port}")));
    let error = server.assert_verb_fails(&["reload"], 1);
    let pid = std::process::id().to_string();
    assert!(log::contains_word(&error, &pid) && error.contains("0.0.0.0"), "{error}");
    assert_served(&tcp_address("127.0.0.1", port));
    server.stop();
}

#[test]
fn a_reload_restores_a_removed_socket_file() {
    for policy in ["shared", "round-robin"] {
        let text = format!("bind = ['unix:socket']\nworkers = 2\ndispatch = '{policy}'\n");
        let server = Server::builder().config(2, &text).start();
        let path = server.dir().join("socket");
        for _ in 0..2 {
            std::fs::remove_file(&path).expect("remove");
            server.run_verb(&["reload"]);
            assert_served(&Address::Unix(path.clone()));
        }
        server.signal(nix::sys::signal::Signal::SIGTERM);
        wait::wait_until("the end of the file", || !path.exists());
        server.wait_clean_exit(0);
    }
}

#[test]
fn foreign_files_at_the_socket_path_fail_the_reload() {
    let text = "bind = ['unix:socket', '127.0.0.1:0']\nworkers = 1\n";
    let server = Server::builder().config(1, text).start().allow_errors(&["reload"]);
    let path = server.dir().join("socket");
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "data").expect("write");
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(error.contains("socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("kept"), "data");
    std::fs::remove_file(&path).expect("remove");
    let other = UnixListener::bind(&path).expect("bind");
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(log::contains_word(&error, &std::process::id().to_string()), "{error}");
    drop(other);
    // A stale socket is replaced.
    server.run_verb(&["reload"]);
    assert_served(&Address::Unix(path));
    server.stop();
}

#[test]
fn a_failed_reload_keeps_a_restored_socket_served() {
    let text = "bind = ['unix:socket', '127.0.0.1:0']\nworkers = 1\n";
    let server = Server::builder().config(1, text).start().allow_errors(&["reload"]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let path = server.dir().join("socket");
    std::fs::remove_file(&path).expect("remove");
    let taken_at = taken.local_addr().expect("name");
    write_config(
        &server,
        &format!("bind = ['unix:socket', '127.0.0.1:0', '{taken_at}']\nworkers = 1\n"),
    );
    server.assert_verb_fails(&["reload"], 1);
    if path.exists() {
        assert_served(&Address::Unix(path));
    }
    server.stop();
}

#[test]
fn unix_socket_mode_owner_and_group_are_applied() {
    let text = |mode: &str| {
        format!("bind = ['unix:a?mode={mode}', 'unix:b']\nunix-mode = '0622'\nworkers = 1\n")
    };
    let server = Server::builder().config(1, &text("0660")).start();
    let mode =
        |name: &str| std::fs::metadata(server.dir().join(name)).expect("file").mode() & 0o777;
    assert_eq!((mode("a"), mode("b")), (0o660, 0o622));
    reload_with_config(&server, &text("0600"));
    assert_eq!((mode("a"), mode("b")), (0o600, 0o622));
    assert_served(&Address::Unix(server.dir().join("a")));
    server.stop();
    for (bind, why) in [
        ("unix:a?mode=9", "mode"),
        ("unix:a?owner=no-such-user", "no-such-user"),
        ("unix:a?group=no-such-group", "no-such-group"),
    ] {
        let ended = Server::builder().bind([bind]).run();
        assert_eq!(ended.status, Some(78), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
    if nix::unistd::Uid::effective().is_root() {
        let server = Server::builder().bind(["unix:a?owner=12345&group=23456&mode=0640"]).start();
        let meta = std::fs::metadata(server.dir().join("a")).expect("file");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (12345, 23456, 0o640));
        server.stop();
    }
}

#[test]
fn an_abstract_socket_is_served_without_a_file() {
    let name = format!("prefork-it-{}", std::process::id());
    let bind = format!("unix:@{name}");
    let server = Server::builder().bind([&bind]).start();
    assert!(!server.dir().join(format!("@{name}")).exists());
    let address = Address::Unix(PathBuf::from(format!("\0{name}")));
    assert_served(&address);
    let again = Server::builder().bind([&bind]).run();
    assert_eq!(again.status, Some(69), "{}", again.stderr);
    assert!(log::contains_word(&again.stderr, &server.pid().to_string()), "{}", again.stderr);
    server.run_verb(&["reload"]);
    assert_served(&address);
    server.stop();
    assert_eq!(Client::connect(&address).err(), Some(Failure::Refused));
}

#[test]
fn a_host_name_binds_all_its_addresses_on_one_port() {
    let text = "bind = ['localhost:0']\nworkers = 1\n";
    let server = Server::builder().config(1, text).start();
    let v4 = server.addresses().contains(&tcp_address("127.0.0.1", server.port()));
    assert!(v4, "{:?}", server.addresses());
    let addresses = server.addresses().to_vec();
    for _ in 0..2 {
        addresses.iter().for_each(assert_served);
        server.run_verb(&["reload"]);
    }
    // An unknown host name fails the reload without interrupting service.
    let server = server.allow_errors(&["reload"]);
    write_config(&server, "bind = ['no-such-name.invalid:0']\nworkers = 1\n");
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(error.contains("no-such-name.invalid"), "{error}");
    addresses.iter().for_each(assert_served);
    server.stop();
    let ended = Server::builder().bind(["no-such-name.invalid:80"]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("no-such-name.invalid"), "{}", ended.stderr);
}

#[test]
fn a_reload_refuses_descriptors_that_were_not_passed() {
    let text = "bind = ['127.0.0.1:0']\nworkers = 1\n";
    let server = Server::builder().config(1, text).start().allow_errors(&["reload"]);
    for number in 3..30 {
        write_config(&server, &format!("bind = ['127.0.0.1:0', 'fd://{number}']\nworkers = 1\n"));
        let error = server.assert_verb_fails(&["reload"], 1);
        assert!(error.contains(&number.to_string()), "{number}: {error}");
        assert_eq!(server.get("/").status, 200);
    }
    // The primary's own descriptors are intact: it still reloads, respawns and stops.
    let old = server.worker_pids();
    reload_with_config(&server, text);
    // The old worker may still be draining when the verb returns.
    let pids = server.wait_new_workers(1, &old);
    crate::support::process::send_signal(pids[0], nix::sys::signal::Signal::SIGKILL);
    server.wait_new_workers(1, &pids);
    let server = server.allow_errors(&["SIGKILL"]);
    server.stop();
}

#[test]
fn a_passed_descriptor_survives_reloads_and_an_upgrade() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = Address::Tcp(listener.local_addr().expect("name"));
    let both = "bind = ['fd://3', '127.0.0.1:0']\nworkers = 1\n";
    let server = Server::builder()
        .config(1, both)
        .script(r#"exec "$0" "$@" 3<&0 </dev/null"#)
        .stdin(listener.into())
        .start()
        .allow_errors(&["reload", "upgrade"]);
    server.run_verb(&["reload"]);
    assert_served(&address);
    server.signal(nix::sys::signal::Signal::SIGUSR2);
    server.wait_generation(3);
    assert_served(&address);
    reload_with_config(&server, "bind = ['127.0.0.1:0']\nworkers = 1\n");
    write_config(&server, both);
    let error = server.assert_verb_fails(&["reload"], 1);
    assert!(error.contains("fd://3"), "{error}");
    server.stop();
}

#[test]
fn datagram_and_non_listening_sockets_are_refused() {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let idle =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    for passed in [std::os::fd::OwnedFd::from(udp), idle.into()] {
        let script = r#"exec "$0" "$@" 3<&0 </dev/null"#;
        let ended = Server::builder().script(script).stdin(passed).bind(["fd://3"]).run();
        assert_eq!(ended.status, Some(69), "{}", ended.stderr);
        assert!(ended.stderr.contains('3'), "{}", ended.stderr);
    }
}

#[test]
fn a_shut_down_listener_is_not_ready_and_does_not_spin() {
    for policy in ["shared", "round-robin"] {
        let passed = TcpListener::bind("127.0.0.1:0").expect("bind");
        let listener = socket2::Socket::from(passed.try_clone().expect("copy"));
        let server = Server::builder()
            .dispatch(policy)
            .workers(1)
            .script(r#"exec "$0" "$@" 3<&0 </dev/null"#)
            .stdin(passed.into())
            .bind(["fd://3"])
            .start()
            .allow_errors(&["accept4", "reload"]);
        let mut kept = server.connect();
        assert_eq!(kept.get("/readyz").expect("answer").status, 200);
        listener.shutdown(std::net::Shutdown::Both).expect("shutdown");
        let port = server.port().to_string();
        server.wait_log(&["ERROR", &port]);
        wait::wait_until("not ready", || {
            kept.get("/readyz").is_ok_and(|answer| answer.status == 503)
        });
        let state = || server.status()["workers"][0]["state"].clone();
        wait::wait_until("a state that is not serving", || state() == "cannot-accept");
        // The acceptor backs off instead of spinning.
        let burner = if policy == "shared" { server.worker_pids()[0] } else { server.pid() };
        assert!(crate::support::process::cpu_share(burner) < 0.5);
        assert_eq!(server.count_log(&["ERROR", &port]), 1);
        server.assert_verb_fails(&["reload"], 1);
        drop(kept);
        server.stop();
    }
}
