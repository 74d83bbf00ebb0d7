//! The pid file: its content, its lock, and its removal.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Server, log, process, wait};

#[test]
fn the_pid_file_holds_the_primary_pid_and_is_removed_at_the_end() {
    let server = Server::with(1, &["--pid-file", "pid"]);
    let path = server.dir().join("pid");
    assert_eq!(fs::read_to_string(&path).expect("pid file"), format!("{}\n", server.pid()));
    server.signal(Signal::SIGTERM);
    wait::wait_until("the end of the file", || !path.exists());
    server.wait_clean_exit(0);
}

#[test]
fn a_locked_pid_file_refuses_a_second_server() {
    let server = Server::with(1, &["--pid-file", "pid"]);
    let path = server.dir().join("pid");
    let second = Server::builder().args(["--pid-file".into(), path.clone()]).run();
    assert_eq!(second.status, Some(69), "{}", second.stderr);
    let holder = server.pid().to_string();
    assert!(log::contains_word(&second.stderr, &holder), "{}", second.stderr);
    assert_eq!(fs::read_to_string(&path).expect("pid file"), format!("{}\n", server.pid()));
    assert_eq!(server.get("/").status, 200);
    // A reload keeps the file.
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    assert!(path.exists());
    server.stop();
}

#[test]
fn a_stale_pid_file_is_replaced() {
    let mut server = Server::with(1, &["--pid-file", "pid"]);
    let pids = server.worker_pids();
    let path = server.dir().join("pid");
    server.kill_primary();
    wait::wait_until("the end of the orphans", || pids.iter().all(|pid| process::has_ended(*pid)));
    assert!(path.exists());
    let again = Server::builder().args(["--pid-file".into(), path.clone()]).start();
    assert_eq!(fs::read_to_string(&path).expect("pid file"), format!("{}\n", again.pid()));
    again.stop();
    assert!(!path.exists());
}

#[test]
fn a_failed_start_leaves_no_pid_file() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let holder = Server::start(1);
    let path = holder.dir().join("pid");
    let ended = Server::builder().bind([address]).args(["--pid-file".into(), path.clone()]).run();
    assert_eq!(ended.status, Some(69), "{}", ended.stderr);
    assert!(!path.exists());
    holder.stop();
}
