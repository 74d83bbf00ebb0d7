//! `--user` and `--group`: workers that drop all privileges. Without root, only the errors are tested.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use crate::support::tls::TestAuthority;
use crate::support::{Client, Server, log, process, wait};

/// The uid of `nobody` on most systems, as a number, as the user may have no entry.
const UNPRIVILEGED_UID: u32 = 65_534;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Reads the fields of `/proc/PID/status`.
fn process_status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_string(), words(value))).collect()
}

#[track_caller]
fn assert_unprivileged(pid: u32) {
    let status = process_status(pid);
    let all = [
        UNPRIVILEGED_UID.to_string(),
        UNPRIVILEGED_UID.to_string(),
        UNPRIVILEGED_UID.to_string(),
        UNPRIVILEGED_UID.to_string(),
    ]
    .join(" ");
    assert_eq!(
        (&status["Uid"], &status["Gid"]),
        (&all, &all),
        "{pid}: real, effective, saved, file"
    );
    assert_eq!(status["Groups"], UNPRIVILEGED_UID.to_string());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0".repeat(16), "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

#[track_caller]
fn assert_all_workers_unprivileged(server: &Server, count: usize) {
    let pids = server.worker_pids();
    assert_eq!(pids.len(), count);
    pids.into_iter().for_each(assert_unprivileged);
    // The primary keeps its privileges, to fork workers.
    assert_eq!(process_status(server.pid())["Uid"], "0 0 0 0");
}

#[test]
fn workers_serve_with_a_key_that_only_root_can_read() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let files = authority.issue(&["example.org"]).write(dir.path(), "a");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("mode");
    let server = unprivileged_builder().args(files.args()).with_copied_program().start();
    let client = authority.client_without_sessions();
    let get = || Client::connect_tls(server.address(), &client, "example.org")?.get("/");
    for verb in ["status", "reload", "upgrade"] {
        let new = authority.issue(&["example.org"]);
        new.write(dir.path(), "a");
        let old = server.worker_pids();
        server.run_verb(&[verb]);
        if verb != "status" {
            server.wait_new_workers(2, &old);
            let shown = Client::connect_tls(server.address(), &client, "example.org");
            assert_eq!(shown.expect("TLS").tls().server_certificate(), &*new.der, "after {verb}");
        }
        assert_all_workers_unprivileged(&server, 2);
        assert_eq!(get().map(|answer| answer.status), Ok(200), "after {verb}");
    }
    server.stop();
}

fn unprivileged_builder() -> crate::support::server::ProcessBuilder {
    Server::builder()
        .args(["--user".to_string(), UNPRIVILEGED_UID.to_string()])
        .args(["--group", "65534"])
}

#[test]
fn every_worker_drops_all_privileges() {
    if !is_root() {
        return;
    }
    let server = unprivileged_builder().with_copied_program().start();
    assert_all_workers_unprivileged(&server, 2);
    assert_eq!(server.get("/").status, 200);

    let old = server.worker_pids();
    process::send_signal(old[0], Signal::SIGKILL);
    server.wait_replaced(1);
    assert_all_workers_unprivileged(&server, 2);

    let old = server.worker_pids();
    server.run_verb(&["reload"]);
    let old = server.wait_new_workers(2, &old);
    assert_all_workers_unprivileged(&server, 2);

    server.run_verb(&["upgrade"]);
    server.wait_generation(3);
    server.wait_new_workers(2, &old);
    assert_all_workers_unprivileged(&server, 2);
    assert_eq!(server.get("/").status, 200);
    let text = server.allow_errors(&["SIGKILL"]).stop();
    // A worker that cannot read its own `/proc` entries would warn.
    assert_eq!(log::lines_with(&text, &["WARN"]).count(), 0, "{text}");
}

#[test]
fn a_frozen_unprivileged_worker_ends_with_its_primary() {
    if !is_root() {
        return;
    }
    // The kernel clears PR_SET_PDEATHSIG when a process changes its user, so it has to be set again.
    let mut server = unprivileged_builder().args(["--graceful-timeout", "1s"]).start();
    let pids = server.worker_pids();
    let mut client = server.connect();
    client.send("GET /fib/50?on=loop HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
    server.wait_in_flight("/fib/50");
    server.kill_primary();
    wait::wait_until("the end of the workers", || pids.iter().all(|pid| process::has_ended(*pid)));
}

#[test]
fn unprivileged_workers_serve_under_every_dispatch_policy() {
    if !is_root() {
        return;
    }
    for policy in ["shared", "round-robin", "reuseport", "least-conn", "ip-hash"] {
        let server = unprivileged_builder().dispatch(policy).start();
        assert_all_workers_unprivileged(&server, 2);
        assert_eq!(server.get("/cluster").status, 200, "{policy}");
        server.stop();
    }
}

#[test]
fn an_unknown_user_or_group_is_a_configuration_error() {
    for (args, expected) in [
        (["--user", "no-such-user"], "no-such-user"),
        (["--group", "root"], "root"),
        (["--user", "4000000001"], "4000000001"),
    ] {
        let ended = Server::builder().args(args).run();
        assert_eq!(
            (ended.status, ended.stderr.contains(expected)),
            (Some(78), true),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn changing_the_user_needs_root_unless_it_is_the_own_user() {
    let own = if is_root() { UNPRIVILEGED_UID } else { nix::unistd::geteuid().as_raw() };
    let builder = || {
        if is_root() { Server::builder().with_user(UNPRIVILEGED_UID) } else { Server::builder() }
    };
    let other = (own - 1).to_string();
    let ended = builder().args(["--user", &other, "--group", &other]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("root"), "{}", ended.stderr);

    let gid = if is_root() { UNPRIVILEGED_UID } else { nix::unistd::getegid().as_raw() };
    let server = builder()
        .args(["--user".to_string(), own.to_string()])
        .args(["--group".to_string(), gid.to_string()])
        .start();
    for pid in server.worker_pids() {
        let status = process_status(pid);
        assert_eq!(
            (status["NoNewPrivs"].as_str(), status["CapEff"].as_str()),
            ("1", "0000000000000000")
        );
    }
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_reload_to_an_unknown_user_fails_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let text = "bind = \"127.0.0.1:0\"\nworkers = 1\nuser = 65534\ngroup = 65534\n";
    let server = Server::builder().config(1, text).start();
    let old = server.worker_pids();
    std::fs::write(server.dir().join("prefork.toml"), text.replacen("65534", "\"nobody-here\"", 1))
        .expect("write");
    let why = server.assert_verb_fails(&["reload"], 1);
    assert!(why.contains("nobody-here"), "{why}");
    assert_eq!(server.worker_pids(), old);
    server.allow_errors(&["reload"]).stop();
}
