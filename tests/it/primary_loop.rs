//! The primary's event loop for the application: hooks at the start, timers and descriptors. `tests/programs/primary_loop.rs`
//! is the application.

use std::path::Path;
use std::time::Duration;

use crate::support::admin::Admin;
use crate::support::command::ProcessBuilder;
use crate::support::{process, wait};

/// The number of workers besides the one that the hook `on_start` forks.
const WORKERS: usize = 2;

fn builder() -> ProcessBuilder {
    ProcessBuilder::program("primary-loop").workers(WORKERS).other_workers(1)
}

#[test]
fn timers_run_in_the_primary_until_they_are_cancelled() {
    let server = builder().start();
    let mut admin = Admin::connect(&server);
    assert_eq!(admin.ask("pid"), server.pid().to_string());
    let notes = wait::wait_until_some("three ticks", || {
        Some(admin.notes()).filter(|notes| notes.contains(&"tick 3".to_string()))
    });
    assert_eq!(notes[0], "start workers=0 upgrades=0", "before the first fork");
    let mut rest: Vec<&str> = notes[1..].iter().map(String::as_str).collect();
    rest.sort_unstable();
    assert_eq!(rest, ["after", "at once", "tick 1", "tick 2", "tick 3"]);
    // A fourth tick would come within 5 ms.
    wait::wait_for_duration(Duration::from_millis(100));
    assert_eq!(admin.notes(), notes);
    server.stop();
}

#[test]
fn a_worker_forked_at_the_start_comes_beside_those_of_the_configuration() {
    let server = builder().start();
    let answer = wait::wait_until_some("the worker with a role", || {
        let text = server.get("/").text().to_string();
        text.ends_with(" mail").then_some(text)
    });
    // Its id was given before those of the others.
    assert_eq!(answer, "1 mail");
    assert_eq!(server.worker_pids().len(), WORKERS + 1);
    server.stop();
}

#[test]
fn workers_do_not_inherit_the_descriptors_of_the_primarys_loop() {
    let server = builder().start();
    let mut admin = Admin::connect(&server);
    admin.ask("pid");
    let sockets = |pid: u32| {
        let all = process::descriptors(pid).into_iter().map(|one| one.1);
        all.filter(|target| target.starts_with("socket:")).collect::<Vec<_>>()
    };
    let is_admin_socket = admin_socket_inodes(server.dir());
    let of_primary = sockets(server.pid());
    assert!(of_primary.iter().any(|socket| is_admin_socket.contains(socket)), "{of_primary:?}");
    // This one is forked while the admin socket and a client of it are open in the primary.
    process::send_signal(server.worker_pid(2), nix::sys::signal::Signal::SIGKILL);
    server.wait_replaced(1);
    for worker in server.worker_pids() {
        let of_worker = sockets(worker);
        assert!(!of_worker.iter().any(|one| is_admin_socket.contains(one)), "{of_worker:?}");
    }
    server.allow_errors(&["worker="]).stop();
}

/// Returns the sockets bound to `admin.sock`: the listening one and those of accepted clients.
fn admin_socket_inodes(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    let name = dir.join("admin.sock");
    let own = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let path = fields.get(7)?;
        // The server binds it by a relative path, and other tests do too: an inode is asked for by number anyway.
        (name.ends_with(path)).then(|| format!("socket:[{}]", fields[6]))
    });
    own.collect()
}

#[test]
fn a_hook_that_does_not_read_does_not_use_a_whole_processor() {
    let server = builder().start();
    let mut admin = Admin::connect(&server);
    admin.ask("watch-unread");
    let calls = |admin: &mut Admin| admin.ask("unread-calls").parse::<u64>().expect("a number");
    wait::wait_until("many calls", || calls(&mut admin) > 1005);
    let before = calls(&mut admin);
    wait::wait_for_duration(Duration::from_millis(500));
    let later = calls(&mut admin);
    assert!(later - before < 20, "{before} to {later} calls in 500 ms");
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_panic_in_a_callback_ends_neither_the_primary_nor_the_callback() {
    let server = builder().start().allow_errors(&["panicked"]);
    let mut admin = Admin::connect(&server);
    admin.send("panic");
    // The hook of this connection is called again for the next command.
    server.wait_log(&["ERROR", "the hook has had enough"]);
    assert_eq!(admin.ask("pid"), server.pid().to_string());
    server.stop();
}

#[test]
fn an_error_of_the_start_hook_ends_serve_before_any_fork() {
    for (file, reason) in [("refuse-start", "no start today"), ("panic-start", "panicked")] {
        let builder = builder();
        std::fs::write(builder.dir().join(file), "").expect("written");
        let output = builder.run();
        assert_eq!(output.status, Some(70), "{}", output.stderr);
        assert!(output.stderr.contains(reason), "{}", output.stderr);
        assert!(!output.stderr.contains("worker=1"), "{}", output.stderr);
    }
}

#[test]
fn a_hook_can_end_the_cluster_with_an_error() {
    for (command, status) in [("stop-with the disk is full", 70), ("stop-with-config-error x", 78)]
    {
        let server = builder().start();
        let mut admin = Admin::connect(&server);
        assert_eq!(admin.ask(command), "ok");
        let log = server.wait_clean_exit(status);
        let text = command.split_once(' ').expect("two words").1;
        assert!(log.contains(text) && !log.contains("a second error"), "{log}");
    }
}

#[test]
fn sigterm_ends_a_worker_whose_event_loop_is_blocked() {
    let server = ProcessBuilder::program("primary-loop")
        .workers(1)
        .other_workers(1)
        .args(["graceful-timeout-ms=300"])
        .start();
    let mut admin = Admin::connect(&server);
    let old = server.worker_pids();
    // More than there are workers, so each event loop stands still in one.
    let clients: Vec<_> = (0..8).map(|_| server.send_get("/block")).collect();
    for id in [1, 2] {
        let file = server.dir().join(format!("blocked-{id}"));
        wait::wait_until("a blocked event loop", || file.exists());
    }
    for id in [1, 2] {
        assert_eq!(admin.ask(&format!("kill {id} 15")), "ok");
    }
    // Before `stall-timeout`, 30 s, which is later than this waits.
    process::wait_ended(&old);
    drop(clients);
    std::fs::write(server.dir().join("unblock"), "").expect("written");
    wait::wait_until("their replacements", || server.worker_pids().len() == 2);
    server.stop();
}
