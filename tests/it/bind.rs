//! Bind addresses: which ones are served, and errors for those that cannot be bound.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use nix::unistd::Uid;

use crate::support::command::ProcessBuilder;
use crate::support::{Address, Client, Server, wait};

#[test]
fn a_port_in_use_is_an_error_that_names_the_holder() {
    let server = Server::start(2);
    let ended = Server::builder().bind([server.address().to_string()]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    let (address, pid) = (server.address().to_string(), format!("pid {}", server.pid()));
    assert!(ended.stderr.starts_with("prefork: "), "{}", ended.stderr);
    assert!(ended.stderr.contains(&address) && ended.stderr.contains(&pid), "{}", ended.stderr);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn an_address_without_a_local_interface_is_named() {
    // Reserved for documentation (RFC 5737): no machine has this address.
    let ended = Server::builder().bind(["192.0.2.1:0"]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("192.0.2.1:0"), "{}", ended.stderr);
}

#[test]
fn if_one_of_several_addresses_is_in_use_no_socket_file_is_left() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().map(|addr| (addr, taken)).expect("address");
    let builder = Server::builder();
    let path = builder.dir().join("socket");
    let ended = builder.bind([format!("unix:{}", path.display()), taken.0.to_string()]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(!path.exists());
}

#[test]
fn a_privileged_port_without_root_is_an_error_with_a_hint() {
    let free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if free.is_ok_and(|text| text.trim().parse().is_ok_and(|port: u16| port <= 81)) {
        return eprintln!("every port is free here: nothing to see");
    }
    let mut builder = Server::builder().bind(["127.0.0.1:81"]);
    if Uid::effective().is_root() {
        const NOBODY_UID: u32 = 65534;
        builder = builder.with_user(NOBODY_UID);
    }
    let ended = builder.run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("127.0.0.1:81"), "{}", ended.stderr);
    assert!(ended.stderr.contains("1024") && ended.stderr.contains("root"), "{}", ended.stderr);
}

#[test]
fn a_wildcard_bind_serves_ipv4_and_ipv6() {
    for bind in ["[::]:0", ":0"] {
        let server = Server::builder().bind([bind]).start();
        for host in ["127.0.0.1", "[::1]"] {
            let address = format!("{host}:{}", server.port()).parse().expect("address");
            let mut client = Client::connect(&Address::Tcp(address)).expect("connect");
            assert_eq!(client.get("/").expect("answer").status, 200, "{bind} {host}");
        }
        server.stop();
    }
}

#[test]
fn several_bind_addresses_are_served() {
    let builder = Server::builder();
    let path = format!("unix:{}", builder.dir().join("socket").display());
    let server = builder.bind(["127.0.0.1:0", "[::1]:0", &path]).start();
    assert_eq!(server.addresses().len(), 3);
    for address in server.addresses() {
        let mut client = Client::connect(address).expect("connect");
        assert_eq!(client.get("/").expect("answer").status, 200, "{address}");
    }
    server.stop();
}

#[test]
fn a_unix_socket_is_served_and_its_file_removed() {
    let builder = Server::builder();
    let path = builder.dir().join("socket");
    // A stale socket, as a killed process leaves it.
    drop(UnixListener::bind(&path).expect("bind"));
    let server = builder.bind([format!("unix:{}", path.display())]).start();
    assert_eq!(server.address(), &Address::Unix(path.clone()));
    assert_eq!(server.get("/").status, 200);
    let again = Server::builder().bind([format!("unix:{}", path.display())]).run();
    assert_eq!(again.status, Some(69), "{}", again.stderr);
    assert!(again.stderr.contains(&format!("pid {}", server.pid())), "{}", again.stderr);
    assert_eq!(server.get("/").status, 200);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    wait::wait_until("the file is removed", || !path.exists());
    server.wait_clean_exit(0);
}

#[test]
fn a_regular_file_at_the_socket_path_is_kept() {
    let builder = Server::builder();
    let path = std::env::temp_dir().join(format!("prefork-it-data-{}", std::process::id()));
    std::fs::write(&path, "data").expect("write");
    let ended = builder.bind([format!("unix:{}", path.display())]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains(&path.display().to_string()), "{}", ended.stderr);
    assert_eq!(std::fs::read_to_string(&path).expect("kept"), "data");
    std::fs::remove_file(&path).expect("remove");
}

#[test]
fn an_inherited_descriptor_is_served_and_not_closed_for_its_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let copy = listener.try_clone().expect("copy");
    let server = Server::builder()
        .script(r#"exec "$0" "$@" 3<&0 </dev/null"#)
        .stdin(copy.into())
        .bind(["fd://3"])
        .start();
    assert_eq!(server.address(), &Address::Tcp(address));
    assert_eq!(server.get("/").status, 200);
    server.stop();
    // The socket of the test still listens.
    assert!(std::net::TcpStream::connect(address).is_ok());
    drop(listener);
}

#[test]
fn a_descriptor_that_is_not_a_listener_is_an_error() {
    let closed_and_file =
        [r#"exec "$0" "$@" 3<&-"#, r#"exec "$0" "$@" 3</dev/null"#].map(|script| {
            let ended = Server::builder().script(script).bind(["fd://3"]).run();
            assert_eq!(ended.status, Some(69), "{}", ended.stderr);
            assert!(ended.stderr.contains('3'), "{}", ended.stderr);
            ended.stderr
        });
    assert_ne!(closed_and_file[0], closed_and_file[1], "each names its reason");
}

#[test]
fn a_library_program_reports_a_port_in_use_with_the_same_status() {
    let server = Server::start(1);
    let ended = ProcessBuilder::program("not-send").bind([server.address().to_string()]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    server.stop();
}
