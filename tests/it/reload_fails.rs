//! Reloads that cannot be: the old workers serve on, and the reason is told.

use nix::sys::signal::Signal;

use crate::crash_loop::BOOT_FAILED;
use crate::support::command::Builder;
use crate::support::{Server, log};

const GOOD: &str = "bind = ['127.0.0.1:0']\nworkers = 2\n";

/// A server with this configuration, and the control socket.
#[track_caller]
fn start() -> Server {
    Server::builder().config(2, GOOD).start().allow(&["reload"])
}

#[track_caller]
fn write(server: &Server, text: &str) {
    std::fs::write(server.dir().join("prefork.toml"), text).expect("write");
}

/// Asks for a reload that fails because of `why`, and sees that nothing has changed.
#[track_caller]
fn fails(server: &Server, why: &str) {
    let pids = server.worker_pids();
    let before = server.count_log(&["ERROR", "reload"]);
    let said = server.refused(&["reload"], 1);
    assert!(said.contains(why), "{why}: {said}");
    let text = server.log();
    let told: Vec<_> = log::lines_with(&text, &["ERROR", "reload"]).collect();
    assert_eq!(told.len(), before + 1, "{told:?}");
    assert!(told[before].contains(why), "{why}: {}", told[before]);
    assert_eq!(server.wait_others(2, &[]), pids);
    assert_eq!(server.status()["primary"]["generation"], 1);
    assert!(pids.contains(&server.get("/").pid()));
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing() {
    let server = start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let taken_port = format!("127.0.0.1:{port}");
    for (text, why) in [
        ("workers = \n", "prefork.toml"),
        ("workers = 2\nbnid = ':1'\n", "prefork.toml:2"),
        ("workers = 0\n", "workers"),
        ("bind = ['nonsense']\n", "nonsense"),
        (&format!("bind = ['127.0.0.1:0', '{taken_port}']\n"), &taken_port),
    ] {
        write(&server, text);
        fails(&server, why);
    }
    std::fs::remove_file(server.dir().join("prefork.toml")).expect("remove");
    fails(&server, "prefork.toml");
    write(&server, GOOD);
    let old = server.worker_pids();
    server.order(&["reload"]);
    server.wait_others(2, &old);
    server.stop();
}

#[test]
fn a_hangup_with_a_wrong_configuration_is_told_in_the_log() {
    let server = start();
    let pids = server.worker_pids();
    write(&server, "workers = many\n");
    server.signal(Signal::SIGHUP);
    server.wait_log(&["ERROR", "reload", "prefork.toml"]);
    assert_eq!(server.wait_others(2, &[]), pids);
    server.stop();
}

#[test]
fn workers_that_cannot_boot_are_not_let_in() {
    let server = Builder::program("boot-fails-if-broken").start();
    let server = server.allow(&["reload", "they are broken", BOOT_FAILED]);
    std::fs::write(server.dir().join("broken"), "").expect("write");
    fails(&server, "they are broken");
    std::fs::remove_file(server.dir().join("broken")).expect("remove");
    server.order(&["reload"]);
    server.stop();
}

#[test]
fn workers_that_never_get_ready_are_not_let_in() {
    let builder = Builder::program("boot-fails-if-broken");
    let server = builder.args(["boot-timeout-ms=2000"]).start();
    let server = server.allow(&["reload", "boot-timeout", "gen=2"]);
    std::fs::write(server.dir().join("stuck"), "").expect("write");
    fails(&server, "boot-timeout");
    std::fs::remove_file(server.dir().join("stuck")).expect("remove");
    server.order(&["reload"]);
    server.stop();
}
