//! The admin listener from the start to the stop: reloads, upgrades, its token, and programs of every kind.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::support::admin_listener::{admin_address, admin_pid, get, try_get};
use crate::support::command::ProcessBuilder;
use crate::support::http::{Address, Client, Failure};
use crate::support::{Server, process, wait};

fn write_token(path: &Path, token: &str) {
    std::fs::write(path, token).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

fn status_with_token(admin: &Address, token: &str) -> u16 {
    let header = format!("Authorization: Bearer {token}\r\n");
    try_get(admin, "/status", &header).expect("an answer").status
}

#[test]
fn a_reload_adds_and_removes_it() {
    let config = |admin: &str| format!("workers = 1\nbind = \"127.0.0.1:0\"\n{admin}");
    let server = Server::builder().config(1, &config("")).start();
    let path = server.dir().join("prefork.toml");
    assert!(server.status()["admin"].is_null());
    std::fs::write(&path, config("admin = \"127.0.0.1:0\"\n")).expect("written");
    server.run_verb(&["reload"]);
    let admin = admin_address(&server);
    assert_eq!(get(&admin, "/livez").status, 200);
    std::fs::write(&path, config("")).expect("written");
    server.run_verb(&["reload"]);
    assert!(server.status()["admin"].is_null());
    wait::wait_until("its socket is closed", || Client::connect(&admin).is_err());
    server.stop();
}

#[test]
fn a_public_address_without_a_token_and_an_occupied_one_are_errors() {
    let public = Server::builder().args(["--admin", "0.0.0.0:0"]).run();
    assert_eq!(public.status, Some(78), "{}", public.stderr);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let addr = taken.local_addr().expect("address").to_string();
    let occupied = Server::builder().args(["--admin", &addr]).run();
    assert_eq!(occupied.status, Some(69), "{}", occupied.stderr);
    assert!(occupied.stderr.contains("pid"), "it names the holder: {}", occupied.stderr);
}

#[test]
fn a_reload_that_cannot_have_its_address_or_token_changes_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let token = dir.path().join("token");
    write_token(&token, "first");
    let config = |admin: &str, token: &Path| {
        let token = token.display();
        let bind = "workers = 1\nbind = \"127.0.0.1:0\"\n";
        format!("{bind}admin = \"{admin}\"\nadmin-token-file = \"{token}\"\n")
    };
    let server = Server::builder().config(1, &config("127.0.0.1:0", &token)).start();
    let path = server.dir().join("prefork.toml");
    let admin = admin_address(&server);
    let pid = admin_pid(&server);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let occupied = taken.local_addr().expect("address").to_string();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("a FIFO");
    for broken in [
        config(&occupied, &token),
        config("127.0.0.1:0", &fifo),
        config("127.0.0.1:0", dir.path()),
        config("127.0.0.1:0", &dir.path().join("missing")),
    ] {
        std::fs::write(&path, &broken).expect("written");
        server.assert_verb_fails(&["reload"], 1);
        assert_eq!(status_with_token(&admin, "first"), 200, "{broken}");
        assert_eq!(admin_pid(&server), pid, "{broken}");
    }
    server.allow_errors(&["reload failed"]).stop();
}

#[test]
fn a_reload_changes_the_token_and_moves_the_listener() {
    let dir = tempfile::tempdir().expect("dir");
    let token = dir.path().join("token");
    write_token(&token, "first");
    let config = |admin: &str| {
        let bind = "workers = 1\nbind = \"127.0.0.1:0\"\n";
        format!("{bind}admin = \"{admin}\"\nadmin-token-file = \"{}\"\n", token.display())
    };
    let server = Server::builder().config(1, &config("127.0.0.1:0")).start();
    let path = server.dir().join("prefork.toml");
    let first = admin_address(&server);
    assert_eq!(status_with_token(&first, "first"), 200);
    write_token(&token, "second");
    server.run_verb(&["reload"]);
    // A request may still reach the old process, until it has stopped.
    wait::wait_until("the new token counts", || status_with_token(&first, "second") == 200);
    assert_eq!(status_with_token(&first, "first"), 401);
    std::fs::write(&path, config("[::1]:0")).expect("written");
    server.run_verb(&["reload"]);
    wait::wait_until("its old socket is closed", || Client::connect(&first).is_err());
    let second = admin_address(&server);
    assert!(second.to_string().starts_with("[::1]:"), "{second}");
    assert_eq!(status_with_token(&second, "second"), 200);
    server.stop();
}

#[test]
fn a_unix_socket_stays_over_reloads_upgrades_and_an_upgrade_that_fails() {
    let args = ["--admin", "unix:admin.sock?mode=0600"];
    let server = Server::builder().with_copied_program().workers(1).args(args).start();
    let admin = admin_address(&server);
    let Address::Unix(path) = &admin else { panic!("{admin}") };
    let mode = || std::fs::metadata(path).expect("its file").permissions().mode() & 0o777;
    let assert_served = |after: &str| {
        assert_eq!(get(&admin, "/livez").status, 200, "after {after}");
        assert_eq!(mode(), 0o600, "after {after}");
    };
    assert_served("the start");
    server.run_verb(&["reload"]);
    assert_served("a reload");
    for _ in 0..2 {
        server.run_verb(&["upgrade"]);
        assert_served("an upgrade");
    }
    let program = server.dir().join("program");
    std::fs::rename(&program, server.dir().join("good")).expect("moved");
    std::fs::write(&program, "#!/bin/false\n").expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
    server.assert_verb_fails(&["upgrade"], 1);
    assert_served("an upgrade that failed");
    let path = path.clone();
    server.allow_errors(&["upgrade failed"]).stop();
    assert!(!path.exists(), "removed at the stop");
}

#[test]
fn it_is_ready_during_reloads_and_upgrades() {
    let server =
        Server::builder().with_copied_program().workers(2).args(["--admin", "127.0.0.1:0"]).start();
    let admin = admin_address(&server);
    wait::wait_until("it is ready", || get(&admin, "/readyz").status == 200);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let polling = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for path in ["/readyz", "/livez"] {
                    match try_get(&admin, path, "") {
                        Ok(answer) => assert_eq!(answer.status, 200, "{path}: {}", answer.text()),
                        // Accepted by a process that then ended: a client asks again.
                        Err(Failure::Reset | Failure::Closed | Failure::ClosedEarly) => {}
                        Err(e) => panic!("{path}: {e:?}"),
                    }
                }
            }
        });
        for verb in ["reload", "upgrade", "reload", "upgrade"] {
            server.run_verb(&[verb]);
        }
        stop.store(true, Ordering::Relaxed);
        polling.join().expect("always ready");
    });
    server.stop();
}

#[test]
fn an_upgrade_adds_and_removes_it() {
    let config = |admin: &str| format!("workers = 1\nbind = \"127.0.0.1:0\"\n{admin}");
    let server = Server::builder().with_copied_program().config(1, &config("")).start();
    let path = server.dir().join("prefork.toml");
    std::fs::write(&path, config("admin = \"127.0.0.1:0\"\n")).expect("written");
    server.run_verb(&["upgrade"]);
    let admin = admin_address(&server);
    assert_eq!(get(&admin, "/livez").status, 200);
    let old = admin_pid(&server).expect("a process");
    std::fs::write(&path, config("")).expect("written");
    server.run_verb(&["upgrade"]);
    assert!(server.status()["admin"].is_null());
    wait::wait_until("its socket is closed", || Client::connect(&admin).is_err());
    wait::wait_until("its process has ended", || process::has_ended(old));
    server.stop();
}

#[test]
fn programs_without_http_and_those_with_worker_kinds_have_it() {
    for (program, args) in
        [("connections", &[][..]), ("worker-kinds", &["consumers=1"][..]), ("serve-http", &[][..])]
    {
        let builder = ProcessBuilder::program(program).args(["admin=127.0.0.1:0"]);
        let server = builder.other_workers(args.len()).args(args.iter().copied()).start();
        let admin = admin_address(&server);
        wait::wait_until(program, || get(&admin, "/readyz").status == 200);
        assert!(get(&admin, "/metrics").text().contains("prefork_workers"), "{program}");
        let workers = get(&admin, "/status").json()["workers"].as_array().map(Vec::len);
        assert_eq!(workers, server.status()["workers"].as_array().map(Vec::len), "{program}");
        server.stop();
    }
}

#[test]
fn its_process_runs_as_the_user_of_the_workers() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let args = ["--user", "65534", "--group", "65534", "--admin", "127.0.0.1:0"];
    let server = Server::builder().workers(1).args(args).start();
    let admin = admin_address(&server);
    assert_eq!(get(&admin, "/livez").status, 200);
    let pid = admin_pid(&server).expect("a process");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    process::send_signal(pid, Signal::SIGKILL);
    wait::wait_until("another process", || admin_pid(&server).is_some_and(|now| now != pid));
    assert_eq!(get(&admin, "/livez").status, 200);
    server.stop();
}
