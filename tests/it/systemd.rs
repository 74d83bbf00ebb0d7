//! Notifications to systemd: READY, RELOADING, STATUS, WATCHDOG, and journal output.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::boot_barrier::BootBarrier;
use crate::support::command::ProcessBuilder;
use crate::support::service_manager::ServiceManager;
use crate::support::{Server, log, process, wait};

/// Returns the position of the first message that contains `piece`.
#[track_caller]
fn message_index(messages: &[String], piece: &str) -> usize {
    messages
        .iter()
        .position(|m| m.contains(piece))
        .unwrap_or_else(|| panic!("{piece:?}: {messages:?}"))
}

#[test]
fn ready_is_sent_when_all_workers_are_ready() {
    let manager = ServiceManager::new();
    let builder = manager.attach(ProcessBuilder::program("boot-fails-if-broken").workers(3));
    let mut barrier = BootBarrier::new(builder.dir());
    let server = builder.spawn();
    let starting = manager.wait_message("0 of 3 ");
    assert!(starting.contains("EXTEND_TIMEOUT_USEC="), "{starting}");
    assert_eq!(manager.count_messages("READY=1"), 0);
    barrier.release();
    let ready = manager.wait_message("READY=1");
    assert!(ready.starts_with("READY=1\nSTATUS=") && ready.contains("3 of 3 "), "{ready}");
    server.wait_serving(3);
    server.signal(Signal::SIGTERM);
    manager.wait_message("STOPPING=1");
    assert_eq!(manager.count_messages("READY=1"), 1);
    server.wait_clean_exit(0);
}

#[test]
fn status_notifications_count_requests() {
    let manager = ServiceManager::new();
    let server = manager.attach(Server::builder()).start();
    for _ in 0..7 {
        assert_eq!(server.get("/").status, 200);
    }
    let status = manager.wait_message("7 requests");
    assert!(status.contains("STATUS=") && status.contains("2 of 2 "), "{status}");
    // Nothing changes, so nothing is sent during two more intervals.
    manager.clear_messages();
    wait::wait_for_duration(std::time::Duration::from_millis(2500));
    assert_eq!(manager.messages(), Vec::<String>::new());
    server.stop();
}

#[test]
fn reloading_and_ready_are_sent_even_if_the_reload_fails() {
    let manager = ServiceManager::new();
    let builder = Server::builder().config(2, "bind = ['127.0.0.1:0']\nworkers = 2\n");
    let server = manager.attach(builder).start().allow_errors(&["reload"]);
    manager.clear_messages();
    server.signal(Signal::SIGHUP);
    server.wait_generation(2);
    manager.wait_message("READY=1");
    let messages = manager.messages();
    let (begun, ended) =
        (message_index(&messages, "RELOADING=1"), message_index(&messages, "READY=1"));
    assert!(begun < ended, "{messages:?}");
    let usec = messages[begun].lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(usec.expect("the time").parse::<u64>().expect("a number") > 0);
    assert!(
        messages[ended].contains("2 of 2 ") && messages[ended].contains("generation 2"),
        "{messages:?}"
    );

    manager.clear_messages();
    fs::write(server.dir().join("prefork.toml"), "workers = 'many'\n").expect("write");
    server.signal(Signal::SIGHUP);
    let ready = manager.wait_message("READY=1");
    assert!(ready.contains("generation 2") && ready.contains("prefork.toml"), "{ready}");
    let messages = manager.messages();
    assert!(
        message_index(&messages, "RELOADING=1") < message_index(&messages, "READY=1"),
        "{messages:?}"
    );
    server.stop();
}

#[test]
fn a_long_drain_extends_the_timeout() {
    let manager = ServiceManager::new();
    let server = manager.attach(Server::builder()).args(["--graceful-timeout", "20s"]).start();
    let mut client = server.connect();
    client.send("GET /sleep/2500 HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/sleep/2500");
    server.signal(Signal::SIGTERM);
    manager.wait_message("STOPPING=1");
    manager.wait_message("EXTEND_TIMEOUT_USEC=5000000");
    manager.wait_message("STATUS=");
    assert_eq!(client.read().expect("answer").status, 200);
    server.wait_clean_exit(0);
    assert_eq!(manager.count_messages("STOPPING=1"), 1);
}

#[test]
fn watchdog_pings_need_a_serving_worker_and_a_running_primary() {
    let manager = ServiceManager::new();
    let builder = manager.attach(Server::builder()).env("WATCHDOG_USEC", "1000000");
    let server = builder.args(["--stall-timeout", "0", "--stall-warn", "0"]).start();
    manager.wait_message("WATCHDOG=1");
    let fed_again = |times: usize| {
        manager.clear_messages();
        wait::wait_until("sign of life", || manager.count_messages("WATCHDOG=1") >= times);
    };
    fed_again(3);
    let starves = || {
        // After pending messages, nothing arrives for longer than the watchdog interval.
        wait::wait_for_duration(std::time::Duration::from_millis(1200));
        manager.clear_messages();
        wait::wait_for_duration(std::time::Duration::from_millis(1500));
        assert_eq!(manager.count_messages("WATCHDOG=1"), 0, "{:?}", manager.messages());
    };
    let workers = server.worker_pids();
    process::send_signal(workers[0], Signal::SIGSTOP);
    fed_again(3);
    process::send_signal(workers[1], Signal::SIGSTOP);
    starves();
    workers.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGCONT));
    fed_again(2);
    server.signal(Signal::SIGSTOP);
    starves();
    server.signal(Signal::SIGCONT);
    fed_again(2);
    server.stop();
}

#[test]
fn no_watchdog_pings_for_another_watchdog_pid() {
    let manager = ServiceManager::new();
    let builder = manager.attach(Server::builder()).env("WATCHDOG_USEC", "20000");
    let server = builder.env("WATCHDOG_PID", "1").start();
    manager.wait_message("READY=1");
    server.get("/");
    manager.wait_message("1 request");
    assert_eq!(manager.count_messages("WATCHDOG=1"), 0);
    server.stop();
}

#[test]
fn notifications_continue_after_an_upgrade() {
    let manager = ServiceManager::new();
    let builder =
        manager.attach(Server::builder()).env("WATCHDOG_USEC", "1000000").with_copied_program();
    let server = builder.start();
    let old = server.worker_pids();
    manager.wait_message("READY=1");
    manager.clear_messages();
    server.signal(Signal::SIGUSR2);
    server.wait_generation(2);
    server.wait_new_workers(2, &old);
    let ready = manager.wait_message("READY=1");
    assert!(ready.contains("2 of 2 ") && ready.contains("generation 2"), "{ready}");
    manager.clear_messages();
    manager.wait_message("WATCHDOG=1");
    // Neither the upgrade check nor a worker has notified: READY would have been sent twice.
    server.get("/");
    manager.wait_message("STATUS=");
    assert_eq!(manager.count_messages("READY=1"), 0);
    server.signal(Signal::SIGTERM);
    manager.wait_message("STOPPING=1");
    server.wait_clean_exit(0);
}

#[test]
fn a_missing_notify_socket_is_logged_once() {
    let server = Server::builder().env("NOTIFY_SOCKET", "/nonexistent/notify").start();
    server.get("/");
    let old = server.worker_pids();
    server.signal(Signal::SIGHUP);
    server.wait_new_workers(2, &old);
    let text = server.stop();
    assert_eq!(log::lines_with(&text, &["WARN", "NOTIFY_SOCKET"]).count(), 1, "{text}");
}

/// Sets `JOURNAL_STREAM` to standard error, as systemd does.
const JOURNAL_SCRIPT: &str = r#"exec 2>log
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); export JOURNAL_STREAM; exec "$0" "$@""#;

#[test]
fn journal_lines_have_a_priority_and_no_timestamp() {
    let builder = Server::builder().script(JOURNAL_SCRIPT).args(["--faults", "--log", "debug"]);
    let server = builder.start();
    let victim = server.get("/").pid();
    process::send_signal(victim, Signal::SIGKILL);
    server.wait_log(&[&format!("pid={victim}"), "SIGKILL"]);
    server.wait_replaced(1);
    let log = server.stop();
    let priority = |piece: &str| {
        let line = log.lines().find(|line| line.contains(piece));
        line.and_then(|line| line.split_once('>')).unwrap_or_else(|| panic!("{piece}: {log}")).0
    };
    assert_eq!(priority("SIGTERM"), "<6");
    assert_eq!(priority("SIGKILL"), "<3");
    for line in log.lines() {
        let (number, text) = line.split_once('>').expect("a priority");
        assert!(["<3", "<4", "<6", "<7"].contains(&number), "{line}");
        assert!(!text.starts_with("20"), "no time: {line}");
    }
    // The line about a worker has its tag.
    assert!(log.lines().any(|l| l.contains("worker=") && l.contains("SIGKILL")), "{log}");
}
